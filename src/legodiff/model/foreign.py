"""A pretrained denoiser of another kind as a brick: converted at the border, not inside.

Whatever a network was trained to predict, it gives a clean estimate in the form of
``precondition``, with F its raw output and s the noise level:

    clean = c_skip * noisy + c_out * F(c_in * noisy; c_noise)

| it predicts  | c_skip       | c_out           | c_in            | c_noise             |
|--------------|--------------|-----------------|-----------------|---------------------|
| epsilon      | 1            | -s              | 1 / sqrt(1+s²)  | timestep of level s |
| v_prediction | 1 / (1+s²)   | -s / sqrt(1+s²) | 1 / sqrt(1+s²)  | timestep of level s |
| sample       | 0            | 1               | 1 / sqrt(1+s²)  | timestep of level s |
| flow         | 1 / (1+s)    | -s / (1+s)      | 1 / (1+s)       | 1000 s / (1+s)      |
| edm          | (see there)  |                 |                 | ln(s) / 4           |

These follow from x_t = a clean + b noise with s = b / a: v = a noise - b clean with a² + b² = 1,
and a flow has a = 1 - t, b = t and predicts noise - clean. A timestep is a fraction where s lies
between the levels of two.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from legodiff.model.precondition import Coefficients, edm, to_clean
from legodiff.model.spec import ForeignSpec
from legodiff.noise import table_timestep


class ForeignBrick(nn.Module):
    """The denoiser of a ``ForeignSpec``: (noisy, sigma, labels) -> clean estimate."""

    def __init__(self, spec: ForeignSpec, channels: int) -> None:
        super().__init__()
        self.spec, self.channels = spec, channels
        self.network: Any = build(spec)
        """The network itself: an ``nn.Module`` of another library, a stack, or any callable."""
        self.conditions = tuple(spec.conditions)
        for name, shape in spec.conditions.items():
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, noisy: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,) above 0, (B,) class indices or None; returns (B, C, H, W)."""
        if self.spec.prediction == "denoise":
            own: Tensor = self.network(noisy, sigma, labels)
            return own
        at = self.border(sigma)
        raw = self._call(noisy * at.scale, at.noise, labels).to(noisy.dtype)
        return to_clean(raw, noisy, at)

    def border(self, sigma: Tensor) -> Coefficients:
        """Between its world and ours, at the noise levels of a batch (B,)."""
        if self.spec.prediction == "edm":
            return edm(sigma, self.spec.sigma_data)
        s = sigma.view(-1, 1, 1, 1)
        if self.spec.prediction == "flow":
            share = 1 / (1 + s)
            return Coefficients(share, -s * share, share, 1000 * sigma / (1 + sigma))
        share = 1 / (1 + s**2).sqrt()
        skip, out = {
            "epsilon": (torch.ones_like(s), -s),
            "v_prediction": (share**2, -s * share),
            "sample": (torch.zeros_like(s), torch.ones_like(s)),
        }[self.spec.prediction]
        timestep = table_timestep(sigma, **self.spec.schedule)
        return Coefficients(skip, out, share, timestep.to(sigma.dtype))

    def _call(self, scaled: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        words: dict[str, Tensor] = {}
        for name in self.conditions:
            fixed: Tensor = getattr(self, name)
            words[name] = fixed.to(scaled.dtype).expand(scaled.shape[0], *fixed.shape[1:])
        if self.spec.classes:
            words["class_labels"] = self._labels(scaled, labels)
        out = self.network(scaled, timestep=time.to(scaled.dtype), **words)
        raw: Tensor = getattr(out, "sample", out)
        return raw[:, : self.channels]  # what is left of it is a learned variance

    def _labels(self, scaled: Tensor, labels: Tensor | None) -> Tensor:
        none = self.spec.classes
        if labels is None:
            labels = torch.full(scaled.shape[:1], none, device=scaled.device)
        if self.spec.no_class or labels.is_meta or torch.compiler.is_compiling():
            return labels  # which cannot be looked at while they are counted or compiled
        if bool((labels == none).any()):
            raise ValueError(f"{self.spec.network} was not trained without class; give every label")
        return labels


def build(spec: ForeignSpec) -> Any:
    """The network of a spec with weights yet to be loaded.

    Raises ValueError if the library it is from is not installed, or its configuration is not one.
    """
    if spec.network == "callable":
        return _absent
    if spec.network == "LegoStack":
        from legodiff.model.spec import StackSpec
        from legodiff.model.stack import LegoStack  # which imports this file

        return LegoStack(StackSpec.from_dict(spec.config))
    try:
        library = import_module("diffusers")
    except ImportError as error:
        raise ValueError(
            f"a brick of {spec.network} needs diffusers: pip install 'legodiff[latent]'"
        ) from error
    kind: Callable[..., nn.Module] = getattr(library, spec.network)
    try:
        return kind(**spec.config).eval()
    except (TypeError, ValueError, KeyError, NotImplementedError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{spec.network} cannot be built as configured: {reason}") from error


def _absent(noisy: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stands for a function until it is set; its FLOPs cannot be counted, and are told as 0."""
    if noisy.is_meta:
        return noisy
    raise ValueError("this brick is a function that is not there: set stack.bricks[0].network")
