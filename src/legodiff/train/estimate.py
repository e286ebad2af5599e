"""What a run would cost, from counting and from a few timed steps."""

import time
from dataclasses import dataclass

import torch

from legodiff.codec import Codec
from legodiff.config import RunConfig, TrainConfig
from legodiff.data import ImageData
from legodiff.diffusion.loss import brick_losses
from legodiff.model.cost import counted, subset_flops
from legodiff.model.patches import sample_patches
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack
from legodiff.train.distributed import World
from legodiff.train.learner import build_learner, build_network, unwrapped
from legodiff.train.log import peak_memory
from legodiff.train.memory import fit_micro_batch
from legodiff.train.stream import Stream

STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """What a run would take."""

    spec: StackSpec
    parameters: int
    learning: int
    """Parameters that are trained."""
    forward_flops: int
    """FLOPs of one evaluation of one image, all patches."""
    training_flops: int
    """FLOPs of training on one image, forward and backward, on the share of patches asked for."""
    plan: str
    """How the batch is made up."""
    memory: int
    """Bytes a process holds at most (the GPU's, or its own)."""
    images_per_second: float
    """Of all processes, without reading the images."""
    hours: float


def estimate(config: RunConfig, data: ImageData, codec: Codec, world: World) -> Estimate:
    """Counts what a run would do, and times a few of its steps on images of zeros."""
    settings = config.train
    spec = config.model.spec(data.channels, len(data.class_names), settings.bricks)
    learner = build_learner(build_network(spec, settings.seed), codec, settings, world)
    said: list[str] = []
    example = Stream(data, settings.seed)[0][0]
    micro_batch = fit_micro_batch(learner, example, settings, world, said.append)
    passes = settings.batch // (world.size * micro_batch)
    images = example.to(world.device).expand(micro_batch, *example.shape)
    labels = torch.zeros(micro_batch, dtype=torch.int64, device=world.device)
    began = 0.0
    for step in range(STEPS + 1):
        if step == 1:  # the first one warms up
            _wait(world)
            began = time.perf_counter()
        losses = unwrapped(learner)(images, labels, range(micro_batch), range(len(spec.bricks)))
        losses.values.mean().backward()
        if step % passes == 0:
            learner.optimizer.step()
            learner.optimizer.zero_grad()
    _wait(world)
    speed = STEPS * micro_batch * world.size / (time.perf_counter() - began)
    network = learner.network
    return Estimate(
        spec=spec,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        learning=sum(parameter.numel() for parameter in learner.trained),
        forward_flops=subset_flops(spec, tuple(range(len(spec.bricks))), spec.image_size),
        training_flops=training_flops(spec, settings),
        plan="; ".join(said),
        memory=peak_memory(world.device),
        images_per_second=speed,
        hours=settings.images / speed / 3600,
    )


def training_flops(spec: StackSpec, settings: TrainConfig) -> int:
    """FLOPs of training on one image, counted on the meta device: 2 x multiply-accumulates."""
    size = spec.image_size

    def learn() -> None:
        clean, sigma = torch.empty(1, spec.channels, *size), torch.empty(1)
        scores = [torch.empty(1, count) for count in spec.patch_counts(size)]
        samples = sample_patches(spec, settings.ratio(spec), scores, size)
        losses = brick_losses(LegoStack(spec), clean, clean, sigma, samples=samples)
        losses.mean().backward()  # type: ignore[no-untyped-call]

    return counted(learn)


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
