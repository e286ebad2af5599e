"""Measures choices of training on digits: patches and fills, brick dropout, brick by brick, detach.

    python benchmarks/training.py patches --seeds 0 1 2 --out results.jsonl
    python benchmarks/training.py dropout order --seeds 0 1 2 --out results.jsonl
    python benchmarks/training.py --table results.jsonl

Every run is one thread, the recipe of `legodiff train digits` with fewer images, and one line of
JSON in the results; a run that is there already is not done again. `loss` is the EDM loss of the
top brick on 297 held-out digits at nine noise levels, without sampled patches: what the network is
worth, whatever it was trained with. Seconds are those of the processor, not of the clock.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from legodiff import LegoPipeline, SkipPlan
from legodiff.codec import Codec, PixelCodec
from legodiff.config import RunConfig, load_config
from legodiff.data.digits import Digits
from legodiff.diffusion.loss import brick_losses
from legodiff.evaluate.digits import DigitJudges
from legodiff.model.stack import LegoStack
from legodiff.train.distributed import World
from legodiff.train.learner import build_learner, build_network
from legodiff.train.loop import train

IMAGES, DRAWN, STEPS = 24_000, 500, 18
ORDERS = {"pr": "lite-pr-16", "pg": "lite-pg-16"}
FILLS, RATIOS = ("skip", "clean", "zero"), (0.25, 0.5, 0.75)
QUANTILES = (torch.arange(9) + 0.5) / 9


def patches() -> Iterator[dict[str, Any]]:
    """Share of the patches and fill, at equal images and at equal time."""
    for order, preset in ORDERS.items():
        yield {"preset": preset, "name": f"{order} all patches", "train.patch_ratio": 1.0}
        for ratio in RATIOS:
            for fill in FILLS:
                for equal in ("images", "time"):
                    yield {
                        "preset": preset,
                        "name": f"{order} {ratio:g} {fill}, equal {equal}",
                        "equal": equal,
                        "train.patch_ratio": ratio,
                        "train.fill": fill,
                    }


def dropout() -> Iterator[dict[str, Any]]:
    """Brick dropout, and what every subset of the bricks is worth afterwards."""
    for order, preset in ORDERS.items():
        for share in (0.0, 0.1, 0.3):
            yield {
                "preset": preset,
                "name": f"{order} dropout {share:g}",
                "subsets": True,
                "train.brick_dropout": share,
            }


def order() -> Iterator[dict[str, Any]]:
    """End to end, detached, and brick by brick with the images shared out among the bricks."""
    for name, preset in ORDERS.items():
        yield {"preset": preset, "name": f"{name} end to end"}
        yield {"preset": preset, "name": f"{name} detached", "train.detach": True}
        yield {"preset": preset, "name": f"{name} brick by brick", "stages": True}


EXPERIMENTS = {"patches": patches, "dropout": dropout, "order": order}


def measure(experiment: str, what: dict[str, Any], seed: int, images: int) -> dict[str, Any]:
    """Trains one network and judges it."""
    changes = [f"{key}={value}" for key, value in what.items() if "." in key]
    changes += [f"model.preset={what['preset']}", f"train.seed={seed}", "train.picture_images=0"]
    config = load_config("digits", changes)
    data, held_out = Digits(16), Digits(16, "held-out")
    codec = PixelCodec.fit(data.images, 0.5)
    if what.get("equal") == "time":
        whole = load_config("digits", [*changes, "train.patch_ratio=1"])
        images = round(images * speed(config, data, codec) / speed(whole, data, codec))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        pipe = _train(config, data, codec, images, Path(folder), bool(what.get("stages")))
    seconds = time.process_time() - began
    count = len(pipe.stack.spec.bricks)
    subsets = [tuple(range(count))]
    if what.get("subsets"):
        subsets = [s for size in range(1, count + 1) for s in combinations(range(count), size)]
    judges = DigitJudges(16)
    judged = {str(list(subset)): judge(pipe, held_out, judges, subset) for subset in subsets}
    return {
        "experiment": experiment,
        "name": what["name"],
        "seed": seed,
        "images": images,
        "seconds": round(seconds, 1),
        **judged[str(list(range(count)))],
        **({"subsets": judged} if what.get("subsets") else {}),
    }


def _train(
    config: RunConfig, data: Digits, codec: Codec, images: int, folder: Path, stages: bool
) -> LegoPipeline:
    count = len(config.model.spec(1, 10).bricks)
    parts: list[dict[str, Any]] = [{"images": images}]
    if stages:
        parts = [
            {
                "images": images // count,
                "bricks": (brick,),
                "init": str(folder / str(brick - 1)) if brick else None,
            }
            for brick in range(count)
        ]
    for number, part in enumerate(parts):
        stage = config.model_copy(update={"train": config.train.model_copy(update=part)})
        pipe = train(stage, data, codec, folder / str(number), say=lambda _: None)
    return pipe


def speed(config: RunConfig, data: Digits, codec: Codec) -> float:
    """Images a second of the processor, of forward and backward."""
    settings = config.train
    network = build_network(config.model.spec(1, 10), 0)
    learner = build_learner(network, codec, settings, World())
    images = torch.from_numpy(data.images[: settings.batch])
    labels = torch.from_numpy(data.labels[: settings.batch])
    for step in range(25):
        if step == 5:
            began = time.process_time()
        losses = learner.objective(
            images, labels, range(settings.batch), range(len(network.bricks))
        )
        learner.optimizer.zero_grad()
        losses.values.mean().backward()
        learner.optimizer.step()
    return 20 * settings.batch / (time.process_time() - began)


@torch.no_grad()
def judge(
    pipe: LegoPipeline, held_out: Digits, judges: DigitJudges, bricks: tuple[int, ...]
) -> dict[str, float]:
    """Held-out loss, accuracy and FD of a subset of the bricks."""
    labels = [number % 10 for number in range(DRAWN)]
    plan = SkipPlan(((0.0, bricks),))
    samples = pipe(labels=labels, seeds=range(DRAWN), steps=STEPS, plan=plan, batch=100)
    pixels = np.stack([np.asarray(image)[None] for image in samples.images])
    verdict = judges.judge(pixels, np.array(labels))
    return {
        "loss": round(float(_losses(pipe.stack, pipe.codec, held_out, bricks).mean()), 5),
        "accuracy": round(verdict.accuracy, 4),
        "fd": round(verdict.fd, 4),
    }


def _losses(stack: LegoStack, codec: Codec, data: Digits, bricks: tuple[int, ...]) -> Tensor:
    clean = codec.encode(torch.from_numpy(data.images))
    labels = torch.from_numpy(data.labels)
    generator = torch.Generator().manual_seed(0)
    levels = (-0.8 + 1.2 * torch.special.ndtri(QUANTILES)).exp()
    losses = []
    for level in levels:
        noise = torch.randn(clean.shape, generator=generator)
        sigma = level.expand(len(clean))
        losses.append(brick_losses(stack, clean, noise, sigma, labels, bricks=bricks)[-1])
    return torch.stack(losses)


def show(path: Path) -> None:
    """Prints mean and spread over the seeds, a row for each name."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        found = json.loads(line)
        rows.setdefault(found["name"], []).append(found)
        for subset, judged in found.get("subsets", {}).items():
            name = f"{found['name']}, bricks {subset}"
            rows.setdefault(name, []).append({**found, **judged})
    print("| | seeds | images | CPU s | held-out loss | accuracy | FD-digits |")
    print("|---|---|---|---|---|---|---|")
    for name, found in rows.items():
        cells = [f"{np.mean([f['images'] for f in found]):,.0f}"]
        cells.append(f"{np.mean([f['seconds'] for f in found]):.0f}")
        for key, scale, digits in (("loss", 1, 4), ("accuracy", 100, 1), ("fd", 1, 2)):
            values = [scale * f[key] for f in found]
            cells.append(f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}")
        print(f"| {name} | {len(found)} | {' | '.join(cells)} |")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiments", nargs="*", choices=[*EXPERIMENTS, []])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--out", type=Path, default=Path("results.jsonl"))
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        show(arguments.table)
        return
    torch.set_num_threads(1)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = {(found["name"], found["seed"]) for found in map(json.loads, lines)}
    for seed in arguments.seeds:
        for experiment in arguments.experiments:
            for what in EXPERIMENTS[experiment]():
                if (what["name"], seed) in done:
                    continue
                found = measure(experiment, what, seed, arguments.images)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
