"""Raw network output <-> clean estimate, for the paper's two objectives.

Each objective is four functions of the noise level (the form of Karras et al. 2022, table 1):

    clean = c_skip * noisy + c_out * F(c_in * noisy; c_noise)

and both are trained with weight one on F, that is with weight 1 / c_out² on the clean estimate.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from legodiff.noise import table_timestep


class Coefficients(NamedTuple):
    """The four coefficients at the noise levels of a batch."""

    skip: Tensor
    """(B, 1, 1, 1), as are ``out`` and ``scale``."""
    out: Tensor
    scale: Tensor
    """c_in, which brings the noisy image to unit variance."""
    noise: Tensor
    """c_noise (B,): what the network is told of the noise level."""


def edm(sigma: Tensor, sigma_data: float) -> Coefficients:
    """EDM's preconditioning, for data of standard deviation ``sigma_data``. ``sigma``: (B,)."""
    s = sigma.view(-1, 1, 1, 1)
    variance = s**2 + sigma_data**2
    return Coefficients(
        skip=sigma_data**2 / variance,
        out=s * sigma_data / variance.sqrt(),
        scale=1 / variance.sqrt(),
        noise=sigma.log() / 4,
    )


def ddpm(sigma: Tensor, sigma_data: float) -> Coefficients:
    """DDPM's noise prediction over the linear table of 1000 steps. ``sigma``: (B,).

    In sigma coordinates ``clean = noisy - sigma * F``, F being the predicted unit noise; the
    network sees the variance-preserving image and the timestep. ``sigma_data`` plays no part. A
    brick that refines adds ``- sigma * F`` to the estimate it is given instead: F is then what is
    left of the noise after that estimate, in the same unit.
    """
    s = sigma.view(-1, 1, 1, 1)
    return Coefficients(
        skip=torch.ones_like(s),
        out=-s,
        scale=1 / (s**2 + 1).sqrt(),
        noise=table_timestep(sigma).to(sigma.dtype),
    )


OBJECTIVES = {"edm": edm, "ddpm": ddpm}


def to_clean(raw: Tensor, noisy: Tensor, at: Coefficients) -> Tensor:
    """The clean estimate that a raw network output stands for; all (B, C, H, W)."""
    return at.skip * noisy + at.out * raw


def to_raw(clean: Tensor, noisy: Tensor, at: Coefficients) -> Tensor:
    """The raw network output that stands for a clean estimate: the inverse of ``to_clean``."""
    return (clean - at.skip * noisy) / at.out


def linear_estimate(noisy: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """The best clean estimate without a network: linear least squares, EDM's c_skip * noisy.

    This is what a brick refines where no brick has been before it.
    """
    return edm(sigma, sigma_data).skip * noisy
