"""CIFAR-10 and CIFAR-100 as their authors give them away: archives or folders of pickles."""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from legodiff.data.pickled import UINT8_ARRAYS
from legodiff.data.sources import Source
from legodiff.pickles import load

LIMIT = 2**28  # bytes of one file; the largest real one has 155 million


class Layout(NamedTuple):
    """Which files a folder has, and under which keys."""

    batches: tuple[str, ...]
    meta: str
    labels: str
    names: str


LAYOUTS = {
    "cifar-10-batches-py": Layout(
        tuple(f"data_batch_{i}" for i in range(1, 6)), "batches.meta", "labels", "label_names"
    ),
    "cifar-100-python": Layout(("train",), "meta", "fine_labels", "fine_label_names"),
}


@dataclass(frozen=True, eq=False)
class Arrays:
    """Fetches from an array in memory, uint8 (N, C, H, W) with C = 1 or 3."""

    images: np.ndarray

    def __call__(self, index: int) -> Image.Image:
        image = self.images[index]
        return Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1).copy())


def layout_of_folder(folder: Path) -> str | None:
    """Which CIFAR an unpacked folder is, if any."""
    for name, layout in LAYOUTS.items():
        if all((folder / file).is_file() for file in (layout.batches[0], layout.meta)):
            return name
    return None


def layout_of_archive(path: str) -> str | None:
    """Which CIFAR a tar file is, if any, by the folder of its first member."""
    try:
        with tarfile.open(path) as tar:
            first = tar.next()
    except (tarfile.TarError, EOFError, OSError, UnicodeError):
        return None
    top = first.name.removeprefix("./").split("/")[0] if first else ""
    return top if top in LAYOUTS else None


def open_cifar_folder(folder: Path) -> Source:
    """The training images. Raises ValueError if a file is missing or is not CIFAR's."""
    name = layout_of_folder(folder)
    assert name is not None

    def read(file: str) -> bytes:
        with open(folder / file, "rb") as opened:
            return opened.read(LIMIT + 1)

    return _source(str(folder), LAYOUTS[name], read)


def open_cifar_archive(path: str) -> Source:
    """The same from the archive, which is read once into memory."""
    name = layout_of_archive(path)
    assert name is not None
    wanted = {f"{name}/{file}": file for file in (*LAYOUTS[name].batches, LAYOUTS[name].meta)}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = wanted.get(member.name.removeprefix("./"))
                opened = tar.extractfile(member) if file and member.isreg() else None
                if file and opened:
                    found[file] = opened.read(LIMIT + 1)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a whole archive ({error})") from error
    return _source(path, LAYOUTS[name], found.__getitem__)


def _source(place: str, layout: Layout, read: Callable[[str], bytes]) -> Source:
    class_names = _plain(place, layout.meta, read).get(layout.names)
    if not isinstance(class_names, list) or not all(isinstance(n, str) for n in class_names):
        raise ValueError(f"{place}/{layout.meta} does not name the classes")
    images: list[np.ndarray] = []
    labels: list[int] = []
    names: list[str] = []
    for file in layout.batches:
        batch = _plain(place, file, read)
        pixels = getattr(batch.get("data"), "array", None)
        if pixels is None or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
            raise ValueError(f"{place}/{file} does not hold rows of 3 x 32 x 32 bytes")
        found = batch.get(layout.labels)
        if (
            not isinstance(found, list)
            or len(found) != len(pixels)
            or not all(type(n) is int and 0 <= n < len(class_names) for n in found)
        ):
            count = len(class_names)
            raise ValueError(f"{place}/{file} does not give each image one of {count} labels")
        images.append(pixels.reshape(-1, 3, 32, 32))
        labels += found
        names += [f"{file}/{row}" for row in range(len(found))]
    fetch = Arrays(np.concatenate(images))
    return Source("CIFAR", place, names, np.array(labels, np.int64), tuple(class_names), fetch)


def _plain(place: str, file: str, read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        content = load(BytesIO(read(file)), UINT8_ARRAYS, LIMIT)
    except (KeyError, OSError) as error:
        raise ValueError(f"{place} has no {file}; fetch the archive again") from error
    except ValueError as error:
        raise ValueError(f"{place}/{file}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{place}/{file} is not one of CIFAR's")
    return {k.decode("latin-1") if isinstance(k, bytes) else str(k): v for k, v in content.items()}
