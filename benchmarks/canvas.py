"""Seams and cost of canvases, on models of photograph crops.

    python benchmarks/canvas.py --crops crops
    legodiff train --data crops --run runs/crops-pr ...  (the whole line is in docs/sampling.md)
    python benchmarks/canvas.py runs/crops-pr --crops crops --canvases 12 --out canvas.jsonl
    python benchmarks/canvas.py --table canvas.jsonl

The crops are of scikit-learn's two photographs, a temple and a flower: a class each. Canvases of
either class are drawn in every way, from the same seeds. Seams are the worst of all rows and of all
columns that lie as far apart as the borders of the smallest patches, wherever they begin: windows
that shift have borders everywhere. Window seams are those at the borders of windows side by side.
FD-pooled is the Fréchet distance between windows of the canvases and the crops, on 64 features: 4x4
means of each channel, and of the gradient. Detail is the mean gradient, by that of the crops.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from legodiff import LegoPipeline, SkipPlan
from legodiff.data.photographs import Photographs
from legodiff.diffusion.canvas import Windows
from legodiff.evaluate.features import open_features
from legodiff.evaluate.frechet import frechet_distance
from legodiff.evaluate.seams import Seam, seams
from legodiff.pictures import save_png, table_of_images
from legodiff.sampling import Method

SIDE = 32
WAYS: dict[str, dict[str, Any]] = {
    "side by side, not shifted": {"stride": SIDE},
    "shifted (default)": {},
    "shifted, overlap 4": {"margin": 4},
    "shifted, overlap 8": {"margin": 8},
    "stride 16": {"stride": 16},
    "stride 7 (the paper's)": {"stride": 7},
}


def write_crops(out: Path, count: int) -> None:
    """``count`` crops of each photograph."""
    crops = Photographs(SIDE)
    for index in range(count * len(crops.class_names)):
        pixels, label = crops.read(index)
        folder = out / crops.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(pixels, 0, -1)).save(folder / f"{index:05d}.png")


def features(images: np.ndarray) -> np.ndarray:
    """uint8 images (N, SIDE, SIDE, 3) to 64 features; the last 16 are means of the gradient."""
    network = open_features("pooled", None, torch.device("cpu"), (SIDE, SIDE))
    return network.run(torch.from_numpy(images).movedim(-1, 1)).pool.numpy()


def worst_seam(images: np.ndarray, side: int) -> Seam:
    """The highest of the seams at every ``side``-th row, and column, from any first one on."""
    height, width = images.shape[1:3]
    rows = [seams(images, range(first, height, side)) for first in range(1, side + 1)]
    columns = [seams(images, (), range(first, width, side)) for first in range(1, side + 1)]
    return max(*rows, *columns)


def windows_of(canvas: np.ndarray) -> Iterator[np.ndarray]:
    """The squares of SIDE pixels that a canvas (H, W, 3) is made of."""
    for row in range(0, canvas.shape[0], SIDE):
        for column in range(0, canvas.shape[1], SIDE):
            yield canvas[row : row + SIDE, column : column + SIDE]


def measure(run: Path, crops: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for the crops, for plain squares, and for every way."""
    pipe = LegoPipeline.from_pretrained(run)
    finest, canvas = pipe.stack.spec.finest, (96, 160)
    method = Method(SkipPlan.full(len(pipe.stack.bricks)), arguments.steps)
    files = sorted(crops.glob("*/*.png"))
    real = np.stack([np.asarray(Image.open(file)) for file in files])
    known = features(real)

    def row(way: str, images: np.ndarray, cost: float, seconds: float) -> dict[str, Any]:
        squares = np.stack([square for image in images for square in windows_of(image)])
        found = features(squares)
        borders = [range(SIDE, length, SIDE) for length in images.shape[1:3]]
        return {
            "run": run.name,
            "way": way,
            "steps": arguments.steps,
            "images": len(images),
            "seams": worst_seam(images, finest),
            "window seams": seams(images, borders[0], borders[1]) if len(borders[0]) else None,
            "FD-pooled": frechet_distance(found, known),
            "detail": float(found[:, 48:].mean() / known[:, 48:].mean()),
            "cost": cost,
            "seconds": seconds,
        }

    count = arguments.canvases
    squares = count * canvas[0] * canvas[1] // SIDE**2
    rng = np.random.default_rng(1)
    yield row("the crops themselves", real[rng.permutation(len(real))[:squares]], 0, 0)
    plain = pipe.render(method, [n % 2 for n in range(squares)], range(squares), batch=32)
    images = np.stack([np.asarray(image) for image in plain.images])
    yield row("plain squares", images, 1.0, plain.seconds * squares)
    for way, words in WAYS.items():
        if way not in arguments.ways:
            continue
        windows = Windows((SIDE, SIDE), batch=32, **words)
        began = time.perf_counter()
        drawn = pipe.render(
            method, [n % 2 for n in range(count)], range(count), canvas, 4, windows=windows
        )
        images = np.stack([np.asarray(image) for image in drawn.images])
        if arguments.pictures:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(drawn.images):
                image.save(arguments.pictures / f"{run.name}-{way}-{number}.png")
        cost = drawn.flops * SIDE**2 / (plain.flops * canvas[0] * canvas[1])
        yield row(way, images, cost, time.perf_counter() - began)


def picture(folder: Path, run: str, ways: Sequence[str]) -> None:
    """The first two canvases of every way, one below the other."""
    rows = []
    for way in ways:
        images = [Image.open(folder / f"{run}-{way}-{number}.png") for number in (0, 1)]
        size = (2 * images[0].width, 2 * images[0].height)
        rows.append((way, [image.resize(size, Image.Resampling.NEAREST) for image in images]))
    save_png(folder / f"{run}-ways.png", table_of_images(rows, ["", ""], "The same seeds"))


def show(path: Path) -> None:
    """Prints the rows as a table."""
    print("| model | way | images | seams | window seams | FD-pooled | detail | cost |")
    print("|---|---|---|---|---|---|---|---|")
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found = [
            "" if row[name] is None else "{:.2f} ({:.2f} to {:.2f})".format(*Seam(*row[name]))
            for name in ("seams", "window seams")
        ]
        print(
            f"| {row['run']} | {row['way']} | {row['images']} | {found[0]} | {found[1]} "
            f"| {row['FD-pooled']:.2f} | {row['detail']:.2f} | {row['cost']:.2f} |"
        )


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--crops", type=Path, help="folder of crops, made if there is none")
    parser.add_argument("--count", type=int, default=4000, help="crops of each photograph")
    parser.add_argument("--canvases", type=int, default=12)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--pictures", type=Path, help="folder for the canvases")
    parser.add_argument("--out", type=Path, default=Path("canvas.jsonl"))
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        show(arguments.table)
        return
    if not arguments.crops:
        parser.error("say where the crops are: --crops FOLDER")
    if not arguments.crops.exists():
        write_crops(arguments.crops, arguments.count)
    for run in arguments.runs:
        for row in measure(run, arguments.crops, arguments):
            print(json.dumps(row), flush=True)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if arguments.pictures:
            picture(arguments.pictures, run.name, arguments.ways)


if __name__ == "__main__":
    main()
