"""``legodiff sample``"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from legodiff.cli.common import (
    check_place,
    choose_device,
    chosen_method,
    full_method,
    nothing,
    open_pipeline,
    parse_labels,
    parse_size,
    prepare,
    progress,
    say,
)
from legodiff.cli.options import (
    BudgetOption,
    CompileOption,
    DeviceOption,
    GuidanceOption,
    IntervalOption,
    PrecisionOption,
    SamplerOption,
    SamplerOptions,
    SelfGuidanceOption,
    SkipOption,
    StepsOption,
    VaeOption,
    WeightsOption,
)
from legodiff.labels import parse_numbers

if TYPE_CHECKING:
    from legodiff.output import Order
    from legodiff.pipeline import LegoPipeline
    from legodiff.sampling import Method
    from legodiff.train.distributed import World

SHOWN = 400  # images in a grid, at most


def sample(
    run: Annotated[str, typer.Argument(help="Run or model folder, or a Hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for PNG files, or a file ending in .npz.")],
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes, taken in turn: 0-9, or 3,5, or names, or none. Numbers are indices, or "
            "names where all names are numbers."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="One image each: 0-63, or 7,11; by default one a class.")
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(help="Images of each class, with seeds from 0.", min=1)
    ] = None,
    steps: StepsOption = 18,
    sampler: SamplerOption = "heun",
    guidance: GuidanceOption = 1.0,
    guidance_interval: IntervalOption = None,
    self_guidance: SelfGuidanceOption = 1.0,
    option: SamplerOptions = None,
    skip: SkipOption = None,
    budget: BudgetOption = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH of the images; the training size by default.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images drawn at a time.", min=1)] = 16,
    show: Annotated[
        str | None,
        typer.Option(help="refinement: also a picture of each brick's estimates over the noise."),
    ] = None,
    animate: Annotated[
        str | None, typer.Option(help="gif or webp: also an animation of the first images.")
    ] = None,
    weights: WeightsOption = "ema",
    vae: VaeOption = None,
    precision: PrecisionOption = "fp32",
    compiled: CompileOption = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Draw images: a PNG for each seed and a grid of them, or one NPZ.

    A call that was stopped goes on where it was. Several processes share the seeds:
    torchrun --nproc-per-node 8 -m -- legodiff sample ...
    """
    from legodiff import output
    from legodiff.train.distributed import joined

    with joined(choose_device(device)) as world:
        tell = say if world.leads else nothing
        pipe = open_pipeline(run, world.device, vae, weights, tell)
        prepare(pipe, precision, compiled)
        chosen = parse_labels(labels, pipe)
        numbers = _seeds(seeds, per_class, len(chosen))
        canvas = pipe.canvas(parse_size(size))
        full = full_method(
            len(pipe.stack.bricks),
            *(steps, sampler, guidance, guidance_interval, self_guidance, option),
        )
        method = chosen_method(pipe, full, skip, budget, min(batch, len(numbers)))
        order = output.Order(
            pipe=pipe,
            method=world.share(method),  # a time is measured, and each process would find its own
            seeds=numbers,
            labels=[chosen[position % len(chosen)] for position in range(len(numbers))],
            size=(canvas[0] * pipe.codec.factor, canvas[1] * pipe.codec.factor),
            batch=batch,
            weights=weights,
        )
        _check_order(order, out, show, animate)
        drawn = _write(order, out, overwrite, world)
        if not world.leads:
            return
        _pictures(order, out, len(chosen), show, animate)
        about = order.about
        say(
            f"{len(numbers)} images in {out}, and {_beside(out, 'grid.png')}: {about['nfe']} "
            f"evaluations and {about['flops'] / 1e9:.3g} GFLOPs for each"
        )
        if budget is not None:
            say(_about_plan(pipe, full, order, drawn))


def _seeds(seeds: str | None, per_class: int | None, classes: int) -> list[int]:
    """The seeds that are asked for, one image each."""
    if seeds is not None and per_class is not None:
        raise ValueError("give --seeds or --per-class, not both")
    default = f"0-{classes * (per_class or 1) - 1}"
    numbers = parse_numbers("--seeds", default if seeds is None else seeds)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"--seeds {seeds}: a seed stands there twice, and names one file")
    return numbers


