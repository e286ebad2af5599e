"""``legodiff evaluate``"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from legodiff.cli.common import (
    check_place,
    choose_device,
    chosen_method,
    console,
    full_method,
    nothing,
    open_pipeline,
    parse_labels,
    parse_size,
    progress,
    say,
)
from legodiff.cli.options import (
    BudgetOption,
    DeviceOption,
    GuidanceOption,
    IntervalOption,
    SamplerOption,
    SamplerOptions,
    SelfGuidanceOption,
    SkipOption,
    StepsOption,
    VaeOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from legodiff.evaluate.evaluation import Evaluation
    from legodiff.evaluate.measure import Metric
    from legodiff.pipeline import LegoPipeline
    from legodiff.train.distributed import World

DRAWN = 50_000  # images that a model draws by default: the field's number


class ImagesByDefault(TyperGroup):
    """``legodiff evaluate X`` is ``legodiff evaluate images X``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["images", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=ImagesByDefault, help="Measure what a model draws against real images.")

FeaturesOption = Annotated[
    str | None,
    typer.Option(
        "--features",
        help="inception (FID), dinov2, digits, or a TorchScript file, which is a program; by "
        "default inception, and digits for scikit-learn's digits.",
    ),
]
FileOption = Annotated[
    str | None,
    typer.Option("--features-weights", help="File of Inception; folder or Hub id of DINOv2."),
]
SizeOption = Annotated[
    str | None, typer.Option("--size", help="Crop and scale images to HEIGHTxWIDTH first.")
]
BatchOption = Annotated[int, typer.Option("--batch", help="Images at a time.", min=1)]


