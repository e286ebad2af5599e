"""How many images a process can take at once."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor

from legodiff.config import TrainConfig
from legodiff.train.distributed import World, synchronized
from legodiff.train.learner import Learner, unwrapped


def fit_micro_batch(
    learner: Learner,
    example: Tensor,
    settings: TrainConfig,
    world: World,
    say: Callable[[str], None],
) -> int:
    """Images each process takes at once, halved until a pass fits into memory.

    ``example`` is one image (C, H, W) of the data. The batch stays what it is: it is made of
    several passes. Raises ValueError if the batch cannot be shared evenly, or if one image is too
    many.
    """
    share, rest = divmod(settings.batch, world.size)
    if rest or not share:
        raise ValueError(
            f"train.batch is {settings.batch}: {world.size} processes must share it evenly"
        )
    size = _divisor(share, settings.micro_batch or share)
    while world.any(not _fits(learner, example, size, settings, world)):
        if size == 1:
            raise ValueError(
                "out of memory with one image at a time; try train.recompute=true, "
                "train.precision=bf16 or a smaller model"
            )
        smaller = _divisor(share, size // 2)
        say(f"out of memory with {size} images at once: going on with {smaller}")
        size = smaller
    parts = (_counted(world.size, "process", "es"), _counted(size, "image"))
    passes = _counted(share // size, "pass", "es")
    say(f"batch {settings.batch} = {' x '.join((*parts, passes))}")
    return size


def _counted(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}{ending if number > 1 else ''}"


def _divisor(number: int, most: int) -> int:
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)


def _fits(
    learner: Learner, example: Tensor, size: int, settings: TrainConfig, world: World
) -> bool:
    """Whether a forward and a backward pass over so many images fit into memory."""
    bricks = range(len(learner.network.bricks))
    objective = unwrapped(learner)
    try:
        images = example.to(world.device).expand(size, *example.shape)
        labels = torch.zeros(size, dtype=torch.int64, device=world.device)
        with synchronized(objective, learner.network, last=True):
            values = objective(images, labels, range(size), bricks).values
            learner.scaler.scale(values.mean()).backward()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        learner.optimizer.zero_grad()
        if world.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    return True


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on any device."""
    return "out of memory" in str(error) or "allocate memory" in str(error)
