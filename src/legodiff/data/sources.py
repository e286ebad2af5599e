"""What every kind of image collection has in common: names, labels, and item i undecoded.

A *source* knows nothing of sizes or channels; ``legodiff.data.images.Pictures`` adds those.
"""

import json
import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"),
}
SYSTEMS = ("__MACOSX", "lost+found")  # folders that a Mac and a disk's own repair leave
LIMIT = 512 * 2**20  # bytes of one item, packed or unpacked
MOST_CLASSES = 100_000
CELEBA_PARTS = "list_eval_partition"  # .txt, or .csv as on Kaggle: "000001.jpg 0", 0 for training

Labels = tuple[np.ndarray, tuple[str, ...]]
"""Class index of each item, int64 (N,), and the names of the classes (none: unlabelled)."""


@dataclass(frozen=True, eq=False)
class Source:
    """A collection of images in random access, before decoding. It can be pickled."""

    kind: str
    """In words, such as "class folders"."""
    place: str
    """Where it was opened."""
    names: Sequence[str]
    """One per item; empty where items are rows without names."""
    labels: np.ndarray
    """int64 (N,)"""
    class_names: tuple[str, ...]
    fetch: Callable[[int], bytes | Image.Image]
    """The image file of item i, or the image. Raises OSError or ValueError with the reason."""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{self.place}/{self.names[index]}" if self.names else f"{self.place} row {index}"


def is_visible(name: str) -> bool:
    """Whether a relative path is neither hidden, nor a system's own, nor outside."""
    parts = name.split("/")
    return not any(not p or p.startswith(".") or p in SYSTEMS for p in parts)


def is_image(name: str) -> bool:
    """Whether a file is an image by its name. What it really is shows when it is decoded."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def training_part(names: list[str], *folders: Path) -> list[str]:
    """Without CelebA's validation and test images, if its list of them lies in one of ``folders``.

    Raises ValueError if nothing is left.
    """
    lists = [
        folder / f"{CELEBA_PARTS}{suffix}" for folder in folders for suffix in (".txt", ".csv")
    ]
    found = next((file for file in lists if file.is_file()), None)
    if found is None:
        return names
    rows = [line.replace(",", " ").split() for line in found.read_text().splitlines()]
    others = {Path(row[0]).stem for row in rows if len(row) == 2 and row[1] in ("1", "2")}
    kept = [name for name in names if Path(name).stem not in others]
    if not kept:
        raise ValueError(f"{found} says that none of the images is for training")
    return kept


def labels_of_files(names: list[str], place: str, read: Callable[[str], bytes | None]) -> Labels:
    """Labels of image files from ``dataset.json`` above them all, else from their folders.

    ``read`` gives the content of a file beside them, or None. Raises ValueError.
    """
    shared = _shared_folders(names)
    for depth in range(len(shared) + 1):
        base = "".join(f"{folder}/" for folder in shared[:depth])
        text = read(f"{base}dataset.json")
        listed = None if text is None else _listed_labels(text, place)
        if listed is not None:
            return labels_from_list(listed, [n.removeprefix(base) for n in names], place)
    return labels_from_folders(names, place)


def labels_from_folders(names: list[str], place: str) -> Labels:
    """Each folder is a class: the first one in which the paths differ.

    Folders that hold everything are only wrapping. No folders left: unlabelled. Raises ValueError
    if images lie both beside and in the class folders.
    """
    depth = len(_shared_folders(names))
    tops = [name.split("/")[depth] if name.count("/") > depth else "" for name in names]
    classes = sorted(set(tops))
    if classes == [""]:
        return np.zeros(len(names), np.int64), ()
    if "" in classes:
        stray = names[tops.index("")]
        raise ValueError(
            f"{place} holds images both beside its folders ({stray}) and in them ({classes[1]}/); "
            "put all into class folders, or all into one folder for no classes"
        )
    return np.searchsorted(classes, tops).astype(np.int64), tuple(classes)


def labels_from_list(listed: dict[str, int], names: list[str], place: str) -> Labels:
    """Labels from EDM's ``dataset.json``; an empty list means no labels. Raises ValueError."""
    if not listed:
        return np.zeros(len(names), np.int64), ()
    missing = next((name for name in names if name not in listed), None)
    if missing is not None:
        raise ValueError(f"{place}: dataset.json has no label for {missing}; add it, or null all")
    return labels_from_values([listed[name] for name in names], place)


def labels_from_values(values: Sequence[str | int | None], place: str) -> Labels:
    """Labels from one value per item: all None, all class indices, or all names.

    Raises ValueError for a mixture and for indices that cannot be classes.
    """
    known = set(values)
    if known <= {None}:
        return np.zeros(len(values), np.int64), ()
    if None in known:
        raise ValueError(f"{place}: item {values.index(None)} has no label, but others have one")
    if not all(isinstance(v, int) or (isinstance(v, str) and v.isdecimal()) for v in known):
        names = sorted(str(value) for value in known)
        return np.searchsorted(names, [str(v) for v in values]).astype(np.int64), tuple(names)
    numbers = [int(value) for value in values if value is not None]
    if min(numbers) < 0 or max(numbers) >= MOST_CLASSES:
        wrong = min(numbers) if min(numbers) < 0 else max(numbers)
        raise ValueError(f"{place} has label {wrong}; class indices are 0 to {MOST_CLASSES - 1:,}")
    return np.array(numbers, np.int64), tuple(str(i) for i in range(max(numbers) + 1))


def _shared_folders(names: list[str]) -> list[str]:
    first, last = min(names), max(names)  # what these share, all in between share as well
    shared = posixpath.commonpath([posixpath.dirname(first), posixpath.dirname(last)])
    return shared.split("/") if shared else []


def _listed_labels(text: bytes, place: str) -> dict[str, int] | None:
    """Name -> class; empty without labels; None if the file is about something else."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or "labels" not in content:
            return None
        pairs = [(str(n).replace("\\", "/"), label) for n, label in content["labels"] or []]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f'{place}: dataset.json is not {{"labels": [[name, 3], ...]}}') from error
    wrong = next((label for _, label in pairs if type(label) is not int), None)
    if wrong is not None:
        raise ValueError(f"{place}: dataset.json has label {wrong!r}; labels are class indices")
    return dict(pairs)


@dataclass(frozen=True, eq=False)
class Files:
    """Fetches from a folder."""

    folder: Path
    names: Sequence[str]

    def __call__(self, index: int) -> bytes:
        with open(self.folder / self.names[index], "rb") as file:
            data = file.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise ValueError(f"larger than {LIMIT:,} bytes")
        return data


def list_files(folder: Path) -> list[str]:
    """All visible files below a folder, sorted, with "/" between parts; links are followed once.

    Raises ValueError for a folder that cannot be read, whose images would be missing unnoticed.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"{error.filename} cannot be read ({error.strerror}); give yourself the right to read "
            "it, or move it elsewhere"
        ) from error

    found, seen = [], set()
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(is_visible, folders))
        base = os.path.relpath(here, folder).replace(os.sep, "/") + "/"
        base = "" if base == "./" else base
        found += [base + name for name in files if is_visible(name)]
    return sorted(found)


def cache_folder() -> Path:
    """Where indices are kept: ``LEGODIFF_CACHE``, by default ~/.cache/legodiff."""
    chosen = os.environ.get("LEGODIFF_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "legodiff"
