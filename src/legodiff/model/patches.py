"""Images to square pieces and back, and the coordinates of their pixels.

One pair of functions serves twice: an image is split into patches of a brick's size, and a patch is
split into the local fields that become tokens. Any H x W that the side divides will do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from legodiff.model.spec import StackSpec


def split(image: Tensor, side: int | tuple[int, int]) -> Tensor:
    """Cuts (..., C, H, W) into non-overlapping pieces, row by row: (..., P, C, side, side).

    ``side`` is one number or (height, width). Raises ValueError if it does not divide the image.
    """
    rows, columns = (side, side) if isinstance(side, int) else side
    *batch, channels, height, width = image.shape
    if height % rows or width % columns:
        raise ValueError(f"pieces of {rows}x{columns} do not divide an image of {height}x{width}")
    image = image.reshape(*batch, channels, height // rows, rows, width // columns, columns)
    pieces = image.movedim((-4, -2), (-5, -4))  # (..., H/rows, W/columns, C, rows, columns)
    return pieces.flatten(-5, -4)


def merge(pieces: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of ``split``: (..., P, C, rows, columns) to (..., C, H, W), size = (H, W)."""
    channels, rows, columns = pieces.shape[-3:]
    grid = (size[0] // rows, size[1] // columns)
    pieces = pieces.reshape(*pieces.shape[:-4], *grid, channels, rows, columns)
    image = pieces.movedim((-5, -4), (-4, -2))  # (..., C, H/rows, rows, W/columns, columns)
    return image.reshape(*image.shape[:-5], channels, *size)


def coordinates(size: tuple[int, int], device: torch.device) -> Tensor:
    """Normalised pixel coordinates of a canvas (the paper's m): float32 of shape (2, H, W).

    Channel 0 is the row, channel 1 the column; both run from -1 to 1 over the whole canvas.
    """
    axes = [torch.linspace(-1, 1, side, device=device) for side in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def shift(image: Tensor, phase: int) -> Tensor:
    """(..., H, W) moved down and right by so many pixels; what leaves it comes in again."""
    return image.roll((phase, phase), (-2, -1)) if phase else image


@dataclass(frozen=True)
class PatchSample:
    """The patches one patch-brick is trained on: for each image, which of its P patches."""

    index: Tensor
    """int64 (B, K): K different patches of each image, numbered row by row."""
    side: tuple[int, int]
    size: tuple[int, int]
    phase: int = 0
    """Of the brick."""

    @classmethod
    def choose(
        cls,
        scores: Tensor,
        ratio: float,
        side: tuple[int, int],
        size: tuple[int, int],
        phase: int = 0,
    ) -> "PatchSample":
        """The round(ratio * P) patches (at least one) of the lowest scores (B, P) of each image."""
        kept = max(1, round(ratio * scores.shape[1]))
        return cls(scores.argsort(dim=1)[:, :kept], side, size, phase)

    def take(self, pieces: Tensor) -> Tensor:
        """(B, P, ...) to (B, K, ...)."""
        rows = torch.arange(len(self.index), device=self.index.device)
        return pieces[rows[:, None], self.index]

    def put(self, pieces: Tensor) -> Tensor:
        """(B, K, ...) to (B, P, ...), zero where nothing was sampled."""
        count = (self.size[0] // self.side[0]) * (self.size[1] // self.side[1])
        canvas = pieces.new_zeros(len(pieces), count, *pieces.shape[2:])
        rows = torch.arange(len(self.index), device=self.index.device)
        return canvas.index_put((rows[:, None], self.index), pieces)

    @property
    def mask(self) -> Tensor:
        """bool (B, 1, H, W): the pixels of the sampled patches."""
        ones = torch.ones(*self.index.shape, 1, *self.side, device=self.index.device)
        return shift(merge(self.put(ones), self.size), self.phase).bool()


def sample_patches(
    spec: StackSpec,
    ratios: float | Sequence[float],
    scores: Sequence[Tensor],
    size: tuple[int, int],
) -> list[PatchSample | None]:
    """For each brick the patches it is trained on; None where all of them run.

    ``ratios`` as for ``spec.patch_ratios``; ``scores`` (B, P) decide for each brick.
    """
    return [
        PatchSample.choose(score, share, brick.patch(size), size, brick.phase)
        if share < 1
        else None
        for brick, score, share in zip(spec.bricks, scores, spec.patch_ratios(ratios), strict=True)
    ]
