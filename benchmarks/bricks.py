"""Do bricks pay? Stacks against plain DiTs, after the same time of training, at ``--side`` pixels.

    python benchmarks/bricks.py cost --out costs.json
    python benchmarks/bricks.py run glyphs emoji --costs costs.json --seconds 300 --out rows.jsonl
    python benchmarks/bricks.py draw rows.jsonl --seconds 300
    python benchmarks/bricks_table.py rows.jsonl

``cost`` measures a training step of every rival, in turns, in seconds of one CPU core. ``run``
gives each as many images as fit into ``--seconds`` at that cost, so that what else the machine does
has no part in it (steps of the optimizer are not counted), and writes a row: the loss on held-out
images, in three bands of noise. Rows that are there already are left out.

``draw`` adds to rows what samples of their models are worth: Frechet distances in pooled features
of 500 of them, of 12 steps of Heun, of as many of DPM-Solver++ as the same FLOPs buy, and of these
without the top brick in the higher half of the levels; of the first also in local features, which
see strokes and edges and not where they are; and seams, the gradient across such borders against
elsewhere, over that of real images.
"""

import argparse
import json
import tempfile
import time
from operator import truediv
from pathlib import Path
from statistics import NormalDist, mean, median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rendered import Pictures, load
from rivals import BATCH, MEAN, RIVALS, STD, configure
from torch import Tensor

from legodiff import LegoPipeline, store
from legodiff.codec import PixelCodec
from legodiff.diffusion.loss import brick_losses
from legodiff.evaluate.bench import alternate
from legodiff.evaluate.contenders import Setting, candidates, of_stack
from legodiff.evaluate.features import open_features
from legodiff.evaluate.frechet import frechet_distance
from legodiff.evaluate.seams import seams
from legodiff.model.cost import subset_flops
from legodiff.model.spec import StackSpec
from legodiff.pictures import grid, save_png
from legodiff.train.loop import train
from legodiff.train.runs import finished

CPU = torch.device("cpu")
DRAWN, JUDGED, STEPS = 500, 256, 12  # images but for the last
EQUAL = 1.5e6  # FLOPs of a pixel that is drawn, for all rivals alike
SEAMS = {"seams 4": 4, "seams 8": 8, "seams 16": 16}
QUANTILES = [0.05, 0.15, 0.25, 0.4, 0.5, 0.6, 0.75, 0.85, 0.95]
BANDS = {"low": slice(0, 3), "middle": slice(3, 6), "high": slice(6, 9)}


def cost(names: list[str], side: int, out: Path, rounds: int) -> None:
    """Seconds of an image in a training step of each rival, measured in turns."""
    entries = []
    for name in names:
        config = configure(name, side, 0, 1000, 1e-3, [])
        for channels in (1, 3):
            spec = config.model.spec(channels, 0)
            share = 1.0 if len(spec.bricks) == 1 else 0.5
            setting = Setting((side, side), BATCH, CPU, train=True, patches=share)
            entries.append(candidates(of_stack(name, spec), setting)[0])
    times = alternate(entries, rounds, device=CPU, clock=time.process_time)
    rounds_took = [sum(turn) for turn in zip(*times, strict=True)]
    shares = [median(map(truediv, row, rounds_took)) for row in times]  # a slow round hits all
    seconds = iter(share * median(rounds_took) / 1e3 for share in shares)
    costs = {name: {channels: next(seconds) for channels in ("1", "3")} for name in names}
    out.write_text(json.dumps(costs, indent=1))
    for name, found in costs.items():
        print(f"{name:20} {1e3 * found['1']:6.2f} ms grey {1e3 * found['3']:6.2f} ms colour")


