"""The training loop.

Learning rate, average, noise and data order are functions of the seed and the images seen. So a run
that is stopped and resumed, on as many processes or on others, takes the steps of one that was not.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from legodiff.codec import Codec
from legodiff.config import RunConfig, TrainConfig
from legodiff.data import ImageData
from legodiff.model.compiled import telling_failure, uncompiled
from legodiff.pipeline import LegoPipeline
from legodiff.train.checkpoint import Checkpoints, list_checkpoints
from legodiff.train.distributed import World, plain, synchronized
from legodiff.train.draws import draw_bricks
from legodiff.train.health import Probe, bad_positions, draw_curve, draw_pictures
from legodiff.train.learner import (
    Learner,
    Losses,
    build_learner,
    build_network,
    replicated,
    unwrapped,
)
from legodiff.train.log import Log, Status, open_sinks
from legodiff.train.memory import fit_micro_batch
from legodiff.train.runs import begin, open_run, pipeline_of, weights_written
from legodiff.train.stop import stop_asked
from legodiff.train.stream import Batch, Stream, batches

Say = Callable[[str], None]


@telling_failure()
def train(
    config: RunConfig,
    data: ImageData,
    codec: Codec,
    run: Path,
    *,
    world: World | None = None,
    resume: bool = False,
    on_log: Callable[[Status], None] | None = None,
    say: Say = print,
) -> LegoPipeline:
    """Trains a stack on ``data`` and leaves a run folder; returns the pipeline of its average.

    The folder holds ``config.json``, ``model.safetensors`` (the average), ``raw.safetensors``,
    ``checkpoints/``, ``samples/``, ``log.jsonl`` and ``loss.png``. ``resume`` goes on from the
    newest checkpoint, if there is one. SIGTERM and Ctrl-C end the run after the step it is in, with
    a checkpoint. On several processes each calls this with its own ``world``; the first one speaks.

    Raises ValueError if the folder already holds a run, if a resumed run's configuration differs,
    if there is no room for a checkpoint, if too many steps in a row are not finite, or if torch
    cannot compile here.
    """
    world = world or World()
    settings = config.train
    tell, say = say, say if world.leads else _silent
    spec = config.model.spec(data.channels, len(data.class_names), settings.bricks)
    if (data.channels, data.size) != (spec.channels, spec.image_size):
        raise ValueError(f"the images are {data.size} and the model is for {spec.image_size}")
    network = build_network(spec, settings.seed)
    begin(network, data, run, settings, say)
    learner = build_learner(network, codec, settings, world)
    average = pipeline_of(learner.ema.network, config, data, codec)
    seen = open_run(run, average, learner, world, resume, say)

    example = Stream(data, settings.seed)[0][0]
    if 2 * settings.warmup_images > settings.images:
        say(
            f"the learning rate rises for the first {settings.warmup_images:,} images, of "
            f"{settings.images:,}; --set train.warmup_images={settings.images // 20} learns more"
        )
    micro_batch = fit_micro_batch(learner, example, settings, world, say)
    learner = replicated(learner, settings, world)
    trainer = Trainer(
        settings=settings,
        run=run,
        world=world,
        learner=learner,
        average=average,
        raw=pipeline_of(network, config, data, codec),
        micro_batch=micro_batch,
        probe=Probe(data, settings.seed, world.device),
        checkpoints=Checkpoints(run, world, learner.sharded, settings.keep),
        log=Log(
            run / "log.jsonl",
            settings.images,
            seen,
            on_log,
            bricks=len(spec.bricks),
            world=world,
            sinks=open_sinks(settings.log, run, average.to_dict()) if world.leads else (),
        ),
        stream=batches(
            data,
            settings.seed,
            start=seen,
            stop=settings.images,
            batch=settings.batch,
            micro_batch=micro_batch,
            workers=settings.workers,
            world=world,
        ),
        say=say,
        tell=tell,
        strict=config.data.strict,
    )
    trainer.loop(seen)
    return average


@dataclass
class Trainer:
    """A run in progress: what the loop works with."""

    settings: TrainConfig
    run: Path
    world: World
    learner: Learner
    average: LegoPipeline
    raw: LegoPipeline
    micro_batch: int
    probe: Probe
    checkpoints: Checkpoints
    log: Log
    stream: Generator[Batch]
    say: Say
    tell: Say
    """The same, also heard from processes that do not lead."""
    strict: bool
    """Whether an unreadable image ends the run."""
    unreadable: set[str] = field(default_factory=set)
    bad: int = 0
    """Steps in a row that were not finite."""

    def loop(self, seen: int) -> None:
        """Takes the steps from ``seen`` images on."""
        settings = self.settings
        every, pictures = settings.checkpoint_images, settings.picture_images
        pictures = every if pictures is None else pictures
        if self.world.share(weights_written(self.run)) < seen:  # cut off after the checkpoint
            self.checkpoints.write_weights(self.learner, seen, self.average.to_dict())
        kept = drawn = seen
        self.checkpoints.check_room(self.learner)  # rather now than after hours
        with closing(self.stream), closing(self.checkpoints), stop_asked() as asked:
            while True:
                # Keep what there is: every so often, at the end, and when asked to stop.
                finished, stopped = seen >= settings.images, self.world.any(asked())
                if seen > kept and (finished or stopped or seen // every > kept // every):
                    with self.log.paused(), uncompiled(settings.compile):
                        self.keep(seen, judge=not stopped)
                    kept = seen
                if pictures and seen > drawn and (finished or seen // pictures > drawn // pictures):
                    with self.log.paused(), uncompiled(settings.compile):
                        self.draw(seen)
                    drawn = seen
                if finished or stopped:
                    self.checkpoints.wait()
                    if not finished:
                        self.say(f"stopped after {seen:,} images; go on with --resume auto")
                    return
                self.checkpoints.poll()

                # One step.
                bricks = self.bricks(seen)
                passes = self.gradient(bricks)
                seen += settings.batch
                rate = learning_rate(settings, seen)
                if self.update(seen, rate, passes):
                    self.log.add(seen, [losses for _, losses in passes], bricks, rate)

    def bricks(self, seen: int) -> Sequence[int]:
        """The bricks that run in the step that begins at ``seen`` images."""
        count, dropout = len(self.learner.network.bricks), self.settings.brick_dropout
        return draw_bricks(seen, self.settings.seed, count, dropout) if dropout else range(count)

    def gradient(self, bricks: Sequence[int]) -> list[tuple[range, Losses]]:
        """The gradient of the mean loss of the bricks that learn, pass by pass.

        Returns the losses of each pass, with the positions of its images.
        """
        learner, learning = self.learner, self.settings.bricks
        rows = [row for row, brick in enumerate(bricks) if learning is None or brick in learning]
        passes = self.settings.batch // (self.world.size * self.micro_batch)
        learner.optimizer.zero_grad()
        taken = []
        for number in range(passes):
            with self.log.waiting():
                batch = next(self.stream)
            self.complain(batch)
            with synchronized(learner.objective, learner.network, last=number == passes - 1):
                losses = learner.objective(batch.images, batch.labels, batch.positions, bricks)
                learner.scaler.scale(losses.values[rows].mean() / passes).backward()
            taken.append((batch.positions, losses))
        return taken

    def update(self, seen: int, rate: float, passes: list[tuple[range, Losses]]) -> bool:
        """Moves weights and average along the gradient, unless it or a loss is not finite."""
        learner = self.learner
        learner.scaler.unscale_(learner.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(learner.trained, self.settings.clip)
        loss = self.world.mean(torch.stack([part.values.detach().mean() for _, part in passes]))
        finite = math.isfinite(plain(norm) + loss.sum())  # the same on every process
        for group in learner.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if finite:
            learner.scaler.step(learner.optimizer)
            learner.ema.update(learner.network, seen, self.settings.batch)
            self.bad = 0
        else:
            self.drop(seen, passes)
        learner.scaler.update()
        return finite

    def drop(self, seen: int, passes: list[tuple[range, Losses]]) -> None:
        """Notes a step that is not taken. Raises ValueError after too many in a row."""
        found = [place for where, loss in passes for place in bad_positions(loss.values, where)]
        positions = sorted(place for places in self.world.gather(found) for place in places)
        scaler = self.learner.scaler
        if not positions and scaler.is_enabled() and scaler.get_scale() >= 1:
            return  # too large for fp16 at this scale: the scaler tries a smaller one
        self.bad += 1
        first = seen - self.settings.batch
        if self.world.leads:
            self.log.note("dropped", {"from": first, "to": seen, "not_finite": positions})
        what = f"the loss of the images at {positions[:8]}" if positions else "the gradient"
        self.say(f"step from image {first:,} to {seen:,} dropped: {what} is not finite")
        if self.bad >= self.settings.most_bad_steps:
            self.checkpoints.wait()
            resumable = bool(list_checkpoints(self.run))
            again = "go on with --resume auto and" if resumable else "begin anew with"
            raise ValueError(
                f"{self.bad} steps in a row were not finite, up to image {seen:,}; {again} "
                "a smaller train.learning_rate, a smaller train.clip or train.precision=fp32"
            )

    def complain(self, batch: Batch) -> None:
        """Names the images that could not be read. Raises ValueError if that is to end the run."""
        for trouble in batch.unreadable:
            if self.strict:
                raise ValueError(f"{trouble}; leave out --strict-data to put another in its place")
            self.log.note("unreadable", trouble)
            if trouble not in self.unreadable:
                self.unreadable.add(trouble)
                self.tell(f"unreadable, the next image stands in for it: {trouble}")

    def keep(self, seen: int, judge: bool) -> None:
        """Begins a checkpoint; ``judge``: with the loss on images that never change."""
        learner, told = self.learner, {}
        if judge:
            told = {
                "ema_losses": self.probe.losses(learner.average, self.micro_batch),
                "raw_losses": self.probe.losses(unwrapped(learner), self.micro_batch),
            }
        self.log.write(seen, **told)
        state: dict[str, Any] = {"images": seen}
        if judge:
            state["score"] = told["ema_losses"][-1]
        if learner.scaler.is_enabled():
            state["scaler"] = learner.scaler.state_dict()
        self.checkpoints.save(learner, state, self.average.to_dict())

    def draw(self, seen: int) -> None:
        """Pictures from the average and from the weights as they are, and the curve so far."""
        if self.world.leads or self.learner.sharded:
            pipelines = {"average of the weights": self.average, "weights as they are": self.raw}
            path = self.run / "samples" / f"{seen:012d}.png"
            draw_pictures(pipelines, path, self.world.leads, self.micro_batch)
        if self.world.leads:
            names = [str(brick.size) for brick in self.learner.network.spec.bricks]
            draw_curve(self.run, names)


def learning_rate(settings: TrainConfig, images: int) -> float:
    """Linear warm-up over ``warmup_images``, times a linear fall to ``decay_to`` at the end."""
    warmup = min(1.0, images / settings.warmup_images) if settings.warmup_images else 1.0
    fall = 1 - (1 - settings.decay_to) * min(1.0, images / settings.images)
    return settings.learning_rate * warmup * fall


def _silent(_: str) -> None:
    """What a process says that does not speak for all."""
