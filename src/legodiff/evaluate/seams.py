"""Seams: is the step from one pixel to the next larger across borders than elsewhere?"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Seam(NamedTuple):
    """Ratio of the mean absolute difference of neighbours across borders to that elsewhere."""

    ratio: float
    low: float
    """The 95 % confidence interval, from resampling the images."""
    high: float


def seams(
    images: np.ndarray,
    rows: Iterable[int] = (),
    columns: Iterable[int] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> Seam:
    """The seams of images (N, H, W, C) or (N, H, W) at given borders.

    ``rows`` and ``columns`` are the first pixels after a border: 8 is the border between pixels 7
    and 8. In real images the ratio is 1. Raises ValueError if there are none, or nothing else.
    """
    pixels = images.astype(np.float64).reshape(*images.shape[:3], -1)
    across, inside = [], []
    for axis, borders in ((1, sorted(set(rows))), (2, sorted(set(columns)))):
        steps = np.abs(np.diff(pixels, axis=axis)).mean(axis=-1)  # (N, H - 1, W) or (N, H, W - 1)
        at = np.array([border - 1 for border in borders], dtype=int)
        if not borders:
            continue
        if at.min() < 0 or at.max() >= steps.shape[axis]:
            raise ValueError(
                f"borders {borders} are not all inside an image of {images.shape[1:3]}"
            )
        across.append(np.take(steps, at, axis=axis).reshape(len(images), -1))
        inside.append(np.delete(steps, at, axis=axis).reshape(len(images), -1))
    if not across or not min(part.shape[1] for part in inside):
        raise ValueError("give borders, and leave pixels between them")
    tops = sum(part.sum(axis=1) for part in across), sum(part.shape[1] for part in across)
    others = sum(part.sum(axis=1) for part in inside), sum(part.shape[1] for part in inside)
    at_borders, elsewhere = tops[0] / tops[1], others[0] / others[1]  # (N,) each
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(images), (resamples, len(images)))
    ratios = at_borders[drawn].mean(axis=1) / elsewhere[drawn].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Seam(float(at_borders.mean() / elsewhere.mean()), float(low), float(high))
