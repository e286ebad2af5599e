"""The Fréchet distance between two sets of features (Heusel et al. 2017), FID with Inception's."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def fit(cls, features: Tensor | np.ndarray) -> "Gaussian":
        """Of features (N, D). Raises ValueError for fewer than two or what is not finite."""
        moments = Moments()
        moments.add(torch.as_tensor(features))
        return moments.gaussian()


class Moments:
    """Sums of features that come in batches, from any number of processes."""

    def __init__(self) -> None:
        self.count = 0
        self.shift: Tensor | None = None  # near the mean, so that the sums stay small
        self.sum = self.square = torch.zeros(0, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """(N, D), of any dtype; summed in float64."""
        features = features.double().cpu()
        if self.shift is None:
            self.shift = features.mean(dim=0)
            self.sum = torch.zeros_like(self.shift)
            self.square = torch.zeros(len(self.shift), len(self.shift), dtype=torch.float64)
        centred = features - self.shift
        self.count += len(features)
        self.sum = self.sum + centred.sum(dim=0)
        self.square = self.square + centred.T @ centred

    def merge(self, other: "Moments") -> None:
        """Adds what another process has seen."""
        if other.shift is None:
            return
        if self.shift is None:
            self.count, self.shift, self.sum, self.square = (
                0,
                other.shift,
                other.sum * 0,
                other.square * 0,
            )
        move = other.shift - self.shift  # its numbers, seen from here
        cross = torch.outer(other.sum, move)
        self.square = (
            self.square + other.square + cross + cross.T + other.count * torch.outer(move, move)
        )
        self.sum = self.sum + other.sum + other.count * move
        self.count += other.count

    def gaussian(self) -> Gaussian:
        """Raises ValueError for fewer than two features, or ones that are not finite."""
        if self.count < 2 or self.shift is None:
            raise ValueError("a Fréchet distance needs at least two images on each side")
        if not torch.isfinite(self.square).all():
            raise ValueError("a Fréchet distance needs finite features")
        mean = self.sum / self.count
        covariance = (self.square - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Gaussian(self.shift + mean, covariance)


def distance(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), the squared Fréchet distance.

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric
    S1^½ S2 S1^½, which is finite and real also where a covariance lacks rank.
    """
    shift = first.mean - second.mean
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    between = torch.linalg.eigvalsh(root @ second.covariance @ root)
    trace = first.covariance.trace() + second.covariance.trace()
    return float(shift @ shift + trace - 2 * between.clamp(min=0).sqrt().sum())


def frechet_distance(first: Tensor | np.ndarray, second: Tensor | np.ndarray) -> float:
    """The squared Fréchet distance of the Gaussians fitted to features (N, D) and (M, D)."""
    return distance(Gaussian.fit(first), Gaussian.fit(second))
