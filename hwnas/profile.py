"""`hwnas profile`: a device as a file of costs per operation."""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import DictConfig

from hwnas.config import build, suggestion
from hwnas.core import Evaluator, SearchSpace, whole_number
from hwnas.devices.profile import fit, network_shape
from hwnas.devices.table import CostTable

ACTIONS = ("fit",)


def main(cfg: DictConfig) -> None:
    """The command: fit a profile to the device's table, write it, say how well it predicts.

    Raises:
        ValueError: An unknown action, a device without a table, or too few networks.
    """
    from hydra.core.hydra_config import HydraConfig

    from hwnas.display import Display

    display = Display()
    if cfg.action not in ACTIONS:
        raise ValueError(f"action={cfg.action} is not known{suggestion(str(cfg.action), ACTIONS)}")
    if cfg.to is not None and not isinstance(cfg.to, str):
        raise ValueError(f"to must be a file, not {cfg.to!r}")
    dataset = build(cfg.dataset)
    space: SearchSpace = build(
        cfg.search_space, SearchSpace, image_shape=dataset.image_shape, num_classes=dataset.num_classes
    )
    device = build(cfg.device, Evaluator, space=space, dataset=dataset, announce=display.say)
    if not isinstance(device, CostTable):
        chosen = HydraConfig.get().runtime.choices["device"]
        raise ValueError(f"device={chosen} has no table of measured networks to fit to")
    profile = fit(
        space,
        device.genotypes,
        device.columns,
        device=device.name,
        fraction=cfg.fraction,
        seed=whole_number("seed", cfg.seed, least=0),
        network=network_shape(space, 1) if hasattr(space, "network") else {},
        origin={"table": device.source.name, "dataset": dataset.name, "fitted": time.strftime("%Y-%m-%d")},
    )
    path = Path(cfg.to or Path(HydraConfig.get().runtime.output_dir) / "profile.json").expanduser()
    profile.save(path)
    display.say(profile.summary())
    display.say(f"profile: {path}")
    display.say(f"next: hwnas search device=profile device.path={path}")
