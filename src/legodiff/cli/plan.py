"""``legodiff plan``"""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from legodiff.cli.common import NO_CURVES, choose_device, console, full_method, progress, say
from legodiff.cli.options import (
    DeviceOption,
    GuidanceOption,
    IntervalOption,
    SamplerOption,
    SamplerOptions,
    SelfGuidanceOption,
    StepsOption,
)


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
    from legodiff.pictures import save_figure, trade_off_figure
    from legodiff.pipeline import LegoPipeline
    from legodiff.planning import find_plans
    from legodiff.plans import lines, table, write_curves

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
    names, rows = table(curve)
    shown = Table(title="the least error at every cost")
    for name in names:
        shown.add_column(name, justify="left" if name.startswith("bricks") else "right")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    places = [run / "plans.json"]
    if find_spec("matplotlib") is not None:
        places.append(run / "plans.png")
        title = f"{run.name}: {sampler}, {steps} steps"
        save_figure(places[-1], trade_off_figure(lines(curve), title))
    else:
        say(f"No picture of them: {NO_CURVES}")
    say(
        f"In {' and '.join(map(str, places))}. Measured on {curve.images} images; milliseconds an "
        f"image on {curve.machine}."
    )
    say(f"Draw with one:  legodiff sample {run} --budget 0.5 --out samples")
