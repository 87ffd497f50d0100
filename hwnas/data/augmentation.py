"""Random changes of whole batches of images that a recipe asks for; every image has draws of its own.

Shapes: B images, C channels, H height, W width. Draws come from a NumPy generator, so that every device gets
the same ones.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def moved(x_BCHW: Tensor, rng: np.random.Generator, *, shift: float, rotate: float, scale: float) -> Tensor:
    """Images turned, enlarged and shifted about their centre, bilinear; what comes in from outside is black.

    Args:
        x_BCHW: Images in 0..1.
        rng: Source of randomness.
        shift: Largest shift as a fraction of the side, drawn for height and width.
        rotate: Largest angle in degrees, either way.
        scale: Largest enlargement and reduction, e.g. 0.1 for 0.9 to 1.1 times the size.
    """
    B, _, H, W = x_BCHW.shape
    angle = np.deg2rad(rng.uniform(-rotate, rotate, B))
    size = rng.uniform(1 - scale, 1 + scale, B)
    shifts = rng.uniform(-2 * shift, 2 * shift, (B, 2))  # grids span -1..1
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    theta = np.empty((B, 2, 3), dtype=np.float32)  # from places in the new image to places in the old one
    theta[:, 0, 0], theta[:, 0, 1] = cos, sin * H / W
    theta[:, 1, 0], theta[:, 1, 1] = -sin * W / H, cos
    theta[:, :, 2] = -(theta[:, :, :2] @ shifts[:, :, None])[:, :, 0]
    grid = F.affine_grid(torch.from_numpy(theta), [B, 1, H, W], align_corners=False)
    return F.grid_sample(x_BCHW, grid.to(x_BCHW.device, non_blocking=True), align_corners=False)


def recoloured(x_BCHW: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    """Images of other brightness, contrast and, with three channels, saturation.

    Each is a factor of 1 - strength to 1 + strength: of the pixels, of their distance to the image's mean,
    and of their distance to the pixel's grey.

    Args:
        x_BCHW: Images in 0..1; so are the answers.
        rng: Source of randomness.
        strength: In 0..1.
    """
    factors = rng.uniform(1 - strength, 1 + strength, (3, len(x_BCHW), 1, 1, 1)).astype(np.float32)
    brightness, contrast, saturation = torch.from_numpy(factors).to(x_BCHW.device, non_blocking=True)
    x = x_BCHW * brightness
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * contrast
    if x.shape[1] == 3:
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * saturation
    return x.clamp(0, 1)


def mixed(
    x_BCHW: Tensor, rng: np.random.Generator, *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor, float]:
    """Images mixed with others of the batch; the rows of those (B,); the weight of the images' own labels.

    The weight w is drawn from Beta(alpha, alpha) for the batch. `mixup`: w of the image, 1 - w of the other.
    `cutmix`: a rectangle of 1 - w of the image's area, at a random place and cut at its borders, is the other
    image's; w is then the fraction that remains.

    Args:
        x_BCHW: Images.
        rng: Source of randomness.
        mixup: Alpha of mixup; 0: only cutmix.
        cutmix: Alpha of cutmix; 0: only mixup. With both above 0 each batch has one of them, by a coin.

    Source: mixup, Zhang et al., ICLR 2018; CutMix, Yun et al., ICCV 2019.
    """
    others = torch.from_numpy(rng.permutation(len(x_BCHW))).to(x_BCHW.device, non_blocking=True)
    coin = rng.random()
    if mixup and (not cutmix or coin < 0.5):
        weight = float(rng.beta(mixup, mixup))
        return torch.lerp(x_BCHW[others], x_BCHW, weight), others, weight
    H, W = x_BCHW.shape[2:]
    side = np.sqrt(1 - rng.beta(cutmix, cutmix))
    (top, bottom), (left, right) = (
        np.clip([centre - round(side * n) // 2, centre - round(side * n) // 2 + round(side * n)], 0, n)
        for n, centre in ((H, rng.integers(H)), (W, rng.integers(W)))
    )
    x = x_BCHW.clone(memory_format=torch.preserve_format)
    x[:, :, top:bottom, left:right] = x_BCHW[others, :, top:bottom, left:right]
    return x, others, 1 - float((bottom - top) * (right - left)) / (H * W)
