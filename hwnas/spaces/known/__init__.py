"""Off-the-shelf networks by name, and the search spaces around them."""

from hwnas.spaces.known.names import known_names
from hwnas.spaces.known.spaces import KnownNetworks, MobileSpace, ResNetSpace

__all__ = ["KnownNetworks", "MobileSpace", "ResNetSpace", "known_names"]
