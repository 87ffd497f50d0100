"""Training a Beta-VAE on MNIST against a plain loop over a DataLoader; `make bench` prints the figures."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder
from hwnas.data.images import Images
from hwnas.files import data_folder
from hwnas.pruning.beta_vae import BetaVAE, BetaVAERecipe, Steps, divergence, train
from hwnas.training.checkpoint import Session

pytestmark = pytest.mark.benchmark

BATCH_SIZE = 256


@pytest.fixture(scope="module")
def mnist() -> Images:
    if not (data_folder() / "mnist.npz").is_file():
        pytest.skip(f"{data_folder()} has no mnist.npz")
    config = OmegaConf.load(conf_folder() / "dataset" / "mnist.yaml")
    config.crop = 0
    return build(config)


def network() -> BetaVAE:
    torch.manual_seed(0)
    settings = build(OmegaConf.load(conf_folder() / "model" / "beta_vae_mnist.yaml"))
    return settings.network((1, 28, 28), 10)


def plain_loop(net: BetaVAE, x: torch.Tensor, y: torch.Tensor) -> float:
    """What one writes first: a DataLoader over a TensorDataset, 32 bits, Adam."""
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=BATCH_SIZE, shuffle=True, drop_last=True
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loss = torch.zeros(())
    for x_BCHW, y_B in loader:
        mean, log_variance, decoded, logits = net(x_BCHW)
        assert decoded is not None
        assert log_variance is not None
        recon = F.binary_cross_entropy_with_logits(decoded, x_BCHW, reduction="sum") / len(x_BCHW)
        kl = divergence(mean, log_variance).sum(1).mean()
        loss = recon + kl + 100 * F.cross_entropy(logits, y_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.slow
def test_an_epoch_of_mnist(mnist: Images, tmp_path: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    """60,000 images at the settings of `beta_vae_mnist_small`; without --benchmark-enable, a tenth."""
    batches = mnist.batches("all", batch_size=BATCH_SIZE, seed=0)
    num_steps = None if benchmark.enabled else 23
    training = BetaVAERecipe(epochs=1, batch_size=BATCH_SIZE, lr=1e-3, weight_decay=0.0, precision="bf16")

    def epoch() -> BetaVAE:
        net = network()
        train(net, batches, training, Session(tmp_path), seed=0, steps=Steps(num_steps))
        return net

    net = benchmark.pedantic(epoch, rounds=3, warmup_rounds=int(benchmark.enabled))
    assert not net.training
    if benchmark.enabled:
        plain = network()
        start = time.perf_counter()
        plain_loop(plain, batches.x, batches.y)
        seconds = time.perf_counter() - start
        median = benchmark.stats.stats.median
        print(
            f"\nepoch of a Beta-VAE on MNIST ({len(batches.x)} images, {torch.get_num_threads()} threads): "
            f"{median:.1f} s, {seconds / median:.2f} times faster than a plain loop ({seconds:.1f} s)"
        )


@pytest.mark.slow
def test_memory_of_an_epoch_of_mnist(mnist: Images, tmp_path: Path) -> None:
    """All of MNIST as tensors and a training, in a process of its own, below 2 GB."""
    code = (
        "import sys, resource; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "import test_prune_speed as t; from hwnas.pruning.beta_vae import Steps, BetaVAERecipe, train;"
        "from hwnas.training.checkpoint import Session;"
        "from omegaconf import OmegaConf; from hwnas.build import build, conf_folder;"
        "data = build(OmegaConf.load(conf_folder() / 'dataset' / 'mnist.yaml'));"
        "train(t.network(), data.batches('all', batch_size=256), BetaVAERecipe(1, 256, 1e-3, 0.0, 'bf16'),"
        " Session(Path(sys.argv[2])), seed=0, steps=Steps(20));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    kilobytes = int(done.stdout.split()[-1])
    print(f"\nBeta-VAE on MNIST: {kilobytes / 1e6:.2f} GB")
    assert kilobytes < 2e6
