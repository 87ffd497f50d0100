"""A trained network that teaches another one: its folder, checked and read.

Source of distillation: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531; answers
on the same changed images: Beyer et al., Knowledge distillation: a good teacher is patient and consistent,
CVPR 2022.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from hwnas.build import build, conf_folder, read_config
from hwnas.core import Genotype
from hwnas.files import read_json, read_torch, shaped
from hwnas.spaces.capabilities import SIZES, HasNetworks
from hwnas.spaces.known import KnownNetworks, known_names

if TYPE_CHECKING:
    from torch import Tensor, nn

SHAPE = {
    "arch": str,
    "search_space": str,
    "genotype": [int],
    "image_shape": [int],
    "num_classes": int,
    "mean": [float],
    "std": [float],
}
"""Shape of the part of architecture.json that is read here, for `files.shaped`."""


@dataclass(frozen=True)
class Teacher:
    """The files of a trained network: `network/` of a search or a training, or the folder around it.

    Attributes:
        folder: The folder with weights.pt and architecture.json.
        facts: The content of architecture.json.
    """

    folder: Path
    facts: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.folder / "weights.pt"

    @property
    def digest(self) -> str:
        """A hash of the weights."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()[:16]

    def network(self) -> nn.Module:
        """The network with its weights, in evaluation mode, its parameters fixed.

        Raises:
            ValueError: A space that cannot be built here, or weights of another network.
        """
        space, genotype = self._space()
        network = space.network(space.check(genotype))
        weights = read_torch(self.weights)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{self.weights} are not of this network: {reason[:200]}") from None
        return network.eval().requires_grad_(requires_grad=False)

    def _space(self) -> tuple[HasNetworks, Genotype]:
        """Its space, in its size, and its architecture there."""
        facts = self.facts
        shape = {"image_shape": tuple(facts["image_shape"]), "num_classes": facts["num_classes"]}
        if facts["arch"] in known_names():  # it may have done better than the best network of a search
            return KnownNetworks([facts["arch"]], **shape), (0,)
        name, packaged = facts["search_space"], conf_folder() / "search_space"
        run = self.folder.parent / ".hydra" / "config.yaml"
        if run.is_file():
            config = read_config(run).search_space
        elif (packaged / f"{name}.yaml").is_file():
            config = read_config(packaged / f"{name}.yaml")
        else:
            raise ValueError(f"trainer.teacher={self.folder}: {run} is missing, which says what {name} is")
        sizes = {size: facts[size] for size in SIZES if size in facts and size in config}
        space = build(OmegaConf.merge(config, sizes), HasNetworks, "search_space", **shape)
        return space, tuple(facts["genotype"])

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of its training images, each (C, 1, 1)."""
        import torch

        mean, std = (torch.tensor(self.facts[name]).view(-1, 1, 1) for name in ("mean", "std"))
        return mean, std


def teacher_in(folder: str, image_shape: tuple[int, ...], num_classes: int | None = None) -> Teacher:
    """The teacher in a folder.

    Args:
        folder: The value of `trainer.teacher`.
        image_shape: (channels, height, width) of the images that are learnt.
        num_classes: Their number of classes; None: not checked.

    Raises:
        ValueError: No trained network there, or one of other images or classes.
    """
    given = Path(folder).expanduser()
    path = given / "network" if (given / "network" / "architecture.json").is_file() else given
    described = path / "architecture.json"
    if not described.is_file() or not (path / "weights.pt").is_file():
        raise ValueError(
            f"trainer.teacher={folder} must be the folder of a trained network, with weights.pt and "
            "architecture.json, e.g. of hwnas train"
        )
    facts = read_json(described, "is damaged")
    try:
        shaped(facts, SHAPE)
    except ValueError as error:
        raise ValueError(f"{described} is damaged ({error})") from None
    for name, its, ours in (
        ("image_shape", tuple(facts["image_shape"]), tuple(image_shape)),
        ("num_classes", facts["num_classes"], num_classes),
    ):
        if ours is not None and its != ours:
            raise ValueError(f"trainer.teacher={folder} learnt images of {name}={its}, not {ours}")
    return Teacher(path, facts)
