"""Judges plans on digits: the planner's, the paper's break points, fewer steps, another solver.

    python benchmarks/plans.py runs/digits-0 --images 2000 --out plans.jsonl
    python benchmarks/plans.py runs/digits-0 --dit runs/dit-0 --images 2000 --out plans.jsonl
    python benchmarks/plans.py --table plans.jsonl
    python benchmarks/plans.py --picture runs/digits-0 --budgets 0.5 0.3 --out budgets

The first finds plans on images of its own, unless `legodiff plan` has, and then draws others: for
every budget the best that the planner, the paper's rule, fewer steps and DPM-Solver++(2M) with all
bricks have for it, and a plain DiT of less cost. A line of JSON each: FD-digits, accuracy,
difference from the full model's images, share of its FLOPs.
--picture draws the same seeds in every way.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from legodiff import LegoPipeline, SkipPlan
from legodiff.evaluate.digits import DigitJudges, Verdict
from legodiff.pictures import save_png, table_of_images
from legodiff.planning import find_plans
from legodiff.plans import Curve, Point, write_curves
from legodiff.sampling import Method

BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BATCH = 100


class Drawer:
    """Draws digits of all classes by any method, and judges them."""

    def __init__(self, pipe: LegoPipeline, images: int) -> None:
        self.pipe, self.images = pipe, images
        self.judges = DigitJudges(pipe.stack.spec.image_size[0])

    def draw(self, method: Method) -> tuple[Tensor, Verdict, float]:
        """Images in the model's space, what the judges say, and seconds."""
        pipe, labels = self.pipe, [number % 10 for number in range(self.images)]
        denoise = method.denoiser(pipe.stack, pipe.stack.spec.classes)
        began, parts = time.perf_counter(), []
        for start in range(0, self.images, BATCH):
            part = slice(start, min(start + BATCH, self.images))
            seeds = range(part.start, part.stop)
            size = pipe.stack.spec.image_size
            parts.append(pipe.draw(denoise, labels[part], seeds, method, size))
        seconds = time.perf_counter() - began
        drawn = torch.cat(parts)
        verdict = self.judges.judge(pipe.codec.decode(drawn).numpy(), np.array(labels))
        return drawn, verdict, seconds


def candidates(curve: Curve, budget: float) -> dict[str, Point]:
    """The best of each kind within a budget."""
    kinds: dict[str, Sequence[Point]] = {"planned": curve.points}
    for kind in ("paper", "fewer steps", "other solver"):
        kinds[kind] = [point for point in curve.rivals if point.kind == kind]
    found = {}
    for kind, points in kinds.items():
        fitting = [point for point in points if point.flops <= budget * curve.full.flops]
        if fitting:  # planned: the least error; the others have one way to spend it all
            best = min if kind == "planned" else max
            key = (lambda p: p.error) if kind == "planned" else (lambda p: p.flops)
            found[kind] = best(fitting, key=key)
    return found


def planned(run: Path, full: Method, images: int) -> tuple[LegoPipeline, Method, Curve]:
    """The model, its full method, and its trade-off: as kept with it, or found and kept now."""
    pipe = LegoPipeline.from_pretrained(run)
    full = replace(full, plan=SkipPlan.full(len(pipe.stack.bricks)))
    curve = pipe.curve(full)
    if curve is None:
        curve = find_plans(pipe, full, images, BATCH)
        write_curves(run, [*pipe.curves, curve])
    return pipe, full, curve


