"""PyTorch's tensors inside pickles, rebuilt here with every size checked.

A tensor in a pickle is a *storage* (numbers in a row) and a view of it. ``torch.save`` keeps the
storages behind the pickle in one file or, since version 1.6, in an archive beside it; a pickled
module holds each as such a file of its own. Only views that show no number twice are taken, so
that nothing is larger in memory than it is in the file.
"""

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from legodiff.pickles import BYTES, Allowed, Name, RefusedError, check_keys, load

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
LIMIT = 2**40  # bytes of a file
PICKLE_LIMIT = 2**26  # bytes of a pickle whose numbers are kept beside it


def read_archive(file: BinaryIO, allowed: Allowed | None = None) -> Any:
    """The plain data and tensors of a file that ``torch.save`` wrote as an archive (a zip).

    ``allowed`` is what else may be in it. Raises ValueError, in one line, for damage and for more.
    """
    try:
        with ZipFile(file) as members:
            names = [name for name in members.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise ValueError("archive refused: it is not one that torch.save makes")
            folder = names[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in members.namelist():
                _check_order(_member(members, f"{folder}byteorder") == b"little")

            def keep(key: str, dtype: torch.dtype, count: int) -> Tensor:
                raw = _member(members, f"{folder}data/{key}")
                if len(raw) != count * dtype.itemsize:
                    raise RefusedError(f"{count:,} numbers are said to be in {len(raw):,} bytes")
                return torch.frombuffer(raw, dtype=dtype) if count else torch.empty(0, dtype=dtype)

            pickled = BytesIO(_member(members, names[0]))
            return load(
                pickled, TENSORS if allowed is None else allowed, PICKLE_LIMIT, _storages(keep)
            )
    except (BadZipFile, EOFError, KeyError, NotImplementedError, OSError, RuntimeError) as error:
        raise ValueError(f"archive refused: {' '.join(str(error).split())[:200]}") from error


def _member(members: ZipFile, name: str) -> bytearray:
    info = members.getinfo(name)
    if info.compress_type != ZIP_STORED or info.file_size != info.compress_size:
        raise RefusedError(f"{name} is compressed; torch.save does not do that")
    return bytearray(members.read(info))


def read_legacy(file: BinaryIO, allowed: Allowed | None = None) -> Any:
    """What ``torch.save`` wrote before version 1.6: a pickle with its numbers behind it.

    Arguments and errors as for ``read_archive``.
    """
    if (load(file, {}, LIMIT), load(file, {}, LIMIT)) != (MAGIC, PROTOCOL):
        raise ValueError("pickle refused: it is not one that torch.save makes")
    about = load(file, {}, LIMIT)
    _check_order(isinstance(about, dict) and about.get("little_endian") is True)
    here = file.tell()
    left = file.seek(0, 2) - here
    file.seek(here)
    empty: dict[str, Tensor] = {}

    def keep(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal left
        left -= count * dtype.itemsize
        if left < 0:
            raise RefusedError(f"{count:,} numbers are more than the file is long")
        empty[key] = torch.empty(count, dtype=dtype)
        return empty[key]

    result = load(file, TENSORS if allowed is None else allowed, LIMIT, _storages(keep))
    keys = load(file, {}, LIMIT)
    texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not texts or sorted(keys) != sorted(empty):
        raise ValueError("pickle refused: its numbers are not those behind it")
    for key in keys:
        target = empty[key].view(torch.uint8).numpy()
        count = file.read(8)
        if count != struct.pack("<q", len(empty[key])) or file.readinto(target) != len(target):  # type: ignore[attr-defined]
            raise ValueError("pickle refused: the numbers behind it are cut off")
    return result


def _check_order(little_endian: bool) -> None:
    if not little_endian:
        raise RefusedError("its numbers are not little-endian")


def _storages(keep: Callable[[str, torch.dtype, int], Tensor]) -> Callable[[Any], Tensor]:
    """Storages (N,) by what a pickle calls them; ``keep`` makes each once."""
    made: dict[str, Tensor] = {}

    def storage(identity: Any) -> Tensor:
        what, kind, key, _, count, *views = identity
        if what != "storage" or not isinstance(kind, Name) or any(view for view in views):
            raise RefusedError("it refers to something else than numbers outside of it")
        if kind.name not in TYPES or type(key) is not str or type(count) is not int or count < 0:
            raise RefusedError(f"numbers of the kind {kind.name}")
        if key not in made:
            made[key] = keep(key, TYPES[kind.name], count)
        return made[key]

    return storage


def _storage(content: Any) -> Tensor:
    """A storage within a pickle: a file of its own."""
    if type(content) is not bytes:
        raise RefusedError("numbers that are not bytes")
    storage = read_legacy(BytesIO(content))
    if not isinstance(storage, Tensor):
        raise RefusedError("numbers that are none")
    return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    whole = [offset, *size, *stride]
    if not isinstance(storage, Tensor) or storage.ndim != 1 or len(size) != len(stride):
        raise RefusedError("a tensor of something else than numbers")
    if not all(type(number) is int for number in whole) or len(size) > 8:
        raise RefusedError("a tensor whose size and stride are not whole numbers")
    if not all(0 <= number < 2**48 for number in whole):
        raise RefusedError(f"a tensor of size {size!r} and stride {stride!r}")
    reach = 1  # numbers from the first to the last that is shown
    for step, count in sorted(zip(stride, size, strict=True)):
        if count > 1 and step < reach:
            raise RefusedError(f"a tensor of size {size!r} shows numbers twice")
        reach += (count - 1) * step if count else 0
    if 0 in size:
        return storage.new_empty(size)
    if offset + reach > len(storage):
        raise RefusedError(f"a tensor of size {size!r} in a storage of {len(storage):,} numbers")
    return storage.as_strided(size, stride, offset)


def _parameter(data: Any, *_: Any) -> Any:
    return data


class Dict(dict[Any, Any]):
    """An ordered dict of a file."""

    def __init__(self, pairs: Any = ()) -> None:
        pairs = [*pairs.items()] if isinstance(pairs, dict) else [tuple(pair) for pair in pairs]
        check_keys(key for key, _ in pairs)
        super().__init__(pairs)

    def __setstate__(self, state: Any) -> None:
        """Versions of modules, which are not needed."""


def _not_called(*_: Any) -> Any:
    raise RefusedError("numbers made in an unknown way")


TENSORS: Allowed = {
    **BYTES,
    ("torch._utils", "_rebuild_tensor"): _tensor,  # before 0.4: torchvision's VGG of 2017
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): Dict,
    **{("torch", name): _not_called for name in TYPES},
}
"""For ``legodiff.pickles.load``: tensors and what usually holds them."""
