"""A reader for foreign pickles that runs nothing of what they ask for.

Python's own unpickler calls whatever a file names. This one interprets the few instructions that
plain data needs; a name in the file stands for a function of *ours*, from a table the caller
gives, or the file is refused. ``UINT8_ARRAYS`` is the table for numpy arrays of bytes.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

LIMIT = 2**30  # bytes of the whole file


@dataclass(frozen=True)
class Name:
    """A global name in a pickle. It is only a label: nothing was imported."""

    module: str
    name: str


Allowed = Mapping[tuple[str, str], Callable[..., Any]]
_MARK = object()
_CONSTANTS: dict[str, Any] = {
    **{"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK},
}
_EMPTY: dict[str, Callable[[], Any]] = {
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple},
}
_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load(file: BinaryIO, allowed: Allowed, limit: int = LIMIT) -> Any:
    """The plain data in a pickle: lists, tuples, dicts, text, bytes, numbers, and ``allowed``.

    ``allowed[module, name]`` is called in place of the object of that name, with arguments from
    the file, which it must check. If what it returns has ``__setstate__``, the file may call that
    too. Text of Python 2 comes as str, one character a byte. Raises ValueError, in one line, for
    anything else and for files above ``limit`` bytes.
    """
    data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"pickle of more than {limit:,} bytes")
    reader = _Reader(allowed)
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            if opcode.name == "STOP":
                return reader.result()
            reader.do(opcode.name, argument)
    except _RefusedError as error:
        raise ValueError(f"pickle refused: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"pickle refused: it is damaged or not plain data ({reason})") from error
    raise ValueError("pickle refused: it has no end")


class _RefusedError(Exception):
    pass


class _Reader:
    """The stack and the memo of one file."""

    def __init__(self, allowed: Allowed) -> None:
        self.allowed = allowed
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        if name in _ARGUMENTS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self.take(_TUPLES[name])))
        elif name not in ("PROTO", "FRAME"):
            step = getattr(self, f"_{name.lower()}", None)
            if step is None:
                raise _RefusedError(f"instruction {name} is not needed for plain data")
            step(argument)

    def result(self) -> Any:
        (value,) = self.take(len(self.stack))
        return value

    def take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("stack is empty")
        values = self.stack[-count:]
        del self.stack[-count:]
        if any(value is _MARK for value in values):
            raise ValueError("misplaced mark")
        return values

    def to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.to_mark()))

    def _list(self, _: Any) -> None:
        self.stack.append(self.to_mark())

    def _dict(self, _: Any) -> None:
        values = self.to_mark()
        self.stack.append({})
        self.set_items(values)

    def _append(self, _: Any) -> None:
        self.extend(self.take(1))

    def _appends(self, _: Any) -> None:
        self.extend(self.to_mark())

    def _setitem(self, _: Any) -> None:
        self.set_items(self.take(2))

    def _setitems(self, _: Any) -> None:
        self.set_items(self.to_mark())

    def _put(self, index: int | None) -> None:
        if self.stack[-1] is _MARK:
            raise ValueError("misplaced mark")
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    _binput = _long_binput = _memoize = _put

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    def _global(self, both: str) -> None:
        self.name(*both.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        self.name(*self.take(2))

    def _reduce(self, _: Any) -> None:
        target, arguments = self.take(2)
        if not isinstance(target, Name) or not isinstance(arguments, tuple):
            raise _RefusedError(f"it calls {type(target).__name__}, which is not a function")
        self.stack.append(self.allowed[target.module, target.name](*arguments))

    def _build(self, _: Any) -> None:
        (state,) = self.take(1)
        restore = getattr(self.stack[-1], "__setstate__", None)
        if restore is None:
            raise _RefusedError(f"it sets the state of {type(self.stack[-1]).__name__}")
        restore(state)

    def name(self, module: Any, name: Any) -> None:
        if (module, name) not in self.allowed:
            raise _RefusedError(f"it asks for {module}.{name}, which is not plain data")
        self.stack.append(Name(module, name))

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("append to something else than a list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        target, keys = self.stack[-1], values[::2]
        if not isinstance(target, dict) or not all(isinstance(k, str | bytes | int) for k in keys):
            raise TypeError("keys must be text, bytes or whole numbers, in a dict")
        target.update(zip(keys, values[1::2], strict=True))


class Uint8Array:
    """Stands in for a numpy array in a pickle; ``array`` is the real one, made by us."""

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind != Name("numpy", "ndarray"):
            raise _RefusedError("an array of an unknown kind")
        self.array = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw
        if not isinstance(dtype, _Uint8) or type(raw) is not bytes:
            raise _RefusedError("an array of something else than bytes")
        if not all(type(n) is int and n >= 0 for n in shape) or not 1 <= len(shape) <= 4:
            raise _RefusedError(f"an array of shape {shape!r}")
        flat = np.frombuffer(raw, np.uint8)
        self.array = flat.reshape(shape, order="F" if fortran else "C")


class _Uint8:
    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise _RefusedError(f"numbers of type {code!r}; only bytes (u1) are read")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: a byte has none."""


def _not_called(*_: Any) -> Any:
    raise _RefusedError("an array made in an unknown way")


def _latin_1(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes for Python 2: as text, to be encoded."""
    if type(text) is not str or encoding != "latin1":
        raise _RefusedError("bytes in an unknown encoding")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """How Python 3 writes b"" for Python 2."""
    return b""


UINT8_ARRAYS: Allowed = {
    ("numpy.core.multiarray", "_reconstruct"): Uint8Array,
    ("numpy._core.multiarray", "_reconstruct"): Uint8Array,
    ("numpy", "ndarray"): _not_called,
    ("numpy", "dtype"): _Uint8,
    ("_codecs", "encode"): _latin_1,
    ("__builtin__", "bytes"): _no_bytes,
}
"""For ``load``: numpy arrays of uint8, which come as ``Uint8Array``."""
