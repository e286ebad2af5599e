"""Who is measured against whom: stacks, their parts and plans, and their opponents.

An opponent is what a function makes of a stack; a new one is a new row of ``OPPONENTS``.
"""

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
from legodiff.evaluate.uvit import UViT, UViTSpec
from legodiff.model.cost import counted
from legodiff.model.foreign import ForeignBrick
from legodiff.model.patches import PatchSample, sample_patches
from legodiff.model.presets import PRESETS, SIZES
from legodiff.model.spec import BrickSpec, ForeignSpec, StackSpec
from legodiff.model.stack import LegoStack
from legodiff.plans import Curve
from legodiff.sampling import Method, Sampling

UVITS = {"s": (512, 8, 13), "l": (1024, 16, 21)}
"""Width, heads and blocks of the U-ViTs of the paper's tables 1 and 2, for 64x64 pixels."""

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
    """Below it stacks have their blocks rounded; other networks, and to train all, autocast."""
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


def dit(name: str, spec: StackSpec, size: tuple[int, int]) -> Contender | None:
    """A plain DiT of the same width and as many blocks; of the paper's sizes, the paper's DiT."""
    bricks = [brick for brick in spec.bricks if isinstance(brick, BrickSpec)]
    if len(bricks) < len(spec.bricks):
        return None  # what a network of others is worth in blocks, nobody knows
    letter = _letter(spec)
    depth = SIZES[letter][3] if letter else sum(brick.depth for brick in bricks)
    local = min([b.local for b in bricks if b.is_image] or [b.local for b in bricks])
    plain = replace(spec, bricks=(BrickSpec("image", local, depth),))
    known = (preset for preset, other in PRESETS.items() if _shape(other) == _shape(plain))
    return of_stack(next(known, f"DiT of {name}"), plain) if plain != spec else None


def _shape(spec: StackSpec) -> tuple[Any, ...]:
    """What a stack's cost comes from, channels and classes aside."""
    return spec.image_size, spec.width, spec.heads, spec.mlp_ratio, spec.bricks


def uvit(name: str, spec: StackSpec, size: tuple[int, int]) -> Contender | None:
    """The U-ViT beside a stack in the paper's tables."""
    letter = _letter(spec)
    if size != (64, 64) or letter not in UVITS:
        return None
    width, heads, depth = UVITS[letter]
    own = UViTSpec(size, spec.channels, width, heads, depth, classes=spec.classes)
    return Contender(f"U-ViT-{letter.upper()}/{own.patch}", UViT, own)


def diffusers(name: str, spec: StackSpec, size: tuple[int, int]) -> Contender | None:
    """The DiT of diffusers, of the width and depth of the plain one."""
    plain = dit(name, spec, size)
    own = plain.spec if plain else spec
    if len(own.bricks) > 1 or not isinstance(own.bricks[0], BrickSpec) or size[0] != size[1]:
        return None
    config = {
        "num_attention_heads": own.heads,
        "attention_head_dim": own.width // own.heads,
        "in_channels": own.channels,
        "num_layers": own.bricks[0].depth,
        "patch_size": own.bricks[0].local,
        "sample_size": size[0],
        "num_embeds_ada_norm": own.classes or 1,  # it cannot be without classes
    }
    brick = ForeignSpec(
        "DiTTransformer2DModel",
        config,
        prediction="edm",
        sigma_data=own.sigma_data,
        classes=own.classes or 1,
        step=own.bricks[0].local,
    )
    foreign = replace(own, bricks=(brick,), classes=brick.classes)
    known = plain.name if plain else name
    return Contender(f"diffusers {known}", _foreign_brick, foreign)


def _foreign_brick(spec: StackSpec) -> nn.Module:
    brick = spec.bricks[0]
    assert isinstance(brick, ForeignSpec)
    return ForeignBrick(brick, spec.channels)


OPPONENTS: dict[str, Callable[[str, StackSpec, tuple[int, int]], Contender | None]] = {
    "dit": dit,
    "uvit": uvit,
    "diffusers": diffusers,
}
"""Name -> what it makes of a stack's name, spec and canvas; None: there is none."""


def _letter(spec: StackSpec) -> str | None:
    """The size of a stack if it is one of the paper's: s, l or xl."""
    for name, known in PRESETS.items():
        same = (known.width, known.bricks) == (spec.width, spec.bricks)
        if same and name.startswith(("lego-", "dit-")):
            return name.split("-")[1]
    return None


def gather(
    stacks: Sequence[Contender], against: Sequence[str], size: tuple[int, int]
) -> list[Contender]:
    """The stacks and after them their opponents, each once. Raises ValueError for unknown ones."""
    if unknown := [name for name in against if name not in OPPONENTS]:
        known = ", ".join(OPPONENTS)
        raise ValueError(f"there is no opponent {unknown[0]!r}; choose from {known}, or none")
    found = list(stacks)
    for stack in stacks:
        for opponent in (OPPONENTS[name](stack.name, stack.spec, size) for name in against):
            if opponent and all(opponent.spec != other.spec for other in found):
                found.append(opponent)
    return found


def candidates(contender: Contender, setting: Setting) -> list[Candidate]:
    """What there is to measure of a contender, the whole of it first."""
    network = _prepared(contender.network or fresh(contender), setting)
    batch = _batch(contender, setting, setting.batch, setting.device)
    with torch.device("meta"):
        weightless = contender.kind(contender.spec).to("meta")
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
    if isinstance(network, LegoStack) and not setting.train and setting.rounds:
        network = copy.deepcopy(network).lower(setting.precision)
    return network.to(setting.device)


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
