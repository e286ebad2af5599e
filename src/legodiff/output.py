"""Writing many images: a PNG for each seed, or one NPZ; a call that was stopped goes on.

Several processes share the seeds. Nothing holds all images in memory.
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from legodiff import __version__, store
from legodiff.codec import to_pil
from legodiff.drawing import Samples
from legodiff.pictures import save_png
from legodiff.pipeline import LegoPipeline
from legodiff.sampling import Method
from legodiff.train.distributed import World

Show = Callable[[float, float], None]
"""Told the images done, of how many."""


@dataclass(frozen=True)
class Order:
    """Images to be drawn: one for each seed."""

    pipe: LegoPipeline
    method: Method
    seeds: Sequence[int]
    labels: Sequence[int | None]
    size: tuple[int, int]
    """Of the pictures, (height, width)."""
    batch: int
    weights: str = "ema"

    @cached_property
    def about(self) -> dict[str, Any]:
        """What all images have in common, for their metadata."""
        nfe, flops = self.pipe.cost(self.method, self.pipe.canvas(self.size))
        made = _made_by(self.pipe, self.method, self.weights)
        return {**made, "size": list(self.size), "nfe": nfe, "flops": flops}

    def about_one(self, position: int) -> dict[str, Any]:
        """The metadata of an image."""
        label, names = self.labels[position], self.pipe.class_names
        name = names[label] if label is not None and names else None
        return {"seed": self.seeds[position], "label": label, "class": name, **self.about}

    def draw(self, positions: Sequence[int], show: Callable[[float], None]) -> Samples:
        """The images at some positions, in one batch."""
        return self.pipe.render(
            self.method,
            [self.labels[position] for position in positions],
            [self.seeds[position] for position in positions],
            self.size,
            len(positions),
            on_progress=show,
        )


def about_canvas(pipe: LegoPipeline, samples: Samples, weights: str) -> dict[str, Any]:
    """The metadata of a canvas, but for what was asked of it; a PNG knows its own size."""
    made = _made_by(pipe, samples.method, weights)
    return {"seed": samples.seeds[0], **made, "flops": samples.flops}


def _made_by(pipe: LegoPipeline, method: Method, weights: str) -> dict[str, Any]:
    model = {"software": f"legodiff {__version__}", "model": pipe.fingerprint, "weights": weights}
    return {**model, **pipe.precision, **method.to_dict()}


def write_folder(
    order: Order, out: Path, overwrite: bool, world: World, show: Show
) -> tuple[int, float]:
    """Writes ``{seed:06d}.png`` for each seed, with how it was made in its metadata.

    Images that are there already are kept if they were made the same way, so a call that was
    stopped goes on. Raises ValueError if one was made in another way, unless ``overwrite``. Returns
    the images drawn, and the seconds it took.
    """
    missing = []
    for position, seed in enumerate(order.seeds):
        path = out / f"{seed:06d}.png"
        if not path.exists():
            missing.append(position)
        elif _made_as(path) != _texts(order.about_one(position)):
            if not overwrite:
                raise ValueError(
                    f"{path} exists already, and was made in another way; add --overwrite or "
                    "choose another --out"
                )
            missing.append(position)
    world.gather(None)  # everyone has looked before anyone writes
    mine = missing[world.rank :: world.size]
    seconds = 0.0
    for start in range(0, len(mine), order.batch):
        part = mine[start : start + order.batch]
        samples = order.draw(part, partial(_more, show, start, len(mine)))
        for image, position in zip(samples.images, part, strict=True):
            save_png(out / f"{order.seeds[position]:06d}.png", image, order.about_one(position))
        seconds += samples.seconds * len(part)
    return len(mine), seconds


def _more(show: Show, before: int, total: int, done: float) -> None:
    show(before + done, total)


def _texts(about: Mapping[str, Any]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}


def _made_as(path: Path) -> dict[str, str]:
    """The metadata of a PNG; empty if it is none."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return {str(key): str(value) for key, value in image.info.items() if key != "dpi"}
    except (OSError, ValueError, SyntaxError):
        return {}


