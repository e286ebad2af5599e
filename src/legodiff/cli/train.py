"""``legodiff train``"""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from legodiff.cli.common import (
    choose_device,
    console,
    nothing,
    parse_size,
    progress,
    say,
)
from legodiff.cli.options import DeviceOption
from legodiff.labels import parse_numbers

if TYPE_CHECKING:
    from legodiff.config import RunConfig
    from legodiff.data import ImageData
    from legodiff.train.distributed import World


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A YAML file, or the name of one that comes with legodiff."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help='Images: a folder, zip, tar shards, parquet, latents, "digits" ...'),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Images are cropped and scaled to HEIGHTxWIDTH or SIDE; of latents, the size "
            "they have."
        ),
    ] = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for colour.")] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images.")
    ] = None,
    strict_data: Annotated[
        bool, typer.Option("--strict-data", help="Stop at an image that cannot be read.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Images a step, of all processes together.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Begin with the weights of this run or model folder.")
    ] = None,
    train_bricks: Annotated[
        str | None, typer.Option(help="Bricks that learn, such as 0 or 1,2; lower ones rest.")
    ] = None,
    brick_dropout: Annotated[
        float | None, typer.Option(help="Share of the steps that leave a brick out.")
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Newest checkpoints to keep.")] = None,
    resume: Annotated[
        str | None, typer.Option(help='"auto": go on with the run in the folder, if there is one.')
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: section.key=value.")
    ] = None,
    expect_world: Annotated[
        int | None, typer.Option(help="Stop unless torchrun started so many processes.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained and what it costs.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a stack and leave a run folder to draw from.

    What no option says is as in the recipe; with --init alone, as in the run it names.

    Several processes: torchrun --nproc-per-node 4 -m -- legodiff train ...
    """
    from legodiff.config import load_config
    from legodiff.train.distributed import joined

    if resume not in (None, "auto"):
        raise ValueError(f'--resume {resume}: the only choice is "auto"')
    canvas = parse_size(size)
    options: dict[str, Any] = {
        "data.path": data,
        "data.channels": channels,
        "data.flip": flip,
        "data.strict": strict_data or None,
        "model.image_size": list(canvas) if canvas else None,
        "train.batch": batch,
        "train.init": init,
        "train.bricks": parse_numbers("--train-bricks", train_bricks) if train_bricks else None,
        "train.brick_dropout": brick_dropout,
        "train.keep": keep,
    }
    config = load_config(
        _recipe(recipe, init, data),
        change or (),
        {key: value for key, value in options.items() if value is not None},
    )
    if run is None and not dry_run:
        raise ValueError("say where the run is to be kept: --run runs/NAME")
    with joined(choose_device(device), expect_world) as world:
        if dry_run or run is None:
            _estimate(config, world)
        else:
            _train(config, run, world, resume == "auto")


def _recipe(recipe: str | None, init: str | None, data: str | None) -> str | Path:
    """The recipe to begin from: the one named, else that of the model, else a fitting one."""
    if recipe is not None:
        return recipe
    if init is not None:
        return Path(init)
    return "digits" if data in (None, "digits") else "images-64"


def _train(config: "RunConfig", run: Path, world: "World", resume: bool) -> None:
    from legodiff.train.inputs import open_inputs
    from legodiff.train.loop import train as run_training

    place = world.describe()
    tell = say if world.leads else nothing
    tell(place)
    images, codec = open_inputs(config, run if resume else None, world)
    tell(_about(config, images))
    total = config.train.images
    with progress() if world.leads else nullcontext(nothing) as show:
        run_training(
            config,
            images,
            codec,
            run,
            world=world,
            resume=resume,
            on_log=lambda status: show("training", status.images, total, str(status)),
            say=say,
        )
    tell(f"The model is in {run}. Draw with it:  legodiff sample {run} --out samples")


def _about(config: "RunConfig", data: "ImageData") -> str:
    """One line on what is learnt from."""
    from legodiff.data.images import Pictures

    kinds = f"{len(data.class_names)} classes" if data.class_names else "no classes"
    height, width = data.size
    hint = " (--flip does)" if isinstance(data, Pictures) else ""  # others cannot be
    flips = "mirrored half of the time" if config.data.flip else f"never mirrored{hint}"
    return (
        f"{config.data.path}: {len(data):,} images, {kinds}, {height}x{width}x{data.channels}, "
        f"{flips}; model {config.model.preset}"
    )


def _estimate(config: "RunConfig", world: "World") -> None:
    """Prints the resolved configuration and what the run would cost."""
    from legodiff.train.estimate import estimate
    from legodiff.train.inputs import open_inputs

    images, codec = open_inputs(config, None, world)
    found = estimate(config, images, codec, world)
    if not world.leads:
        return
    say(config.model_dump_json(indent=2))
    say(_about(config, images))
    bricks = " -> ".join(map(str, found.spec.bricks))
    rows = (
        ("bricks, bottom to top", bricks),
        ("parameters", f"{found.parameters / 1e6:,.2f} M, {found.learning / 1e6:,.2f} M learning"),
        ("FLOPs of an evaluation", f"{found.forward_flops / 1e9:,.4g} G an image"),
        ("FLOPs of training", f"{found.training_flops / 1e9:,.4g} G an image"),
        ("batch", found.plan.replace("batch ", "")),
        ("memory", f"{found.memory / 1e6:,.0f} MB a process, measured"),
        ("speed", f"{found.images_per_second:,.1f} images/s, measured without reading images"),
        ("time", f"{found.hours:,.2f} hours for {config.train.images:,} images"),
    )
    table = Table(show_header=False, box=None)
    for row in rows:
        table.add_row(*row)
    console.print(table)
