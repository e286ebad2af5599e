"""Samplers: plain functions of a denoiser, unit noise and a falling grid of noise levels.

    sample(denoise, noise, sigmas, labels=None, *, on_step=None, ...) -> images

- denoise: called with noisy images of the dtype of ``noise``, one noise level for all of them. The
  levels are on the CPU, so that reading them makes nobody wait for a device.
- noise: (B, C, H, W), unit normal. The state begins as ``sigmas[0] * noise``.
- sigmas: (steps + 1,), falling; the last one is 0.
- labels: (B,) or None, passed on.
- draw: of samplers with fresh noise, gives it, like ``noise``; torch's generator by default.
- on_step: called after each step with its number, from 1, and the state.

All return images (B, C, H, W) in the dtype of ``noise``; the state in between is float64. In sigma
coordinates the samplers of DDPM, DDIM and DPM-Solver++ are a line each, whatever the model was
trained with.
"""

from collections.abc import Callable
from itertools import pairwise
from math import inf, log, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from legodiff.diffusion import Denoise
from legodiff.noise import wide_dtype

Draw = Callable[[], Tensor]
OnStep = Callable[[int, Tensor], None]


def heun(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    *,
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = inf,
    s_noise: float = 1.0,
    draw: Draw | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """EDM's second-order sampler (Karras et al. 2022, algorithm 2): 2 * steps - 1 evaluations.

    ``churn``, ``s_min``, ``s_max``, ``s_noise``: S_churn with its range and scale; 0 draws no fresh
    noise.
    """
    estimate, draw = _in_wide(denoise, noise, labels), draw or (lambda: torch.randn_like(noise))
    levels = sigmas.tolist()
    steps = len(levels) - 1
    state: Tensor = levels[0] * noise.to(wide_dtype(noise.device))
    for step, (sigma, following) in enumerate(pairwise(levels), 1):
        if churn > 0 and s_min <= sigma <= s_max:
            raised = sigma * (1 + min(churn / steps, sqrt(2) - 1))
            state = state + sqrt(raised**2 - sigma**2) * s_noise * draw().to(state)
            sigma = raised
        first = (state - estimate(state, sigma)) / sigma
        ahead = state + (following - sigma) * first
        if following > 0:
            second = (ahead - estimate(ahead, following)) / following
            ahead = state + (following - sigma) * (first + second) / 2
        state = ahead
        if on_step is not None:
            on_step(step, state)
    return state.to(noise.dtype)


def ddim(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    *,
    eta: float = 0.0,
    draw: Draw | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12): one evaluation a step.

    ``eta`` in [0, 1]: share of the posterior's deviation that is drawn afresh at each step. 0 is
    Euler's method, 1 is DDPM.
    """
    estimate, draw = _in_wide(denoise, noise, labels), draw or (lambda: torch.randn_like(noise))
    levels = sigmas.tolist()
    state: Tensor = levels[0] * noise.to(wide_dtype(noise.device))
    for step, (sigma, following) in enumerate(pairwise(levels), 1):
        clean = estimate(state, sigma)
        fresh = eta * following * sqrt(1 - (following / sigma) ** 2)  # of the posterior's deviation
        kept = sqrt(following**2 - fresh**2)
        state = clean + kept / sigma * (state - clean)
        if fresh > 0:
            state = state + fresh * draw().to(state)
        if on_step is not None:
            on_step(step, state)
    return state.to(noise.dtype)


def euler(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """Euler's method for the probability flow: one evaluation a step."""
    return ddim(denoise, noise, sigmas, labels, on_step=on_step)


def ddpm(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    *,
    draw: Draw | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDPM's ancestral sampler (Ho et al. 2020, equation 7): one evaluation a step.

    Each step draws from the posterior of the next level, given the state and the clean estimate; on
    a part of the table this is iDDPM's respacing (Nichol & Dhariwal 2021), with the smaller of its
    two variances.
    """
    return ddim(denoise, noise, sigmas, labels, eta=1.0, draw=draw, on_step=on_step)


def dpmpp_2m(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order at one evaluation a step.

    The estimate is extrapolated from the step before, in ln sigma; the first and the last step,
    where there is nothing to go by, are of first order.
    """
    estimate = _in_wide(denoise, noise, labels)
    levels = sigmas.tolist()
    state: Tensor = levels[0] * noise.to(wide_dtype(noise.device))
    before: tuple[float, Tensor] | None = None
    for step, (sigma, following) in enumerate(pairwise(levels), 1):
        clean = ahead = estimate(state, sigma)
        if before is not None and following > 0:
            share = log(sigma / following) / log(before[0] / sigma) / 2
            ahead = torch.lerp(before[1], clean, 1 + share)
        before = sigma, clean
        state = ahead + following / sigma * (state - ahead)
        if on_step is not None:
            on_step(step, state)
    return state.to(noise.dtype)


class Sampler(NamedTuple):
    """A sampler and what belongs to it."""

    sample: Callable[..., Tensor]
    grid: str
    """Which noise levels it walks by default: "karras" or "ddpm" (a part of the table)."""
    options: tuple[str, ...] = ()
    """Numbers that it takes."""
    draws: bool = False
    """Whether it takes ``draw``."""


SAMPLERS = {
    "heun": Sampler(heun, "karras", ("churn", "s_min", "s_max", "s_noise"), True),
    "euler": Sampler(euler, "karras"),
    "dpmpp_2m": Sampler(dpmpp_2m, "karras"),
    "ddpm": Sampler(ddpm, "ddpm", (), True),
    "ddim": Sampler(ddim, "ddpm", ("eta",), True),
}


def levels_called(sampler: str, sigmas: Tensor, **options: Any) -> list[float]:
    """The noise levels at which a sampler calls its denoiser, in order."""
    called: list[float] = []

    def denoise(noisy: Tensor, sigma: Tensor, _: Tensor | None) -> Tensor:
        called.append(float(sigma[0]))
        return noisy

    nothing = torch.zeros(1, 1, 1, 1)
    draw = {"draw": lambda: nothing} if SAMPLERS[sampler].draws else {}
    SAMPLERS[sampler].sample(denoise, nothing, sigmas, **options, **draw)
    return called


def _in_wide(
    denoise: Denoise, noise: Tensor, labels: Tensor | None
) -> Callable[[Tensor, float], Tensor]:
    """The denoiser for a state in float64 and one noise level."""

    def estimate(state: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(state),), sigma, dtype=torch.float32, device="cpu")
        return denoise(state.to(noise.dtype), level, labels).to(state)

    return estimate
