"""Sections of canvases beside images of a data set, as in Table 7 of the paper.

A canvas has no images of its size to be compared with, so windows of the size of the training
images are cut out and each is compared with those. The paper does not say with which of them: here
it is the nearest one, and all of them on average.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from legodiff.evaluate.lpips import Perceptual, as_floats

MEMORY = 2**31  # bytes of features that are kept
PART = 2**14
"""Numbers of a vector that are summed in float32; the parts in float64, as there are millions."""


def grid_crops(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The windows (N, C, h, w) side by side in a canvas uint8 (C, H, W), row by row.

    ``size`` is (h, w); pixels left over at the bottom and at the right are left out. Raises
    ValueError for a canvas smaller than a window.
    """
    _room(image, size)
    height, width = size
    rows, columns = image.shape[1] // height, image.shape[2] // width
    whole = image[:, : rows * height, : columns * width]
    x = whole.reshape(-1, rows, height, columns, width)
    return x.permute(1, 3, 0, 2, 4).flatten(0, 1)  # (rows * columns, C, h, w)


def random_crops(image: Tensor, size: tuple[int, int], count: int, seed: int) -> Tensor:
    """``count`` windows (count, C, h, w) anywhere inside a canvas uint8 (C, H, W).

    They may overlap; the same seed and size give the same places. Raises ValueError for a canvas
    smaller than a window and for less than one of them.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be 1 or more")
    generator = torch.Generator().manual_seed(seed)
    places = [
        torch.randint(room + 1, (count,), generator=generator).tolist()
        for room in _room(image, size)
    ]
    height, width = size
    return torch.stack(
        [image[:, y : y + height, x : x + width] for y, x in zip(*places, strict=True)]
    )


def _room(image: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """By how many pixels a window can be moved down and to the right."""
    (height, width), (rows, columns) = image.shape[1:], size
    if min(size) < 1 or height < rows or width < columns:
        raise ValueError(f"a canvas of {height}x{width} pixels has no crop of {rows}x{columns}")
    return height - rows, width - columns


class Spread(NamedTuple):
    """Mean and standard deviation over all crops, as Table 7 prints them."""

    mean: float
    std: float


class CropDistances(NamedTuple):
    """For each crop, how far the reference images are from it."""

    nearest: Tensor
    """float64 (N,): the distance to the nearest one."""
    number: Tensor
    """int64 (N,): which one that is."""
    mean: Tensor
    """float64 (N,): the mean of the distances to all."""

    def spreads(self) -> tuple[Spread, Spread]:
        """Of ``nearest`` and of ``mean``."""
        nearest, mean = (
            Spread(float(values.mean()), float(values.std(correction=0)))
            for values in (self.nearest, self.mean)
        )
        return nearest, mean


def canvas_distances(
    perceptual: Perceptual,
    crops: Tensor,
    reference: Tensor,
    batch: int = 8,
    memory: int = MEMORY,
) -> CropDistances:
    """How far each crop is from the images of a data set.

    Args:
        perceptual: the distance.
        crops: uint8 (N, C, h, w), grey or in colour.
        reference: uint8 (M, C, h, w); of the same size, grey or in colour.
        batch: images that the network sees at a time.
        memory: bytes for the features of crops. The network sees each crop once (the first one
            twice), and each reference image once for as many crops as fit.

    Raises ValueError if there are none, or not of one size.
    """
    if not len(crops) or not len(reference) or crops.shape[2:] != reference.shape[2:]:
        raise ValueError(
            "crops and reference images must be of one size, and at least one each; "
            f"these are {tuple(crops.shape)} and {tuple(reference.shape)}"
        )
    features = perceptual.embed(as_floats(crops[:1])).shape[1]
    fitting = max(1, memory // (4 * features))
    parts = [_distances(perceptual, some, reference, batch) for some in torch.split(crops, fitting)]
    nearest, number, mean = (torch.cat(values) for values in zip(*parts, strict=True))
    return CropDistances(nearest, number, mean)


class Compared(NamedTuple):
    """One cell of Table 7: crops of one kind and size against a data set."""

    name: str
    """Such as "LPIPS-alex-grid-256(nearest of 1000)"."""
    crops: int
    spread: Spread


def compare(
    perceptual: Perceptual, canvases: Sequence[Tensor], reference: Tensor, seed: int = 0
) -> list[Compared]:
    """Grid crops and as many random ones of canvases, each against the nearest and against all.

    Args:
        perceptual: the distance.
        canvases: uint8 (C, H, W) each; crops have the size of the reference images.
        reference: uint8 (M, C, h, w).
        seed: draws the random crops; each canvas has its own from there on.

    Raises ValueError for a canvas smaller than a reference image.
    """
    size = (reference.shape[2], reference.shape[3])
    side = f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"
    grids = [grid_crops(canvas, size) for canvas in canvases]
    randoms = [
        random_crops(canvas, size, len(grid), seed + number)
        for number, (canvas, grid) in enumerate(zip(canvases, grids, strict=True))
    ]
    found = []
    for way, parts in (("grid", grids), ("random", randoms)):
        crops = torch.cat(parts)
        distances = canvas_distances(perceptual, crops, reference)
        for to, spread in zip(("nearest of", "mean of"), distances.spreads(), strict=True):
            name = f"{perceptual.name}-{way}-{side}({to} {len(reference)})"
            found.append(Compared(name, len(crops), spread))
    return found


def _distances(
    perceptual: Perceptual, crops: Tensor, reference: Tensor, batch: int
) -> CropDistances:
    """Of as many crops as fit into memory."""
    own = _embed(perceptual, crops, batch)
    squares = _squares(own).unsqueeze(1)
    nearest = torch.full((len(crops),), torch.inf, dtype=torch.float64)
    number, total = torch.zeros(len(crops), dtype=torch.int64), torch.zeros_like(nearest)
    for start in range(0, len(reference), batch):
        others = _embed(perceptual, reference[start : start + batch], batch)
        distances = squares + _squares(others) - 2 * _products(own, others)  # (N, batch)
        distances = distances.clamp(min=0)
        total += distances.sum(dim=1)
        least = distances.min(dim=1)
        closer = least.values < nearest
        nearest = torch.where(closer, least.values, nearest)
        number = torch.where(closer, least.indices + start, number)
    return CropDistances(nearest, number, total / len(reference))


def _squares(vectors: Tensor) -> Tensor:
    """float64 (N,)."""
    parts = torch.split(vectors, PART, dim=1)
    return torch.stack([part.square().sum(dim=1).cpu().double() for part in parts]).sum(dim=0)


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Of each with each, float64 (N, M)."""
    total = torch.zeros(len(first), len(second), dtype=torch.float64)
    parts = torch.split(first, PART, dim=1), torch.split(second, PART, dim=1)
    for a, b in zip(*parts, strict=True):
        total += (a @ b.T).cpu().double()
    return total


def _embed(perceptual: Perceptual, images: Tensor, batch: int) -> Tensor:
    """uint8 images to their vectors (N, D), each into its place."""
    vectors = None
    for start in range(0, len(images), batch):
        some = perceptual.embed(as_floats(images[start : start + batch]))
        if vectors is None:
            vectors = some.new_empty(len(images), some.shape[1])
        vectors[start : start + batch] = some
    assert vectors is not None
    return vectors