def compare(
    run: Path, dit: Path | None, arguments: argparse.Namespace, full: Method
) -> Iterator[dict[str, Any]]:
    """All rows of a model, each as soon as it is known."""
    pipe, full, curve = planned(run, full, arguments.measure)
    drawer = Drawer(pipe, arguments.images)
    reference, *judged = drawer.draw(full)
    common = {"run": run.name, "guidance": full.guidance, "images": arguments.images}

    def row(
        kind: str, budget: float | None, share: float, error: float | None, judged: list[Any]
    ) -> dict[str, Any]:
        verdict, seconds = judged
        own = {"budget": budget, "kind": kind, "share": share, "error": error}
        return common | own | {"fd": verdict.fd, "accuracy": verdict.accuracy, "seconds": seconds}

    yield row("full", 1.0, 1.0, 0.0, judged)
    done: dict[str, tuple[float, list[Any]]] = {}
    for budget in arguments.budgets:
        for kind, point in candidates(curve, budget).items():
            name = json.dumps(point.method.to_dict())
            if name not in done:
                drawn, *judged = drawer.draw(point.method)
                change = (drawn - reference) / pipe.stack.spec.sigma_data
                done[name] = float(change.square().mean().sqrt()), judged
            error, judged = done[name]
            share = point.flops / curve.full.flops
            yield row(kind, budget, share, error, judged) | {"method": point.method.to_dict()}
    if dit is not None:
        other = LegoPipeline.from_pretrained(dit)
        method = replace(full, plan=SkipPlan.full(len(other.stack.bricks)))
        _, *judged = Drawer(other, arguments.images).draw(method)
        flops = method.flops(other.sampling, other.stack.spec, other.stack.spec.image_size)
        yield row("DiT", None, flops / curve.full.flops, None, judged)


def picture(run: Path, budgets: Sequence[float], measured: int, out: Path, full: Method) -> None:
    """The same ten images by the full method, and by the best of each kind within the budgets."""
    pipe, full, curve = planned(run, full, measured)
    rows = [("all, 100 %", pipe.render(full, list(range(10))).images)]
    for budget in budgets:
        for kind, point in candidates(curve, budget).items():
            share = 100 * point.flops / curve.full.flops
            drawn = pipe.render(point.method, list(range(10))).images
            rows.append((f"{kind}, {share:.0f} %", drawn))
    title = "The same seeds: share of the full FLOPs"
    save_png(out.with_suffix(".png"), table_of_images(rows, list("0123456789"), title))


def show(path: Path) -> None:
    """Prints means over the runs whose names differ in the number at their end."""
    groups: dict[tuple[str, float, float | None, str], list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        name = row["run"].rstrip("0123456789").rstrip("-")
        key = (name, row["guidance"], row["budget"], row["kind"])
        groups.setdefault(key, []).append(row)
    base = {
        (row["run"], row["guidance"]): row["fd"]
        for rows in groups.values()
        for row in rows
        if row["kind"] == "full"
    }
    print("| model | guidance | budget | | FLOPs | difference | FD-digits | of full | accuracy |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (name, guidance, budget, kind), rows in groups.items():
        rise = [100 * (row["fd"] / base[row["run"], row["guidance"]] - 1) for row in rows]
        error = "" if rows[0]["error"] is None else f"{_mean(rows, 'error'):.4f}"
        print(
            f"| {name} | {guidance:g} | {budget or ''} | {kind} | {_mean(rows, 'share'):.2f} "
            f"| {error} | {_mean(rows, 'fd'):.3f} "
            f"| {np.mean(rise):+.1f} % ({min(rise):+.1f} to {max(rise):+.1f}) "
            f"| {100 * _mean(rows, 'accuracy'):.1f} % |"
        )


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--dit", type=Path, nargs="*", default=[])
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--measure", type=int, default=100, help="images that plans are found on")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path, default=Path("plans.jsonl"))
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    full = Method(SkipPlan.full(1), arguments.steps, guidance=arguments.guidance)
    if arguments.table:
        show(arguments.table)
    elif arguments.picture:
        few = arguments.measure
        picture(arguments.picture, arguments.budgets, few, arguments.out, full)
    else:
        dits = [*arguments.dit, *[None] * len(arguments.runs)]
        for run, dit in zip(arguments.runs, dits, strict=False):
            for row in compare(run, dit, arguments, full):
                print(json.dumps(row), flush=True)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
