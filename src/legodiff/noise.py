"""Noise levels: the grids samplers walk, the distributions training draws from, the DDPM table.

Everything here is a pure function of numbers. A noise level is ``sigma``, the standard deviation of
the noise in Karras' variance-exploding form ``noisy = clean + sigma * noise``. DDPM says the same
with its cumulative product ``abar`` (the paper's alpha_t): ``sigma = sqrt((1 - abar) / abar)``.
"""

from itertools import accumulate
from math import inf

import torch
from torch import Tensor

MOST_STEPS = 10_000


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def karras_sigmas(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """The sampling grid of EDM (Karras et al. 2022, equation 5).

    Returns float64 of shape (steps + 1,), falling from ``sigma_max`` to ``sigma_min`` and then 0.
    Raises ValueError for a senseless number of steps or if not ``0 < sigma_min <= sigma_max``.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps is {steps}; sampling takes 1 to {MOST_STEPS}")
    if not 0 < sigma_min <= sigma_max < inf or not 0 < rho < inf:
        raise ValueError(
            f"sigma_min {sigma_min}, sigma_max {sigma_max}, rho {rho}: need 0 < min <= max"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, ramp.new_zeros(1)])


def lognormal_sigmas(normal: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Training noise levels of EDM, ``ln sigma ~ N(mean, std²)``, from standard normal numbers."""
    return (mean + std * normal).exp()


def ddpm_sigmas(steps: int = 1000, beta_first: float = 1e-4, beta_last: float = 0.02) -> Tensor:
    """DDPM's linear beta table in sigma coordinates (Ho et al. 2020, section 4).

    Returns float64 of shape (steps,), rising; entry t is the noise level of timestep t.
    """
    betas = torch.linspace(beta_first, beta_last, steps, dtype=torch.float64, device="cpu")
    abar = torch.cumprod(1 - betas, dim=0)
    return ((1 - abar) / abar).sqrt()


def ddpm_strided_sigmas(steps: int, sigma_max: float = inf) -> Tensor:
    """The sampling grid of iDDPM: evenly spaced entries of DDPM's table, rounded, and then 0.

    Entries above ``sigma_max`` are left out first. Returns float64 (steps + 1,), falling. Raises
    ValueError if the table has fewer entries than ``steps``.
    """
    table = ddpm_sigmas()
    table = table[table <= sigma_max]
    if not 1 <= steps <= len(table):
        raise ValueError(f"steps is {steps}; the table up to {sigma_max:g} has 1 to {len(table)}")
    stride = (len(table) - 1) / max(1, steps - 1)
    places = accumulate([stride] * (steps - 1), initial=0.0)  # summed up, as iDDPM rounds the sums
    timesteps = [round(place) for place in places] if steps > 1 else [len(table) - 1]
    return torch.cat([table[timesteps[::-1]], table.new_zeros(1)])


def ddpm_table_sigmas(normal: Tensor) -> Tensor:
    """Training noise levels of DDPM, uniform over the table, from standard normal numbers."""
    table = ddpm_sigmas().to(normal)
    timestep = (uniform(normal) * len(table)).long().clamp(max=len(table) - 1)
    return table[timestep]


def uniform(normal: Tensor) -> Tensor:
    """Numbers uniform in [0, 1] from standard normal ones: their quantiles."""
    quantiles: Tensor = torch.special.ndtr(normal)
    return quantiles
