"""Training objective, samplers and wrappers. They work on callables and import no model.

    denoise(noisy, sigma, labels) -> clean estimate

is the one noun: noisy (B, C, H, W) = clean + sigma * noise, sigma (B,), labels (B,) or None. Where
sigma is, is left open: samplers hand it over on the CPU, for wrappers to read; networks move it.
"""

from collections.abc import Callable

from torch import Tensor

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
