"""The kernel distance between sets of features (Bińkowski et al. 2018), KID with Inception's."""

from typing import NamedTuple

import torch
from torch import Tensor


class KernelDistance(NamedTuple):
    """Mean and standard deviation over the subsets."""

    mean: float
    std: float


def kernel_distance(
    first: Tensor, second: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The squared maximum mean discrepancy with the kernel (x·y / D + 1)³, unbiased.

    The mean over random subsets of ``size`` features of each set, (N, D) and (M, D), drawn without
    repetition within a subset. Raises ValueError for fewer than two features.
    """
    size = min(size, len(first), len(second))
    if size < 2:
        raise ValueError("a kernel distance needs at least two images on each side")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(subsets):
        a, b = (x[torch.randperm(len(x), generator=generator)[:size]] for x in (first, second))
        found.append(_discrepancy(a.double(), b.double()))
    values = torch.stack(found)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)))


def _discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """Of two sets of the same number of features."""
    count = len(a)
    inside = sum(
        (kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1))
        for kernel in (_kernel(a, a), _kernel(b, b))
    )
    return inside - 2 * _kernel(a, b).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
