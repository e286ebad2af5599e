"""What bricks cost, counted and not estimated: parameters, and FLOPs of running them.

FLOPs = 2 x multiply-accumulates of every matrix product and attention, for one image and one
forward pass, counted on the meta device: on CPU torch's counter leaves out attention.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from legodiff.model.compiled import CompiledStack
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack

Watch = Callable[[float, tuple[int, ...], list[Tensor]], None]
"""Told of an evaluation: noise level, bricks that ran, their estimates."""


def counted(work: Callable[[], object]) -> int:
    """FLOPs of what a function does on the meta device, where it makes its tensors."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@lru_cache(maxsize=256)
@torch.no_grad()
def subset_flops(spec: StackSpec, bricks: tuple[int, ...], size: tuple[int, int]) -> int:
    """FLOPs of one image of ``size`` (height, width) through the given bricks."""

    def run() -> None:
        LegoStack(spec)(torch.empty(1, spec.channels, *size), torch.empty(1), bricks=bricks)

    return counted(run)


@torch.no_grad()
def shared_flops(spec: StackSpec) -> int:
    """FLOPs every evaluation pays, whichever bricks run: the embedding of the noise level."""
    return counted(lambda: LegoStack(spec).noise_embedding(torch.empty(1)))


def brick_flops(spec: StackSpec, size: tuple[int, int] | None = None) -> tuple[int, ...]:
    """FLOPs of one image through each brick, at ``size`` or the training size, embedding aside."""
    shared = shared_flops(spec)
    return tuple(
        subset_flops(spec, (brick,), size or spec.image_size) - shared
        for brick in range(len(spec.bricks))
    )


def brick_parameters(spec: StackSpec) -> tuple[int, ...]:
    """Parameters of each brick, and last of what they share: noise and class embedding."""
    with torch.device("meta"):
        stack = LegoStack(spec)
    total = sum(p.numel() for p in stack.parameters())
    own = [sum(p.numel() for p in brick.parameters()) for brick in stack.bricks]
    return (*own, total - sum(own))


@torch.no_grad()
def subset_seconds(
    stack: LegoStack | CompiledStack,
    bricks: tuple[int, ...],
    size: tuple[int, int],
    batch: int,
    repeats: int = 3,
) -> float:
    """Seconds of one image of ``size`` through the given bricks here, in batches: the median."""
    device = next(stack.parameters()).device
    spec = stack.spec
    noisy = torch.zeros(batch, spec.channels, *size, device=device)
    sigma = torch.ones(batch, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if spec.classes else None
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        estimate = stack(noisy, sigma, labels, bricks)
        estimate[0, 0, 0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:]) / batch


class Meter:
    """A stack that counts, in images, what it is asked to do, and lets it be watched."""

    def __init__(self, stack: LegoStack | CompiledStack, watch: Watch | None = None) -> None:
        self.stack, self.watch = stack, watch
        self.evaluations = self.flops = 0

    def __call__(
        self, noisy: Tensor, sigma: Tensor, labels: Tensor | None, bricks: tuple[int, ...]
    ) -> Tensor:
        return self.estimates(noisy, sigma, labels, bricks)[-1]

    def estimates(
        self, noisy: Tensor, sigma: Tensor, labels: Tensor | None, bricks: tuple[int, ...]
    ) -> list[Tensor]:
        size = (noisy.shape[2], noisy.shape[3])
        self.evaluations += len(noisy)
        self.flops += len(noisy) * subset_flops(self.stack.spec, bricks, size)
        estimates = self.stack.estimates(noisy, sigma, labels, bricks)
        if self.watch is not None:
            self.watch(float(sigma[0]), bricks, estimates)
        return estimates
