"""The endless shuffled stream of training images, from any position on."""

import signal
import warnings
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from legodiff.data import ImageData, Unreadable, index_at
from legodiff.train.distributed import World

# How many reading processes there are is the user's choice.
warnings.filterwarnings("ignore", message="This DataLoader will create")
READERS = 4
AUGMENT = 0xA  # tells the draws of a flip or a latent from those of the order


class Batch(NamedTuple):
    """Images of consecutive positions of the run."""

    images: Tensor
    """(B, C, H, W) as the data has them."""
    labels: Tensor
    """int64 (B,)"""
    positions: range
    unreadable: list[str]
    """Name and reason of each image that another one stands in for."""


class Stream(Dataset[tuple[Tensor, int, str]]):
    """The k-th image of a run: a pure function of the seed and k."""

    def __init__(self, data: ImageData, seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, position: int) -> tuple[Tensor, int, str]:
        """The image at a position, its label, and what is wrong with it if the next stands in."""
        index = index_at(position, len(self.data), self.seed)
        rng = np.random.default_rng([self.seed, position, AUGMENT])
        trouble = ""
        for ahead in range(len(self.data)):
            try:
                image, label = self.data.read((index + ahead) % len(self.data), rng)
                return torch.from_numpy(image), label, trouble
            except Unreadable as error:
                trouble = trouble or str(error)
        raise ValueError(f"not one image can be read; the first: {trouble}")


def batches(
    data: ImageData,
    seed: int,
    *,
    start: int,
    stop: int,
    batch: int,
    micro_batch: int,
    workers: int | None,
    world: World,
) -> Generator[Batch]:
    """The micro-batches of this process, for the steps from image ``start`` to beyond ``stop``.

    A step of ``batch`` images is cut into equal parts, one for each process, by position.
    ``workers`` are processes that read ahead; None: some where a GPU would wait.
    """
    if workers is None:
        workers = READERS if world.device.type == "cuda" else 0
    ranges = _MicroBatches(start, stop, batch, micro_batch, world)
    loader = DataLoader(
        Stream(data, seed),
        batch_sampler=ranges,  # type: ignore[arg-type]  # ranges serve as lists
        num_workers=workers,
        pin_memory=world.device.type == "cuda",
        worker_init_fn=_calm if workers else None,
    )
    for positions, (images, labels, troubles) in zip(ranges, loader, strict=True):
        yield Batch(
            images.to(world.device, non_blocking=True),
            labels.to(world.device, non_blocking=True),
            positions,
            [trouble for trouble in troubles if trouble],
        )


class _MicroBatches(Sequence[range]):
    """The positions of each micro-batch of one process; a list of them would be long."""

    def __init__(self, start: int, stop: int, batch: int, micro_batch: int, world: World) -> None:
        share = batch // world.size
        self.first, self.batch, self.size = start + world.rank * share, batch, micro_batch
        self.passes = share // micro_batch
        self.length = self.passes * -(-(stop - start) // batch)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: Any) -> Any:
        if number >= self.length:
            raise IndexError(number)
        step, part = divmod(number, self.passes)
        first = self.first + step * self.batch + part * self.size
        return range(first, first + self.size)


def _calm(_: int) -> None:
    """A reading process leaves it to the training process what to do on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
