"""Arrays in NPZ files: plain numbers only, and no size is believed before it is checked."""

import re
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np

GROWTH = 64  # a file may be that much smaller than what is in it
HEADER = re.compile(
    rb"\{'descr': '(?P<type>\|[iub]1|[<>][iuf][248])', 'fortran_order': (?P<turned>True|False), "
    rb"'shape': \((?P<shape>(\d{1,15},? ?){0,8})\),? ?\}\s*"
)
"""Of an array of plain numbers, as numpy writes it."""
DAMAGE = (BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, zlib.error)
"""What a broken archive may raise."""


class Header(NamedTuple):
    """What an array says of itself, checked against its length."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    turned: bool
    """Columns first."""


def read_npz(file: BinaryIO | Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Every array, or those of some ``names`` that are there, by its name.

    Raises ValueError, in one line, for damage and other content.
    """
    with _members(file) as members:
        found = {}
        for info in members.infolist():
            name = info.filename.removesuffix(".npy")
            if names is not None and name not in names:
                continue
            with members.open(info) as member:
                header = _header(member, info.filename, info.file_size)
                flat = np.frombuffer(bytearray(member.read()), header.dtype)
            array = flat.reshape(header.shape, order="F" if header.turned else "C")
            native = header.dtype.newbyteorder("=")
            found[name] = np.asarray(array, native, order="C")
        return found


def npz_names(path: Path) -> list[str]:
    """The names of the arrays of a file."""
    with _members(path) as members:
        return [name.removesuffix(".npy") for name in members.namelist()]


class Rows:
    """An array of an NPZ, read row by row of its first axis: ``Rows(path, "arr_0")[7]``.

    Raises ValueError, in one line, if it is not there, damaged, or not plain numbers.
    """

    def __init__(self, path: Path, name: str) -> None:
        with _members(path) as members:
            if f"{name}.npy" not in members.namelist():
                raise ValueError(f"{path} holds no {name}")
            info = members.getinfo(f"{name}.npy")
            with members.open(info) as member:
                header = _header(member, info.filename, info.file_size)
                self.start = member.tell()
        if header.turned or not header.shape:
            raise ValueError(f"{path}: {name} is not stored row by row")
        self.shape, self.dtype = header.shape, header.dtype
        self.size = prod(self.shape[1:]) * self.dtype.itemsize  # of a row, in bytes
        self.member = ZipFile(path).open(info)  # noqa: SIM115 - rows are mostly read in order

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(row)
        try:
            self.member.seek(self.start + row * self.size)
            data = bytearray(self.member.read(self.size))
        except DAMAGE as error:
            raise ValueError(f"NPZ refused: row {row}: {error}") from error
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:])


@contextmanager
def _members(file: BinaryIO | Path) -> Iterator[ZipFile]:
    """An NPZ of arrays that is not much larger inside than outside."""
    try:
        with ZipFile(file) as members:
            inside = sum(info.file_size for info in members.infolist())
            outside = sum(info.compress_size for info in members.infolist())
            if inside > GROWTH * max(outside, 1):
                raise ValueError(f"NPZ refused: it unpacks to more than {GROWTH} times its size")
            yield members
    except DAMAGE as error:
        raise ValueError(f"NPZ refused: {' '.join(str(error).split())[:200]}") from error


def _header(member: IO[bytes], name: str, size: int) -> Header:
    start = member.read(10)  # magic, version, length of the header
    length = int.from_bytes(start[8:], "little")
    found = HEADER.fullmatch(member.read(length))
    if start[:8] != b"\x93NUMPY\1\0" or found is None:
        raise ValueError(f"NPZ refused: {name} is no array of plain numbers")
    shape = tuple(int(side) for side in found["shape"].split(b",") if side.strip())
    dtype = np.dtype(found["type"].decode())
    if prod(shape) * dtype.itemsize != size - 10 - length:
        raise ValueError(f"NPZ refused: {name} is not the {shape} of {dtype} that it says")
    return Header(shape, dtype, found["turned"] == b"True")
