"""``legodiff plan``"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from legodiff.cli.common import (
    DeviceOption,
    GuidanceOption,
    IntervalOption,
    SamplerOption,
    SamplerOptions,
    SelfGuidanceOption,
    StepsOption,
    choose_device,
    console,
    full_method,
    progress,
    say,
)

if TYPE_CHECKING:
    from legodiff.plans import Curve, Point


def plan(
    run: Annotated[Path, typer.Argument(help="Run or model folder; the plans are kept in it.")],
    steps: StepsOption = 18,
    sampler: SamplerOption = "heun",
    guidance: GuidanceOption = 1.0,
    guidance_interval: IntervalOption = None,
    self_guidance: SelfGuidanceOption = 1.0,
    option: SamplerOptions = None,
    images: Annotated[int, typer.Option(help="Images to measure on.", min=1)] = 64,
    batch: Annotated[int, typer.Option(help="Images drawn at a time.", min=1)] = 16,
    device: DeviceOption = "auto",
) -> None:
    """Find the best plans at every cost, over solver, steps, bricks, guidance; keep and draw them.

    Afterwards `sample --budget 0.5` or `--budget 50ms` with the same steps, sampler, guidance and
    options uses them. Needs no data: the model is measured on images that it draws.
    """
    from legodiff.pictures import trade_off_picture
    from legodiff.pipeline import LegoPipeline
    from legodiff.planning import find_plans
    from legodiff.plans import write_curves

    if not run.is_dir():
        raise ValueError(f"{run} is not a folder; plans are kept in a run or model folder")
    pipe = LegoPipeline.from_pretrained(run, choose_device(device))
    full = full_method(
        len(pipe.stack.bricks),
        *(steps, sampler, guidance, guidance_interval, self_guidance, option),
    )
    pipe.check_guidance(guidance)
    with progress() as show:
        curve = find_plans(pipe, full, images, batch, show)
    others = [known for known in pipe.curves if known.full.method != full]
    current = [known for known in others if known.model == curve.model]
    write_curves(run, [*current, curve])
    picture = run / "plans.png"
    trade_off_picture(picture, _lines(curve), f"{run.name}: {sampler}, {steps} steps")
    console.print(_table(curve))
    say(
        f"In {run / 'plans.json'} and {picture}. Measured on {curve.images} images; milliseconds "
        f"an image on {curve.machine}."
    )
    say(f"Draw with one:  legodiff sample {run} --budget 0.5 --out samples")


def _lines(curve: "Curve") -> dict[str, list[tuple[float, float]]]:
    def line(points: "list[Point]") -> list[tuple[float, float]]:
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
    planned = {"solver, steps and bricks planned together": line(list(curve.points))}
    return planned | {name: points for name, points in rivals.items() if points}


def _table(curve: "Curve") -> Table:
    table = Table(title="the least error at every cost")
    guidance = curve.full.method.guidance != 1
    names = ("FLOPs", "ms", "error", "solver", "steps", "bricks from high noise to low")
    for name in (*names, "guided") if guidance else names:
        table.add_column(name, justify="left" if name.startswith("bricks") else "right")
    for point in curve.points:
        bands = reversed(point.method.plan.bands)
        low, high = point.method.interval
        guided = "no" if point.method.guidance == 1 else f"{low:.3g} to {high:.3g}"
        table.add_row(
            f"{point.flops / curve.full.flops:.0%}",
            f"{point.milliseconds:.3g}",
            f"{point.error:.2g}",
            point.method.sampler,
            str(point.method.steps),
            " ".join("+".join(map(str, bricks)) for _, bricks in bands),
            *([guided] if guidance else []),
        )
    return table
