"""A pretrained denoiser of another kind as a brick: converted at the border, not inside.

Whatever a network was trained to predict, at the noise level sigma it gives a clean estimate:

    its input      noisy / sqrt(1 + sigma²)   or, of a flow, noisy / (1 + sigma)
    "epsilon"      clean = noisy - sigma * F
    "v_prediction" clean = (noisy / sqrt(1 + sigma²) - sigma * F) / sqrt(1 + sigma²)
    "sample"       clean = F
    "flow"         clean = (noisy - sigma * F) / (1 + sigma)

(F is its raw output. From x_t = a clean + b noise with sigma = b / a; v = a noise - b clean; a flow
has a = 1 - t, b = t and predicts noise - clean.) Discrete networks are told the timestep whose
level is sigma, a fraction where it lies between two; flows are told 1000 * sigma / (1 + sigma).
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from legodiff.model.spec import ForeignSpec
from legodiff.noise import beta_sigmas, table_timestep


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
        s = sigma.view(-1, 1, 1, 1)
        flow = self.spec.prediction == "flow"
        scale = 1 / (1 + s) if flow else 1 / (1 + s**2).sqrt()
        raw = self._call(noisy * scale, self._time(sigma), labels).to(noisy.dtype)
        match self.spec.prediction:
            case "epsilon":
                return noisy - s * raw
            case "v_prediction":
                return (noisy * scale - s * raw) * scale
            case "flow":
                return (noisy - s * raw) * scale
        return raw

    def _time(self, sigma: Tensor) -> Tensor:
        if self.spec.prediction == "flow":
            return 1000 * sigma / (1 + sigma)
        table = beta_sigmas(**self.spec.schedule)
        return table_timestep(sigma, table)

    def _call(self, scaled: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        words: dict[str, Tensor] = {}
        for name in self.conditions:
            fixed: Tensor = getattr(self, name)
            words[name] = fixed.to(scaled.dtype).expand(len(scaled), *fixed.shape[1:])
        if self.spec.classes:
            words["class_labels"] = self._labels(len(scaled), labels, scaled.device)
        out = self.network(scaled, timestep=time.to(scaled.dtype), **words)
        raw: Tensor = getattr(out, "sample", out)
        return raw[:, : self.channels]  # what is left of it is a learned variance

    def _labels(self, count: int, labels: Tensor | None, device: torch.device) -> Tensor:
        none = self.spec.classes
        if labels is None:
            labels = torch.full((count,), none, device=device)
        if not self.spec.no_class and bool((labels == none).any()):
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


def _absent(*_: Any) -> Tensor:
    raise ValueError("this brick is a function that is not there: set stack.bricks[0].network")
