"""Guidance as a wrapper: a denoiser in, a denoiser out."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from legodiff.diffusion import Denoise

EVERYWHERE = (0.0, inf)


def guided(
    denoise: Denoise,
    scale: float,
    no_class: int,
    interval: tuple[float, float] = EVERYWHERE,
) -> Denoise:
    """Classifier-free guidance on all channels (Ho & Salimans 2022, in the form of EDM2):

        without_class + scale * (with_class - without_class)

    Scale 1 is the denoiser itself, at its own cost; any other scale evaluates every image twice, in
    one batch. ``no_class`` is the label index that means "no class". Noise levels outside
    ``interval`` (from, to) are not guided (Kynkäänniemi et al. 2024), and cost one evaluation.
    """
    if scale == 1:
        return denoise

    def denoise_guided(noisy: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("guidance needs labels to guide towards")
        if not _within(sigma, interval):
            return denoise(noisy, sigma, labels)
        both = torch.cat([labels, torch.full_like(labels, no_class)])
        with_class, without = denoise(noisy.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return torch.lerp(without, with_class, scale)

    return denoise_guided


def self_guided(
    stack: Any, scale: float, brick: int = 0, interval: tuple[float, float] = EVERYWHERE
) -> Callable[..., Tensor]:
    """Guidance by the stack's own lower ``brick`` (after autoguidance, Karras et al. 2024):

        lower + scale * (top - lower)

    Both estimates come from the same pass, so it costs nothing and needs no classes. ``stack`` is a
    denoiser with ``estimates``; so is what is returned, but for that. Where ``brick`` does not run,
    or runs as the last one, nothing is extrapolated.
    """
    if scale == 1:
        guided_stack: Callable[..., Tensor] = stack
        return guided_stack

    def denoise_self_guided(
        noisy: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        bricks: Sequence[int] | None = None,
    ) -> Tensor:
        estimates: list[Tensor] = stack.estimates(noisy, sigma, labels, bricks)
        running = range(len(estimates)) if bricks is None else sorted(set(bricks))
        if brick not in running[:-1] or not _within(sigma, interval):
            return estimates[-1]
        return torch.lerp(estimates[running.index(brick)], estimates[-1], scale)

    return denoise_self_guided


def _within(sigma: Tensor, interval: tuple[float, float]) -> bool:
    """Whether the noise levels of a batch lie in an interval. Raises ValueError if some do."""
    if interval == EVERYWHERE:
        return True
    sides: set[bool] = {interval[0] <= level <= interval[1] for level in set(sigma.tolist())}
    if len(sides) > 1:
        raise ValueError("one call mixes noise levels inside and outside the guidance interval")
    return sides.pop()