@app.command(
    epilog="Examples:  legodiff evaluate runs/mine --samples 50000 --guidance 1.5\n\n"
    "legodiff evaluate samples/ --reference VIRTUAL_imagenet256_labeled.npz\n\n"
    "stats, a reference to use again:  legodiff evaluate stats photos/ --size 64 --out photos.npz"
    "\n\ncanvas, crops of canvases by LPIPS:  legodiff evaluate canvas wide/ --reference photos/ "
    "--size 256"
)
def images(
    what: Annotated[
        str, typer.Argument(help="Run, model or Hub id, which draws; or images: a folder, NPZ ...")
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Real images: data, or an NPZ of statistics (ours, ADM's, EDM's, pytorch-fid's). "
            "By default what the run learnt from."
        ),
    ] = None,
    features: FeaturesOption = None,
    features_weights: FileOption = None,
    samples: Annotated[
        int | None, typer.Option(help=f"Images: {DRAWN} of a model, or all there are.", min=2)
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes drawn in turn: 0-9, or names, or none; all of them. Numbers are indices, "
            "or names where all names are numbers."
        ),
    ] = None,
    first_seed: Annotated[int, typer.Option(help="Seed of the first image drawn.", min=0)] = 0,
    steps: StepsOption = 18,
    sampler: SamplerOption = "heun",
    guidance: GuidanceOption = 1.0,
    guidance_interval: IntervalOption = None,
    self_guidance: SelfGuidanceOption = 1.0,
    option: SamplerOptions = None,
    skip: SkipOption = None,
    budget: BudgetOption = None,
    size: SizeOption = None,
    batch: BatchOption = 64,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics.json and pictures; by default NAME-metrics."),
    ] = None,
    weights: WeightsOption = "ema",
    vae: VaeOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure FID, sFID, Inception Score, KID, precision, recall; find the nearest training images.

    Every number says what it is of: FID-50k(train), FD-digits-2k(all). Several processes share the
    images: torchrun --nproc-per-node 8 -m -- legodiff evaluate ...
    """
    from legodiff.evaluate.evaluation import evaluate
    from legodiff.evaluate.images import drawn_images, open_images
    from legodiff.train.distributed import joined

    with joined(choose_device(device)) as world:
        pipe = None
        if is_model(what):
            tell = say if world.leads else nothing
            pipe = open_pipeline(what, world.device, vae, weights, tell)
            full = full_method(
                len(pipe.stack.bricks),
                *(steps, sampler, guidance, guidance_interval, self_guidance, option),
            )
            pipe.check_guidance(guidance)
            method = world.share(chosen_method(pipe, full, skip, budget, batch))
            chosen = _labels(labels, pipe)
            drawn = drawn_images(pipe, method, samples or DRAWN, chosen, batch, first_seed, weights)
        else:
            drawn = open_images(what, parse_size(size)).first(samples)
        path, name = _reference(reference, pipe, what)
        place = out or _beside(what)
        check_place(place, 2**20)
        network = _network(features, features_weights, path, world, drawn.size)
        with shown(world) as show:
            found = evaluate(drawn, path, network, world, batch, place, name, show)
        if world.leads:
            _print(found, place)


@app.command(epilog="Example:  legodiff evaluate stats photos/ --size 64 --out photos-64.npz")
def stats(
    data: Annotated[str, typer.Argument(help="Real images: whatever can be trained on.")],
    out: Annotated[Path, typer.Option(help="NPZ file to write.")],
    size: SizeOption = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for colour.")] = None,
    name: Annotated[str, typer.Option(help="What metrics call it: FID-50k(train).")] = "train",
    features: FeaturesOption = None,
    features_weights: FileOption = None,
    keep: Annotated[
        int, typer.Option(help="Features kept for precision, recall and KID.", min=0)
    ] = 10_000,
    batch: BatchOption = 64,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Make a reference of real images, with how they were cropped and scaled, for `evaluate`.

    ADM's and pytorch-fid's tools read it as well.
    """
    from legodiff.evaluate.evaluation import write_reference
    from legodiff.evaluate.images import open_images
    from legodiff.train.distributed import joined

    if out.suffix != ".npz":
        raise ValueError(f"--out {out}: statistics are an NPZ; let the name end in .npz")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already; add --overwrite or choose another --out")
    with joined(choose_device(device)) as world:
        found = open_images(data, parse_size(size), channels)
        network = _network(features, features_weights, data, world, found.size)
        check_place(out, 2**26)
        with shown(world) as show:
            write_reference(found, network, world, batch, out, name, keep, show("real images"))
        if world.leads:
            say(
                f"{found.count:,} images, {network.name} ({network.sha256[:12]}), called {name}, "
                f"in {out}"
            )


