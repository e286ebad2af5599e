"""``legodiff reproduce``"""

from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from legodiff.cli.common import choose_device, console, nothing, progress, say
from legodiff.cli.options import DeviceOption
from legodiff.labels import parse_numbers

if TYPE_CHECKING:
    from legodiff.reproduce.experiment import Experiment, Scale

SCALES = ("small", "paper")


def reproduce(
    what: Annotated[
        str | None, typer.Argument(help="table1, figure4 ...; without one: what there is.")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="small: on digits or photographs, here; paper: the true recipe.")
    ] = "small",
    data: Annotated[
        str | None, typer.Option(help="The paper's data, which begins a run at its scale.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Real images or their statistics, if not the data.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="One model of each kind for each: 0-2.")] = "0",
    images: Annotated[
        int | None,
        typer.Option(help="Images that each model sees; else as many as its recipe says.", min=1),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Images that each model is judged by; else as its scale says.", min=2),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images drawn at a time.", min=1)] = 100,
    out: Annotated[Path, typer.Option(help="Folder for models and pages.")] = Path(
        "runs/reproduce"
    ),
    device: DeviceOption = "auto",
) -> None:
    """Compute a table or figure of the paper, or a check that it left open.

    Small: minutes to half an hour on two CPU cores. Paper: says what it needs and how long that
    would take; with --data it begins. Both train, draw and judge by the same code. Models are kept
    in the folder, and found again by other experiments.
    """
    from legodiff.reproduce.experiments import EXPERIMENTS, SAME
    from legodiff.reproduce.runs import Setting
    from legodiff.train.distributed import joined

    if scale not in SCALES:
        raise ValueError(f"--scale {scale}: choose from {', '.join(SCALES)}")
    if what is None:
        _list(EXPERIMENTS)
        return
    name = SAME.get(what, what)
    if name not in EXPERIMENTS:
        raise ValueError(f"{what} is not known; choose from {', '.join([*EXPERIMENTS, *SAME])}")
    experiment = EXPERIMENTS[name]
    given = {"samples": samples, "data": data, "reference": reference}
    known: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    chosen: Scale = replace(getattr(experiment, scale), **known)
    if scale == "paper" and data is None and chosen.models:
        _tell(experiment, chosen, name)
        return
    numbers = tuple(parse_numbers("--seeds", seeds))
    with (
        joined(choose_device(device)) as world,
        progress() as bar,
        TemporaryDirectory() as aside,  # for what others than the first process would write
    ):
        setting = Setting(
            chosen,
            models=out / scale / "models",
            out=out / scale / name if world.leads else Path(aside),
            seeds=numbers,
            world=world,
            show=lambda stage: partial(bar, stage) if world.leads else nothing,
            images=images,
            batch=batch,
        )
        page = import_module(f"legodiff.reproduce.{experiment.kind}").run(experiment, setting)
    if world.leads:
        say(page)
        say(f"In {setting.out}: page.md, rows.json, pictures.")


def _list(experiments: "dict[str, Experiment]") -> None:
    table = Table(title="legodiff reproduce ...")
    for column in ("name", "what", "models", "on"):
        table.add_column(column)
    for name, experiment in experiments.items():
        small = experiment.small
        table.add_row(name, experiment.title, str(len(small.models)), small.data)
    console.print(table)


def _tell(experiment: "Experiment", scale: "Scale", name: str) -> None:
    """What an experiment of the paper's scale needs."""
    from legodiff.reproduce.effort import PEAK, SHARE, efforts

    found = efforts(scale)
    table = Table(title=experiment.title)
    for column in ("model", "recipe", "images seen", "training", "judging", "hours"):
        table.add_column(column, justify="left" if column in ("model", "recipe") else "right")
    for one in found:
        table.add_row(
            *(one.model, one.recipe, f"{one.images:,}"),
            *(f"{one.training / 1e18:.3g} EFLOPs", f"{one.drawing / 1e18:.3g} EFLOPs"),
            f"{one.hours:,.0f}",
        )
    console.print(table)
    hours = sum(one.hours for one in found)
    judged = "" if experiment.kind == "canvases" else f" {scale.samples:,} images of each model,"
    reference = f", compared with {scale.reference}" if scale.reference else ""
    say(
        f"Data: {scale.data}{reference}. Judged by{judged} {scale.steps} steps of {scale.sampler}, "
        f"features {scale.features}. All of it: {hours:,.0f} hours of one H100 at {SHARE:.0%} of "
        f"the {PEAK / 1e12:.0f} TFLOP/s of a large bf16 product (the share is an assumption)."
    )
    more = f" --reference {scale.reference}" if scale.reference else ""
    say(
        f"Begin:  torchrun --nproc-per-node 8 -m -- legodiff reproduce {name} --scale paper "
        f"--data {scale.data}{more}"
    )
