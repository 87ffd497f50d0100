"""Find neural networks that are accurate and fit a device."""

__version__ = "0.1.0"
