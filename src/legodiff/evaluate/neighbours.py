"""Who is near whom among features: precision, recall, and what was learnt by heart.

A set of features spans a *manifold*: the balls around each that reach to its k-th neighbour in the
set (Kynkäänniemi et al. 2019). Precision is the share of the generated inside the manifold of the
real, recall the share of the real inside that of the generated. Distances are taken in blocks, so
that memory grows with the number of features and not with its square; on the device of a process,
and by all processes in turn, each of which gets what comes of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from legodiff.evaluate.extract import exact
from legodiff.train.distributed import World

BLOCK = 1024  # rows of distances at a time
K = 3  # the neighbour that a ball reaches to


class Manifold(NamedTuple):
    """Features, and how far each of them is from those next to it."""

    features: Tensor
    """(N, D)"""
    near: Tensor
    """float32 (N, K): squared distances to the nearest other feature, to the second nearest ...;
    fewer columns where there are fewer others."""

    @property
    def apart(self) -> Tensor:
        """Distance (N,) of each feature to the nearest other one, not squared; of two or more."""
        return self.near[:, 0].clamp(min=0).sqrt()


def manifold(features: Tensor, world: World) -> Manifold:
    """The manifold of features (N, D), from one pass over their distances."""
    kept = min(K + 1, len(features))  # with the feature itself

    def nearest_others(start: int, distances: Tensor) -> tuple[Tensor, ...]:
        here = torch.arange(len(distances), device=distances.device)
        distances[here, here + start] = -1.0  # itself, before any copy of it
        return (distances.topk(kept, dim=1, largest=False).values[:, 1:],)

    (near,) = _by_blocks(features, features, world, nearest_others)
    return Manifold(features, near)


class PrecisionRecall(NamedTuple):
    """Shares from 0 to 1."""

    precision: float
    """Of the generated that look real."""
    recall: float
    """Of the real that could have been generated."""


def precision_recall(*, real: Manifold, generated: Manifold, world: World) -> PrecisionRecall:
    """How much of each set lies inside the manifold of the other.

    Raises ValueError for sets of no more than ``K`` features.
    """
    if min(len(real.features), len(generated.features)) <= K:
        raise ValueError(f"precision and recall need more than {K} images on each side")
    return PrecisionRecall(
        precision=_share_inside(generated.features, real, world),
        recall=_share_inside(real.features, generated, world),
    )


def _share_inside(features: Tensor, manifold: Manifold, world: World) -> float:
    radius = manifold.near[:, K - 1].to(world.device)

    def inside(start: int, distances: Tensor) -> tuple[Tensor, ...]:
        return ((distances <= radius).any(dim=1),)

    (found,) = _by_blocks(features, manifold.features, world, inside)
    return int(found.sum()) / len(found)


class Nearest(NamedTuple):
    """For each feature the nearest of others."""

    number: Tensor
    """int64 (N,): which of the others."""
    distance: Tensor
    """float32 (N,), not squared."""


def nearest(features: Tensor, others: Tensor, world: World) -> Nearest:
    """The nearest of ``others`` (M, D) to each of ``features`` (N, D)."""

    def least(start: int, distances: Tensor) -> tuple[Tensor, ...]:
        found = distances.min(dim=1)
        return found.indices, found.values

    number, squared = _by_blocks(features, others, world, least)
    return Nearest(number, squared.clamp(min=0).sqrt())


def _by_blocks(
    features: Tensor,
    others: Tensor,
    world: World,
    take: Callable[[int, Tensor], tuple[Tensor, ...]],
) -> list[Tensor]:
    """What ``take`` makes of the squared distances (rows, M) of each block, and of its first row.

    All blocks together, on the CPU. A block is the same whoever takes it.
    """
    centre = others.mean(dim=0)  # shorter vectors: less is lost when their squares are subtracted
    others = (others - centre).float().to(world.device)
    squares = others.square().sum(dim=1)
    taken: list[tuple[int, list[Tensor]]] = []
    with exact(world.device):
        for start in range(0, len(features), BLOCK)[world.rank :: world.size]:
            part = (features[start : start + BLOCK] - centre).float().to(world.device)
            own = part.square().sum(dim=1, keepdim=True)
            distances = torch.addmm(squares, part, others.T, alpha=-2).add_(own)
            taken.append((start, [values.cpu() for values in take(start, distances)]))
    blocks = sorted((b for one in world.gather(taken) for b in one), key=lambda block: block[0])
    return [torch.cat(values) for values in zip(*(parts for _, parts in blocks), strict=True)]
