"""One pruning run: a Beta-VAE trained, pruned step by step, fine-tuned and measured."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, cast

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from hwnas.build import build
from hwnas.core import Count, Positive, Seed, check_setting, suggestion
from hwnas.data.images import Images, check_batch
from hwnas.data.shapes import Shapes
from hwnas.devices.onnx_models import PACKAGES, require_onnx
from hwnas.files import (
    append,
    find_file,
    parse_json,
    read_torch,
    remove,
    replacing,
    shaped,
    to_json,
    write_bytes,
    write_csv,
    write_text,
    write_torch,
)
from hwnas.pruning import masks
from hwnas.pruning.beta_vae import (
    BetaVAE,
    Deployed,
    Steps,
    accuracy,
    codes,
    identity_of,
    load,
    train,
)
from hwnas.pruning.disentanglement import dci, kl_per_dimension, mig, proxies, sap
from hwnas.pruning.report import write_study
from hwnas.pruning.study import retained_area, trained_enough
from hwnas.pruning.surgery import Costs, costs, export_onnx, latency_ms, smaller
from hwnas.runs.display import Display
from hwnas.runs.folder import STORE, choices
from hwnas.runs.tracking import Tracker
from hwnas.training.checkpoint import Session
from hwnas.training.progress import progress

WEIGHTS = "weights.pt"
"""File of the trained network, in the run's folder."""

KEPT = "network/pruned.pt"
"""File of the network that is kept."""

CURVE, NETWORKS = "curve.jsonl", "networks"
"""Journal of an unfinished run's curve, a row per sparsity, and the folder of the networks it stands for."""

POINT = 0.01
"""Loss of accuracy that is put up with, where a limit does not say how far to prune."""

LIMITS = ("params", "flops", "latency_ms")


def _returned(result: Mapping[str, object], *, swept: bool) -> float:
    """The area, for sweepers; -inf, an exit code of 1, for a run alone whose limits nothing keeps."""
    return -math.inf if result["chosen"] is None and not swept else cast(float, result["area"])


def _leave(folder: Path, display: Display, *, swept: bool) -> None:
    """Remove what a finished run needs no more, and draw its page, if an earlier session has not."""
    for name in ("checkpoint.pt", CURVE):
        remove(folder / name)
    if (folder / KEPT).is_file():
        shutil.rmtree(folder / NETWORKS, ignore_errors=True)
    if not swept and not (folder / "report.html").is_file():
        display.say(f"report: {write_study(folder)[0]}")


class Row(Costs):
    """A network of the curve: what it was pruned to, what is left of it, what it costs, and its file."""

    target: float
    sparsity: float
    zeros: int
    weights: int
    val_acc: float
    test_acc: float
    one_shot_test_acc: float
    channels: list[int]
    hidden: int
    kept_one: list[str]
    sha256: str | None
    seconds: float
    latency_ms: NotRequired[float]
    unpruned_latency_ms: NotRequired[float]


def _figures(row: Row) -> dict[str, float]:
    """The numbers of a row."""
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


