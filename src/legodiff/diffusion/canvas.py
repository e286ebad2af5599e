"""Canvases larger than a model was trained on: windows of the training size, as a wrapper.

At each noise level the denoiser looks at windows of the canvas, and its estimates are merged where
they overlap. The sampler sees one denoiser of the whole canvas and takes its steps once, so every
sampler works, and one window that is the canvas is plain sampling.

Two ways to lay the windows:

- *stride* (MultiDiffusion, Bar-Tal et al. 2023, and the paper): a window every so many pixels, the
  plain mean where they overlap. A stride of an eighth of the window evaluates every pixel 64 times.
- *shift* (after SpotDiffusion, Frolov et al. 2024): windows side by side, every pixel about once;
  where they begin changes with the noise level, so a border at one level is inside a window at the
  next. So are the borders of bricks, which hides those that a model leaves in plain images. For
  this the canvas has no edges: it goes on at its other end, across a gap of a window that is drawn
  with it and cut away.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd
from operator import neg
from typing import NamedTuple

import torch
from torch import Tensor

from legodiff.diffusion import Denoise
from legodiff.diffusion.regions import Regions

WRAPS = {"none": (False, False), "x": (False, True), "y": (True, False), "both": (True, True)}
"""By name, whether (top and bottom, left and right) of a canvas meet."""
OnWindow = Callable[[tuple[int, int], Tensor], None]
"""Told where a window of a canvas lies (row, column; one may go on at the other end), and its
estimate."""


@dataclass(frozen=True)
class Windows:
    """How a canvas is looked at."""

    size: tuple[int, int]
    """(height, width) of a window, in pixels of the model."""
    stride: int | None = None
    """Pixels from one window to the next; None lays them side by side and shifts them."""
    margin: int = 0
    """Without a stride: by how many pixels windows overlap, faded into each other."""
    wrap: tuple[bool, bool] = (False, False)
    """Whether the canvas goes on at its other end: top to bottom, left to right."""
    batch: int = 16
    """Windows that are evaluated at a time: memory does not grow with the canvas."""

    def __post_init__(self) -> None:
        if self.stride is not None and not 1 <= self.stride <= min(self.size):
            raise ValueError(
                f"stride is {self.stride}; it must be from 1 to the window's {min(self.size)}"
            )
        if not 0 <= self.margin <= min(self.size) // 2:
            half = min(self.size) // 2
            raise ValueError(f"margin is {self.margin}; it must be from 0 to half a window, {half}")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be 1 or more")

    def drawn(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """What is drawn for a canvas: itself, and a gap below and to the right to be cut away.

        Where the canvas wraps, or lies on a stride, or is one window long, there is no gap.
        """
        lengths = []
        for length, side, wrap in zip(canvas, self.size, self.wrap, strict=True):
            if self.stride is None and not wrap and length > side:
                step = side - self.margin
                length = -(-(length + side - 1) // step) * step
            lengths.append(length)
        return lengths[0], lengths[1]

    def places(self, drawn: tuple[int, int], turn: int) -> list[tuple[int, int]]:
        """Where the windows begin: rows and columns of their first pixels.

        ``turn`` counts the noise levels from the highest, 0. At all of them there are as many.
        """
        rows, columns = (self._axis(drawn[axis], axis, turn) for axis in (0, 1))
        return list(product(rows, columns))

    def _axis(self, length: int, axis: int, turn: int) -> list[int]:
        side, wrap = self.size[axis], self.wrap[axis]
        if length == side and not wrap:
            return [0]
        if self.stride is not None:
            last = 0 if wrap else length - side  # the last window fits
            return sorted({*range(0, length if wrap else last, self.stride), last})
        step = side - self.margin
        shift, count = turn * _shift(step, axis) % step, -(-length // step)
        return [(shift + round(number * length / count)) % length for number in range(count)]

    def weight(self) -> Tensor:
        """How much each pixel of a window counts: float32 (height, width)."""
        ramps = []
        for side in self.size:
            ramp = torch.ones(side)
            if self.stride is None and self.margin:
                rising = (torch.arange(self.margin) + 1) / (self.margin + 1)
                ramp[: self.margin] = rising
                ramp[side - self.margin :] = rising.flip(0)
            ramps.append(ramp)
        return ramps[0][:, None] * ramps[1]


def _shift(step: int, axis: int) -> int:
    """By how much windows shift from one noise level to the next: near a third of ``step``.

    It shares no factor with ``step``, so every shift has its turn; and as a third it is spread
    evenly over patches too, whose sides are mostly halves, quarters ... of a window.
    """
    fitting = [shift for shift in range(1, step + 1) if gcd(shift, step) == 1]
    return min(fitting, key=lambda shift: abs(shift - (axis + 1) * step / 3))


def looks(windows: Windows, canvas: tuple[int, int], regions: Regions | None = None) -> int:
    """How many windows an evaluation of a canvas (height, width) takes.

    With ``regions`` that is so at the first noise level; windows shift, and at others it may be a
    few more or less.
    """
    drawn = windows.drawn(canvas)
    places = windows.places(drawn, turn=0)
    if regions is None:
        return len(places)
    return sum(len(_counting(places, mask, windows)) for mask in _beyond(regions.masks, drawn))


def windowed(
    denoise: Denoise,
    windows: Windows,
    levels: Sequence[float] | Tensor,
    regions: Regions | None = None,
    on_window: OnWindow | None = None,
) -> Denoise:
    """A denoiser of canvases (B, C, H, W) from one of windows; H x W are ``windows.drawn``.

    ``levels`` are the noise levels at which it will be called: at each, windows that shift lie
    elsewhere. ``regions`` replace the labels of the call: a window is evaluated once for each label
    that counts anywhere in it. Estimates are merged by the mean of all windows, then by regions.
    ``on_window`` is told of each.
    """
    weight = windows.weight()

    @lru_cache(maxsize=1)
    def made(canvas: tuple[int, int], like: tuple[torch.device, torch.dtype]) -> _Made:
        """What all evaluations of a canvas need, where they need it."""
        masks = [] if regions is None else list(_beyond(regions.masks, canvas))
        return _Made(weight.to(*like), masks, [mask.to(*like) for mask in masks])

    known = torch.as_tensor(levels, dtype=torch.float32)  # as sigma is
    falling = sorted(set(known.tolist()), reverse=True)

    def denoise_canvas(noisy: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        canvas = (noisy.shape[-2], noisy.shape[-1])
        places = windows.places(canvas, bisect_left(falling, -float(sigma[0]), key=neg))
        weights, shares, masks = made(canvas, (noisy.device, noisy.dtype))
        if regions is None:
            return _merged(denoise, noisy, sigma, labels, places, windows, weights, on_window)
        total = torch.zeros_like(noisy)
        for share, mask, label in zip(shares, masks, regions.labels, strict=True):
            inside = _counting(places, share, windows)
            if inside:
                chosen = noisy.new_full(sigma.shape, label, dtype=torch.int64)
                part = _merged(denoise, noisy, sigma, chosen, inside, windows, weights, on_window)
                total += torch.where(mask > 0, mask * part, 0)
        return total

    return denoise_canvas


class _Made(NamedTuple):
    weight: Tensor
    """Of a window's pixels, on the device."""
    shares: list[Tensor]
    """Of each label: its mask on the CPU, where looking at it makes nobody wait."""
    masks: list[Tensor]
    """The same on the device."""


