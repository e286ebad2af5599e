"""``legodiff info``"""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from legodiff.cli.common import console, open_spec, parse_size, say


def info(
    run: Annotated[str, typer.Argument(help="Run or model folder, Hub id, or preset name.")],
    size: Annotated[
        str | None,
        typer.Option(
            help="Canvas as HEIGHTxWIDTH in the model's own pixels (for a model of latents: in "
            "latents); the training size by default."
        ),
    ] = None,
) -> None:
    """Print the bricks of a model, their parameters and what each costs."""
    from legodiff.model.cost import brick_flops, brick_parameters, shared_flops
    from legodiff.model.spec import ForeignSpec

    spec, folder = open_spec(run)
    canvas = parse_size(size) or spec.image_size
    spec.check_canvas(canvas)
    flops, parameters = brick_flops(spec, canvas), brick_parameters(spec)
    shared = (shared_flops(spec), parameters[-1])
    total, foreign = sum(flops) + shared[0], ""

    table = Table("brick", "patch", "field", "tokens", "blocks", "parameters", "GFLOPs", "share")
    for number, brick in enumerate(spec.bricks):
        rows, columns = brick.patch(canvas)
        if isinstance(brick, ForeignSpec):
            field = tokens = depth = ""
            foreign = f"Brick {number} is a {brick.network} that gives {brick.prediction}."
        else:
            patches = canvas[0] * canvas[1] // (rows * columns)
            field, depth = f"{brick.local}x{brick.local}", str(brick.depth)
            tokens = f"{patches} x {rows * columns // brick.local**2}"
        table.add_row(
            str(number),
            f"{rows}x{columns}",
            field,
            tokens,
            depth,
            f"{parameters[number] / 1e6:.3f} M",
            f"{flops[number] / 1e9:.4g}",
            f"{flops[number] / total:.1%}",
        )
    shares = (f"{shared[1] / 1e6:.3f} M", f"{shared[0] / 1e9:.4g}", f"{shared[0] / total:.1%}")
    table.add_row("shared", "", "", "", "", *shares, end_section=True)
    table.add_row("all", "", "", "", "", f"{sum(parameters) / 1e6:.3f} M", f"{total / 1e9:.4g}", "")
    console.print(table)
    console.print(
        f"{canvas[0]}x{canvas[1]}x{spec.channels} pixels, {spec.classes} classes, width "
        f"{spec.width}, {spec.objective}. Bricks from the bottom to the top; tokens as patches x "
        "tokens a patch. FLOPs = 2 x multiply-accumulates, one image, one evaluation.",
        highlight=False,
    )
    if foreign:
        say(foreign)
    if folder is not None:
        _about(folder)


def _about(folder: Path) -> None:
    """Prints where a model was downloaded, and the budgets that are planned for."""
    from legodiff import store
    from legodiff.hub import Origin
    from legodiff.plans import read_curves

    if values := store.read_config(folder).get("origin"):
        origin = store.build(Origin, "origin", values)
        say(f"downloaded from {origin}, sha256 {origin.sha256}")
    for curve in read_curves(folder):
        method = curve.full.method
        least = curve.points[0].flops / curve.full.flops
        say(
            f"plans for {method.sampler}, {method.steps} steps, guidance {method.guidance:g}: "
            f"budgets from {least:.2f} to 1"
        )
