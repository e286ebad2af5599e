"""The command line: parses, calls, prints. Nothing heavy is imported before a command runs."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from legodiff.demo import Report
    from legodiff.pipeline import LegoPipeline

app = typer.Typer(
    name="legodiff",
    help="Diffusion models made of stackable, skippable LEGO bricks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
SHOWN = 400  # images in a grid, at most
MOST_NUMBERS = 10_000_000  # seeds in one call, at most

DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, mps ...", show_default=True)
]


UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of whichever click typer brings


def main() -> None:
    """Runs the command line; a user's mistake becomes one line and exit code 2.

    Ctrl-C ends it with exit code 130. With LEGODIFF_DEBUG set a mistake shows its traceback.
    """
    try:
        sys.exit(app(standalone_mode=False))
    except (UsageError, ValueError, OSError, MemoryError, RuntimeError) as error:
        line = _explain(error)
        if line is None or os.environ.get("LEGODIFF_DEBUG"):
            raise
        Console(stderr=True, soft_wrap=True).print(
            f"error: {line}", style="red", markup=False, highlight=False
        )
        sys.exit(2)


def _explain(error: Exception) -> str | None:
    """The line to show for an error, or None if it is a mistake of ours and not of the user."""
    if isinstance(error, UsageError):
        return f"{error.format_message()} (--help says more)"  # type: ignore[attr-defined]
    if isinstance(error, MemoryError):
        return "not enough memory; try a smaller --batch or --size"
    if isinstance(error, RuntimeError):
        short = "out of memory" in str(error) or "allocate memory" in str(error)
        return "not enough memory; try a smaller --batch, --size or model" if short else None
    return str(error)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """The options of the bare command."""
    if show:
        from legodiff import __version__

        print(__version__)
        raise typer.Exit


@app.command(epilog="Example:  legodiff demo --seed 1")
def demo(
    seed: Annotated[int, typer.Option(help="Seed of the training run.", min=0)] = 0,
    run: Annotated[Path, typer.Option(help="Folder for model and pictures.")] = Path("runs/demo"),
    device: DeviceOption = "auto",
) -> None:
    """Train a small stack on handwritten digits, draw with it, and show how good it is.

    Takes a few minutes on two CPU cores and needs no download.
    """
    from legodiff.demo import run_demo

    chosen = _device(device)
    with _progress() as show:
        report = run_demo(run, seed, chosen, show)
    _print_report(report, run)


@app.command(
    epilog="Example:  legodiff train --data digits --run runs/mine --set train.images=20000"
)
def train(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or the name of one that comes with legodiff.")
    ] = "digits",
    run: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    data: Annotated[str | None, typer.Option(help='Training images: "digits".')] = None,
    resume: Annotated[
        str | None, typer.Option(help='"auto": go on with the run in the folder, if there is one.')
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: section.key=value.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a stack and leave a run folder to draw from."""
    from legodiff.codec import PixelCodec
    from legodiff.config import load_config
    from legodiff.data.digits import Digits
    from legodiff.train.loop import train as run_training

    changes = list(change or [])
    if data is not None:
        changes.append(f"data.path={data}")
    config = load_config(recipe, changes)
    if run is None:
        raise ValueError("say where the run is to be kept: --run runs/NAME")
    if resume not in (None, "auto"):
        raise ValueError(f'--resume {resume}: the only choice is "auto"')
    if config.data.path != "digits":
        raise ValueError(f'data.path is {config.data.path!r}; this version reads "digits"')
    spec = config.model.spec(channels=1, classes=10)
    if spec.image_size[0] != spec.image_size[1]:
        raise ValueError(f"digits are square, and the model is for {spec.image_size}")
    images = Digits(spec.image_size[0])
    codec = PixelCodec.fit(images.images, spec.sigma_data)
    total = config.train.images
    with _progress() as show:
        run_training(
            config,
            images,
            codec,
            run,
            device=_device(device),
            resume=resume == "auto",
            on_log=lambda status: show("training", status.images, total, str(status)),
        )
    _say(f"The model is in {run}. Draw with it:  legodiff sample {run} --out samples")


