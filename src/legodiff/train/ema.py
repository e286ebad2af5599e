"""The moving average of the weights that is sampled from."""

import copy

import torch

from legodiff.model.stack import LegoStack


class Ema:
    """An exponential moving average of a network, with its half-life counted in images.

    Early on the half-life is only ``rampup`` times the images seen, so that the average forgets the
    initial weights (as in EDM; Karras et al. 2022). Buffers are copied.
    """

    def __init__(self, network: LegoStack, halflife: float, rampup: float) -> None:
        self.halflife, self.rampup = halflife, rampup
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def decay(self, images: int, batch: int) -> float:
        """Weight of the old average in a step of ``batch`` images that ends at ``images`` seen."""
        halflife = min(self.halflife, images * self.rampup)
        return float(0.5 ** (batch / halflife)) if halflife > 0 else 0.0

    @torch.no_grad()
    def update(self, network: LegoStack, images: int, batch: int) -> None:
        weight = 1 - self.decay(images, batch)
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), weight)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
