"""The dial of a model: the best ways to draw at every cost, found once and kept beside the weights.

``legodiff.planning`` finds them.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from legodiff import store
from legodiff.sampling import Method


@dataclass(frozen=True)
class Point:
    """One way to draw, what it costs, and how far it is from the full method."""

    method: Method
    flops: int
    """Of an image of the training size."""
    error: float
    """Root of the mean squared difference to the full method's images of the same seeds, in
    deviations of the data. Measured."""
    predicted: float | None = None
    """What the planner expected that to be; None for what it did not plan."""
    milliseconds: float | None = None
    """Of an image, on the machine and in the batches it was measured with."""
    kind: str = "planned"
    """Or "full", and of what keeps all bricks or plans nothing: "fewer steps", "other solver",
    "paper"."""


@dataclass(frozen=True)
class Curve:
    """The trade-off of a model for one full method."""

    model: str
    """Fingerprint of the model."""
    full: Point
    images: int
    """How many it was measured on."""
    machine: str
    """Where the milliseconds were measured, and in which batches."""
    points: tuple[Point, ...]
    """By rising cost; each errs less than those before it. The last is the full method."""
    rivals: tuple[Point, ...] = ()
    """What the planner is compared with: the paper's break points, only fewer steps, and only
    another solver."""

    def within(self, budget: float) -> Point:
        """The point of least error within a share of the full FLOPs.

        Raises ValueError, naming the cheapest, if there is none.
        """
        check_share(budget)
        fitting = [point for point in self.points if point.flops <= budget * self.full.flops]
        if not fitting:
            least = self.points[0].flops / self.full.flops
            raise ValueError(f"budget {budget} is too small: the cheapest plan takes {least:.3f}")
        return fitting[-1]

    def within_milliseconds(self, budget: float, clock: Callable[[Method], float]) -> Point:
        """The point of least error within a time for an image, as ``clock`` tells it.

        Raises ValueError, naming the fastest, if there is none.
        """
        times = [clock(point.method) for point in self.points]
        fitting = [p for p, time in zip(self.points, times, strict=True) if time <= budget]
        if not fitting:
            raise ValueError(
                f"budget {budget:g}ms is too small: the fastest plan takes {min(times):.3g}ms an "
                "image here"
            )
        return fitting[-1]

    def to_dict(self) -> dict[str, Any]:
        def plain(point: Point) -> dict[str, Any]:
            return {**asdict(point), "method": point.method.to_dict()}

        return {
            "model": self.model,
            "images": self.images,
            "machine": self.machine,
            "full": plain(self.full),
            "points": [plain(point) for point in self.points],
            "rivals": [plain(point) for point in self.rivals],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Curve":
        """The inverse of ``to_dict``. Raises ValueError for anything else."""

        def point(values: Mapping[str, Any]) -> Point:
            return store.build(
                Point, "plan", {**values, "method": Method.from_dict(values["method"])}
            )

        lists = {name: tuple(map(point, values[name])) for name in ("points", "rivals")}
        return store.build(cls, "plans", {**values, "full": point(values["full"]), **lists})


def lines(curve: Curve) -> dict[str, list[tuple[float, float]]]:
    """A curve and its rivals for a picture: (share of the full FLOPs, error) by name."""

    def line(points: Sequence[Point]) -> list[tuple[float, float]]:
        return sorted((point.flops / curve.full.flops, point.error) for point in points)

    kinds = {
        "fewer steps": "all bricks, fewer steps",
        "other solver": "all bricks, DPM-Solver++(2M)",
        "paper": "the paper's break point",
    }
    rivals = {
        name: line([point for point in curve.rivals if point.kind == kind])
        for kind, name in kinds.items()
    }
    planned = {"solver, steps and bricks planned together": line(curve.points)}
    return planned | {name: points for name, points in rivals.items() if points}


def table(curve: Curve) -> tuple[list[str], list[list[str]]]:
    """A curve in words: the headings, and a row for each point."""
    guidance = curve.full.method.guidance != 1
    names = ["FLOPs", "ms", "error", "solver", "steps", "bricks from high noise to low"]
    rows = []
    for point in curve.points:
        method, (low, high) = point.method, point.method.interval
        bands = reversed(method.plan.bands)
        row = [
            f"{point.flops / curve.full.flops:.0%}",
            "" if point.milliseconds is None else f"{point.milliseconds:.3g}",
            f"{point.error:.2g}",
            method.sampler,
            str(method.steps),
            " ".join("+".join(map(str, bricks)) for _, bricks in bands),
        ]
        guided = "no" if method.guidance == 1 else f"{low:.3g} to {high:.3g}"
        rows.append([*row, guided] if guidance else row)
    return [*names, "guided"] if guidance else names, rows


def curve_of(curves: Sequence[Curve], full: Method, model: str) -> Curve | None:
    """The curve of a full method, if there is one. Raises ValueError if it is of another model."""
    found = next((curve for curve in curves if curve.full.method == full), None)
    if found is not None and found.model != model:
        raise ValueError(
            f"the plans are for the model {found.model}, and this is {model}; "
            "run legodiff plan again"
        )
    return found


def point_of(curves: Sequence[Curve], method: Method, model: str) -> Point | None:
    """What is known of a method of this model, if anything is."""
    points = (point for curve in curves if curve.model == model for point in curve.points)
    return next((point for point in points if point.method == method), None)


def check_share(budget: float) -> None:
    """Raises ValueError if a budget is no share of the full FLOPs."""
    if not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise ValueError(f"budget is {budget!r}; it is a share of the full FLOPs, in (0, 1]")


def parse_milliseconds(text: str) -> float:
    """ "50ms" or "1.5s" in milliseconds. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(ms|s)", text.strip())
    if not found or not float(found[1]):
        raise ValueError(f"budget {text!r}: give a share such as 0.5, or a time such as 50ms")
    return float(found[1]) * (1e3 if found[2] == "s" else 1)


def write_curves(folder: Path, curves: Sequence[Curve]) -> None:
    """Writes ``plans.json`` into a model folder."""
    text = json.dumps({"curves": [curve.to_dict() for curve in curves]}, indent=1)
    store.write_atomically(folder / store.PLANS, text.encode())


def read_curves(folder: Path) -> tuple[Curve, ...]:
    """The curves of a model folder; none if nothing was planned. Raises ValueError."""
    path = folder / store.PLANS
    if not path.is_file():
        return ()
    try:
        return tuple(map(Curve.from_dict, store.read_json(path)["curves"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); run legodiff plan {folder}") from error