def _beyond(masks: Tensor, drawn: tuple[int, int]) -> Tensor:
    """Masks (R, H, W) of a canvas, on all that is drawn: the nearer edge goes on into the gap."""
    for axis in (-2, -1):
        known, length = masks.shape[axis], drawn[axis]
        middle = known + (length - known) // 2
        at = torch.arange(length).clamp(max=known - 1)
        masks = masks.index_select(axis, torch.where(torch.arange(length) < middle, at, 0))
    return masks


def _merged(
    denoise: Denoise,
    noisy: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    places: Sequence[tuple[int, int]],
    windows: Windows,
    weight: Tensor,
    on_window: OnWindow | None,
) -> Tensor:
    """The mean of the estimates of all windows; NaN where there is none."""
    canvas = (noisy.shape[-2], noisy.shape[-1])
    if windows.size == canvas and places == [(0, 0)]:
        estimates = denoise(noisy, sigma, labels)
        if on_window is not None:
            for estimate in estimates:
                on_window((0, 0), estimate)
        return estimates
    # Windows go on at the other end, and so does what they look at and what they add up to.
    wide = [
        max(length, *(at[axis] + windows.size[axis] for at in places))
        for axis, length in enumerate(canvas)
    ]
    around = _going_on(noisy, wide)
    total, counts = torch.zeros_like(around), torch.zeros_like(around[0, 0])
    for at in places:
        counts[_pixels(at, windows)] += weight
    looks = list(product(range(len(noisy)), places))
    for start in range(0, len(looks), windows.batch):
        some = looks[start : start + windows.batch]
        crops = torch.stack([around[image, :, *_pixels(at, windows)] for image, at in some])
        levels = torch.stack([sigma[image] for image, _ in some])
        told = None if labels is None else torch.stack([labels[image] for image, _ in some])
        estimates = denoise(crops, levels, told)
        for (image, at), estimate in zip(some, estimates, strict=True):
            total[image, :, *_pixels(at, windows)] += weight * estimate
            if on_window is not None:
                on_window(at, estimate)
    return _folded(total, canvas) / _folded(counts, canvas)


def _counting(
    places: Sequence[tuple[int, int]], share: Tensor, windows: Windows
) -> list[tuple[int, int]]:
    """Of the windows those in which a mask (H, W) is anywhere above zero."""
    ends = [max(at[axis] for at in places) + windows.size[axis] for axis in (0, 1)]
    around = _going_on(share, [max(pair) for pair in zip(share.shape, ends, strict=True)])
    return [at for at in places if around[_pixels(at, windows)].any()]


def _pixels(at: tuple[int, int], windows: Windows) -> tuple[slice, slice]:
    """The rows and columns of a window."""
    (top, left), (height, width) = at, windows.size
    return slice(top, top + height), slice(left, left + width)


def _going_on(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image (..., H, W) enlarged by what begins at its other end."""
    for axis, length in zip((-2, -1), size, strict=True):
        if length > image.shape[axis]:
            at = torch.arange(length, device=image.device) % image.shape[axis]
            image = image.index_select(axis, at)
    return image


def _folded(image: Tensor, size: tuple[int, int]) -> Tensor:
    """What goes on beyond (H, W) added to where it begins."""
    for axis, length in zip((-2, -1), size, strict=True):
        first, *others = torch.split(image, length, axis)
        for other in others:
            first.narrow(axis, 0, other.shape[axis]).add_(other)
        image = first
    return image
