"""What chance decides in training, as a function of the seed and the image's position in the run.

The k-th image of a run meets the same noise, noise level and patches whatever the number of
processes, the size of the batch, and wherever the run was resumed. So no generator's state is kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from legodiff.config import TrainConfig
from legodiff.model.patches import PatchSample, sample_patches
from legodiff.model.spec import StackSpec
from legodiff.noise import ddpm_table_sigmas, lognormal_sigmas, uniform

BLOCK = 16  # images that share a generator: making one for each would cost more than the numbers


class Draw(NamedTuple):
    """What chance decided about B images."""

    noise: Tensor
    """Standard normal (B, C, H, W)."""
    sigma: Tensor
    """(B,), from the distribution of the objective."""
    uniform: Tensor
    """(B,) in [0, 1]: whether the image loses its label."""
    samples: list[PatchSample | None]
    """For each brick the patches it trains on."""
    fill: Tensor | None
    """Standard normal (B, C, H, W) where the fill is noise."""


def draw(
    positions: range, seed: int, spec: StackSpec, settings: TrainConfig, device: torch.device
) -> Draw:
    """What chance decides about the images at these positions of the run."""
    size = spec.image_size
    image = (spec.channels, *size)
    ratios = spec.patch_ratios(settings.ratio(spec))
    counts = [
        (count if share < 1 else 0,)
        for count, share in zip(spec.patch_counts(size), ratios, strict=True)
    ]
    fill = image if settings.fill == "noise" else (0,)
    noise, pair, fills, *scores = normals(positions, [image, (2,), fill, *counts], seed, device)
    if spec.objective == "edm":
        sigma = lognormal_sigmas(pair[:, 0], settings.sigma_mean, settings.sigma_std)
    else:
        sigma = ddpm_table_sigmas(pair[:, 0])
    return Draw(
        noise=noise,
        sigma=sigma,
        uniform=uniform(pair[:, 1]),
        samples=sample_patches(spec, ratios, scores, size),
        fill=fills if settings.fill == "noise" else None,
    )


def draw_bricks(images: int, seed: int, count: int, dropout: float) -> tuple[int, ...]:
    """The bricks that run in the step that begins at ``images`` seen: at least one of ``count``.

    Each is left out with probability ``dropout``; a draw that leaves none is drawn again.
    """
    rng = np.random.default_rng([seed, images, 0xB])
    kept = np.zeros(count, bool)
    while not kept.any():
        kept = rng.random(count) >= dropout
    return tuple(int(brick) for brick in np.flatnonzero(kept))


def normals(
    positions: range, shapes: Sequence[tuple[int, ...]], seed: int, device: torch.device
) -> list[Tensor]:
    """Standard normal numbers for each position of a range, for each shape: (B, *shape)."""
    first, last = positions.start // BLOCK, (positions.stop - 1) // BLOCK
    blocks = []
    for block in range(first, last + 1):
        generator = torch.Generator(device).manual_seed(mix(seed, block))
        blocks.append(
            [torch.randn(BLOCK, *shape, generator=generator, device=device) for shape in shapes]
        )
    start = positions.start - first * BLOCK
    wanted = slice(start, start + len(positions))
    return [torch.cat(parts)[wanted] for parts in zip(*blocks, strict=True)]


def mix(*numbers: int) -> int:
    """One seed of 63 bits from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
