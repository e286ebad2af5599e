"""The demonstration: train a small stack on real digits, draw with it, and say how good it is."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from legodiff.codec import PixelCodec, to_pil
from legodiff.config import RunConfig, check_config
from legodiff.data.digits import Digits
from legodiff.diffusion.skipping import SkipPlan
from legodiff.evaluate.digits import DigitJudges
from legodiff.model.stack import LegoStack
from legodiff.pictures import captioned, grid, loss_curve, save_png, table_of_images
from legodiff.pipeline import LegoPipeline
from legodiff.store import CONFIG, write_atomically
from legodiff.train.log import Status, read_log
from legodiff.train.loop import train

STEPS, GUIDANCE, JUDGED, SHOWN = 18, 1.5, 500, 60
BUDGET = 2 / 3
REPORT = "report.json"


@dataclass(frozen=True)
class Row:
    """One line of the demonstration's table."""

    name: str
    guidance: float
    accuracy: float
    fd_digits: float
    nfe: int
    mflops: float
    seconds: float
    """Per image."""


@dataclass(frozen=True)
class Report:
    """What the demonstration found."""

    rows: list[Row]
    real_accuracy: float
    floor: float
    train_seconds: float
    train_images: int
    plan: SkipPlan
    share: float
    """Share of the full FLOPs that the plan takes."""
    device: str
    judged: int = JUDGED
    bricks: int = 3


def demo_config(seed: int = 0) -> RunConfig:
    """The run of the demonstration: a three-brick stack at 16x16, some 100,000 images."""
    return check_config(
        {
            "model": {"preset": "lite-pr-16"},
            "data": {"path": "digits"},
            "train": {
                "images": 96_000,
                "batch": 64,
                "seed": seed,
                "learning_rate": 4e-3,
                "warmup_images": 2_000,
                "decay_to": 0.05,
                "ema_halflife_images": 4_000,
                "sigma_mean": -0.8,
                "checkpoint_images": 1_000_000,
            },
        }
    )


def run_demo(
    run: Path,
    seed: int,
    device: torch.device,
    on_train: Callable[[Status], None] | None = None,
    on_draw: Callable[[float, float], None] | None = None,
) -> Report:
    """Trains, draws, judges, and writes pictures and ``report.json`` into the run folder.

    An earlier demonstration in the folder is replaced; anything else there is left alone and
    raises ValueError.
    """
    _clear(run)
    config = demo_config(seed)
    data = Digits(config.model.spec(1, 10).image_size[0])
    codec = PixelCodec.fit(data.images, config.model.spec(1, 10).sigma_data)
    judges = DigitJudges(data.images.shape[-1])

    began = time.perf_counter()
    pipe = train(config, data, codec, run, device=device, on_log=on_train)
    train_seconds = time.perf_counter() - began

    full = SkipPlan.full(len(pipe.stack.spec.bricks))
    settings = [
        ("all bricks", 1.0, None),
        ("all bricks", GUIDANCE, None),
        ("bricks skipped", 1.0, BUDGET),
        ("bricks skipped", GUIDANCE, BUDGET),
    ]
    rows, drawn, plan = [], {}, full
    for number, (name, guidance, budget) in enumerate(settings):
        began = time.perf_counter()
        samples = pipe(
            labels=[seed % 10 for seed in range(JUDGED)],
            seeds=range(JUDGED),
            steps=STEPS,
            guidance=guidance,
            budget=budget,
            batch=100,
            on_progress=partial(_report_drawn, on_draw, number * JUDGED, len(settings) * JUDGED),
        )
        seconds = (time.perf_counter() - began) / JUDGED
        pixels = np.stack([np.asarray(image)[None] for image in samples.images])
        verdict = judges.judge(pixels, np.array(samples.labels))
        rows.append(
            Row(
                name,
                guidance,
                verdict.accuracy,
                verdict.fd,
                samples.nfe,
                samples.flops / 1e6,
                seconds,
            )
        )
        drawn[name, guidance] = samples.images[:SHOWN]
        plan = samples.plan
    report = Report(
        rows,
        judges.held_out_accuracy,
        judges.floor,
        train_seconds,
        config.train.images,
        plan,
        rows[2].mflops / rows[0].mflops,
        str(device),
    )
    _pictures(run, pipe, data, codec, drawn, report)
    values = asdict(report) | {"plan": plan.to_dict()}
    write_atomically(run / REPORT, json.dumps(values, indent=2).encode())
    return report


