"""Guidance as a wrapper: a denoiser in, a denoiser out."""

import torch
from torch import Tensor

from legodiff.diffusion import Denoise


def guided(denoise: Denoise, scale: float, no_class: int) -> Denoise:
    """Classifier-free guidance on all channels (Ho & Salimans 2022, in the form of EDM2):

        without_class + scale * (with_class - without_class)

    Scale 1 is the denoiser itself, at its own cost; any other scale evaluates every image twice, in
    one batch. ``no_class`` is the label index that means "no class".
    """
    if scale == 1:
        return denoise

    def denoise_guided(noisy: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("guidance needs labels to guide towards")
        both = torch.cat([labels, torch.full_like(labels, no_class)])
        with_class, without = denoise(noisy.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return torch.lerp(without, with_class, scale)

    return denoise_guided
