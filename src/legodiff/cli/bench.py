"""``legodiff bench``"""

import json
import shlex
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from legodiff.cli.common import (
    NO_CURVES,
    check_place,
    choose_device,
    console,
    open_spec,
    parse_precision,
    parse_size,
    progress,
    say,
)
from legodiff.cli.options import DeviceOption
from legodiff.cli.suite import run_suite
from legodiff.cli.tables import evaluations, images_drawn, markdown, narrow, spread

if TYPE_CHECKING:
    from legodiff.evaluate.bench import Row
    from legodiff.evaluate.contenders import Contender, Drawing, Setting

ALONE = ("models", "batch", "size", "precision", "train", "patches", "skip", "against")
"""Arguments that a suite has no use for: it says itself what is measured."""


def bench(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Presets, run or model folders, Hub ids. By default lite-pr-16."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 8,
    size: Annotated[
        str | None,
        typer.Option(
            help="Canvas as HEIGHTxWIDTH in the models' own pixels (for models of latents: in "
            "latents); the first model's by default."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each is timed.", min=1)] = 10,
    device: DeviceOption = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32 or bf16: rounded weights; to train, autocast.")
    ] = "fp32",
    train: Annotated[bool, typer.Option("--train", help="Loss and gradient of a batch.")] = False,
    patches: Annotated[
        float, typer.Option(help="With --train: share of the patches trained on.")
    ] = 1.0,
    skip: Annotated[
        float,
        typer.Option(help="Share of the steps to draw without the top brick.", min=0, max=1),
    ] = 0.5,
    against: Annotated[
        str, typer.Option(help="Opponents: dit, uvit, diffusers (its DiT), or none.")
    ] = "dit,uvit",
    authors: Annotated[
        Path | None,
        typer.Option(help="A copy of the authors' code, to measure theirs with the same weights."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="cpu or h100: instead of models, what this library holds itself to."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of the CPU; by default as torch says.", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A .json for all figures; table and picture go beside it.")
    ] = None,
) -> None:
    """Measure what models cost: FLOPs, time and memory, of all bricks, of each, and of plans.

    All take turns in one process, beside a plain DiT and, for the paper's sizes, a U-ViT. Trust the
    ratios: milliseconds change with whatever else the machine does.
    """
    import torch

    from legodiff.evaluate.authors import beside_authors
    from legodiff.evaluate.bench import measure, product
    from legodiff.evaluate.contenders import Setting, candidates, drawn
    from legodiff.evaluate.opponents import gather

    dtype = parse_precision(precision)
    if not 0 < patches <= 1 or (patches < 1 and not train):
        raise ValueError(f"--patches {patches}: give a share in (0, 1], together with --train")
    if out is not None:
        check_place(out.absolute().parent, 10**6)
        if out.suffix != ".json":
            raise ValueError(f"--out {out}: give the name of a .json file")
    if threads:
        torch.set_num_threads(threads)
    if suite is not None:
        sources = {name: context.get_parameter_source(name) for name in ALONE}
        given = [
            name for name, source in sources.items() if source and source.name == "COMMANDLINE"
        ]
        if given:
            raise ValueError(f"--suite says itself what is measured; leave out {', '.join(given)}")
        if suite == "cpu" and device not in ("auto", "cpu"):
            raise ValueError(f"--suite cpu --device {device}: it is measured on the CPU")
        run_suite(suite, choose_device("cpu" if suite == "cpu" else device), authors, rounds, out)
        return
    if authors is not None and size is not None:
        raise ValueError("--size: the authors' model has the one it was made for; leave it out")
    names = list(dict.fromkeys(models or ["lite-pr-16"]))
    canvas = parse_size(size) or open_spec(names[0])[0].image_size
    setting = Setting(canvas, batch, choose_device(device), dtype, train, patches)

    stacks = [_open(name, setting, skip) for name in names]
    opponents = [] if against == "none" else [word.strip() for word in against.split(",")]
    released = []
    if authors is not None:
        pairs = [beside_authors(stack, authors) for stack, _ in stacks]
        stacks = [(own, kept) for (own, _), (_, kept) in zip(pairs, stacks, strict=True)]
        released = [theirs for _, theirs in pairs]
    contenders = gather([stack for stack, _ in stacks], opponents, canvas) + released
    with progress() as show:
        entries = [product(setting.device, dtype)]
        for number, contender in enumerate(contenders):
            show("building", number, len(contenders))
            entries += candidates(contender, setting)
        show("building", len(contenders), len(contenders))
        ceiling, *rows = measure(entries, rounds, setting.device, show)
    ways = [(drawing, drawn(one, drawing, rows)) for one, kept in stacks for drawing in kept]
    _report(rows, ways, ceiling, setting, out)


def _open(name: str, setting: "Setting", skip: float) -> "tuple[Contender, list[Drawing]]":
    """A model, and the ways to draw with it."""
    from legodiff.evaluate.contenders import drawings, of_stack
    from legodiff.pipeline import LegoPipeline
    from legodiff.sampling import Sampling

    spec, folder = open_spec(name)
    spec.check_canvas(setting.size)
    pipe = LegoPipeline.from_pretrained(name) if folder else None
    kept: list[Drawing] = []
    if not setting.train and setting.size == spec.image_size:  # others are drawn in windows
        sampling, curves = (pipe.sampling, pipe.curves) if pipe else (Sampling(), ())
        kept = drawings(spec, sampling, curves, skip)
    also = sorted({bricks for drawing in kept for bricks in drawing.calls})
    return of_stack(name, spec, pipe.stack if pipe else None, also), kept


def _report(
    rows: "list[Row]",
    ways: "list[tuple[Drawing, Row]]",
    ceiling: "Row",
    setting: "Setting",
    out: Path | None,
) -> None:
    """Prints what was measured, and writes it."""
    from legodiff.evaluate.bench import CONVENTION, Spread, about
    from legodiff.pictures import cost_picture
    from legodiff.store import write_atomically

    here = about(setting.device)
    speed = Spread.of([flops / 1e9 for flops in ceiling.speed])
    what = "loss and gradient" if setting.train else "an evaluation"
    told = (
        f"{setting.size[0]}x{setting.size[1]}, batches of {setting.batch}, {what}; median of "
        f"{len(ceiling.milliseconds)} rounds (10th to 90th percentile); x: ratio to the first row, "
        f"of times taken round by round. {CONVENTION}. GEMM: share of the FLOPs a second of a "
        f"{ceiling.name}, {spread(speed)} GFLOP/s. MB: tensors there are at once, besides weights "
        f"and images. {here['machine']}, {here['threads']} threads, "
        f"{str(setting.precision).removeprefix('torch.')}, torch {here['torch']}."
    )
    tables = [evaluations(rows, ceiling)] + ([images_drawn(ways)] if len(ways) > 1 else [])
    for table in tables:
        console.print(narrow(table))
    say(told)
    if out is None:
        return
    values = {
        "about": {
            **here,
            "command": shlex.join(["legodiff", *sys.argv[1:]]),
            "convention": CONVENTION,
            "size": setting.size,
            "batch": setting.batch,
            "precision": str(setting.precision),
            "train": setting.train,
            "patches": setting.patches,
        },
        "product": asdict(ceiling),
        "evaluations": [asdict(row) for row in rows],
        "drawings": [
            {**asdict(row), "method": way.method.to_dict(), "nfe": way.calls.total()}
            for way, row in ways
        ],
    }
    write_atomically(out, json.dumps(values, indent=1).encode())
    text = "\n\n".join([*map(markdown, tables), told]) + "\n"
    write_atomically(out.with_suffix(".md"), text.encode())
    if find_spec("matplotlib") is None:
        say(f"In {out}, and beside it the tables (.md). No picture: {NO_CURVES}")
        return
    bars = [(row.name, row.flops / 1e9, Spread.of(row.milliseconds)) for row in rows]
    cost_picture(out.with_suffix(".png"), bars, f"{what}, {here['machine']}")
    say(f"In {out}, and beside it the tables (.md) and a picture (.png).")
