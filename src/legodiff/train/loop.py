"""The training loop, flat and for one process.

Learning rate, average, noise and data order are functions of the seed and the images seen. So a run
that is stopped and resumed takes the very steps of one that was not.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from legodiff import store
from legodiff.codec import PixelCodec
from legodiff.config import RunConfig, TrainConfig
from legodiff.data import ImageData, index_at
from legodiff.diffusion.loss import brick_losses, drop_labels
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack
from legodiff.noise import ddpm_sigmas, ddpm_table_sigmas, lognormal_sigmas
from legodiff.pictures import grid, save_png
from legodiff.pipeline import LegoPipeline, Sampling
from legodiff.train.checkpoint import RAW, list_checkpoints, load_checkpoint, save_checkpoint
from legodiff.train.ema import Ema
from legodiff.train.log import Log, Status


def train(
    config: RunConfig,
    data: ImageData,
    codec: PixelCodec,
    run: Path,
    *,
    device: torch.device | None = None,
    resume: bool = False,
    on_log: Callable[[Status], None] | None = None,
) -> LegoPipeline:
    """Trains a stack on ``data`` and leaves a run folder; returns the pipeline of its average.

    The folder holds ``config.json``, ``model.safetensors`` (the average), ``raw.safetensors``,
    ``checkpoints/``, ``samples/`` and ``log.jsonl``. ``resume`` goes on from its newest checkpoint,
    if there is one. Raises ValueError if the folder already holds a run, if a resumed run's
    configuration differs, or if the gradient is not finite.
    """
    device = device or torch.device("cpu")
    settings = config.train
    spec = config.model.spec(data.channels, len(data.class_names))
    shape = data[0][0].shape
    if shape != (spec.channels, *spec.image_size):
        raise ValueError(f"the images are {shape} and the model is for {spec.image_size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = LegoStack(spec)
    network.to(device)
    network.draw_patches(1, spec.image_size, settings.ratio(spec))  # raises if they do not fit
    ema = Ema(network, settings.ema_halflife_images, settings.ema_rampup)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    pipeline = LegoPipeline(
        ema.network,
        codec,
        class_names=data.class_names,
        sampling=_sampling(spec),
        label_dropout=settings.label_dropout if spec.classes else 0.0,
        run=config.model_dump(mode="json"),
    )

    seen = _open_run(run, pipeline, resume, network, ema, optimizer)
    batches = _batches(data, settings, seen, device)
    log = Log(run / "log.jsonl", settings.images, seen, on_log)
    kept = seen
    while True:
        # Keep what there is: at the end, and every so often before it.
        done = seen >= settings.images
        due = seen // settings.checkpoint_images > kept // settings.checkpoint_images
        if (done or due) and seen > kept:
            log.write(seen)
            store.write_weights(run / RAW, network.state_dict())
            pipeline.save_pretrained(run)
            _draw(pipeline, run / "samples" / f"{seen:012d}.png")
            save_checkpoint(run, seen, network, ema, optimizer)  # last: it vouches for the rest
            kept = seen
        if done:
            return pipeline

        # Draw the batch and its noise: functions of (seed, images seen).
        pixels, labels = next(batches)
        clean = codec.encode(pixels.to(device, non_blocking=True))
        labels = labels.to(device, non_blocking=True)
        generator = torch.Generator(device).manual_seed(step_seed(settings.seed, seen))
        draw: dict[str, Any] = {"generator": generator, "device": device}
        if spec.objective == "edm":
            sigma = lognormal_sigmas(len(clean), settings.sigma_mean, settings.sigma_std, **draw)
        else:
            sigma = ddpm_table_sigmas(len(clean), **draw)
        if spec.classes:
            labels = drop_labels(labels, spec.classes, settings.label_dropout, generator)

        # One step on the mean loss of all bricks.
        losses = brick_losses(
            network,
            clean,
            sigma,
            labels if spec.classes else None,
            patch_ratio=settings.ratio(spec),
            fill=settings.fill,
            fill_std=spec.sigma_data,
            detach=settings.detach,
            generator=generator,
        )
        optimizer.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        if not norm.isfinite():
            raise ValueError(
                f"the gradient is not finite after {seen} images; try a smaller train.learning_rate"
            )
        seen += len(clean)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, seen)
        optimizer.step()
        ema.update(network, seen, len(clean))
        log.add(seen, losses.detach(), optimizer.param_groups[0]["lr"])


def learning_rate(settings: TrainConfig, images: int) -> float:
    """Linear warm-up over ``warmup_images``, times a linear fall to ``decay_to`` at the end."""
    warmup = min(1.0, images / settings.warmup_images) if settings.warmup_images else 1.0
    fall = 1 - (1 - settings.decay_to) * min(1.0, images / settings.images)
    return settings.learning_rate * warmup * fall


def _sampling(spec: StackSpec) -> Sampling:
    """The range of noise levels to sample over: EDM's, or that of the DDPM table."""
    if spec.objective == "edm":
        return Sampling()
    table = ddpm_sigmas()
    return Sampling(sigma_min=float(table[0]), sigma_max=float(table[-1]))


def _open_run(
    run: Path,
    pipeline: LegoPipeline,
    resume: bool,
    network: LegoStack,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Starts a run folder or goes on with one; returns the images seen.

    A run that was broken off before it left anything behind is begun anew.
    """
    checkpoints = list_checkpoints(run)
    if not checkpoints and not (run / store.WEIGHTS).exists():
        store.write_config(run, pipeline.to_dict())
        return 0
    if not resume:
        raise ValueError(f"{run} already holds a run; choose another folder, or resume it")
    old, new = store.read_config(run), {"format": store.FORMAT} | pipeline.to_dict()
    if different := _differences(old, new):
        raise ValueError(f"{run} was begun with another {', '.join(different)}")
    return load_checkpoint(checkpoints[-1], network, ema, optimizer) if checkpoints else 0


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted names of the values in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            name
            for key in sorted(old.keys() | new.keys())
            for name in _differences(old.get(key), new.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if old == new else [path]


def _draw(pipeline: LegoPipeline, path: Path) -> None:
    """A grid with seeds that never change, one column a class: is it getting better?"""
    columns = min(pipeline.stack.spec.classes or 8, 10)
    labels = [index % columns if pipeline.stack.spec.classes else None for index in range(40)]
    samples = pipeline(labels=labels, seeds=range(40), steps=12, batch=40)
    save_png(path, grid(samples.images, columns))


class _Stream(Dataset[tuple[Tensor, int]]):
    """The endless shuffled stream of training images, by position."""

    def __init__(self, data: ImageData, seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image, label = self.data[index_at(position, len(self.data), self.seed)]
        return torch.from_numpy(image), label


def _batches(
    data: ImageData, settings: TrainConfig, start: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images uint8 (B, C, H, W), labels int64 (B,)) from a position of the stream on."""
    steps = -(-(settings.images - start) // settings.batch)
    return iter(
        DataLoader(
            _Stream(data, settings.seed),
            batch_size=settings.batch,
            sampler=range(start, start + steps * settings.batch),
            num_workers=settings.workers,
            pin_memory=device.type == "cuda",
        )
    )


def step_seed(seed: int, images: int) -> int:
    """Seed of the random draws of the step that begins at ``images`` seen."""
    return int(
        np.random.SeedSequence([seed, images]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )
