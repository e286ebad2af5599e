"""Which kind of collection lies at a path; nothing needs to be renamed or repacked.

=====================================  ============================================================
a folder of images                     unlabelled; one folder in it that holds everything is
                                       only wrapping
class folders                          each folder is a class, images anywhere below
CelebA's folder or zip                 of its training part, if list_eval_partition.txt is there
folder or zip with ``dataset.json``    EDM's and StyleGAN's: labels by file name
zip                                    like a folder
.tar, folder or pattern of .tar        WebDataset's shards (``shard-{000..123}.tar``)
``cifar-10-python.tar.gz`` and its     CIFAR-10, CIFAR-100
folder
.parquet, folder or pattern of them,   by the package ``datasets``, extra ``data``
``save_to_disk``'s folder, hf:NAME
"digits", "photographs"                scikit-learn's handwritten digits; crops of its photographs
=====================================  ============================================================
"""

import glob
import re
import zipfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from legodiff.data.archives import holds_arrays, open_zip
from legodiff.data.cifar import (
    LAYOUTS,
    Arrays,
    layout_of_archive,
    layout_of_folder,
    open_cifar_archive,
    open_cifar_folder,
)
from legodiff.data.digits import Digits
from legodiff.data.manifest import is_encoded
from legodiff.data.parquet import SAVED, open_hub, open_parquet, open_saved
from legodiff.data.photographs import Photographs
from legodiff.data.sources import (
    Files,
    Source,
    is_image,
    labels_of_files,
    list_files,
    training_part,
)
from legodiff.data.tars import is_packed, open_shards

KINDS = (
    "images, class folders, a zip, .tar shards, CIFAR's archive, .parquet files, hf:NAME, digits"
)

PROBE = 200  # files of a folder that tell whether it holds images or arrays

SHARDS: dict[str, tuple[str, Callable[[Sequence[str], str], Source]]] = {
    ".tar": ("tar shards", open_shards),
    ".parquet": ("parquet files", open_parquet),
}
"""What may come as several files: suffix -> its name and who opens it."""


def holds_latents(path: str) -> bool:
    """Whether a path is what ``legodiff data encode`` writes, or a zip of .npy files."""
    place = Path(path)
    if place.is_dir():
        few = [file.name for file in islice(place.rglob("*"), PROBE)]
        arrays = any(name.endswith(".npy") for name in few) and not any(map(is_image, few))
        return arrays or is_encoded(place)
    return place.is_file() and zipfile.is_zipfile(path) and holds_arrays(path)


def open_source(path: str) -> Source:
    """The collection at ``path``. Raises ValueError with what was looked for."""
    place = Path(path)
    if path.partition(":")[0] == "digits":
        digits = Digits(8, path.partition(":")[2] or "train")
        fetch = Arrays(digits.images)
        return Source("digits", path, (), digits.labels, digits.class_names, fetch)
    if path == "photographs":
        found = Photographs(8)
        return Source("crops of photographs", path, (), found.labels, found.class_names, found.crop)
    if path.startswith("hf:"):
        return open_hub(path)
    if place.is_dir():
        return _open_folder(place)
    if place.is_file():
        return _open_file(path)
    if any(sign in path for sign in "*?[{"):
        return _open_files(expand(path), path)
    raise ValueError(f"there is no {path}; give one of: {KINDS}")


def expand(pattern: str) -> list[str]:
    """Files of a shell pattern: {000..123}, {a,b}, *, ? and [0-9]. Raises ValueError for gaps."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        missing = next((file for file in found if not Path(file).is_file()), None)
        if not found or missing:
            raise ValueError(f"there is no file {missing or pattern}; check the pattern")
        return found
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    choices = braces[1].split(",")
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if not first <= last < first + 1_000_000:
            raise ValueError(f"{braces[0]} in {pattern} is not a range such as {{000..123}}")
        choices = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [file for choice in choices for file in expand(before + choice + after)]


def _open_folder(folder: Path) -> Source:
    if any((folder / name).is_file() for name in SAVED):
        return open_saved(folder)
    for inner in (folder, *(folder / name for name in LAYOUTS)):
        if layout_of_folder(inner):
            return open_cifar_folder(inner)
    files = list_files(folder)
    images = [name for name in files if is_image(name)]
    if images:
        known = set(files)

        def read(name: str) -> bytes | None:
            return (folder / name).read_bytes() if name in known else None

        kept = training_part(images, folder, folder.parent)
        kind = "folder" if kept is images else "folder, CelebA's training part"
        labels, class_names = labels_of_files(kept, str(folder), read)
        fetch = Files(folder, kept)
        return Source(kind, str(folder), kept, labels, class_names, fetch)
    for suffix in SHARDS:
        shards = [str(folder / name) for name in files if name.endswith(suffix)]
        if shards:
            return _open_files(shards, str(folder))
    raise ValueError(
        f"{folder} holds no images (such as .png, .jpg), .tar shards or .parquet files "
        f"among {len(files)} files"
    )


def _open_file(path: str) -> Source:
    if zipfile.is_zipfile(path) and not path.endswith(".parquet"):
        return open_zip(path)
    if (path.endswith((".tar", ".tgz")) or is_packed(path)) and layout_of_archive(path):
        return open_cifar_archive(path)
    if is_packed(path):
        return open_shards([path], path)
    return _open_files([path], path)


def _open_files(paths: Sequence[str], place: str) -> Source:
    for suffix, (_, opener) in SHARDS.items():
        if all(path.endswith(suffix) for path in paths):
            return opener(paths, place)
    raise ValueError(f"{place} is none of: {KINDS}")