class _Run:
    """One trained network and its pruned ones; checks everything a user wrote before any work starts."""

    def __init__(self, cfg: DictConfig, folder: Path, display: Display) -> None:
        import torch

        self.folder, self.display = folder, display
        self.seed = check_setting("seed", Seed, cfg.seed)
        self.settings, self.training, self.pruning = map(build, (cfg.model, cfg.training, cfg.pruning))
        name = choices(folder)["dataset"]
        if name == "imagenet":  # before its settings are looked at: an experiment may set those of others
            raise ValueError(
                "hwnas prune holds all images in memory and does not read them one by one, so not "
                "dataset=imagenet; choose cifar10, mnist or another, or your own: dataset=folder or npz"
            )
        told = {"announce": display.say, "warn": display.doubt}
        self.dataset = build(cfg.dataset, store_dir=Path(STORE), **told)
        if not isinstance(self.dataset, Images) or self.dataset.num_classes < 2:
            raise ValueError(
                f"dataset={name} has no labelled images in memory; a Beta-VAE that classifies needs images "
                "of at least two classes"
            )
        self.limits = limits(cfg.limits)
        self.host = {
            key: check_setting(f"host.{key}", Count, OmegaConf.select(cfg, f"host.{key}"))
            for key in ("batch_size", "threads", "rounds")
        }
        self.onnx = check_setting("onnx", bool, cfg.onnx)
        if self.onnx:
            require_onnx(*PACKAGES)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = self.settings.network(self.dataset.image_shape, self.dataset.num_classes)
        self.checkpoint = None if cfg.checkpoint is None else find_file(str(cfg.checkpoint))
        if self.checkpoint is not None:
            load(self.network, self.checkpoint)
        check_batch("training.batch_size", self.training.batch_size, self.dataset.size("train"))
        self.batches = self.dataset.batches("train", batch_size=self.training.batch_size, seed=self.seed)
        self.parts = {part: self.dataset.split(part) for part in ("valid", "test")}

    def everything(self, tracker: Tracker) -> dict[str, object]:
        """Train, prune, measure, draw; what result.json says of it."""
        history = self.train()
        trained = self.read_out()
        self.display.say(
            f"trained: test accuracy {trained['test_acc']:.2%}, KL {trained['kl']:.1f} nats, "
            f"{trained['active_units']:.0f} active units"
        )
        classes = self.dataset.num_classes
        enough = trained_enough(trained["val_acc"], classes)
        if not enough:
            self.display.warn(
                f"the unpruned network has a validation accuracy of {trained['val_acc']:.2%} on {classes} "
                "classes, nearer to chance than to perfect: what pruning costs it says little; raise "
                "training.epochs or training.lr"
            )
        curve = self.prune(tracker)
        chosen = choose(curve, self.limits)
        kept = None if chosen is None else self.keep(chosen)
        pictures = draw(self.network, self.parts["test"][0], self.folder / "pictures")
        targets, accuracies = ([row[name] for row in curve] for name in ("target", "test_acc"))
        read_outs = {
            "area": area(targets, accuracies),
            "retained_area": retained_area(targets, accuracies),
            "sparsity_at_1_percent": sparsity_at_loss(targets, accuracies, POINT),
        }
        self.say(curve, chosen, read_outs, enough)
        tracker.summary({**read_outs, "trained": trained, "chosen": chosen})
        tracker.pictures({path.stem: path for path in pictures})
        return {
            **read_outs,
            "kind": self.settings.kind,
            "num_classes": classes,
            "curve": curve,
            "trained": trained,
            "history": history,
            "limits": self.limits,
            "chosen": chosen,
            "network": kept,
            "pictures": [str(path.relative_to(self.folder)) for path in pictures],
        }

    def train(self) -> list[dict[str, float]]:
        """Train the network, or take what is there; returns the figures per epoch."""
        path = self.folder / WEIGHTS
        if path.is_file():  # of an earlier session of this run
            try:
                stored = read_torch(path)
            except ValueError as error:
                self.display.warn(f"{error}; the network is trained again")
                remove(path)
                remove(self.folder / CURVE)  # its rows are of those weights
            else:
                load(self.network, path)
                self.network.eval()
                return list(stored["history"])
        history: list[dict[str, float]] = []
        if self.checkpoint is not None:
            self.display.say(f"weights of {self.checkpoint}")
            self.network.eval()
        else:
            what = f"{self.settings.kind}, beta {self.settings.beta:g}, on {self.dataset.name}"
            self.display.say(f"training a {what}, seed {self.seed}")

            def on_epoch(figures: dict[str, float]) -> None:
                epochs = self.training.epochs
                if figures["epoch"] % max(1, epochs // 10) == 0:
                    self.display.say(
                        f"  epoch {figures['epoch']}/{epochs}  loss {figures['loss']:.2f}  reconstruction "
                        f"{figures['reconstruction']:.2f}  KL {figures['kl']:.2f}  "
                        f"training accuracy {figures['train_acc']:.2%}"
                    )

            with self.display.phase("training", "training"):
                session = Session(
                    self.folder,
                    identity_of(self.settings, self.training, self.dataset, self.seed, "train"),
                    on_epoch=on_epoch,
                    announce=self.display.say,
                )
                history = train(self.network, self.batches, self.training, session, seed=self.seed)
        write_torch(path, {"network": self.network.state_dict(), "history": history})
        return history

    def read_out(self) -> dict[str, Any]:
        """Figures of the trained network: accuracies, proxies, scores where factors are known."""
        means, log_variances = codes(self.network, self.parts["test"][0])
        mean = means.double().numpy()
        log_variance = None if log_variances is None else log_variances.double().numpy()
        with_labels: dict[str, float] = {}
        if isinstance(self.dataset, Shapes) and mean.shape[1] > 1:
            factors = self.dataset.test_factors()
            with_labels = {
                "mig": mig(mean, factors),
                "sap": sap(mean, factors, self.dataset.categorical),
                **dci(mean, factors),
            }
        deployed = self.network.deployed
        return {
            "val_acc": accuracy(deployed, *self.parts["valid"]),
            "test_acc": accuracy(deployed, *self.parts["test"]),
            **proxies(mean, log_variance),
            "kl_per_dimension": kl_per_dimension(mean, log_variance).tolist(),
            **with_labels,
            "weight_norm": sum(
                float(w.weight.detach().double().square().sum()) for w in deployed.layers().values()
            )
            ** 0.5,
        }

    def prune(self, tracker: Tracker) -> list[Row]:
        """The curve: a row per sparsity. Rows of an earlier session of the run are read.

        All networks are timed at the end, in turns: times of different sessions cannot be compared.
        """
        path = self.folder / CURVE
        curve = _rows(path)
        (self.folder / NETWORKS).mkdir(exist_ok=True)
        for index, row in enumerate(curve):
            if row.get("sha256") != _digest(self.network_file(row["target"])):
                self.display.warn(
                    f"the network of sparsity {row['target']:g} is damaged or lost; it is pruned again"
                )
                del curve[index:]
                write_text(path, "".join(to_json(row) + "\n" for row in curve))
                break
        with self.display.phase("pruning", "pruning"):
            for index, target in enumerate(self.pruning.sparsities):
                if index < len(curve):
                    row, replayed = curve[index], True
                else:
                    row, replayed = self.pruned(target), False
                    append(path, (to_json(row) + "\n").encode())
                    curve.append(row)
                tracker.log(
                    index,
                    {key: value for key, value in row.items() if isinstance(value, float)},
                    replayed=replayed,
                )
                progress("sparsities", len(curve), len(self.pruning.sparsities))
            dense = self.network.deployed
            pruned = [_deployed(self.network_file(row["target"])) for row in curve]
            # Zeros save no time: networks of one shape are the same work, and are timed once.
            shapes = {json.dumps(network.arguments): network for network in [dense, *pruned]}
            times = dict(zip(shapes, latency_ms(list(shapes.values()), **self.host), strict=True))
        return [
            {
                **row,
                "latency_ms": times[json.dumps(network.arguments)],
                "unpruned_latency_ms": times[json.dumps(dense.arguments)],
            }
            for row, network in zip(curve, pruned, strict=True)
        ]

    def network_file(self, target: float) -> Path:
        """Where the network that is pruned to a sparsity lies until one is chosen."""
        return self.folder / NETWORKS / f"{target:g}.pt"

    def pruned(self, target: float) -> Row:
        """Prune the trained network to a sparsity, train on, measure; the network goes to networks/."""
        pruning, start = self.pruning, time.perf_counter()
        network = copy.deepcopy(self.network)
        deployed = network.deployed
        x, y = (values[: pruning.num_images] for values in self.dataset.split("train"))

        def prune_to(sparsity: float) -> list[str]:
            was_training = network.training
            network.eval()
            values = masks.scores(deployed, pruning, x, y, seed=self.seed)
            found, emptied = masks.masks(deployed, pruning, values, sparsity)
            masks.apply(deployed, found)
            network.train(was_training)
            return emptied

        prune_to(target)
        one_shot = accuracy(deployed, *self.parts["test"])

        network = copy.deepcopy(self.network)
        deployed = network.deployed
        rises, num_steps = pruning.plan(target, len(self.batches))
        emptied = prune_to(rises[0])

        def before_step(step: int) -> None:
            nonlocal emptied
            if step and step in rises:
                emptied = prune_to(rises[step])

        if num_steps:
            train(
                network,
                self.batches,
                dataclasses.replace(self.training, lr=pruning.lr),
                Session(self.folder),
                seed=self.seed,
                steps=Steps(num_steps, self.training.epochs, before_step),
            )
        masks.make_permanent(deployed)
        if emptied:
            kept = "filter" if pruning.structure == "filters" else "weight"
            self.display.warn(
                f"sparsity {target:g} would leave nothing of {', '.join(emptied)}; one {kept} of each is kept"
            )
        num_zeros, num_weights = masks.zeros(deployed)
        small = smaller(deployed) if pruning.structure == "filters" else deployed
        path = self.network_file(target)
        write_torch(path, {"arguments": small.arguments, "network": small.state_dict()})
        row: Row = {
            "target": float(target),
            "sparsity": num_zeros / num_weights,
            "zeros": num_zeros,
            "weights": num_weights,
            "val_acc": accuracy(small, *self.parts["valid"]),
            "test_acc": accuracy(small, *self.parts["test"]),
            "one_shot_test_acc": one_shot,
            **costs(small),
            "channels": small.arguments["channels"],
            "hidden": small.arguments["hidden"],
            "kept_one": emptied,
            "sha256": _digest(path),
            "seconds": time.perf_counter() - start,
        }
        self.display.say(
            f"  sparsity {row['sparsity']:.2%}: test accuracy {row['test_acc']:.2%} (one shot "
            f"{one_shot:.2%}), {row['params']:.0f} parameters"
        )
        return row

    def keep(self, chosen: Row) -> dict[str, object]:
        """Put the chosen network into network/, as ONNX too if asked."""
        path = self.folder / KEPT
        write_bytes(path, self.network_file(chosen["target"]).read_bytes())
        kept: dict[str, object] = {
            "weights": str(path.relative_to(self.folder)),
            "file_bytes": path.stat().st_size,
        }
        if self.onnx:
            target = path.with_name("pruned.onnx")
            difference = export_onnx(_deployed(path), target, self.parts["test"][0][:100])
            kept |= {
                "onnx": str(target.relative_to(self.folder)),
                "onnx_bytes": target.stat().st_size,
                "onnx_difference": difference,
            }
            self.display.say(
                f"{target}: {kept['onnx_bytes']} bytes, logits within {difference:.1e} of torch's"
            )
        return kept

    def say(
        self,
        curve: Sequence[Row],
        chosen: Row | None,
        read_outs: Mapping[str, float | None],
        enough: bool,
    ) -> None:
        """The answer in the terminal, with a reserve unless it is trained enough; the curve as a file."""
        names = list(_figures(curve[0]))
        rows = ([_figures(row)[name] for name in names] for row in curve)
        write_csv(self.folder / "curve.csv", [names, *rows])
        at = read_outs["sparsity_at_1_percent"]
        self.display.say(
            f"area under the curve {read_outs['area']:.4f}, retained area {read_outs['retained_area']:.4f}, "
            "sparsity at a loss of 1 point " + ("beyond the last one" if at is None else f"{at:.3f}")
        )
        if chosen is None:
            near = _figures(min(curve, key=lambda row: _excess(row, self.limits)))
            self.display.warn(
                f"no sparsity keeps limits {' and '.join(f'{k}={v:g}' for k, v in self.limits.items())}; the "
                f"closest is {near['target']:g}: " + ", ".join(f"{k} {near[k]:.4g}" for k in self.limits)
            )
        else:
            why = (
                "within the limits" if self.limits else "of a loss of at most a point of validation accuracy"
            )
            self.display.say(
                f"kept{'' if enough else ', of a network that is hardly trained'}: sparsity "
                f"{chosen['target']:g}, the "
                f"{'most accurate' if self.limits else 'sparsest'} {why}: test accuracy "
                f"{chosen['test_acc']:.2%}, {chosen['params']:.0f} parameters, {chosen['flops']:.0f} "
                f"multiply-adds, {chosen['latency_ms']:.3f} ms (unpruned {chosen['unpruned_latency_ms']:.3f})"
            )


def limits(given: object) -> dict[str, float]:
    """The limits of a configuration; null means none.

    Raises:
        ValueError: A metric that is not measured, or a bound that is not above 0.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping | DictConfig):
        raise ValueError(f"limits takes metrics, e.g. limits.params=100000, not limits={given}")
    for name in given:
        if name not in LIMITS:
            raise ValueError(f"limits.{name} is not measured{suggestion(str(name), LIMITS)}")
    return {
        str(k): float(check_setting(f"limits.{k}", Positive, v)) for k, v in given.items() if v is not None
    }


def choose(curve: Sequence[Row], bounds: Mapping[str, float]) -> Row | None:
    """The row to keep: with limits the best validation accuracy within them, else the sparsest that is good.

    Good is a validation accuracy of at most a point below the least sparse row's.

    Args:
        curve: Rows by rising sparsity.
        bounds: At most, per metric.

    Returns:
        None if no row keeps the limits.
    """
    if bounds:
        within = [row for row in curve if _excess(row, bounds) == 0]
        return max(within, key=lambda row: row["val_acc"], default=None)
    return [row for row in curve if row["val_acc"] >= curve[0]["val_acc"] - POINT][-1]


def _excess(row: Row, bounds: Mapping[str, float]) -> float:
    """By how much a row breaks limits, relative, summed."""
    return sum(max(0.0, _figures(row)[name] - bound) / bound for name, bound in bounds.items())


def area(sparsities: Sequence[float], accuracies: Sequence[float]) -> float:
    """Mean accuracy over the range of sparsities, between them by lines; the only one, for a single point."""
    import numpy as np

    if len(sparsities) == 1:
        return float(accuracies[0])
    return float(np.trapezoid(accuracies, sparsities) / (sparsities[-1] - sparsities[0]))


def sparsity_at_loss(sparsities: Sequence[float], accuracies: Sequence[float], loss: float) -> float | None:
    """Where the accuracy first falls by `loss` below the first one, linear between points; None: nowhere."""
    bound = accuracies[0] - loss
    for i in range(1, len(sparsities)):
        if accuracies[i] < bound:
            share = (accuracies[i - 1] - bound) / (accuracies[i - 1] - accuracies[i])
            return float(sparsities[i - 1] + share * (sparsities[i] - sparsities[i - 1]))
    return None


def draw(network: BetaVAE, x_NCHW: Tensor, folder: Path, num: int = 10) -> list[Path]:
    """Reconstructions of the first images, and traversals of the code, as PNG; none without a decoder.

    A row of traversals shows one dimension from -3 to 3, the others as in the first image; those with the
    most KL come first.

    Args:
        network: A Beta-VAE in evaluation mode.
        x_NCHW: Images.
        folder: Created if needed.
        num: Images, and at most so many dimensions.
    """
    import torch
    from torchvision.utils import save_image

    if network.decoder is None:
        return []
    x = x_NCHW[:num]
    paths = [folder / "reconstructions.png", folder / "traversals.png"]
    with torch.inference_mode():
        means, log_variances = codes(network, x_NCHW[:1000])
        reconstructions = torch.cat([x, network.pixels(means[:num])])
        kl = kl_per_dimension(
            means.double().numpy(), None if log_variances is None else log_variances.double().numpy()
        )
        shown = (-kl).argsort(kind="stable")[:num].tolist()
        code = means[0].repeat(len(shown), num, 1)
        for row, dimension in enumerate(shown):
            code[row, :, dimension] = torch.linspace(-3, 3, num)
        traversals = network.pixels(code.flatten(0, 1))
    for path, images, per_row in zip(paths, (reconstructions, traversals), (len(x), num), strict=True):
        with replacing(path) as partial:
            save_image(images, partial, format="png", nrow=per_row)
    return paths


def _deployed(path: Path) -> Deployed:
    """The network in a file, in evaluation mode."""
    stored = read_torch(path)
    network = Deployed(**stored["arguments"])
    network.load_state_dict(stored["network"])
    return network.eval()


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None if it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _rows(path: Path) -> list[Row]:
    """Rows of the journal up to the first that was cut off or damaged; what follows is taken away."""
    if not path.is_file():
        return []
    data, size = path.read_bytes(), 0
    rows: list[Row] = []
    for line in data.splitlines(keepends=True):
        try:
            row = parse_json(line)
            shaped(row, {"target": float, "sparsity": float, "val_acc": float, "sha256?": str})
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        rows.append(row)
        size += len(line)
    if size < len(data):
        write_bytes(path, data[:size])
    return rows
