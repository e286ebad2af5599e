"""Noise levels: the grids samplers walk, the distributions training draws from, the DDPM table.

Everything here is a pure function of numbers. A noise level is ``sigma``, the standard deviation of
the noise in Karras' variance-exploding form ``noisy = clean + sigma * noise``. DDPM says the same
with its cumulative product ``abar`` (the paper's alpha_t): ``sigma = sqrt((1 - abar) / abar)``.
"""

from itertools import accumulate
from math import inf, pi
from typing import Any

import torch
from torch import Tensor

from legodiff.once import once

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


BETAS = {"kind", "steps", "beta_first", "beta_last", "zero_snr"}
"""Arguments of ``beta_sigmas``."""


def beta_sigmas(
    kind: str = "linear",
    steps: int = 1000,
    beta_first: float = 1e-4,
    beta_last: float = 0.02,
    zero_snr: bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The table of a discrete diffusion model in sigma coordinates.

    ``kind``: betas "linear" (Ho et al. 2020, section 4), "scaled_linear" in their roots (latent
    diffusion), or of the "squaredcos_cap_v2" of Nichol & Dhariwal 2021. ``zero_snr`` moves the last
    entry to pure noise (Lin et al. 2024), here 1e6. Returns float64 of shape (steps,), rising, on
    ``device``; entry t is the noise level of timestep t. Raises ValueError for another kind.
    """
    wide = torch.float64
    if kind == "linear":
        betas = torch.linspace(beta_first, beta_last, steps, dtype=wide, device=device)
    elif kind == "scaled_linear":
        ends = beta_first**0.5, beta_last**0.5
        betas = torch.linspace(*ends, steps, dtype=wide, device=device) ** 2
    elif kind == "squaredcos_cap_v2":
        part = torch.arange(steps + 1, dtype=wide, device=device) / steps
        level = torch.cos((part + 0.008) / 1.008 * pi / 2) ** 2
        betas = (1 - level[1:] / level[:-1]).clamp(max=0.999)
    else:
        raise ValueError(
            f"betas of kind {kind!r}: choose linear, scaled_linear or squaredcos_cap_v2"
        )
    root = (torch.log1p(-betas).cumsum(dim=0) / 2).exp()  # ONNX has sums of this kind only
    if zero_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = root**2
    return ((1 - abar) / abar.clamp(min=1e-12)).sqrt()


def ddpm_sigmas() -> Tensor:
    """DDPM's own table of 1000 steps: ``beta_sigmas`` with its defaults."""
    return beta_sigmas()


@once
def _log_table(device: torch.device, **schedule: Any) -> Tensor:
    """ln sigma of the entries of ``beta_sigmas``, made where it is used but for Apple's MPS."""
    wide = wide_dtype(device)
    home = device if wide == torch.float64 else "cpu"
    return beta_sigmas(**schedule, device=home).log().to(device, wide)


def table_timestep(sigma: Tensor, **schedule: Any) -> Tensor:
    """Timestep of a noise level, linear in ln sigma between those of ``beta_sigmas(**schedule)``.

    Exact on the table; levels outside it are moved to its ends.
    """
    known = _log_table(sigma.device, **schedule)
    level = sigma.to(known.dtype).log().clamp(known[0], known[-1])
    above = (known < level[..., None]).sum(dim=-1).clamp(1, len(known) - 1)  # ONNX has no search
    return above - 1 + (level - known[above - 1]) / (known[above] - known[above - 1])


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
