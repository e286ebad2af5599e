"""What this library holds itself to: measurements with a bound, for a kind of machine.

A suite is a list of cases; a case is what is measured side by side in one run, and the bounds that
its rows are held to. Bounds are never asserted: they are told, met or not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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

    @property
    def bounds(self) -> list[Bound]:
        """Those for which there are rows: not everyone has the authors' code."""
        names = {CEILING, *(entry.name for entry in self.entries)}
        return [bound for bound in self.held_to if names.issuperset(bound.rows)]


def compiled(stack: Contender, setting: Setting) -> Candidate:
    """The training step of a stack with its blocks compiled."""
    network = LegoStack(stack.spec)
    network.load_state_dict((stack.network or fresh(stack)).state_dict())
    compile_blocks(network)
    alone = replace(stack, name=f"{stack.name}, compiled", network=network, parts=())
    return replace(candidates(alone, setting)[0], followed=False)


THEIRS = "authors', fp32"
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
        time("ours, compiled", "diffusers' DiT", 0.5),
        memory("ours", "DiT", 0.6),
        memory("ours", "diffusers' DiT", 0.6),
    ),
    "training step, bf16": (
        time(THEIRS, "ours", 2.5, least=True),
        time(THEIRS, "ours, compiled", 2.5, least=True),
    ),
}
"""Title of a case of the CPU -> what it is held to."""


def cpu(device: torch.device, authors: Path | None) -> Iterator[Case]:
    """LEGO-S-PG at 64x64 beside plain DiTs and, with the same weights, the authors' model."""
    size = (64, 64)
    own = of_stack("ours", PRESETS["lego-s-pg-64"], also=[(0, 1)])
    theirs: list[Contender] = []
    if authors is not None:
        own, found = beside_authors(own, authors)
        theirs = [replace(found, name=THEIRS)]
    plain, stock = dit("ours", own.spec, size), diffusers("ours", own.spec, size)
    assert plain is not None
    assert stock is not None
    rivals = [replace(plain, name="DiT", parts=()), replace(stock, name="diffusers' DiT")]
    single = torch.float32
    for title, held_to in TARGETS.items():
        what, precision = title.split(", ")
        train = what != "forward"
        dtype = single if precision == "fp32" else torch.bfloat16
        setting = Setting(size, 2 if train else 4, device, dtype, train=train)
        entries = candidates(replace(own, parts=()) if train else own, setting)
        entries += [compiled(own, setting)] if train else []
        entries += [candidates(rival, setting)[0] for rival in rivals]
        entries += [candidates(one, replace(setting, precision=single))[0] for one in theirs]
        yield Case(title, device, dtype, entries, held_to)