def _report_drawn(
    on_draw: Callable[[float, float], None] | None, before: int, total: int, done: float
) -> None:
    if on_draw is not None:
        on_draw(before + done, total)


def _clear(run: Path) -> None:
    """Removes an earlier demonstration, complete or broken off, and nothing else."""
    config = run / CONFIG
    if not config.exists():
        return
    earlier = json.loads(config.read_text()).get("run") or {}
    if {**earlier.get("train", {}), "seed": 0} != demo_config().model_dump(mode="json")["train"]:
        raise ValueError(f"{run} holds another run; choose another folder for the demonstration")
    shutil.rmtree(run)


def _pictures(
    run: Path,
    pipe: LegoPipeline,
    data: Digits,
    codec: PixelCodec,
    drawn: dict[tuple[str, float], list[Image.Image]],
    report: Report,
) -> None:
    real = [
        Image.fromarray(data.images[np.flatnonzero(data.labels == label)[row]][0])
        for row in range(SHOWN // 10)
        for label in range(10)
    ]
    every, skipped = (drawn[name, GUIDANCE] for name in ("all bricks", "bricks skipped"))
    save_png(
        run / "digits.png",
        captioned(
            [
                ("real digits", grid(real, 10)),
                (f"drawn, all bricks, guidance {GUIDANCE}", grid(every, 10)),
                ("drawn, all bricks, no guidance", grid(drawn["all bricks", 1.0], 10)),
            ]
        ),
    )
    save_png(
        run / "skipped.png",
        captioned(
            [
                (f"all bricks, guidance {GUIDANCE}", grid(every, 10)),
                (f"the same seeds with {report.share:.0%} of the FLOPs", grid(skipped, 10)),
            ]
        ),
    )
    save_png(run / "refinement.png", refinement(pipe.stack, codec, data))
    names = [str(brick.size) for brick in pipe.stack.spec.bricks]
    loss_curve(run / "loss.png", read_log(run / "log.jsonl"), names)


@torch.no_grad()
def refinement(
    stack: LegoStack, codec: PixelCodec, data: Digits, labels: tuple[int, int] = (3, 8)
) -> Image.Image:
    """The clean estimate of each brick at several noise levels (as the paper's figures 5 and 6)."""
    sigmas = [0.1, 0.3, 0.6, 1.0, 2.0, 5.0]
    device = next(stack.parameters()).device
    rows: list[tuple[str, list[Image.Image]]] = []
    columns: list[str] = []
    for label in labels:
        image = torch.from_numpy(data.images[np.flatnonzero(data.labels == label)[:1]])
        clean = codec.encode(image).repeat(len(sigmas), 1, 1, 1)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(label))
        sigma = torch.tensor(sigmas)
        noisy = clean + sigma.view(-1, 1, 1, 1) * noise
        estimates = stack.estimates(
            noisy.to(device), sigma.to(device), torch.full((len(sigmas),), label, device=device)
        )

        def pictures(images: Tensor) -> list[Image.Image]:
            return to_pil(codec.decode(images))

        shrunk = noisy / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt()  # so that one can see it
        rows.append((f"a real {label}", pictures(clean)))
        rows.append(("with noise", pictures(shrunk)))
        for brick, estimate in zip(stack.spec.bricks, estimates, strict=True):
            side = "image" if brick.is_image else f"{brick.size}x{brick.size}"
            rows.append((f"{side} brick", pictures(estimate.cpu())))
        columns = [f"{level:g}" for level in sigmas]
    title = "What each brick makes of the estimate below it, by noise level sigma"
    return table_of_images(rows, columns, title)
