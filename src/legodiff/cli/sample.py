"""``legodiff sample``"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from legodiff.cli.common import (
    DeviceOption,
    choose_device,
    parse_numbers,
    parse_size,
    progress,
    say,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from legodiff.pipeline import LegoPipeline

SHOWN = 400  # images in a grid, at most


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
    weights: Annotated[
        str, typer.Option(help="ema: their average; raw: as they were last.")
    ] = "ema",
    vae: Annotated[
        str | None, typer.Option(help="VAE of a model of latents: a folder or Hub id.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace images of the same name.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Draw images: one PNG for each seed, and a grid of them all."""
    from legodiff import __version__
    from legodiff.diffusion.skipping import SkipPlan
    from legodiff.pictures import grid, save_png
    from legodiff.pipeline import LegoPipeline
    from legodiff.sampling import Method

    pipe = LegoPipeline.from_pretrained(run, choose_device(device), vae, weights)
    method = Method(SkipPlan.full(len(pipe.stack.spec.bricks)), steps, sampler, guidance=guidance)
    chosen = _parse_labels(labels, pipe)
    if seeds is not None and per_class is not None:
        raise ValueError("give --seeds or --per-class, not both")
    default = f"0-{len(chosen) * (per_class or 1) - 1}"
    numbers = parse_numbers("--seeds", default if seeds is None else seeds)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"--seeds {seeds}: a seed stands there twice, and names one file")
    if skip is not None and budget is not None:
        raise ValueError("give --skip or --budget, not both")
    count, canvas = len(numbers), parse_size(size)
    pipe.stack.spec.check_canvas(canvas or pipe.stack.spec.image_size)
    plan = None
    if skip is not None:
        plan = pipe.paper_plan(skip, steps, sampler)
    elif budget is not None:
        plan = pipe.budget_plan(budget, method, canvas)
    if blocked := [path for path in (out, *out.parents) if path.is_file()]:
        raise ValueError(f"{blocked[0]} is a file; --out must be a folder")
    files = [out / f"{seed:06d}.png" for seed in numbers] + [out / "grid.png"]
    taken = [path for path in files if path.exists()]
    if taken and not overwrite:
        raise ValueError(f"{taken[0]} exists already; add --overwrite or choose another --out")

    asked = [chosen[position % len(chosen)] for position in range(count)]
    images: list[Image] = []
    with progress() as show:
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
                "weights": weights,
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
    say(
        f"{count} images in {out}, and {out / 'grid.png'}: {samples.nfe} evaluations and "
        f"{samples.flops / 1e9:.3g} GFLOPs for each"
    )


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
            labels += [pipe.label_index(number) for number in parse_numbers("--labels", part)]
        else:
            labels.append(pipe.label_index(part))  # which says what the names are
    return labels
