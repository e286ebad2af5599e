"""``legodiff canvas``"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from legodiff.cli.common import (
    check_place,
    choose_device,
    full_method,
    open_pipeline,
    parse_budget,
    parse_labels,
    parse_size,
    prepare,
    progress,
    say,
)
from legodiff.cli.options import (
    CompileOption,
    DeviceOption,
    GuidanceOption,
    IntervalOption,
    PrecisionOption,
    SamplerOption,
    SamplerOptions,
    SelfGuidanceOption,
    StepsOption,
    VaeOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from legodiff.diffusion.regions import Regions
    from legodiff.drawing import Samples
    from legodiff.pipeline import LegoPipeline

INDEXED = ("1", "L", "P", "I", "I;16")
"""PIL's modes of PNGs whose values are class indices as they stand; converting clips to 255."""


def canvas(
    run: Annotated[str, typer.Argument(help="Run or model folder, or a Hub id.")],
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels, such as 600x2048.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes from left to right: 3,none,7 or names; by default none. A number is an "
            "index, or a name where all names are numbers."
        ),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            help="Instead: JSON file with [[class, [top, left, bottom, right]], ...] in fractions, "
            "or a PNG of 1, 8 or 16 bits whose grey values are class indices."
        ),
    ] = None,
    blend: Annotated[
        int | None,
        typer.Option(
            help="Pixels over which classes fade into each other; by default half a window.", min=0
        ),
    ] = None,
    wrap: Annotated[
        str, typer.Option(help="x: left meets right, y: top meets bottom; both; none.")
    ] = "none",
    seed: Annotated[int, typer.Option(help="Another seed is another picture.", min=0)] = 0,
    steps: StepsOption = 18,
    sampler: SamplerOption = "heun",
    guidance: GuidanceOption = 1.0,
    guidance_interval: IntervalOption = None,
    self_guidance: SelfGuidanceOption = 1.0,
    option: SamplerOptions = None,
    budget: Annotated[
        str | None, typer.Option(help="Share of the full FLOPs, or time for one window, 50ms.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="The paper's way: a window every so many pixels of the model, averaged.", min=1
        ),
    ] = None,
    margin: Annotated[
        int | None,
        typer.Option(
            help="Pixels of the model by which windows that shift overlap; by default 0.", min=0
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Windows evaluated at a time.", min=1)] = 16,
    crop: Annotated[
        bool, typer.Option(help="Draw the next larger size that fits, and crop it.")
    ] = False,
    weights: WeightsOption = "ema",
    vae: VaeOption = None,
    precision: PrecisionOption = "fp32",
    compiled: CompileOption = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the file.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Draw a picture of any size, square or not, with one class or several.

    The model looks at windows of its training size. By default they lie side by side and shift from
    noise level to noise level, so that each pixel is computed about once a step; with --stride
    they overlap and are averaged, as in the paper.
    """
    from legodiff.diffusion.canvas import WRAPS
    from legodiff.diffusion.regions import default_blend
    from legodiff.output import about_canvas
    from legodiff.pictures import save_png

    wanted = parse_size(size)
    _check(out, wanted, overwrite)
    if wrap not in WRAPS:
        raise ValueError(f"--wrap {wrap}: choose from {', '.join(WRAPS)}")
    if stride is not None and margin is not None:
        raise ValueError("give --stride or --margin, not both")
    pipe = open_pipeline(run, choose_device(device), vae, weights)
    prepare(pipe, precision, compiled)
    full = full_method(
        len(pipe.stack.bricks),
        *(steps, sampler, guidance, guidance_interval, self_guidance, option),
    )
    method = pipe.within(full, parse_budget(budget), batch=batch)
    factor = pipe.codec.factor
    drawn = _next_larger(wanted, pipe) if crop else wanted
    place = pipe.canvas(drawn)
    how: dict[str, Any] = {"stride": stride, "batch": batch, "wrap": WRAPS[wrap]}
    how |= {} if margin is None else {"margin": margin}
    windows = pipe.windows(place, **how)
    soft = default_blend(pipe.stack.spec.image_size) if blend is None else blend // factor
    areas = _regions(labels, regions, pipe, place, soft, WRAPS[wrap])
    with progress() as show:
        samples = pipe.render(
            method,
            seeds=seed,
            size=drawn,
            on_progress=lambda done: show("drawing", done, 1),
            windows=windows,
            regions=areas,
        )
    about = {"labels": labels or regions, "blend": soft * factor, "wrap": wrap}
    about |= {"stride": stride, "margin": margin, **about_canvas(pipe, samples, weights)}
    save_png(out, samples.images[0].crop((0, 0, wanted[1], wanted[0])), about)
    say(
        f"{out}: {wanted[0]}x{wanted[1]} pixels in {samples.seconds:.1f} s, {samples.nfe:,} "
        f"windows and {samples.flops / 1e9:,.4g} GFLOPs; a pixel cost "
        f"{_cost(pipe, samples, place):.2f} times what it does in an image of the training size"
    )


def _check(out: Path, wanted: tuple[int, int], overwrite: bool) -> None:
    """Raises ValueError if the picture cannot be kept there."""
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: the picture is a PNG; end the name in .png")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already; add --overwrite or choose another --out")
    check_place(out, wanted[0] * wanted[1] * 3)


def _cost(pipe: "LegoPipeline", samples: "Samples", canvas: tuple[int, int]) -> float:
    """FLOPs of a pixel, by those of a pixel in an image of the training size."""
    trained = pipe.stack.spec.image_size
    plain = pipe.cost(samples.method, trained)[1] / (trained[0] * trained[1])
    return samples.flops / (canvas[0] * canvas[1]) / plain


def _next_larger(size: tuple[int, int], pipe: "LegoPipeline") -> tuple[int, int]:
    """The next larger size that the model can draw."""
    step = pipe.stack.spec.finest * pipe.codec.factor
    height, width = (-(-side // step) * step for side in size)
    return height, width


def _regions(
    labels: str | None,
    regions: str | None,
    pipe: "LegoPipeline",
    canvas: tuple[int, int],
    blend: int,
    wrap: tuple[bool, bool],
) -> "Regions | None":
    """Which class where; None for a model without classes."""
    import numpy as np
    import torch
    from PIL import Image

    from legodiff.diffusion.regions import across, boxes, label_map

    if labels is not None and regions is not None:
        raise ValueError("give --labels or --regions, not both")
    none = pipe.stack.spec.classes
    if not none:
        if labels or regions:
            raise ValueError("this model was trained without classes; leave out --labels")
        return None
    if regions is None:
        listed = [None] if labels is None else parse_labels(labels, pipe)
        return across([none if label is None else label for label in listed], canvas, blend, wrap)
    path = Path(regions)
    if path.suffix.lower() == ".png":
        with Image.open(path, formats=["PNG"]) as image:
            plain = image if image.mode in INDEXED else image.convert("L")
            indices = torch.from_numpy(np.array(plain).astype(np.int64))
        if indices.max() > none:
            raise ValueError(
                f"{path} has the value {int(indices.max())}; values are class indices from 0 to "
                f"{none - 1}, and {none} for no class"
            )
        return label_map(indices, canvas, blend, wrap)
    try:
        areas = [
            (label, (float(top), float(left), float(bottom), float(right)))
            for label, (top, left, bottom, right) in json.loads(path.read_text())
        ]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} must be JSON: [[class, [top, left, bottom, right]], ...] in fractions of the "
            f"canvas, or a PNG of class indices ({error})"
        ) from error
    indexed = [(pipe.label_index(label), box) for label, box in areas]
    return boxes([(none if i is None else i, box) for i, box in indexed], canvas, none, blend, wrap)
