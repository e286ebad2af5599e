"""Which class is where on a canvas: masks of labels, fading into each other.

A map of labels, labels from left to right, or boxes become ``Regions``, which ``windowed`` reads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Regions(NamedTuple):
    """Which class where on a canvas."""

    labels: tuple[int, ...]
    masks: Tensor
    """float32 (R, H, W): how much each label counts at each pixel. They add up to 1."""


def default_blend(window: tuple[int, int]) -> int:
    """Over how many pixels classes fade into each other if nothing is said: half a window."""
    return min(window) // 2


def label_map(
    labels: Tensor, size: tuple[int, int], blend: int = 0, wrap: tuple[bool, bool] = (False, False)
) -> Regions:
    """Regions from a map of labels, int64 of any (H, W), enlarged to a canvas.

    Borders are blended over ``blend`` pixels on either side.
    """
    rows, columns = (
        (torch.arange(side) * known).div(side, rounding_mode="floor")
        for side, known in zip(size, labels.shape, strict=True)
    )
    large = labels[rows[:, None], columns]
    found = sorted(set(large.flatten().tolist()))
    masks = torch.stack([(large == label).float() for label in found])
    return Regions(tuple(found), _softened(masks, blend, wrap))


def across(
    labels: Sequence[int],
    size: tuple[int, int],
    blend: int = 0,
    wrap: tuple[bool, bool] = (False, False),
) -> Regions:
    """Regions of equal width, from left to right."""
    return label_map(torch.tensor([list(labels)]), size, blend, wrap)


def boxes(
    areas: Sequence[tuple[int, tuple[float, float, float, float]]],
    size: tuple[int, int],
    background: int,
    blend: int = 0,
    wrap: tuple[bool, bool] = (False, False),
) -> Regions:
    """Regions from (label, (top, left, bottom, right)) in fractions of the canvas.

    Later ones lie on earlier ones; ``background`` is the label elsewhere. Raises ValueError for a
    box that is none.
    """
    height, width = size
    labels = torch.full(size, background)
    for label, (top, left, bottom, right) in areas:
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise ValueError(
                f"region {label}: {top:g}, {left:g}, {bottom:g}, {right:g} is no box; give top, "
                "left, bottom, right as fractions of the canvas, such as 0, 0, 1, 0.5"
            )
        rows = slice(round(top * height), round(bottom * height))
        labels[rows, round(left * width) : round(right * width)] = label
    return label_map(labels, size, blend, wrap)


def _softened(masks: Tensor, blend: int, wrap: tuple[bool, bool]) -> Tensor:
    """Masks with their borders as ramps, 2 * blend + 1 pixels long. They still add up to 1."""
    if blend < 0:
        raise ValueError(f"blend is {blend}; it must be 0 pixels or more")
    for axis, dimension in ((0, -2), (1, -1)):
        reach = min(blend, masks.shape[dimension] - 1)
        if not reach:
            continue
        length = masks.shape[dimension]
        around = torch.arange(-reach, length + reach)
        around = around % length if wrap[axis] else around.clamp(0, length - 1)
        sums = masks.index_select(dimension, around).double().cumsum(dimension)
        sums = torch.cat([torch.zeros_like(sums.narrow(dimension, 0, 1)), sums], dimension)
        ends = sums.narrow(dimension, 2 * reach + 1, length)
        masks = ((ends - sums.narrow(dimension, 0, length)) / (2 * reach + 1)).float()
    return masks / masks.sum(0)
