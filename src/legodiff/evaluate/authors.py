"""The authors' own model as an opponent, from a copy of their code, with the same weights as ours.

Their code (JegZheng/LEGODiffusion) is no part of this library: whoever has it gives its path. Only
``training/lego_models.py`` is run. It takes three layers from timm; where that is not installed,
the same three from torch stand in for them.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legodiff.evaluate.contenders import Contender, fresh, of_stack
from legodiff.interop.lego import DEPTHS, lego_pipeline, official_spec
from legodiff.model.precondition import edm, to_clean
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack

CLOSE = 1e-4
"""Largest difference of two estimates, in fp32, that are the same model's."""


class Theirs(nn.Module):
    """Their network under EDM's preconditioning: a denoiser that can be trained.

    In training mode it estimates by every brick, else by the last one.
    """

    def __init__(self, code: ModuleType, name: str, spec: StackSpec) -> None:
        super().__init__()
        self.spec = spec
        self.network = code.lego_models[name](
            in_channels=spec.channels,
            label_dim=spec.classes,
            class_dropout_prob=0.0,  # who drops labels does so before
            train_intermediate_stages=True,
        )

    def forward(self, noisy: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._estimates(noisy, sigma, labels)[-1]

    def estimates(
        self, noisy: Tensor, sigma: Tensor, labels: Tensor | None = None, *_: Any, **__: Any
    ) -> list[Tensor]:
        """Of every brick."""
        return self._estimates(noisy, sigma, labels)

    def _estimates(self, noisy: Tensor, sigma: Tensor, labels: Tensor | None) -> list[Tensor]:
        at = edm(sigma, self.spec.sigma_data)
        told = None
        if labels is not None:
            told = F.one_hot(labels, self.spec.classes + 1)[:, :-1].to(noisy.dtype)
        raw = self.network(noisy * at.scale, at.noise, class_labels=told)
        every = raw if isinstance(raw, list) else [raw]  # all in training, else the last
        return [to_clean(one.to(noisy.dtype), noisy, at) for one in every]

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return edm(sigma, self.spec.sigma_data).out ** -2


def beside_authors(stack: Contender, path: Path) -> tuple[Contender, Contender]:
    """A stack as they build it, of random weights, and theirs with the same ones.

    Raises ValueError if they have none such, or if the two give different estimates.
    """
    spec = stack.spec
    name = _official_name(spec)
    code = load(path)
    theirs = Contender(f"authors' {name}", lambda spec: Theirs(code, name, spec), spec)
    network = fresh(theirs)
    assert isinstance(network, Theirs)
    own = lego_pipeline(network.network.state_dict()).stack
    _check_same(own, network)
    spec = own.spec
    return (
        of_stack(stack.name, spec, own, stack.parts),
        replace(theirs, spec=spec, network=network),
    )


def _official_name(spec: StackSpec) -> str:
    """What they call the stack of these bricks."""
    shape = (spec.image_size, spec.width, spec.heads, spec.bricks)
    for name in DEPTHS:
        known = official_spec(name, spec.channels, spec.classes)
        if (known.image_size, known.width, known.heads, known.bricks) == shape:
            return name
    raise ValueError(
        "--authors: they have no model of these bricks; try lego-s-pg-64 (theirs for a grid of 32 "
        "have other patches than the paper)"
    )


@torch.no_grad()
def _check_same(own: LegoStack, theirs: Theirs) -> None:
    """Of every brick."""
    chance = torch.Generator().manual_seed(0)
    spec = theirs.spec
    noisy = torch.randn(2, spec.channels, *spec.image_size, generator=chance)
    sigma = torch.tensor([0.2, 5.0])
    labels = torch.tensor([0, spec.classes]) if spec.classes else None
    every = theirs.train().estimates(noisy, sigma, labels)
    pairs = zip(own.estimates(noisy, sigma, labels), every, strict=True)
    apart = max(float((one - other).abs().max()) for one, other in pairs)
    if not apart < CLOSE:
        raise ValueError(f"their code gives other estimates than ours, {apart:.1g} apart")


def load(path: Path) -> ModuleType:
    """Their ``lego_models.py``. Raises ValueError if it is not there or does not run."""
    file = path / "training" / "lego_models.py"
    if not file.is_file():
        raise ValueError(f"--authors {path}: there is no training/lego_models.py in it")
    found = importlib.util.spec_from_file_location("authors_lego_models", file)
    assert found
    assert found.loader
    code = importlib.util.module_from_spec(found)
    absent = {} if _has_timm() else _stand_ins()
    sys.modules.update(absent)
    try:
        found.loader.exec_module(code)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"--authors {path}: {file.name} does not run ({reason})") from error
    finally:
        for name in absent:
            del sys.modules[name]
    return code


def _has_timm() -> bool:
    try:
        import timm.models.vision_transformer  # type: ignore[import-not-found]  # noqa: F401
    except (ImportError, RuntimeError):  # it needs torchvision, which may not fit torch
        return False
    return True


def _stand_ins() -> dict[str, ModuleType]:
    names = ("timm", "timm.models", "timm.models.vision_transformer")
    modules = {name: ModuleType(name) for name in names}
    for layer in (PatchEmbed, Attention, Mlp):
        setattr(modules[names[-1]], layer.__name__, layer)
    return modules


class PatchEmbed(nn.Module):
    """Patches to tokens by a convolution."""

    def __init__(self, side: int, patch: int, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.patch_size = (patch, patch)
        self.num_patches = (side // patch) ** 2
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return out


class Attention(nn.Module):
    """Self-attention through torch's own kernel."""

    def __init__(self, width: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, width // self.num_heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, width))
        return out


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: Any, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return out
