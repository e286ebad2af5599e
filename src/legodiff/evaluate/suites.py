"""What this library holds itself to: measurements with a bound, for a kind of machine.

A suite is a list of cases; a case is what is measured side by side in one run, and the bounds that
its rows are held to. Bounds are never asserted: they are told, met or not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from legodiff.evaluate.authors import beside_authors
from legodiff.evaluate.bench import Candidate, Row, Spread, ratio
from legodiff.evaluate.contenders import Contender, Setting, candidates, fresh, of_stack
from legodiff.evaluate.opponents import diffusers, dit
from legodiff.model.compiled import compile_blocks
from legodiff.model.presets import PRESETS
from legodiff.model.stack import LegoStack

CEILING = "matrix product"
"""The row that every case has besides its own: as fast as a network could be at best."""
Rows = dict[str, Row]


@dataclass(frozen=True)
class Bound:
    """A figure made of some rows, and what it is held to."""

    what: str
    rows: Sequence[str]
    """Names of those that it is made of."""
    value: Callable[..., Spread]
    """Of these rows."""
    bound: float
    least: bool = False
    """Whether it should be at least the bound, instead of at most."""
    unit: str = ""

    def measured(self, rows: Rows) -> Spread:
        return self.value(*(rows[name] for name in self.rows))

    def met(self, rows: Rows) -> bool:
        found = self.measured(rows).median
        return found >= self.bound if self.least else found <= self.bound


def time(one: str, other: str, bound: float, least: bool = False) -> Bound:
    """Of a row by that of another, round by round."""

    def value(first: Row, second: Row) -> Spread:
        return ratio(first.milliseconds, second.milliseconds)

    return Bound(f"time: {one} / {other}", (one, other), value, bound, least)


def memory(one: str, other: str, bound: float) -> Bound:
    """Of a row by that of another."""

    def value(first: Row, second: Row) -> Spread:
        told = first.memory and second.memory
        return Spread.of([first.memory / second.memory if told else float("nan")])  # type: ignore[operator]

    return Bound(f"memory: {one} / {other}", (one, other), value, bound)


def share(one: str, bound: float) -> Bound:
    """FLOPs a second of a row, by those of the matrix product beside it."""

    def value(row: Row, ceiling: Row) -> Spread:
        return ratio(row.speed, ceiling.speed)

    return Bound(f"FLOP/s: {one} / {CEILING}", (one, CEILING), value, bound, least=True)


@dataclass(frozen=True)
class Case:
    """What is measured side by side."""

    title: str
    device: torch.device
    precision: torch.dtype
    entries: Sequence[Candidate]
    held_to: Sequence[Bound] = ()
    others: Sequence[str] = ()
    """Rows of another precision, which the matrix product beside them is no measure of."""

    def bounds(self, rows: Rows) -> list[Bound]:
        """Those for which there are rows: not everyone has the authors' code."""
        return [bound for bound in self.held_to if rows.keys() >= {*bound.rows}]


Build = Callable[[], Case]
"""Makes a case when its turn has come."""


def compiled(stack: Contender, setting: Setting) -> Candidate:
    """The training step of a stack with its blocks compiled."""
    network = LegoStack(stack.spec)
    network.load_state_dict((stack.network or fresh(stack)).state_dict())
    compile_blocks(network)
    alone = replace(stack, name=f"{stack.name}, compiled", network=network, parts=())
    return replace(candidates(alone, setting)[0], followed=setting.device.type != "cpu")


THEIRS = "authors', fp32"
HALF = "ours, half of the patches"
TARGETS = {
    "forward, fp32": (
        time(THEIRS, "ours", 2.0, least=True),
        time("ours", "DiT", 0.55),
        time("ours", "diffusers' DiT", 0.55),
        time("ours: bricks 0+1", "DiT", 0.1),
        share("ours", 0.8),
    ),
    "forward, bf16": (
        time(THEIRS, "ours", 3.0, least=True),
        time("ours: bricks 0+1", "DiT", 0.07),
    ),
    "training step, fp32": (
        time(THEIRS, "ours", 1.8, least=True),
        time(THEIRS, "ours, compiled", 1.8, least=True),
        time("ours", "DiT", 0.5),
        time("ours, compiled", "DiT", 0.5),
        time(HALF, "DiT", 0.5),
        time("ours, compiled", "diffusers' DiT", 0.5),
        memory("ours", "DiT", 0.6),
        memory(HALF, "DiT", 0.6),
        memory("ours", "diffusers' DiT", 0.6),
    ),
    "training step, bf16": (
        time(THEIRS, "ours", 2.5, least=True),
        time(THEIRS, "ours, compiled", 2.5, least=True),
    ),
}
"""Title of a case of the CPU -> what it is held to."""


def cpu(device: torch.device, authors: Path | None) -> Iterator[Build]:
    """LEGO-S-PG at 64x64 beside plain DiTs and, with the same weights, the authors' model."""
    own = of_stack("ours", PRESETS["lego-s-pg-64"], also=[(0, 1)])
    theirs: list[Contender] = []
    if authors is not None:
        own, found = beside_authors(own, authors)
        theirs = [replace(found, name=THEIRS)]
    for title in TARGETS:
        yield partial(_beside_all, title, own, theirs, device)


def _beside_all(
    title: str, own: Contender, theirs: Sequence[Contender], device: torch.device
) -> Case:
    single, (what, precision) = torch.float32, title.split(", ")
    train, dtype = what != "forward", single if precision == "fp32" else torch.bfloat16
    setting = Setting((64, 64), 2 if train else 4, device, dtype, train=train)
    entries = candidates(replace(own, parts=()) if train else own, setting)
    if train:
        half = candidates(replace(own, parts=()), replace(setting, patches=0.5))[0]
        entries += [compiled(own, setting), replace(half, name=HALF)]
    for make, name in ((dit, "DiT"), (diffusers, "diffusers' DiT")):
        rival = make("ours", own.spec, setting.size)
        assert rival is not None
        entries += candidates(replace(rival, name=name, parts=()), setting)
    for one in theirs:
        entries += candidates(one, replace(setting, precision=single))
    others = [one.name for one in theirs if dtype != single]
    return Case(title, device, dtype, entries, TARGETS[title], others)