def _write(order: "Order", out: Path, overwrite: bool, world: "World") -> list[tuple[int, float]]:
    """Draws and writes; returns the images and seconds of every process."""
    from legodiff import output

    archive = out.suffix == ".npz"
    write = output.write_parts if archive else output.write_folder
    with progress() if world.leads else nullcontext(nothing) as bar:
        mine = write(order, out, overwrite, world, partial(bar, "drawing"))
    drawn = world.gather(mine)  # and everyone is done
    if archive and world.leads:
        output.join_parts(order, out)
    return drawn


def _check_order(order: "Order", out: Path, show: str | None, animate: str | None) -> None:
    """Raises ValueError for what would otherwise show after the drawing."""
    _ = order.about  # raises for steps that the sampler cannot take
    pixels = len(order.seeds) * order.size[0] * order.size[1] * 3
    check_place(out, 2 * pixels if out.suffix == ".npz" else pixels)
    if show not in (None, "refinement"):
        raise ValueError(f"--show {show}: the only choice is refinement")
    if animate not in (None, "gif", "webp"):
        raise ValueError(f"--animate {animate}: choose gif or webp")
    if (show or animate) and order.pipe.windows(order.pipe.canvas(order.size)) is not None:
        raise ValueError("--show and --animate look on at whole images; leave out --size")
    order.pipe.check_guidance(order.method.guidance, order.labels)


def _about_plan(
    pipe: "LegoPipeline", full: "Method", order: "Order", drawn: list[tuple[int, float]]
) -> str:
    """What a budget bought: predicted and measured."""
    method, canvas = order.method, pipe.canvas(order.size)
    flops = [pipe.cost(m, canvas)[1] for m in (method, full)]
    curve = pipe.curve(full)
    by = "the paper's rule; legodiff plan finds better" if curve is None else "legodiff plan"
    bands = " ".join("+".join(map(str, bricks)) for _, bricks in reversed(method.plan.bands))
    steps = f"{method.steps} of {full.steps} steps"
    if method.sampler != full.sampler:
        steps = f"{method.steps} steps of {method.sampler} for {full.steps} of {full.sampler}"
    text = (
        f"plan (by {by}): {steps}, bricks {bands} from high noise to low, "
        f"{flops[0] / flops[1]:.1%} of the full FLOPs"
    )
    point = pipe.predicted(method)
    if point is not None:
        text += (
            f", expected to differ by {point.error:.2g} deviations from the full method's images"
        )
    count, seconds = sum(count for count, _ in drawn), sum(seconds for _, seconds in drawn)
    if not count:
        return text
    if curve is not None and point is not None:
        text += f"; {point.milliseconds:.3g} ms an image on {curve.machine}"
    return f"{text}; measured now: {1e3 * seconds / count:.3g} ms"


def _pictures(
    order: "Order", out: Path, classes: int, show: str | None, animate: str | None
) -> None:
    """The grid of the first images, and what was asked for beside it."""
    from legodiff.output import follow, read_images
    from legodiff.pictures import animation, grid, save_png, table_of_images

    images = list(read_images(out, order, SHOWN))
    columns = classes if classes > 1 else max(1, round(len(order.seeds) ** 0.5))
    save_png(_beside(out, "grid.png"), grid(images, min(columns, len(images))), order.about)
    if show is None and animate is None:
        return
    with progress() as bar:
        rows, frames = follow(order, partial(bar, "looking on"))
    if show is not None:
        levels = next(iter(rows.values()))
        title = f"What each brick makes of seed {order.seeds[0]}, by noise level sigma"
        table = [(name, [levels[at] for at in levels]) for name, levels in rows.items()]
        captions = [f"{at:.2g}" for at in levels]
        save_png(_beside(out, "refinement.png"), table_of_images(table, captions, title))
    if animate is not None:
        animation(_beside(out, f"sampling.{animate}"), [grid(frame, 4) for frame in frames])


def _beside(out: Path, name: str) -> Path:
    """A picture in the folder, or beside the archive with its name in front."""
    return out.with_name(f"{out.stem}-{name}") if out.suffix == ".npz" else out / name