def held_out(pipe: LegoPipeline, data: Pictures) -> dict[str, float]:
    """The loss of the top brick on images never seen, the same noise for every rival."""
    images = torch.from_numpy(np.array(data.images[:JUDGED]))
    labels = torch.from_numpy(np.array(data.labels[:JUDGED])) if pipe.stack.spec.classes else None
    clean, losses = pipe.codec.encode(images), []
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for quantile in QUANTILES:
            sigma = torch.full((len(clean),), NormalDist(MEAN, STD).inv_cdf(quantile)).exp()
            values = brick_losses(pipe.stack, clean, noise, sigma, labels)
            losses.append(values[-1].mean().item())
    return {"loss": mean(losses), **{band: mean(losses[part]) for band, part in BANDS.items()}}


def features(images: np.ndarray) -> Tensor:
    """Pooled features of uint8 images (N, C, H, W)."""
    network = open_features("pooled", None, CPU, (images.shape[2], images.shape[3]))
    return torch.cat(
        [network.run(torch.from_numpy(part)).pool for part in np.split(images, len(images) // 100)]
    )


def local_features(images: np.ndarray) -> Tensor:
    """Means of what three layers of random convolutions see in uint8 images (N, C, H, W)."""
    return torch.cat([_convolved(part) for part in np.split(images, len(images) // 100)])


def _convolved(images: np.ndarray) -> Tensor:
    chance, found = torch.Generator().manual_seed(0), list[Tensor]()
    hidden = torch.from_numpy(images).float() / 127.5 - 1
    for channels in (16, 32, 64):
        filters = torch.randn(channels, hidden.shape[1], 3, 3, generator=chance)
        if not found:
            filters -= filters.mean(dim=(1, 2, 3), keepdim=True)  # what is flat is 0
        filters /= filters.flatten(1).norm(dim=1)[:, None, None, None]
        hidden = F.relu(F.conv2d(F.pad(hidden, (1, 1, 1, 1), mode="replicate"), filters))
        found.append(hidden.mean(dim=(2, 3)))
        hidden = 2 * F.avg_pool2d(hidden, 2)
    return torch.cat(found, dim=1)


def run(name: str, data: str, seed: int, seconds: float, options: argparse.Namespace) -> None:
    """Trains a rival, and writes a row."""
    learnt, held = load(data, options.cache, options.side)
    costs = json.loads(options.costs.read_text())
    images = int(seconds / costs[name][str(learnt.channels)] / BATCH) * BATCH
    row = {"data": data, "side": options.side, "name": name, "seed": seed}
    row |= {"seconds": seconds, "rate": options.rate, "changes": options.changes, "images": images}
    if any(row.items() <= one.items() for one in read(options.out)):
        return
    config = configure(name, options.side, seed, images, options.rate, options.changes)
    codec = PixelCodec.fit(np.array(learnt.images[:2000]), 0.5)
    with tempfile.TemporaryDirectory() as folder:
        pipe = train(config, learnt, codec, Path(folder), say=lambda _: None)
        if not finished(Path(folder), images):
            raise SystemExit("stopped")  # by a signal; a row is of whole runs only
    pipe.save_pretrained(place(options.out, row))
    spec = pipe.stack.spec
    row |= {"flops": subset_flops(spec, range(len(spec.bricks)), spec.image_size)}
    row |= held_out(pipe, held)
    write(options.out, [*read(options.out), row])
    print(json.dumps(row), flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces the rows of a file."""
    store.write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def place(out: Path, row: dict[str, Any]) -> Path:
    """The folder of a model; its samples are beside it."""
    words = [
        row["data"],
        row["side"],
        row["name"],
        row["seed"],
        f"{row['seconds']:g}",
        f"{row['rate']:g}",
    ]
    return out.with_suffix("") / "-".join(map(str, [*words, *row["changes"]])).replace(" ", "-")


def draw(path: Path, seconds: float | None, names: list[str], cache: Path) -> None:
    """Adds to rows what their samples are worth, if that is not yet there."""
    for number, row in enumerate(read(path)):
        if "fd" in row or row["name"] not in names or row["seconds"] != (seconds or row["seconds"]):
            continue
        learnt, _ = load(row["data"], cache, row["side"])
        where = place(path, row)
        pipe = LegoPipeline.from_pretrained(where)
        row |= samples(pipe, learnt, where.with_name(f"{where.name}.png"))
        rows = read(path)
        write(path, [*rows[:number], row, *rows[number + 1 :]])
        print(json.dumps(row), flush=True)


def samples(pipe: LegoPipeline, learnt: Pictures, picture: Path) -> dict[str, float]:
    """What the samples of a rival are worth; some of them are saved."""
    spec: StackSpec = pipe.stack.spec
    flops = [
        subset_flops(spec, range(top), spec.image_size) for top in range(1, len(spec.bricks) + 1)
    ]
    real = np.array(learnt.images[:4000])
    known = features(real)
    found = {"floor": frechet_distance(features(np.array(learnt.images[4000:][:DRAWN])), known)}

    named = bool(learnt.class_names)
    images = drawn(pipe, named, STEPS)
    found["fd"] = frechet_distance(features(images), known)
    near = local_features(real)
    found["floor local"] = frechet_distance(
        local_features(np.array(learnt.images[4000:][:DRAWN])), near
    )
    found["fd local"] = frechet_distance(local_features(images), near)
    equal_flops = EQUAL * spec.image_size[0] * spec.image_size[1]
    steps = max(3, int(equal_flops / flops[-1]))
    equal = drawn(pipe, named, steps, sampler="dpmpp_2m")
    found["fd equal"] = frechet_distance(features(equal), known)
    if len(flops) > 1:  # the top brick in the lower half of the levels only
        steps = max(3, int(2 * equal_flops / (flops[-1] + flops[-2])))
        plan = pipe.paper_plan(0.5, steps, "dpmpp_2m")
        skipped = drawn(pipe, named, steps, sampler="dpmpp_2m", plan=plan)
        found["fd skip"] = frechet_distance(features(skipped), known)

    shown, truth = (np.moveaxis(some, 1, -1) for some in (images, real[:DRAWN]))
    for column, side in SEAMS.items():
        borders = range(side, spec.image_size[0], side)
        ours, theirs = (seams(one, borders, borders).ratio for one in (shown, truth))
        found[column] = ours / theirs
    few = [Image.fromarray(image.squeeze()) for image in shown[:32]]
    save_png(picture, grid(few, columns=16))
    return found


def drawn(pipe: LegoPipeline, named: bool, steps: int, **how: Any) -> np.ndarray:
    """Samples, uint8 (N, C, H, W), the classes in turns."""
    labels = [number % 26 for number in range(DRAWN)] if named else None
    images = pipe(labels=labels, seeds=range(DRAWN), steps=steps, batch=50, **how).images
    pixels = np.stack([np.asarray(image) for image in images])
    pixels = pixels.reshape(*pixels.shape[:3], -1)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 1))


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    costs = commands.add_parser("cost")
    costs.add_argument("--out", type=Path, required=True)
    costs.add_argument("--rounds", type=int, default=5)
    costs.add_argument("--names", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    runs = commands.add_parser("run")
    for command in (costs, runs):
        command.add_argument("--side", type=int, default=64)
    runs.add_argument("data", nargs="+", choices=["glyphs", "emoji"])
    runs.add_argument("--names", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    runs.add_argument("--costs", type=Path, required=True)
    runs.add_argument("--seconds", type=float, default=300)
    runs.add_argument("--seeds", type=int, nargs="+", default=[0])
    runs.add_argument("--rate", type=float, default=3e-3)
    runs.add_argument("--set", dest="changes", action="append", default=[])
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--cache", type=Path, default=Path("runs/rendered"))
    draws = commands.add_parser("draw")
    draws.add_argument("rows", type=Path)
    draws.add_argument("--names", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    draws.add_argument("--seconds", type=float)
    draws.add_argument("--cache", type=Path, default=Path("runs/rendered"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "cost":
        cost(options.names, options.side, options.out, options.rounds)
    elif options.command == "draw":
        draw(options.rows, options.seconds, options.names, options.cache)
    else:
        for seed in options.seeds:
            for data in options.data:
                for name in options.names:
                    run(name, data, seed, options.seconds, options)


if __name__ == "__main__":
    main()
