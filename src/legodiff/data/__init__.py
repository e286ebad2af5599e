"""Images for training, behind one small interface: position -> (image, label)."""

from functools import lru_cache
from typing import Protocol

import numpy as np


class ImageData(Protocol):
    """A set of images in random access."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class; empty for unlabelled images."""

    @property
    def channels(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """The image, uint8 (C, H, W), and its class index (0 where there are no classes)."""


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def index_at(position: int, count: int, seed: int) -> int:
    """Which of ``count`` images stands at a position of the endless shuffled stream.

    A pure function: each epoch is a fresh permutation drawn from (seed, epoch).
    """
    return int(_epoch_order(count, seed, position // count)[position % count])
