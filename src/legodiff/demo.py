"""The demonstration: train a small stack on real digits, draw with it, and say how good it is."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from legodiff.codec import Codec, PixelCodec, to_pil
from legodiff.config import load_config
from legodiff.data import ImageData
from legodiff.data.digits import Digits
from legodiff.diffusion.skipping import SkipPlan
from legodiff.evaluate.digits import DigitJudges
from legodiff.model.stack import LegoStack
from legodiff.pictures import captioned, grid, save_png, table_of_images
from legodiff.pipeline import LegoPipeline
from legodiff.sampling import Method
from legodiff.store import write_atomically
from legodiff.train.distributed import World
from legodiff.train.log import Status
from legodiff.train.loop import train
from legodiff.train.runs import finished

STEPS, GUIDANCE, JUDGED, SHOWN = 18, 1.5, 500, 60
BUDGET = 2 / 3
REPORT = "demo.json"
OURS = (
    *("config.json", "model.safetensors", "raw.safetensors", "log.jsonl", "checkpoints", "samples"),
    *("digits.png", "skipped.png", "refinement.png", "loss.png"),
)
"""What a demonstration leaves beside its report."""

Show = Callable[[str, float, float, str], None]
"""Told of progress: what is being done, how much is done, of how much, and a note."""


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
    judged: int
    """Digits drawn for each row."""
    real_accuracy: float
    floor: float
    train_seconds: float
    train_images: int
    real_digits: int
    """Digits learnt from."""
    bricks: int
    plan: SkipPlan
    skipped_steps: int
    """Steps, of ``steps``, in which the plan leaves the top brick out."""
    steps: int
    share: float
    """Share of the full FLOPs that the plan takes."""
    device: str


def run_demo(run: Path, seed: int, device: torch.device, show: Show) -> Report:
    """Trains, draws, judges, and writes pictures and ``demo.json`` into the run folder.

    The files of an earlier demonstration in the folder are replaced. Raises ValueError for a
    folder that holds anything but a demonstration, and KeyboardInterrupt if the training was asked
    to stop before its end. ``show`` is told of the progress.
    """
    _check_requirements()
    config = load_config("digits", [f"train.seed={seed}"])
    spec = config.model.spec(channels=1, classes=10)
    data = Digits(spec.image_size[0])
    codec = PixelCodec.fit(data.images, spec.sigma_data)
    judges = DigitJudges(spec.image_size[0])
    _make_room(run)

    def on_log(status: Status) -> None:
        show("learning digits", status.images, config.train.images, str(status))

    began = time.perf_counter()
    pipe = train(config, data, codec, run, world=World(device=device), on_log=on_log, say=_quiet)
    train_seconds = time.perf_counter() - began
    if not finished(run, config.train.images):
        raise KeyboardInterrupt  # it was asked to stop: what has not learnt is not judged

    every = SkipPlan.full(len(spec.bricks))
    plan = pipe.within(Method(every, STEPS), BUDGET).plan
    alone = SkipPlan(((0.0, (0,)),))
    kinds = [("all bricks", every), ("bricks skipped", plan), ("lowest brick", alone)]
    rows: list[Row] = []
    drawn = {}
    for name, chosen in kinds:
        for guidance in (1.0, GUIDANCE):
            note, before = f"{name}, guidance {guidance:g}", len(rows) * JUDGED
            began = time.perf_counter()
            samples = pipe(
                labels=[number % 10 for number in range(JUDGED)],
                seeds=range(JUDGED),
                steps=STEPS,
                guidance=guidance,
                plan=chosen,
                batch=100,
                on_progress=partial(_show_drawn, show, before, 2 * len(kinds) * JUDGED, note),
            )
            seconds = (time.perf_counter() - began) / JUDGED
            pixels = np.stack([np.asarray(image)[None] for image in samples.images])
            verdict = judges.judge(pixels, np.array(samples.labels))
            mflops = samples.flops / 1e6
            rows.append(
                Row(name, guidance, verdict.accuracy, verdict.fd, samples.nfe, mflops, seconds)
            )
            drawn[name, guidance] = samples.images[:SHOWN]

    sigmas = pipe.sampling.sigmas(STEPS)
    report = Report(
        rows=rows,
        judged=JUDGED,
        real_accuracy=judges.held_out_accuracy,
        floor=judges.floor,
        train_seconds=train_seconds,
        train_images=config.train.images,
        real_digits=len(data),
        bricks=len(spec.bricks),
        plan=plan,
        skipped_steps=sum(plan.bricks(float(s)) != every.bricks(float(s)) for s in sigmas[:-1]),
        steps=STEPS,
        share=rows[2].mflops / rows[0].mflops,
        device=str(device),
    )
    _pictures(run, pipe, data, codec, drawn, report)
    values = asdict(report) | {"plan": plan.to_dict()}
    write_atomically(run / REPORT, json.dumps(values, indent=2).encode())
    return report


def _quiet(_: str) -> None:
    """The demonstration says at its end what was done."""


def _show_drawn(show: Show, before: int, total: int, note: str, done: float) -> None:
    show("drawing digits", before + done, total, note)


def _check_requirements() -> None:
    for module, name in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise ValueError(f"the demo needs {name}; run: pip install 'legodiff[demo]'")


def _make_room(run: Path) -> None:
    """Removes the files of an earlier demonstration, also one broken off, and nothing else."""
    if run.exists() and any(run.iterdir()) and not (run / REPORT).exists():
        raise ValueError(f"{run} holds something else; choose another folder with --run")
    write_atomically(run / REPORT, b"{}")  # from here on the folder is known as ours
    for name in OURS:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


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
    three_and_eight = [list(data.labels).index(label) for label in (3, 8)]
    save_png(run / "refinement.png", refinement(pipe.stack, codec, data, three_and_eight))


@torch.no_grad()
def refinement(
    stack: LegoStack, codec: Codec, data: ImageData, numbers: Sequence[int] = (0, 1)
) -> Image.Image:
    """The clean estimate of each brick at several noise levels (as the paper's figures 5 and 6).

    Of some images of a data set, given by ``numbers``.
    """
    sigmas = [0.1, 0.3, 0.6, 1.0, 2.0, 5.0]
    device = next(stack.parameters()).device
    rows: list[tuple[str, list[Image.Image]]] = []
    columns: list[str] = []
    for number in numbers:
        pixels, label = data.read(number)
        clean = codec.encode(torch.from_numpy(pixels)[None]).repeat(len(sigmas), 1, 1, 1)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(label))
        sigma = torch.tensor(sigmas)
        noisy = clean + sigma.view(-1, 1, 1, 1) * noise
        estimates = stack.estimates(
            noisy.to(device),
            sigma.to(device),
            torch.full((len(sigmas),), label, device=device) if stack.spec.classes else None,
        )

        def pictures(images: Tensor) -> list[Image.Image]:
            return to_pil(codec.decode(images))

        shrunk = noisy / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt()  # so that one can see it
        name = data.class_names[label] if data.class_names else "image"
        rows.append((f"a real {name}", pictures(clean)))
        rows.append(("with noise", pictures(shrunk)))
        for brick, estimate in zip(stack.spec.bricks, estimates, strict=True):
            side = "image" if brick.is_image else f"{brick.size}x{brick.size}"
            rows.append((f"{side} brick", pictures(estimate.cpu())))
        columns = [f"{level:g}" for level in sigmas]
    title = "What each brick makes of the estimate below it, by noise level sigma"
    return table_of_images(rows, columns, title)
