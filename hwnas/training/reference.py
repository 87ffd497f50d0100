"""The reference model whose representations similarity is measured against: a ResNet-20."""

from __future__ import annotations

import hashlib
import json

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.core import is_near_chance
from hwnas.data.images import Images
from hwnas.files import only_maker, read_torch, write_torch
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import Classifier, accuracy_and_chance, fit
from hwnas.training.recipe import Recipe


class _Block(nn.Module):
    """Two 3x3 convolutions; the shortcut drops pixels and pads channels where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.added = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(y + shortcut)


class ResNet20(nn.Module):
    """ResNet-20 for small images: three stages of three blocks at 16, 32, 64 channels.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.

    Source: He et al., Deep Residual Learning, CVPR 2016, section 4.2, shortcuts of option A.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        self.stages = nn.ModuleList(
            nn.Sequential(
                _Block(widths[stage], widths[stage + 1], stride=1 if stage == 0 else 2),
                _Block(widths[stage + 1], widths[stage + 1], stride=1),
                _Block(widths[stage + 1], widths[stage + 1], stride=1),
            )
            for stage in range(3)
        )
        self.classifier = nn.Linear(64, num_classes)

    def features(self, x_BCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Outputs of the three stages and the logits (B, classes)."""
        x = F.relu(self.norm(self.stem(x_BCHW)))
        taps = []
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        return taps, self.classifier(x.mean(dim=(2, 3)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        return self.features(x_BCHW)[1]


def reference_model(
    dataset: Images, recipe: Recipe, session: Session, *, seed: int, part: str = "train"
) -> Classifier:
    """A trained ResNet-20 for a data set: read from the store, or trained once and kept there.

    Args:
        dataset: Images.
        recipe: How to train; 0 epochs give an untrained reference.
        session: The folder of the store, and who is told where the model came from and warned if it is hardly
            better than a guess.
        seed: Seed of initialisation and training.
        part: What it is trained on: "train" or "all", every training image.
    """
    key = json.dumps([dataset.fingerprint(), dataset.valid_fraction, recipe.settings(), seed])
    augmentation = "-".join(map(str, dataset.augmentation.values()))
    others = {"split": (dataset.split_rule, "seeded"), "part": (part, "train")}
    augmentation += "".join(f"-{name}={value}" for name, (value, usual) in others.items() if value != usual)
    digest = hashlib.sha256((key + augmentation).encode()).hexdigest()[:12]
    path = session.folder / "references" / f"resnet20-{dataset.name}-{digest}.pt"
    trained = False
    if recipe.epochs and not path.is_file():
        with only_maker(path, session.announce):
            if not path.is_file():
                own = Session(path.parent, settings="evaluator.reference")
                module = fit(_new(dataset, seed), dataset, recipe, own, part=part, seed=seed)
                weights = module.network.state_dict()
                valid_acc, chance = accuracy_and_chance(module, dataset, "valid")
                write_torch(path, {"weights": weights, "valid_acc": valid_acc, "chance": chance})
                trained = True

    # A fresh model in any case, so that its features are the same bit for bit in every run.
    network = _new(dataset, seed)
    if recipe.epochs:
        advice = "; delete it to train the reference anew"
        stored = read_torch(path, "weights", "valid_acc", advice=advice)
        network.load_state_dict(stored["weights"])
        verb = "trained, kept in" if trained else "from"
        seen = part == "all" and not dataset.validates_on_test_images
        of = "accuracy on validation images that it was trained on, too," if seen else "validation accuracy"
        session.announce(f"reference ResNet-20 {verb} {path}: {of} {stored['valid_acc']:.2%}")
        chance = stored.get("chance", 1 / dataset.num_classes)  # the stores of older versions have none
        if is_near_chance(stored["valid_acc"], chance):
            session.warn(
                f"the reference answers {stored['valid_acc']:.1%} of the validation images right, a guess "
                f"{chance:.1%}: similarity to it says little; train it longer "
                f"(evaluator.reference.epochs={recipe.epochs}, .max_steps={recipe.max_steps}) or with "
                f"another evaluator.reference.lr ({recipe.lr:g})"
            )
    else:
        session.announce("reference ResNet-20 left untrained, as the recipe says (0 epochs)")
    return Classifier(network, *dataset.normalisation(), recipe, num_steps=0).eval()


def _new(dataset: Images, seed: int) -> ResNet20:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet20(dataset.image_shape[0], dataset.num_classes)
