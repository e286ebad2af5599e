"""What is measured of a network: all of it, its parts, and ways to draw with it."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legodiff.budgets import paper_plan
from legodiff.diffusion.loss import Trainable, brick_losses
from legodiff.diffusion.skipping import SkipPlan
from legodiff.evaluate.bench import Candidate, Row
from legodiff.model.cost import counted
from legodiff.model.patches import PatchSample, sample_patches
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack
from legodiff.plans import Curve
from legodiff.sampling import Method, Sampling

Bricks = tuple[int, ...]


@dataclass(frozen=True)
class Contender:
    """A denoiser, and the parts of it to be measured on their own."""

    name: str
    kind: Callable[[Any], nn.Module]
    """Builds it from ``spec`` where torch makes its tensors, also on meta."""
    spec: Any
    """Has ``channels`` and ``classes``, which is all that is asked of it here."""
    network: nn.Module | None = None
    """With its own weights; None: random ones."""
    parts: Sequence[Bricks] = ()
    """Of a stack: sets of bricks."""

    def title(self, bricks: Bricks | None) -> str:
        """What the row of some bricks is called; None: all that there is."""
        if bricks is None:
            return self.name
        return f"{self.name}: brick{'s' if len(bricks) > 1 else ''} {'+'.join(map(str, bricks))}"


@dataclass(frozen=True)
class Setting:
    """What they are all measured at."""

    size: tuple[int, int]
    batch: int
    device: torch.device
    precision: torch.dtype = torch.float32
    """Below it blocks of stacks and linear layers of others are rounded; to train, autocast."""
    train: bool = False
    """The loss of all bricks and its gradient, instead of an estimate."""
    patches: float = 1.0
    """Share of its patches that a patch-brick is trained on."""

    @property
    def rounds(self) -> bool:
        """Whether it is for less than single precision."""
        return self.precision != torch.float32


class Drawing(NamedTuple):
    """A way to draw an image."""

    name: str
    method: Method
    calls: Counter[Bricks]
    """How often each set of bricks is evaluated for an image."""


def of_stack(
    name: str, spec: StackSpec, network: LegoStack | None = None, also: Sequence[Bricks] = ()
) -> Contender:
    """A stack, each of its bricks, and what other bricks run together."""
    count = len(spec.bricks)
    sets = dict.fromkeys([*((brick,) for brick in range(count)), *also])
    parts = tuple(bricks for bricks in sets if len(bricks) < count)
    return Contender(name, LegoStack, spec, network, parts)


def candidates(contender: Contender, setting: Setting) -> list[Candidate]:
    """What there is to measure of a contender, the whole of it first."""
    network = _prepared(contender.network or fresh(contender), setting)
    batch = _batch(contender, setting, setting.batch, setting.device)
    with torch.device("meta"):
        weightless = contender.kind(contender.spec).to("meta").train(setting.train)
    one = _batch(contender, setting, 1, torch.device("meta"))
    return [
        Candidate(
            contender.title(bricks),
            partial(_work, network, bricks, batch, setting),
            setting.batch,
            _parameters(network, bricks),
            counted(partial(_work, weightless, bricks, one, setting)),
        )
        for bricks in (None, *contender.parts)
    ]


def _prepared(network: nn.Module, setting: Setting) -> nn.Module:
    if setting.rounds and not setting.train:
        network = copy.deepcopy(network)
        if isinstance(network, LegoStack):
            network.lower(setting.precision)
        else:  # else autocast would round them in every evaluation, and keep both
            for layer in network.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.to(setting.precision)
    return network.to(setting.device).train(setting.train)


def fresh(contender: Contender) -> nn.Module:
    """A network of random weights. None of them are zero: those may be faster to multiply."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = contender.kind(contender.spec)
        for parameter in network.parameters():
            if parameter.requires_grad:  # else it is no weight but a table
                nn.init.normal_(parameter, std=0.02)
    return network


class Batch(NamedTuple):
    """What a denoiser is given, and what learning takes besides."""

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    labels: Tensor | None
    samples: list[PatchSample | None] | None