@app.command(
    epilog="Example:  legodiff evaluate canvas wide/ --reference photos/ --size 256 --out table7"
)
def canvas(
    what: Annotated[str, typer.Argument(help="Canvases: a PNG, or a folder or archive of them.")],
    reference: Annotated[str, typer.Option(help="Real images: whatever can be trained on.")],
    size: Annotated[str, typer.Option("--size", help="HEIGHTxWIDTH of crops and real images.")],
    real: Annotated[int, typer.Option(help="Real images, evenly spaced.", min=1)] = 1000,
    net: Annotated[str, typer.Option(help="alex or vgg; plain needs no weights.")] = "alex",
    trunk: Annotated[str | None, typer.Option(help="File of the network's weights.")] = None,
    heads: Annotated[str | None, typer.Option(help="File of LPIPS' own weights.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random crops.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json; by default NAME-metrics.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Compare crops of canvases with real images by LPIPS, as the paper's table 7.

    Grid and random crops, each with the nearest real image and with all of them on average.
    """
    from legodiff import __version__
    from legodiff.data.images import evenly_spaced
    from legodiff.evaluate.crops import compare
    from legodiff.evaluate.images import open_canvases, open_images
    from legodiff.evaluate.lpips import gradients, open_lpips
    from legodiff.evaluate.measure import Metric, add_records

    place = out or _beside(what)
    check_place(place, 2**20)
    perceptual = gradients() if net == "plain" else open_lpips(net, trunk, heads)
    canvases = open_canvases(what)
    found = open_images(reference, parse_size(size), 3)
    chosen = evenly_spaced(found.count, real)
    cells = compare(perceptual.to(choose_device(device)), list(canvases), found.read(chosen), seed)
    metrics = [Metric(cell.name, *cell.spread, "lower") for cell in cells]
    protocol = {
        "images": {"path": Path(what).name, "canvases": len(canvases), "crops": cells[0].crops},
        "reference": found.about,
        "features": {"name": perceptual.name, "sha256": [f.sha256 for f in perceptual.files]},
        "software": f"legodiff {__version__}",
    }
    add_records(place / "metrics.json", metrics, protocol)
    _table(metrics, perceptual.name)
    say(f"In {place / 'metrics.json'}, with how it was measured.")


FILES = re.compile(r"\.(npz|npy|zip|tar|gz|tgz|parquet|png|jpe?g|webp)")
"""How what holds images ends; what is none of these may be a model on the Hub."""


def is_model(what: str) -> bool:
    """Whether it is a model and not a collection of images."""
    from legodiff.hub import NAME
    from legodiff.store import CONFIG

    path = Path(what)
    if path.exists():
        return (path / CONFIG).is_file()
    named = NAME.fullmatch(what)  # on the Hub
    return named is not None and not FILES.fullmatch(Path(named[1]).suffix)


@contextmanager
def shown(world: "World") -> Iterator[Callable[[str], Callable[[float, float], None]]]:
    """Bars of progress, for the process that speaks for all."""
    if not world.leads:
        yield lambda stage: nothing
        return
    with progress() as bar:
        yield lambda stage: partial(bar, stage)


def _labels(text: str | None, pipe: "LegoPipeline") -> Sequence[int | None]:
    classes = pipe.stack.spec.classes
    return parse_labels(text, pipe) if text is not None else list(range(classes)) or [None]


def _reference(given: str | None, pipe: "LegoPipeline | None", what: str) -> tuple[str, str | None]:
    """What to compare with, and its name if that is known."""
    trained = None if pipe is None or pipe.run is None else pipe.run.get("data", {}).get("path")
    if given is None and trained is None:
        raise ValueError(f"{what} does not say what it was trained on; give --reference")
    path = str(given or trained)
    return path, "train" if path == trained else None


def _beside(what: str) -> Path:
    """A model's own folder; a folder beside images, so that pictures do not get among them."""
    path = Path(what)
    if is_model(what):
        return path if path.is_dir() else Path(f"{path.name}-metrics")
    return path.with_name(f"{path.stem}-metrics")


def _network(
    name: str | None, weights: str | None, path: str, world: "World", size: tuple[int, int]
) -> Any:
    from legodiff.evaluate.features import DIGITS, INCEPTION_NAME, open_features

    default = DIGITS if path.partition(":")[0] == "digits" else INCEPTION_NAME
    return open_features(name or default, weights, world.device, size)


def _print(found: "Evaluation", place: Path) -> None:
    features = found.protocol["features"]
    _table(found.metrics, f"{features['name']} ({features['sha256'][:12]})")
    told = found.protocol["images"]
    how = [f"{what} {told[what]}" for what in ("labels", "seeds", "rounding") if what in told]
    if how:
        say(f"Images: {', '.join(how)}.")
    for note in found.notes:
        say(f"note: {note}")
    say(f"In {place / 'metrics.json'}, with how it was measured; pictures beside it.")


def _table(metrics: "Sequence[Metric]", features: str) -> None:
    table = Table(title=f"features: {features}")
    for name in ("metric", "value", "spread", "better"):
        table.add_column(name, justify="left" if name in ("metric", "better") else "right")
    for metric in metrics:
        spread = "" if metric.spread is None else f"{metric.spread:.3g}"
        table.add_row(metric.name, f"{metric.value:.5g}", spread, metric.better)
    console.print(table)