def write_parts(
    order: Order, out: Path, overwrite: bool, world: World, show: Show
) -> tuple[int, float]:
    """Draws the images of an NPZ into a folder of parts beside it, a file for each batch.

    Parts that are there are kept, so a call that was stopped goes on. Raises ValueError if they
    were made in another way, unless ``overwrite``. Returns the images drawn, and the seconds.
    """
    parts, plan = _parts(out), {**order.about, "batch": order.batch}
    plan |= {"seeds": list(order.seeds), "labels": list(order.labels)}
    plan = json.loads(json.dumps(plan))
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already; add --overwrite or choose another --out")
    settings = parts / "settings.json"
    known = json.loads(settings.read_text()) if settings.is_file() else None
    if known not in (None, plan) and not overwrite:
        raise ValueError(f"{parts} holds a part of other images; add --overwrite, or remove it")
    world.gather(None)  # everyone has looked before anyone writes
    if world.leads and known != plan:
        shutil.rmtree(parts, ignore_errors=True)
        store.write_atomically(settings, json.dumps(plan).encode())
    world.gather(None)
    count = len(order.seeds)
    starts = [s for s in range(0, count, order.batch) if not _part(parts, s).is_file()]
    world.gather(None)
    drawn, seconds, mine = 0, 0.0, starts[world.rank :: world.size]
    total = sum(min(order.batch, count - start) for start in mine)
    for start in mine:
        positions = range(start, min(start + order.batch, count))
        told = partial(_more, show, drawn, total)
        samples = order.draw(positions, told)
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in samples.images])
        store.write_atomically(_part(parts, start), pixels.tobytes())
        drawn += len(positions)
        seconds += samples.seconds * len(positions)
    return drawn, seconds


def join_parts(order: Order, out: Path) -> None:
    """Makes one NPZ of the parts: ``arr_0`` (N, H, W, 3) uint8 and ``arr_1`` (N,) int64 labels.

    This is the layout that ADM's evaluation reads. A label of -1 is no class.
    """
    parts, count = _parts(out), len(order.seeds)
    files = [_part(parts, start) for start in range(0, count, order.batch)]
    height, width = order.size
    labels = np.array([-1 if label is None else label for label in order.labels], np.int64)
    temporary = out.with_name(f".{out.name}.part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                shape = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, 3)}
                npy.write_array_header_1_0(member, shape)
                for file in files:
                    member.write(file.read_bytes())
            with archive.open("arr_1.npy", "w") as member:
                npy.write_array(member, labels, allow_pickle=False)
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    shutil.rmtree(parts)


def read_images(out: Path, order: Order, most: int) -> Iterator[Image.Image]:
    """The first images that were written, from a folder or an NPZ."""
    count = min(most, len(order.seeds))
    if out.suffix != ".npz":
        for seed in order.seeds[:count]:
            with Image.open(out / f"{seed:06d}.png") as image:
                yield image.copy()
        return
    with zipfile.ZipFile(out) as archive, archive.open("arr_0.npy") as member:
        npy.read_magic(member)
        (_, *shape), _, _ = npy.read_array_header_1_0(member)
        for _ in range(count):
            size = int(np.prod(shape))
            yield Image.fromarray(np.frombuffer(member.read(size), np.uint8).reshape(shape))


def follow(
    order: Order, show: Show, images: int = 16, levels: int = 8
) -> tuple[dict[str, dict[float, Image.Image | None]], list[list[Image.Image]]]:
    """Draws the first images once more and looks on.

    Returns what each brick made of the first image, by name and noise level (None where it did not
    run), at about so many levels; and the clean estimates of all of them at every level.
    """
    stack, codec = order.pipe.stack, order.pipe.codec
    count = min(images, len(order.seeds))
    seen: dict[float, tuple[tuple[int, ...], list[Tensor]]] = {}

    def watch(sigma: float, bricks: tuple[int, ...], estimates: list[Tensor]) -> None:
        # The first call at a level; under guidance the first half of it has the classes.
        seen.setdefault(sigma, (bricks, [estimate[:count].cpu() for estimate in estimates]))

    order.pipe.render(
        order.method,
        order.labels[:count],
        order.seeds[:count],
        order.size,
        count,
        on_progress=lambda done: show(done, count),
        watch=watch,
    )
    shown = list(seen)[:: max(1, len(seen) // levels)]
    rows: dict[str, dict[float, Image.Image | None]] = {}
    for number, brick in enumerate(stack.spec.bricks):
        name = "image brick" if brick.is_image else f"{brick.size}x{brick.size} brick"
        row = rows.setdefault(f"{number}: {name}", {})
        for sigma in shown:
            bricks, estimates = seen[sigma]
            row[sigma] = None
            if number in bricks:
                row[sigma] = to_pil(codec.decode(estimates[bricks.index(number)][:1]))[0]
    frames = [to_pil(codec.decode(estimates[-1])) for _, estimates in seen.values()]
    return rows, frames


def _parts(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start:09d}.raw"
