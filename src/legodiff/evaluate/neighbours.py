"""Who is near whom among features: precision, recall, and what was learnt by heart.

A set of features spans a *manifold*: the balls around each that reach to its k-th neighbour in the
set (Kynkäänniemi et al. 2019). Precision is the share of the generated inside the manifold of the
real, recall the share of the real inside that of the generated. Distances are taken in blocks, so
that memory grows with the number of features and not with its square.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024  # rows of distances at a time


class PrecisionRecall(NamedTuple):
    """Shares from 0 to 1."""

    precision: float
    """Of the generated that look real."""
    recall: float
    """Of the real that could have been generated."""


def precision_recall(*, real: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall:
    """Of features (N, D) and (M, D); ``k`` is the neighbour that a ball reaches to.

    Raises ValueError for sets of no more than ``k`` features.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"precision and recall need more than {k} images on each side")
    return PrecisionRecall(
        precision=_share_inside(generated, manifold=real, k=k),
        recall=_share_inside(real, manifold=generated, k=k),
    )


def _share_inside(features: Tensor, manifold: Tensor, k: int) -> float:
    radius = _radius(manifold, k)
    inside = 0
    for rows, distances in _blocks(features, manifold):
        del rows
        inside += int((distances <= radius).any(dim=1).sum())
    return inside / len(features)


def _radius(features: Tensor, k: int) -> Tensor:
    """Squared distance (N,) of each feature to its k-th neighbour, itself not counted."""
    parts = []
    for rows, distances in _blocks(features, features):
        here = torch.arange(len(distances), device=distances.device)
        distances[here, here + rows.start] = -1.0  # itself, before any copy of it
        parts.append(distances.kthvalue(k + 1, dim=1).values)
    return torch.cat(parts)


class Nearest(NamedTuple):
    """For each feature the nearest of others."""

    number: Tensor
    """int64 (N,): which of the others."""
    distance: Tensor
    """float32 (N,), not squared."""


def nearest(features: Tensor, others: Tensor) -> Nearest:
    """The nearest of ``others`` (M, D) to each of ``features`` (N, D)."""
    found = [distances.min(dim=1) for _, distances in _blocks(features, others)]
    return Nearest(
        torch.cat([part.indices for part in found]),
        torch.cat([part.values for part in found]).clamp(min=0).sqrt(),
    )


def to_nearest_other(features: Tensor) -> Tensor:
    """Distance (N,) of each of the features (N, D) to the nearest other one, not squared."""
    return _radius(features, 1).clamp(min=0).sqrt()


def _blocks(features: Tensor, others: Tensor) -> Iterator[tuple[range, Tensor]]:
    """Squared distances (rows, M), a block of rows at a time."""
    centre = others.mean(dim=0)  # shorter vectors: less is lost when their squares are subtracted
    others = (others - centre).float()
    squares = others.square().sum(dim=1)
    for start in range(0, len(features), BLOCK):
        part = (features[start : start + BLOCK] - centre).float()
        own = part.square().sum(dim=1, keepdim=True)
        yield range(start, start + len(part)), torch.addmm(squares, part, others.T, alpha=-2) + own
