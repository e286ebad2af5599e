"""Tar shards as WebDataset writes them: indexed once, then in random access.

An image and a label of the same name form a sample; the label is ``.cls`` (a class index or name)
or "label" in ``.json``. The same is the name up to the last dot, or else up to the first, which is
WebDataset's key: ``0001.cls`` is for ``0001.image.png``.
"""

import hashlib
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from legodiff.data.archives import Stamp, read_range
from legodiff.data.sources import (
    Source,
    cache_folder,
    is_image,
    is_visible,
    labels_from_folders,
    labels_from_values,
)
from legodiff.store import write_atomically

PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
LABEL_LIMIT = 2**20  # bytes of a .cls or .json
VERSION = 2  # of the index files


@dataclass(frozen=True, eq=False)
class Index:
    """The samples of one shard, in its order."""

    names: list[str]
    labels: list[str]
    """Class indices or names, "" where there is none."""
    extents: np.ndarray
    """int64 (N, 2): offset and size of each image file"""


@dataclass(frozen=True, eq=False)
class TarMembers:
    """Fetches from several tar files."""

    paths: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    table: np.ndarray
    """int64 (N, 3): shard, offset, size"""

    def __call__(self, index: int) -> bytes:
        shard, offset, size = self.table[index].tolist()
        return read_range(self.paths[shard], self.stamps[shard], offset, size)


def is_packed(path: str) -> bool:
    """Whether a file is compressed as a whole, by its first bytes."""
    with open(path, "rb") as file:
        return file.read(6).startswith(PACKED)


def open_shards(paths: Sequence[str], place: str) -> Source:
    """All samples of one or several uncompressed tar files, shard after shard.

    A single tar without labels may hold class folders. Raises ValueError for compressed or
    damaged files, mixed labels, and if there are no images.
    """
    stamps = tuple(map(Stamp.of, paths))
    indices = [index_of(path, stamp) for path, stamp in zip(paths, stamps, strict=True)]
    alone = len(paths) == 1
    names = [
        name if alone else f"{Path(path).name}/{name}"
        for path, index in zip(paths, indices, strict=True)
        for name in index.names
    ]
    if not names:
        raise ValueError(f"{place} holds no images (such as .png, .jpg) in {len(paths)} tar files")
    values = [label or None for index in indices for label in index.labels]
    if alone and not any(values):
        labels, class_names = labels_from_folders(names, place)
    else:
        labels, class_names = labels_from_values(values, place)
    shards = np.repeat(np.arange(len(paths)), [len(index.names) for index in indices])
    table = np.column_stack([shards, np.concatenate([index.extents for index in indices])])
    fetch = TarMembers(tuple(paths), stamps, table)
    return Source("tar shards", place, names, labels, class_names, fetch)


def index_of(path: str, stamp: Stamp) -> Index:
    """The index of a shard, from the cache if the shard has not changed since."""
    key = hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()[:32]
    cache = cache_folder() / "tar" / f"{key}.npz"
    expected = np.array([VERSION, *stamp], np.int64)
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if np.array_equal(stored["stamp"], expected):
                names, labels = (_split(stored[key]) for key in ("names", "labels"))
                return Index(names, labels, stored["extents"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # no cache yet, or a damaged one
    index = scan(path)
    out = io.BytesIO()
    np.savez(
        out,
        stamp=expected,
        names=_join(index.names),
        labels=_join(index.labels),
        extents=index.extents,
    )
    with suppress(OSError, ValueError):  # a folder that cannot be written only costs time
        write_atomically(cache, out.getvalue())
    return index


def _join(texts: list[str]) -> np.ndarray:
    joined = "".join(f"{text}\0" for text in texts)
    return np.frombuffer(joined.encode("utf-8", "surrogateescape"), np.uint8)


def _split(joined: np.ndarray) -> list[str]:
    return joined.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]


def scan(path: str) -> Index:
    """Reads all headers of a tar.

    Raises ValueError if it is compressed or damaged, or if it has labels and none is of an image.
    """
    if is_packed(path):
        raise ValueError(
            f"{path} is compressed, so images cannot be read in any order; unpack it into a "
            "folder, or into a plain .tar (gunzip, unxz, unzstd)"
        )
    extents: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                vars(tar)["members"] = []  # or it keeps them all
                name = member.name.removeprefix("./")
                if not member.isreg() or member.issparse() or not is_visible(name):
                    continue
                stem, _, kind = name.rpartition(".")
                if is_image(name):
                    extents[name] = (member.offset_data, member.size)
                elif kind in ("cls", "json") and member.size <= LABEL_LIMIT:
                    label = _label(kind, _content(tar, member))
                    labels[stem] = label if kind == "cls" else labels.get(stem, label)
            file.seek(tar.offset)  # tarfile takes a damaged header for the end
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except (tarfile.TarError, EOFError, OverflowError, UnicodeError) as error:
        raise ValueError(f"{path} is not a whole tar file ({error})") from error
    plain = {name.rpartition(".")[0] for name in extents}
    names = [name for name in extents if not _is_beside(name, plain)]
    found = [labels.get(name.rpartition(".")[0]) or labels.get(_key(name), "") for name in names]
    stray = next((stem for stem, label in labels.items() if label), None)
    if stray is not None and not any(found):
        raise ValueError(
            f"{path} has labels, such as that of {stray}, and none of them belongs to an image; "
            "give both one name, such as 0001.png and 0001.cls"
        )
    table = np.array([extents[name] for name in names], np.int64).reshape(-1, 2)
    return Index(names, found, table)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = tar.extractfile(member)
    return b"" if file is None else file.read()


def _is_beside(name: str, stems: set[str]) -> bool:
    """Whether an image such as 0001.mask.png belongs to a sample 0001.jpg."""
    key = _key(name)
    return key != name.rpartition(".")[0] and key in stems


def _key(name: str) -> str:
    """The name up to the first dot of the file: what WebDataset joins samples by."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(kind: str, content: bytes) -> str:
    text = content.decode("utf-8", "replace").replace("\0", "").strip()
    if kind == "cls":
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    label = value.get("label") if isinstance(value, dict) else None
    return str(label) if isinstance(label, int | str) and not isinstance(label, bool) else ""
