"""What networks cost, measured side by side: time with its spread, and memory.

A machine is now fast, now slow, so how long something took says little of what was run at another
time. Here all candidates run in one process, in rounds: in each of them everyone has a turn, in an
order drawn anew, and what is compared are the ratios within a round.
"""

import platform
import random
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from legodiff.model.kernels import linear

CONVENTION = (
    "FLOPs = 2 x multiply-accumulates of every matrix product, convolution and attention, for one "
    "image, counted on the meta device"
)
PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Side of the matrix product that tells what a device can do; 2048 where nothing is said."""

TURN, MOST_REPEATS = 0.05, 100
"""Seconds that a turn lasts at least, by repeating what is run, so many times at most."""

Report = Callable[[str, float, float], None]
"""Told the name of a stage, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Candidate:
    """Something to measure."""

    name: str
    run: Callable[[], object]
    """Does it once, to a batch."""
    images: int
    """In that batch."""
    parameters: int
    flops: int
    """Of an image."""
    followed: bool = True
    """Whether its memory is told; tensors inside of compiled code cannot be followed on the CPU."""


@dataclass(frozen=True)
class Row:
    """What was measured of a candidate."""

    name: str
    parameters: int
    flops: int
    """Of an image."""
    milliseconds: tuple[float, ...]
    """Of an image, in each round."""
    memory: int | None
    """Bytes of tensors that there were at once, besides weights and images; None: not told."""

    @property
    def speed(self) -> tuple[float, ...]:
        """FLOPs a second, in each round."""
        return tuple(1e3 * self.flops / time for time in self.milliseconds)


class Spread(NamedTuple):
    """A median, and where a tenth of the values are below and above."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(*(float(value) for value in np.quantile(values, [0.5, 0.1, 0.9])))


def ratio(values: Sequence[float], others: Sequence[float]) -> Spread:
    """The spread of a ratio, taken round by round."""
    return Spread.of([a / b for a, b in zip(values, others, strict=True)])


def measure(
    candidates: Sequence[Candidate],
    rounds: int,
    device: torch.device,
    report: Report | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Measures memory first, one by one, and then time, in turn."""
    report = report or (lambda *_: None)
    peaks = []
    for number, candidate in enumerate(candidates):
        report("memory", number, len(candidates))
        peaks.append(peak_memory(candidate.run, device) if candidate.followed else None)
    report("memory", len(candidates), len(candidates))
    times = alternate(
        candidates, rounds, lambda done: report("time", done, rounds), device=device, clock=clock
    )
    return [
        Row(one.name, one.parameters, one.flops, tuple(time), peak)
        for one, time, peak in zip(candidates, times, peaks, strict=True)
    ]


def alternate(
    candidates: Sequence[Candidate],
    rounds: int,
    on_round: Callable[[int], object] | None = None,
    *,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Milliseconds an image of each candidate in each round.

    The order in a round is drawn, always the same. A round goes before the first: it warms up, and
    tells how often to run what is over too soon.
    """
    chance = random.Random(0)
    times: list[list[float]] = [[] for _ in candidates]
    repeats = [1] * len(candidates)
    for number in range(rounds + 1):
        for place in chance.sample(range(len(candidates)), len(candidates)):
            candidate = candidates[place]
            _wait(device)
            began = clock()
            for _ in range(repeats[place]):
                candidate.run()
            _wait(device)
            seconds = (clock() - began) / repeats[place]
            if number == 0:
                repeats[place] = min(MOST_REPEATS, ceil(TURN / max(seconds, 1e-9)))
            else:
                times[place].append(1e3 * seconds / candidate.images)
        if on_round is not None:
            on_round(number)
    return times


def product(device: torch.device, precision: torch.dtype) -> Candidate:
    """The product of two square matrices, by what is fastest here: a network could do no better."""
    side = PRODUCT.get(device.type, PRODUCT["cpu"])
    left, right = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    none, name = left.new_zeros(side), f"product {side}x{side}"
    return Candidate(name, lambda: linear(left, right, none), 1, 0, 2 * side**3)


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes of the tensors that a function makes, the most there are at once.

    On CUDA what its allocator says; on the CPU without the scratch space inside an operation. None
    on other devices.
    """
    if device.type not in ("cpu", "cuda"):
        return None
    run()  # what is made once and for all, a table or a library's workspace, is not counted
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _Live() as live:
        run()
    return int(live.peak)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the tensors made while it is on: ``bytes`` there are now, and the ``peak``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(one.untyped_storage()) for one in _tensors((args, kwargs))}
        for storage in (one.untyped_storage() for one in _tensors(out)):
            if id(storage) not in given and id(storage) not in self.known:
                self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: object) -> None:
            del self.known[key]
            self.bytes -= size

        self.known[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def about(device: torch.device) -> dict[str, Any]:
    """The machine, and what runs on it."""
    return {
        "machine": _processor() if device.type == "cpu" else _accelerator(device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _accelerator(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