@app.command(
    epilog="Example:  legodiff sample runs/demo --labels 0-9 --per-class 10 --guidance 1.5 "
    "--skip 0.5 --out samples"
)
def sample(
    run: Annotated[str, typer.Argument(help="Run or model folder, or a Hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the images.")],
    labels: Annotated[
        str | None, typer.Option(help="Classes, taken in turn: 0-9, or 3,5, or names, or none.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="One image each: 0-63, or 7,11.")] = None,
    per_class: Annotated[
        int | None, typer.Option(help="Images of each class, with seeds from 0.", min=1)
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.", min=1)] = 18,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 1.0,
    sampler: Annotated[str, typer.Option(help="heun.")] = "heun",
    skip: Annotated[
        float | None, typer.Option(help="Share of the steps without the top brick, 0 to 1.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Share of the full FLOPs to stay within, up to 1.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Canvas as HEIGHTxWIDTH; the training size by default.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images drawn at a time.", min=1)] = 16,
    overwrite: Annotated[bool, typer.Option(help="Replace images of the same name.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Draw images: one PNG for each seed, and a grid of them all."""
    from legodiff import __version__
    from legodiff.pictures import grid, save_png
    from legodiff.pipeline import SAMPLERS, LegoPipeline

    pipe = LegoPipeline.from_pretrained(run, device=_device(device))
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
    chosen = _parse_labels(labels, pipe)
    if seeds is not None and per_class is not None:
        raise ValueError("give --seeds or --per-class, not both")
    default = f"0-{len(chosen) * (per_class or 1) - 1}"
    numbers = _parse_numbers("--seeds", default if seeds is None else seeds)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"--seeds {seeds}: a seed stands there twice, and names one file")
    if skip is not None and budget is not None:
        raise ValueError("give --skip or --budget, not both")
    count, canvas = len(numbers), _parse_size(size)
    pipe.stack.spec.check_canvas(canvas or pipe.stack.spec.image_size)
    plan = None
    if skip is not None:
        plan = pipe.paper_plan(skip, steps)
    elif budget is not None:
        plan = pipe.budget_plan(budget, steps, canvas)
    if blocked := [path for path in (out, *out.parents) if path.is_file()]:
        raise ValueError(f"{blocked[0]} is a file; --out must be a folder")
    files = [out / f"{seed:06d}.png" for seed in numbers] + [out / "grid.png"]
    taken = [path for path in files if path.exists()]
    if taken and not overwrite:
        raise ValueError(f"{taken[0]} exists already; add --overwrite or choose another --out")

    asked = [chosen[position % len(chosen)] for position in range(count)]
    images: list[Image] = []
    with _progress() as show:
        for start in range(0, count, batch):
            part = slice(start, start + batch)
            samples = pipe(
                labels=asked[part],
                seeds=numbers[part],
                steps=steps,
                guidance=guidance,
                sampler=sampler,
                plan=plan,
                size=canvas,
                batch=batch,
                on_progress=lambda done, start=start: show("drawing", start + done, count),  # type: ignore[misc]
            )
            how = {
                "software": f"legodiff {__version__}",
                "model": pipe.fingerprint,
                "sampler": sampler,
                "steps": steps,
                "guidance": guidance,
                "plan": samples.plan.to_dict(),
                "nfe": samples.nfe,
                "flops": samples.flops,
            }
            for image, seed, label in zip(
                samples.images, samples.seeds, samples.labels, strict=True
            ):
                name = pipe.class_names[label] if label is not None and pipe.class_names else None
                about = {"seed": seed, "label": label, "class": name, **how}
                save_png(out / f"{seed:06d}.png", image, about)
            images += samples.images[: max(0, SHOWN - len(images))]
    columns = len(chosen) if len(chosen) > 1 else max(1, round(count**0.5))
    save_png(out / "grid.png", grid(images, min(columns, len(images))), how)
    _say(
        f"{count} images in {out}, and {out / 'grid.png'}: {samples.nfe} evaluations and "
        f"{samples.flops / 1e9:.3g} GFLOPs for each"
    )


@app.command(epilog="Example:  legodiff info runs/demo   or   legodiff info lego-s-pg-64")
def info(
    run: Annotated[str, typer.Argument(help="Run or model folder, Hub id, or preset name.")],
    size: Annotated[
        str | None, typer.Option(help="Canvas as HEIGHTxWIDTH; the training size by default.")
    ] = None,
) -> None:
    """Print the bricks of a model, their parameters and what each costs."""
    from legodiff import store
    from legodiff.model.cost import brick_flops, brick_parameters, shared_flops
    from legodiff.model.presets import PRESETS
    from legodiff.model.spec import StackSpec

    if run in PRESETS and not Path(run).is_dir():
        spec = PRESETS[run]
    else:
        spec = StackSpec.from_dict(store.read_config(store.locate(run))["stack"])
    canvas = _parse_size(size) or spec.image_size
    spec.check_canvas(canvas)
    flops, parameters = brick_flops(spec, canvas), brick_parameters(spec)
    shared = (shared_flops(spec), parameters[-1])
    total = sum(flops) + shared[0]

    table = Table("brick", "patch", "field", "tokens", "blocks", "parameters", "GFLOPs", "share")
    for number, brick in enumerate(spec.bricks):
        rows, columns = brick.patch(canvas)
        patches = canvas[0] * canvas[1] // (rows * columns)
        tokens = rows * columns // brick.local**2
        table.add_row(
            str(number),
            f"{rows}x{columns}",
            f"{brick.local}x{brick.local}",
            f"{patches} x {tokens}",
            str(brick.depth),
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


def _say(text: str) -> None:
    """Prints a line as it is: unwrapped, so that paths and commands can be copied."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from error
    return device


def _parse_numbers(option: str, text: str) -> list[int]:
    """ "0-3,7" to [0, 1, 2, 3, 7]."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{option} {text}: write whole numbers and ranges, such as 0-9 or 3,5")
        span = range(int(first), int(last if dash else first) + 1)
        if len(numbers) + (span.stop - span.start) > MOST_NUMBERS:
            raise ValueError(f"{option} {text}: these are too many; {MOST_NUMBERS:,} at most")
        numbers += span
    if not numbers:
        raise ValueError(f"{option} {text}: this range is empty; write the smaller number first")
    return numbers


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """ "600x2048" to (600, 2048)."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size {text}: write HEIGHTxWIDTH in pixels, such as 64x128")
    return int(height), int(width)


def _parse_labels(text: str | None, pipe: "LegoPipeline") -> list[int | None]:
    """Class indices of "0-2", "3,5", class names or "none"; by default the first 16 classes."""
    classes = pipe.stack.spec.classes
    if text is None:
        return list(range(min(classes, 16))) or [None]
    labels: list[int | None] = []
    for part in (part.strip() for part in text.split(",")):
        if part in pipe.class_names:
            labels.append(pipe.class_names.index(part))
        elif part == "none":
            labels.append(None)
        elif part[:1].isdecimal():
            labels += [pipe.label_index(number) for number in _parse_numbers("--labels", part)]
        else:
            labels.append(pipe.label_index(part))  # which says what the names are
    return labels


@contextmanager
def _progress() -> Iterator[Callable[..., None]]:
    """Progress bars with an estimate of the time left; yields show(title, done, total, note)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def show(title: str, done: float, total: float, note: str = "") -> None:
            if title not in tasks:
                tasks[title] = progress.add_task(title, total=total, note=note)
            progress.update(tasks[title], completed=min(done, total), note=note)

        yield show


def _print_report(report: "Report", run: Path) -> None:
    """The table of the demonstration, and what it means."""
    table = Table(title=Text(f"digits drawn by {run}, judged on {report.judged} of each kind"))
    for heading in ("bricks", "guidance", "accuracy", "FD-digits", "NFE", "MFLOPs", "ms/image"):
        table.add_column(heading, justify="left" if heading == "bricks" else "right")
    for row in report.rows:
        table.add_row(
            row.name,
            f"{row.guidance:g}",
            f"{row.accuracy:.1%}",
            f"{row.fd_digits:.2f}",
            str(row.nfe),
            f"{row.mflops:,.0f}",
            f"{row.seconds * 1e3:.1f}",
        )
    table.add_row(
        "real digits", "", f"{report.real_accuracy:.1%}", f"{report.floor:.2f}", "", "", ""
    )
    console.print(table)
    above = report.plan.bands[1:]
    where = f"at every noise level above sigma {above[0][0]:.3g}" if above else "in every step"
    console.print(
        f"A stack of {report.bricks} bricks learnt from {report.real_digits:,} real handwritten "
        f"digits: {report.train_images:,} images seen in {report.train_seconds:.0f} s on "
        f"{report.device}. It then drew {report.judged} digits for each row, from the same noise. "
        f"'bricks skipped' leaves the top brick out in {report.skipped_steps} of {report.steps} "
        f"steps, {where}, which takes {report.share:.0%} of the FLOPs. 'lowest brick only' runs "
        "nothing but the first.\n"
        "accuracy: how often a classifier trained on real digits reads the class that was asked "
        "for; the last row is that classifier on real digits it never saw. FD-digits: distance to "
        "real digits in the features of a small network, lower is better; the last row is real "
        "against other real digits. Guidance makes digits clearer and less varied, at twice the "
        "evaluations. NFE: network evaluations per image. ms/image swings with the machine's "
        "load; FLOPs do not.\n"
        f"Look at {run / 'digits.png'}, {run / 'skipped.png'}, {run / 'refinement.png'} and "
        f"{run / 'loss.png'}.",
        highlight=False,
        markup=False,
    )
