"""Images inside zip files and tar shards, in random access and without unpacking.

Both are byte ranges of files that never change while they are read. ``os.pread`` needs no file
position, so any number of threads and forked or spawned processes can read at once.
"""

import os
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from legodiff.data.sources import (
    LIMIT,
    Source,
    is_image,
    is_visible,
    labels_of_files,
    training_part,
)


class Stamp(NamedTuple):
    """Tells one content of a file from another."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | Path) -> "Stamp":
        return cls._make((lambda s: (s.st_size, s.st_mtime_ns))(os.stat(path)))


@lru_cache(maxsize=128)
def _opened(path: str, stamp: Stamp) -> IO[bytes]:
    """An open file of this process; closed when it drops out of the cache."""
    if Stamp.of(path) != stamp:
        raise ValueError(f"{path} was changed after it was opened; start again")
    return open(path, "rb", buffering=0)


def read_range(path: str, stamp: Stamp, offset: int, size: int) -> bytes:
    """Bytes of a file. Raises OSError, or ValueError if it was changed or is too short."""
    if size > LIMIT:
        raise ValueError(f"declares {size:,} bytes; at most {LIMIT:,} are read")
    file = _opened(path, stamp)
    data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise ValueError(f"{path} ends before it")
    return data


HEADER = 30  # bytes of a zip member's local header before its name


class ZipMember(NamedTuple):
    """One row of a table of members."""

    header: int
    packed: int
    size: int
    method: int
    crc: int


@dataclass(frozen=True, eq=False)
class ZipMembers:
    """Fetches from a zip file."""

    path: str
    stamp: Stamp
    table: np.ndarray
    """int64 (N, 5), the fields of ``ZipMember``."""

    def __call__(self, index: int) -> bytes:
        return read_member(self.path, self.stamp, ZipMember(*self.table[index].tolist()))


def read_member(path: str, stamp: Stamp, member: ZipMember) -> bytes:
    """The content of a member. Raises ValueError if it is too large, damaged or encrypted."""
    if member.method not in UNPACK:
        raise ValueError("encrypted, or packed in a way that is not read; zip with deflate")
    if member.size > LIMIT:
        raise ValueError(f"declares {member.size:,} bytes; at most {LIMIT:,} are read")
    header = read_range(path, stamp, member.header, HEADER)
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    packed = read_range(path, stamp, member.header + HEADER + names, member.packed)
    try:
        data = UNPACK[member.method](packed, member.size)
    except zlib.error as error:
        raise ValueError(f"damaged in the archive ({error})") from error
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise ValueError("damaged in the archive (size or checksum)")
    return data


def _inflate(packed: bytes, size: int) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)


UNPACK: dict[int, Callable[[bytes, int], bytes]] = {
    zipfile.ZIP_STORED: lambda packed, size: packed,
    zipfile.ZIP_DEFLATED: _inflate,
}


@lru_cache(maxsize=1)
def members_of(path: str, stamp: Stamp) -> dict[str, ZipMember]:
    """The visible regular files of a zip, by name, sorted."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a whole zip file ({error})") from error
    found = {}
    for info in infos:
        name = info.filename.replace("\\", "/").removeprefix("./")
        if is_visible(name) and not stat.S_ISLNK(info.external_attr >> 16):
            found[name] = ZipMember(
                *(info.header_offset, info.compress_size, info.file_size),
                *(-1 if info.flag_bits & 1 else info.compress_type, info.CRC),
            )
    return dict(sorted(found.items()))


def holds_arrays(path: str) -> bool:
    """Whether a zip holds .npy files and no images."""
    names = members_of(path, Stamp.of(path))
    return any(n.endswith(".npy") for n in names) and not any(map(is_image, names))


def open_zip(path: str) -> Source:
    """Images in a zip: EDM's with ``dataset.json``, class folders, or just images.

    Raises ValueError if there are none, or if the labels are wrong.
    """
    stamp = Stamp.of(path)
    members = members_of(path, stamp)
    names = [name for name in members if is_image(name)]
    if not names:
        raise ValueError(f"{path} holds no images among {len(members)} files (such as .png, .jpg)")

    def read(name: str) -> bytes | None:
        return read_member(path, stamp, members[name]) if name in members else None

    kept = training_part(names, Path(path).parent)
    kind = "zip" if kept is names else "zip, CelebA's training part"
    labels, class_names = labels_of_files(kept, path, read)
    table = np.array([members[name] for name in kept], np.int64)
    fetch = ZipMembers(path, stamp, table)
    return Source(kind, path, kept, labels, class_names, fetch)
