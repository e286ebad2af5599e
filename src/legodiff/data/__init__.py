"""Images for training, behind one small interface: position -> (image, label)."""

from functools import lru_cache
from typing import Protocol

import numpy as np


class Unreadable(ValueError):  # noqa: N818 - says what is wrong, as the messages do
    """One item that cannot be read. ``name`` says which file or row, ``reason`` says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class ImageData(Protocol):
    """A set of images of one size in random access."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class; empty for unlabelled images."""

    @property
    def channels(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every item."""

    def __len__(self) -> int: ...

    def read(self, index: int, rng: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
        """The image, uint8 (C, H, W), and its class index (0 where there are no classes).

        ``rng`` draws what varies from epoch to epoch (a flip, a latent); None gives the plain
        item. Raises Unreadable, which names the file.
        """


def goes_by_name(path: str) -> bool:
    """Whether it is a small set that comes with scikit-learn."""
    return path == "photographs" or path.partition(":")[0] == "digits"


def open_data(
    path: str,
    size: int | tuple[int, int],
    channels: int | None = None,
    flip: bool = False,
    alpha: str = "white",
) -> ImageData:
    """Any collection of images, or of latents, as it lies on the disk.

    ``path`` is "digits" ("digits:held-out", "digits:all"), "photographs", a folder, an archive, a
    pattern of shards or "hf:NAME[/split]"; ``legodiff.data.detect`` lists the kinds. Pictures are
    cropped and scaled to ``size``, one number or (height, width). ``channels`` is 1, 3 or None:
    what the pictures are. ``flip`` shows half of them mirrored. ``alpha`` is the colour behind
    transparent pixels, as PIL names colours.
    Latents keep their own size, and take none of the others: they are as the images were encoded.
    Raises ValueError with what was looked for.
    """
    from legodiff.data.detect import holds_latents, open_source  # both import from this file
    from legodiff.data.images import Pictures, height_and_width

    if goes_by_name(path):
        from legodiff.data.digits import Digits
        from legodiff.data.photographs import Photographs

        kind: type[Digits | Photographs] = Photographs if path == "photographs" else Digits
        height, width = height_and_width(size)
        if height != width or channels not in (None, kind.channels) or flip:
            colour = "grey" if kind.channels == 1 else "in colour"
            raise ValueError(f"{path} are square, {colour} and not mirrored; change size or data.*")
        if kind is Photographs:
            return Photographs(height)
        return Digits(height, path.partition(":")[2] or "train")
    if holds_latents(path):
        from legodiff.data.latents import open_latents

        asked = {"channels": channels is not None, "flip": flip, "alpha": alpha != "white"}
        if given := [name for name, is_given in asked.items() if is_given]:
            raise ValueError(
                f"{path} holds latents, which take no {' and no '.join(given)}; leave that out, or "
                "change the images and encode them again with `legodiff data encode`"
            )
        return open_latents(path)
    return Pictures(open_source(path), size, channels, flip, alpha)


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def index_at(position: int, count: int, seed: int) -> int:
    """Which of ``count`` images stands at a position of the endless shuffled stream.

    A pure function: each epoch is a fresh permutation drawn from (seed, epoch).
    """
    return int(_epoch_order(count, seed, position // count)[position % count])