def _batch(contender: Contender, setting: Setting, images: int, device: torch.device) -> Batch:
    spec, chance = contender.spec, torch.Generator().manual_seed(0)
    shape = (2, images, spec.channels, *setting.size)
    clean, noise = torch.randn(shape, generator=chance).to(device)
    labels = torch.zeros(images, dtype=torch.int64, device=device) if spec.classes else None
    samples = None
    if isinstance(spec, StackSpec) and setting.patches < 1:
        scores = [
            torch.rand(images, count, generator=chance).to(device)
            for count in spec.patch_counts(setting.size)
        ]
        samples = sample_patches(spec, setting.patches, scores, setting.size)
    return Batch(clean, noise, torch.ones(images, device=device), labels, samples)


def _work(network: nn.Module, bricks: Bricks | None, batch: Batch, setting: Setting) -> None:
    """What is measured: these bricks of a network on a batch; None: all of it."""
    lowered = isinstance(network, LegoStack) and not setting.train
    with torch.autocast(
        setting.device.type, setting.precision, enabled=setting.rounds and not lowered
    ):
        (_learn if setting.train else _estimate)(network, bricks, batch)


@torch.no_grad()
def _estimate(network: nn.Module, bricks: Bricks | None, batch: Batch) -> None:
    denoise = network if bricks is None else partial(network, bricks=bricks)
    denoise(batch.noise, batch.sigma, batch.labels)


def _learn(network: nn.Module, bricks: Bricks | None, batch: Batch) -> None:
    """The loss and its gradient, which is then forgotten."""
    clean, noise, sigma, labels, samples = batch
    if hasattr(network, "estimates"):
        bricked = cast("Trainable", network)
        losses = brick_losses(bricked, clean, noise, sigma, labels, bricks=bricks, samples=samples)
        loss = losses.mean()
    else:
        loss = F.mse_loss(network(clean + noise * sigma.view(-1, 1, 1, 1), sigma, labels), clean)
    loss.backward()  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)


def _parameters(network: nn.Module, bricks: Bricks | None) -> int:
    """Of what runs: the bricks, and the embeddings that all share."""
    total = sum(parameter.numel() for parameter in network.parameters())
    if bricks is None or not isinstance(network, LegoStack):
        return total
    rest = (brick for number, brick in enumerate(network.bricks) if number not in bricks)
    return total - sum(parameter.numel() for brick in rest for parameter in brick.parameters())


def drawings(
    spec: StackSpec, sampling: Sampling, curves: Sequence[Curve], skip: float
) -> list[Drawing]:
    """Ways to draw with a stack: with all bricks, by the paper's rule, and by the plans kept.

    ``skip``: share of the steps without the top brick; 0 leaves the rule out.
    """
    full = curves[0].full.method if curves else Method(SkipPlan.full(len(spec.bricks)))
    methods = {"all bricks": full}
    if skip and len(spec.bricks) > 1:
        plan = paper_plan(spec, sampling.sigmas(full.steps, full.sampler), skip)
        methods[f"no top brick in {skip:.0%} of the steps"] = replace(full, plan=plan)
    planned = [
        (f"plan of {point.flops / curve.full.flops:.0%}", point.method)
        for curve in curves
        for point in curve.points
        if point.method != full
    ]
    return [
        Drawing(name, method, _calls(method, sampling))
        for name, method in [*methods.items(), *planned]
    ]


def _calls(method: Method, sampling: Sampling) -> Counter[Bricks]:
    calls = Counter[Bricks]()
    for sigma in method.levels(sampling):
        calls[method.plan.bricks(sigma)] += method.evaluations(sigma)
    return calls


def drawn(stack: Contender, drawing: Drawing, rows: Sequence[Row]) -> Row:
    """What an image costs: evaluations of each set of bricks, times what one was measured at."""
    measured = {row.name: row for row in rows}
    every, counts = len(stack.spec.bricks), list(drawing.calls.values())
    parts = [
        measured[stack.title(bricks if len(bricks) < every else None)] for bricks in drawing.calls
    ]
    rounds = zip(*(part.milliseconds for part in parts), strict=True)
    return Row(
        f"{stack.name}: {drawing.name}",
        max(part.parameters for part in parts),
        sum(count * part.flops for count, part in zip(counts, parts, strict=True)),
        tuple(sum(n * ms for n, ms in zip(counts, each, strict=True)) for each in rounds),
        max((part.memory for part in parts if part.memory is not None), default=None),
    )
