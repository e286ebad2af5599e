"""What this library holds itself to: measurements with a bound, for a kind of machine.

A suite is a list of cases; a case is what is measured side by side in one run, and the bounds that
its rows are held to. Bounds are never asserted: they are told, met or not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from legodiff.diffusion.guidance import guided
from legodiff.evaluate.authors import beside_authors
from legodiff.evaluate.bench import Candidate, Row, Spread, ratio
from legodiff.evaluate.contenders import (
    Contender,
    Setting,
    candidates,
    diffusers,
    dit,
    drawings,
    drawn,
    fresh,
    of_stack,
)
from legodiff.model.brick import LegoBrick
from legodiff.model.compiled import CompiledStack, compile_blocks
from legodiff.model.kernels import attend
from legodiff.model.presets import PRESETS, preset
from legodiff.model.stack import LegoStack
from legodiff.sampling import Sampling

BF16 = torch.bfloat16
SHAPES = ((64, 6, 64), (256, 6, 64), (256, 16, 64), (64, 16, 72))
"""Patches of four tokens, heads and their width: S and L at 32x32 and 64x64, XL at 32x32."""
MANY = 64
"""Images at a time on a GPU."""


class Bound(NamedTuple):
    """A figure of a case, and what it is held to."""

    what: str
    value: Callable[[dict[str, Row]], Spread]
    """Of the rows by name."""
    bound: float
    least: bool
    """Whether it should be at least the bound, or at most."""
    unit: str = ""

    def met(self, rows: dict[str, Row]) -> bool:
        found = self.value(rows).median
        return found >= self.bound if self.least else found <= self.bound


@dataclass(frozen=True)
class Case:
    """What is measured side by side."""

    title: str
    device: torch.device
    precision: torch.dtype
    entries: Sequence[Candidate]
    bounds: Sequence[Bound] = ()


def quotient(one: str, other: str) -> Callable[[dict[str, Row]], Spread]:
    """Time of a row by the time of another, round by round."""
    return lambda rows: ratio(rows[one].milliseconds, rows[other].milliseconds)


def memory(one: str, other: str) -> Callable[[dict[str, Row]], Spread]:
    """Memory of a row by that of another."""

    def value(rows: dict[str, Row]) -> Spread:
        first, second = rows[one].memory, rows[other].memory
        return Spread.of([first / second if first and second else float("nan")])

    return value


def cpu(device: torch.device, authors: Path | None) -> Iterator[Case]:
    """LEGO-S at 64x64, as docs/benchmarks.md has it."""
    own = of_stack("ours", PRESETS["lego-s-pg-64"], also=[(0, 1)])
    theirs = None
    if authors is not None:
        own, theirs = beside_authors(own, authors)
    size = (64, 64)
    plain, stock = dit("ours", own.spec, size), diffusers("ours", own.spec, size)
    assert plain is not None
    assert stock is not None
    against = [replace(plain, name="DiT", parts=()), replace(stock, name="diffusers' DiT")]

    for precision, batch in ((torch.float32, 4), (BF16, 2)):
        setting = Setting(size, batch, device, precision)
        entries = candidates(own, setting) + [candidates(one, setting)[0] for one in against]
        if theirs is not None:
            entries += candidates(theirs, replace(setting, precision=torch.float32))
        yield Case(
            f"forward, {_short(precision)}",
            device,
            precision,
            entries,
            _forward(precision, theirs),
        )
    for precision in (torch.float32, BF16):
        setting = Setting(size, 2, device, precision, train=True)
        entries = candidates(replace(own, parts=()), setting)
        entries += [replace(_compiled(own, setting), name="ours compiled")]
        entries += [candidates(one, setting)[0] for one in against]
        if theirs is not None:
            entries += candidates(theirs, replace(setting, precision=torch.float32))
        yield Case(
            f"training step, {_short(precision)}",
            device,
            precision,
            entries,
            _training(precision, theirs),
        )


def _forward(precision: torch.dtype, theirs: Contender | None) -> list[Bound]:
    single = precision == torch.float32
    patches = "ours: bricks 0+1"
    bounds = [
        Bound("patch-bricks alone / DiT", quotient(patches, "DiT"), 0.1 if single else 0.07, False)
    ]
    if theirs is not None:
        bounds.append(
            Bound(
                "authors' in fp32 / ours",
                quotient(theirs.name, "ours"),
                2.0 if single else 3.0,
                True,
            )
        )
    if single:
        bounds += [
            Bound("ours / DiT", quotient("ours", "DiT"), 0.55, False),
            Bound("ours / diffusers' DiT", quotient("ours", "diffusers' DiT"), 0.55, False),
            Bound("share of the matrix product", _share, 0.8, True),
        ]
    return bounds


def _share(rows: dict[str, Row]) -> Spread:
    """FLOP/s of the first row, by those of the matrix product beside it."""
    return ratio(rows["ours"].speed, rows["ceiling"].speed)


def _training(precision: torch.dtype, theirs: Contender | None) -> list[Bound]:
    single = precision == torch.float32
    own, dits = ("ours", "ours compiled"), ("DiT", "diffusers' DiT")
    bounds = []
    if theirs is not None:
        bounds += [
            Bound(
                f"authors' in fp32 / {name}",
                quotient(theirs.name, name),
                1.8 if single else 2.5,
                True,
            )
            for name in own
        ]
    if single:
        bounds += [
            Bound(f"{name} / {other}", quotient(name, other), 0.5, False)
            for name in own
            for other in dits
        ]
        bounds += [
            Bound(f"memory: ours / {other}", memory("ours", other), 0.6, False) for other in dits
        ]
    return bounds


def _compiled(stack: Contender, setting: Setting) -> Candidate:
    """Its training step with the blocks compiled."""
    network = LegoStack(stack.spec)
    network.load_state_dict((stack.network or fresh(stack)).state_dict())
    compile_blocks(network)
    entry = candidates(replace(stack, network=network, parts=()), setting)[0]
    return replace(entry, followed=False)


def h100(device: torch.device, authors: Path | None) -> Iterator[Case]:
    """What the targets for one H100 are measured by; it takes about ten minutes."""
    yield from _attention(device)
    yield _block(device)
    yield _sampling(device)
    yield _alone(device)
    for name in ("lego-s-pg-64", "lego-l-pg-64"):
        yield _steps(name, device, authors)


def _attention(device: torch.device) -> Iterator[Case]:
    """Ways to attend among four tokens, at every size that there is."""
    for patches, heads, size in SHAPES:
        for images in (MANY // 4, 4 * MANY):
            qkv = torch.randn(images, patches, 4, 3, heads, size, device=device, dtype=BF16)
            flops = 4 * patches * 16 * heads * size
            ways = {
                "attend": attend,
                "attend, compiled": torch.compile(attend),
                "elementwise, compiled": torch.compile(_elementwise),
                "batched products": _products,
            }
            yield Case(
                f"attention of {images * patches:,} sequences of 4, {heads} heads of {size}",
                device,
                BF16,
                [_timed(n, partial(way, qkv), images, flops) for n, way in ways.items()],
            )


def _timed(name: str, run: Callable[[], object], images: int, flops: int = 0) -> Candidate:
    """For its time alone."""
    return Candidate(name, run, images, 0, flops, followed=False)


def _products(qkv: torch.Tensor) -> torch.Tensor:
    query, key, value = qkv.unbind(3)  # each (B, P, N, heads, d)
    scores = torch.einsum("bpnhd,bpmhd->bphnm", query, key) / qkv.shape[-1] ** 0.5
    return torch.einsum("bphnm,bpmhd->bpnhd", scores.softmax(-1), value).flatten(-2)


def _elementwise(qkv: torch.Tensor) -> torch.Tensor:
    """Each pair of tokens written out, for a compiler to make one kernel of."""
    query, key, value = qkv.unbind(3)
    out = []
    for n in range(qkv.shape[2]):
        scores = (query[:, :, n, None] * key).float().sum(-1) / qkv.shape[-1] ** 0.5
        weights = scores.softmax(2)[..., None].to(qkv.dtype)
        out.append((weights * value).sum(2))
    return torch.stack(out, dim=2).flatten(-2)


def _block(device: torch.device) -> Case:
    """One block of the 4x4-brick of XL at 32x32."""
    spec = preset("lego-xl-pg-32", channels=4)
    stack = fresh(of_stack("xl", spec))
    brick = stack.bricks[0]  # type: ignore[index]
    assert isinstance(brick, LegoBrick)
    block = brick.blocks[0].to(device, BF16)
    width = spec.width
    tokens = torch.randn(MANY, 64, 4, width, device=device, dtype=BF16)
    condition = torch.randn(MANY, width, device=device, dtype=BF16)
    flops = 2 * (12 * width**2 * 256 + 6 * width**2)

    def run(step: Callable[..., object]) -> None:
        with torch.no_grad():
            step(tokens, condition)

    ways: dict[str, Callable[..., object]]
    ways = {"block": block, "block, compiled": torch.compile(block)}
    entries = [_timed(name, partial(run, way), MANY, flops) for name, way in ways.items()]

    def milliseconds(rows: dict[str, Row]) -> Spread:
        best = min((rows[name] for name in ways), key=lambda row: Spread.of(row.milliseconds))
        return Spread.of([MANY * one for one in best.milliseconds])

    bound = Bound(f"a block of {MANY} images", milliseconds, 1.0, False, "ms")
    return Case("one block of a 4x4 brick", device, BF16, entries, [bound])


def _sampling(device: torch.device) -> Case:
    """Half of the steps without the top brick, beside a DiT of the same evaluations."""
    setting = Setting((32, 32), MANY, device, BF16)
    entries = []
    for name, also in (("lego-xl-pg-32", [(0, 1)]), ("dit-xl-2-32", [])):
        spec = preset(name, channels=4, classes=1000)
        stack = of_stack(name, spec, also=also)
        entries += [one for one in _both(stack, setting) if "brick " not in one.name]
    spec = preset("lego-xl-pg-32", channels=4, classes=1000)
    full, half = drawings(spec, Sampling(), (), skip=0.5)

    def value(rows: dict[str, Row], ours: str, other: str) -> Spread:
        parts = [
            replace(row, name=row.name.replace(", compiled", ""))
            for row in rows.values()
            if ("compiled" in row.name) == ("compiled" in ours)
        ]
        way = drawn(of_stack("lego-xl-pg-32", spec, also=[(0, 1)]), half, parts)
        evaluations = full.calls.total()
        return ratio(way.milliseconds, [evaluations * ms for ms in rows[other].milliseconds])

    bounds = [
        Bound(
            f"drawing, no top brick in half of the steps / DiT-XL/2{kind}",
            partial(value, ours=f"lego-xl-pg-32{kind}", other=f"dit-xl-2-32{kind}"),
            0.4,
            False,
        )
        for kind in ("", ", compiled")
    ]
    return Case(f"sampling, {MANY} latents of 32x32", device, BF16, entries, bounds)


def _both(stack: Contender, setting: Setting) -> list[Candidate]:
    """A stack as it is and compiled, and its parts."""
    network = fresh(stack)
    assert isinstance(network, LegoStack)
    own = candidates(replace(stack, network=network), setting)
    low = network.to(setting.device).lower(setting.precision)
    compiled = CompiledStack(low)
    noisy = torch.randn(setting.batch, stack.spec.channels, *setting.size, device=setting.device)
    sigma = torch.ones(setting.batch, device=setting.device)
    labels = torch.zeros(setting.batch, dtype=torch.int64, device=setting.device)

    def run(bricks: tuple[int, ...] | None) -> None:
        with torch.no_grad():
            compiled(noisy, sigma, labels, bricks)

    title = {stack.title(bricks): bricks for bricks in (None, *stack.parts)}
    return own + [
        replace(
            one, name=f"{one.name}, compiled", run=partial(run, title[one.name]), followed=False
        )
        for one in own
    ]


def _alone(device: torch.device) -> Case:
    """A guided image on its own: as it comes, compiled, and as CUDA graphs."""
    spec = preset("lego-xl-pg-32", channels=4, classes=1000)
    stack = fresh(of_stack("xl", spec))
    assert isinstance(stack, LegoStack)
    stack.to(device).lower(BF16)
    noisy, sigma = torch.randn(1, 4, 32, 32, device=device), torch.ones(1, device=device)
    labels = torch.zeros(1, dtype=torch.int64, device=device)
    ways: dict[str, nn.Module | CompiledStack] = {
        "eager": stack,
        "compiled": CompiledStack(stack),
        "CUDA graphs": CompiledStack(stack, mode="reduce-overhead"),
    }

    def run(denoise: Callable[..., torch.Tensor]) -> None:
        with torch.no_grad():
            guided(denoise, 1.5, no_class=1000)(noisy, sigma, labels)

    entries = [_timed(name, partial(run, way), 1) for name, way in ways.items()]
    bounds = [
        Bound(f"eager / {name}", quotient("eager", name), 3.0, True)
        for name in ("compiled", "CUDA graphs")
    ]
    return Case("one image with guidance", device, BF16, entries, bounds)


def _steps(name: str, device: torch.device, authors: Path | None) -> Case:
    """Training steps, on all patches and on half of them."""
    spec = PRESETS[name]
    setting = Setting(spec.image_size, MANY, device, BF16, train=True)
    stack = replace(of_stack(name, spec), parts=())
    plain = dit(name, spec, spec.image_size)
    assert plain is not None
    half = replace(setting, patches=0.5)
    entries = [
        *candidates(stack, setting),
        replace(candidates(stack, half)[0], name=f"{name}, half of the patches"),
        replace(_compiled(stack, setting), name=f"{name}, compiled"),
        candidates(plain, setting)[0],
        replace(_compiled(plain, setting), name=f"{plain.name}, compiled"),
    ]
    if authors is not None:
        _, theirs = beside_authors(of_stack(name, spec), authors)
        entries += candidates(theirs, setting)
    return Case(f"training step of {MANY} images, {name}", device, BF16, entries)


def _short(precision: torch.dtype) -> str:
    return "fp32" if precision == torch.float32 else "bf16"


SUITES: dict[str, Callable[[torch.device, Path | None], Iterator[Case]]] = {
    "cpu": cpu,
    "h100": h100,
}
"""Name -> the cases of a device, beside the authors' code if there is a copy."""
