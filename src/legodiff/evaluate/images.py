"""Images to be measured, wherever they are: drawn by a model, in a folder, an archive, an NPZ."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from legodiff.arrays import Rows
from legodiff.data import ImageData, open_data
from legodiff.data.detect import holds_latents, open_source
from legodiff.data.images import Pictures, open_image, to_mode
from legodiff.data.sources import Files, Source, is_image
from legodiff.pipeline import LegoPipeline
from legodiff.sampling import Method

ROUNDING = "to the nearest of 256 levels"
SAMPLE = re.compile(r"\d{6,}\.png")  # names of ``legodiff sample``
OF_ONE = ("seed", "label", "class")  # of a PNG's metadata, what is not the same for all


@dataclass(frozen=True)
class Images:
    """Images of one size, in any order."""

    count: int
    channels: int
    size: tuple[int, int]
    """(height, width)"""
    read: Callable[[Sequence[int]], Tensor]
    """Positions -> uint8 (B, C, H, W)."""
    about: dict[str, Any]
    """Where they come from and how they were made, as JSON."""

    def first(self, count: int | None) -> "Images":
        """The first so many. Raises ValueError if there are fewer."""
        if count is None or count == self.count:
            return self
        if count > self.count:
            raise ValueError(f"{count:,} images are asked for, and there are {self.count:,}")
        return replace(self, count=count)


def open_images(
    path: str, size: tuple[int, int] | None = None, channels: int | None = None
) -> Images:
    """Images as they lie on the disk: a folder, an archive, whatever can be trained on, an NPZ.

    ``size`` crops and scales them as for training; without it they must all have the size of the
    first. Those of an NPZ are taken as they are. ``channels``: 1, 3, or what they are. Raises
    ValueError, in one line, for anything else.
    """
    if path.endswith(".npz"):
        return _from_npz(Path(path))
    if holds_latents(path):
        raise ValueError(f"{path} holds latents; images are measured as pixels")
    if path == "photographs" or path.partition(":")[0] == "digits":
        return from_data(open_data(path, size or (8, 8), channels), path)
    source = _drawn_by_us(Path(path)) or open_source(path)
    first = open_image(source, 0)
    data = Pictures(source, size or (first.height, first.width), channels)
    images = from_data(data, path)
    images.about["made"] = {k: v for k, v in _texts(first).items() if k not in OF_ONE}
    return images if size is not None else replace(images, read=_of_one_size(data, images.read))


def open_canvases(path: str) -> list[Tensor]:
    """Canvases of any size, uint8 (3, H, W): of a picture, or of a folder or archive of them.

    Raises ValueError for anything else, and for none.
    """
    file = Path(path)
    lone = file.is_file() and is_image(file.name)
    source = _files(file.parent, [file.name]) if lone else open_source(path)
    return [
        torch.from_numpy(pixels(to_mode(open_image(source, index), 3, "white")).copy())
        for index in range(len(source))
    ]


def from_data(data: ImageData, path: str) -> Images:
    """What can be trained on, by the transform of training; never mirrored."""

    def read(positions: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([data.read(position)[0] for position in positions]))

    height, width = data.size
    about = {
        "kind": "data",
        "path": Path(path).name if Path(path).exists() else path,
        "images": len(data),
        "size": [height, width],
        "channels": data.channels,
        "transform": getattr(data, "transform", "none"),
    }
    return Images(len(data), data.channels, data.size, read, about)


def drawn_images(
    pipe: LegoPipeline,
    method: Method,
    count: int,
    labels: Sequence[int | None],
    batch: int,
    first_seed: int = 0,
    weights: str = "ema",
) -> Images:
    """Images that a model draws when they are read: seeds from ``first_seed``, labels in turn."""

    def read(positions: Sequence[int]) -> Tensor:
        chosen = [labels[position % len(labels)] for position in positions]
        seeds = [first_seed + position for position in positions]
        samples = pipe.render(method, chosen, seeds, batch=batch)
        return torch.from_numpy(np.stack([pixels(image) for image in samples.images]))

    height, width = (side * pipe.codec.factor for side in pipe.stack.spec.image_size)
    nfe, flops = pipe.cost(method, pipe.stack.spec.image_size)
    every = list(labels) == list(range(pipe.stack.spec.classes))
    about = {
        "kind": "model",
        "model": pipe.fingerprint,
        "weights": weights,
        **method.to_dict(),
        "nfe": nfe,
        "flops": flops,
        "labels": f"all {len(labels)} classes in turn" if every else list(labels),
        "seeds": f"{first_seed}-{first_seed + count - 1}",
        "rounding": ROUNDING,
    }
    pipe.codec.prepare()
    channels = 3 if pipe.codec.factor > 1 else pipe.stack.spec.channels
    return Images(count, channels, (height, width), read, about)


def _from_npz(path: Path) -> Images:
    """``arr_0`` (N, H, W, C), as ADM's evaluation reads it."""
    rows = Rows(path, "arr_0")
    if len(rows.shape) != 4 or rows.dtype != np.uint8 or rows.shape[3] not in (1, 3):
        raise ValueError(f"{path}: arr_0 is not an array of uint8 images (N, H, W, 3)")
    count, height, width, channels = rows.shape

    def read(positions: Sequence[int]) -> Tensor:
        found = np.stack([rows[position] for position in positions])
        return torch.from_numpy(np.moveaxis(found, -1, 1).copy())

    about = {"kind": "NPZ", "path": path.name, "images": count, "size": [height, width]}
    return Images(count, channels, (height, width), read, about)


def _drawn_by_us(folder: Path) -> Source | None:
    """What ``legodiff sample`` left in a folder, without the pictures of many that it adds."""
    if not folder.is_dir():
        return None
    names = sorted(path.name for path in folder.iterdir() if SAMPLE.fullmatch(path.name))
    return _files(folder, names) if names else None


def _files(folder: Path, names: Sequence[str]) -> Source:
    labels = np.zeros(len(names), np.int64)
    return Source("files", str(folder), names, labels, (), Files(folder, names))


def _of_one_size(
    data: Pictures, read: Callable[[Sequence[int]], Tensor]
) -> Callable[[Sequence[int]], Tensor]:
    def checked(positions: Sequence[int]) -> Tensor:
        for position in positions:
            image = open_image(data.source, position)
            if (image.height, image.width) != data.size:
                raise ValueError(
                    f"{data.source.name(position)} is {image.height}x{image.width} and the first "
                    f"is {data.size[0]}x{data.size[1]}; give --size HEIGHTxWIDTH to fit them all"
                )
        return read(positions)

    return checked


def _texts(image: Image.Image) -> dict[str, str]:
    return {str(key): value for key, value in image.info.items() if isinstance(value, str)}


def pixels(image: Image.Image) -> np.ndarray:
    """A picture as uint8 (C, H, W)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
