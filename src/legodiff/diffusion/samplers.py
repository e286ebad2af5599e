"""Samplers: plain functions of a denoiser, unit noise and a falling grid of noise levels."""

from collections.abc import Callable

import torch
from torch import Tensor

from legodiff.diffusion import Denoise
from legodiff.noise import wide_dtype


def heun(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    *,
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = float("inf"),
    s_noise: float = 1.0,
    draw: Callable[[], Tensor] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """EDM's second-order sampler (Karras et al. 2022, algorithm 2).

    Args:
        denoise: called 2 * steps - 1 times, with noisy images of the dtype of ``noise``.
        noise: (B, C, H, W), unit normal.
        sigmas: (steps + 1,), falling; the last one is 0.
        churn, s_min, s_max, s_noise: S_churn and its range and scale; 0 is deterministic.
        draw: gives fresh unit noise like ``noise`` for churn; by default torch's global generator.
        on_step: called after each step with its number, from 1, and the state.

    Returns the images (B, C, H, W) in the dtype of ``noise``; the state in between is float64.
    """
    wide = wide_dtype(noise.device)
    steps = len(sigmas) - 1
    levels = [float(sigma) for sigma in sigmas]

    def slope(state: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(state),), sigma, dtype=torch.float32, device=state.device)
        return (state - denoise(state.to(noise.dtype), level, labels).to(wide)) / sigma

    state = noise.to(wide) * levels[0]
    for step in range(steps):
        sigma, following = levels[step], levels[step + 1]
        if churn > 0 and s_min <= sigma <= s_max:
            raised = sigma * (1 + min(churn / steps, 2**0.5 - 1))
            fresh = draw() if draw is not None else torch.randn_like(noise)
            state = state + (raised**2 - sigma**2) ** 0.5 * s_noise * fresh.to(wide)
            sigma = raised

        first = slope(state, sigma)
        ahead = state + (following - sigma) * first
        if following > 0:
            second = slope(ahead, following)
            ahead = state + (following - sigma) * (first + second) / 2
        state = ahead
        if on_step is not None:
            on_step(step + 1, state)
    return state.to(noise.dtype)


def heun_levels(sigmas: Tensor) -> list[float]:
    """The noise levels at which ``heun`` without churn calls its denoiser, in order."""
    first, *others = [float(sigma) for sigma in sigmas[:-1]]
    return [first, *(level for level in others for _ in range(2))]
