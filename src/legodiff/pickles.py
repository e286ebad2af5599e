"""A reader for foreign pickles that runs nothing of what they ask for.

Python's own unpickler calls whatever a file names. This one interprets the few instructions that
plain data needs; a name in the file stands for a function of *ours*, from a table the caller
gives, or the file is refused. Lengths in a file are not believed: memory grows with what is there.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

LIMIT = 2**30  # bytes of the whole file
LONGEST = 1000  # letters of a name
BROKEN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What reading a damaged file raises; objects within objects without end, the last."""


@dataclass(frozen=True)
class Name:
    """A global name in a pickle. It is only a label: nothing was imported."""

    module: str
    name: str


class RefusedError(ValueError):
    """Raised by what ``load`` calls, for what it does not take: the file is refused, and why."""


Allowed = Mapping[tuple[str, str], Callable[..., Any]]
Persistent = Callable[[Any], Any]
_MARK = object()
_CONSTANTS: dict[str, Any] = {
    **{"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK},
}
_EMPTY: dict[str, Callable[[], Any]] = {
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set},
}
_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load(
    file: BinaryIO, allowed: Allowed, limit: int = LIMIT, persistent: Persistent | None = None
) -> Any:
    """The plain data in a pickle: lists, tuples, dicts, text, bytes, numbers, and ``allowed``.

    ``allowed[module, name]`` is called in place of the object of that name, with arguments from
    the file, which it must check. If what it returns has ``__setstate__``, the file may call that
    too. ``persistent`` gives what a file refers to as kept elsewhere. Text of Python 2 comes as
    str, one character a byte. The file is left behind the pickle. Raises ValueError, in one line,
    for anything else and for files above ``limit`` bytes.
    """
    reader = _Reader(allowed, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], _Bounded(file, limit))):
            if opcode.name == "STOP":
                return reader.result()
            reader.do(opcode.name, argument)
    except RefusedError as error:
        raise ValueError(f"pickle refused: {error}") from None
    except BROKEN as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"pickle refused: it is damaged or not plain data ({reason})") from error
    raise ValueError("pickle refused: it has no end")


class _Bounded:
    """A file that is never asked for more bytes than it has: a length in it may be a lie."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file = file
        here = file.tell()
        self.end = file.seek(0, 2)
        file.seek(here)
        if self.end - here > limit:
            raise ValueError(f"pickle of more than {limit:,} bytes")

    def read(self, count: int) -> bytes:
        return self.file.read(max(0, min(count, self.end - self.file.tell())))

    def readline(self) -> bytes:
        return self.file.readline()

    def tell(self) -> int:
        return self.file.tell()


class _Reader:
    """The stack and the memo of one file."""

    def __init__(self, allowed: Allowed, persistent: Persistent | None) -> None:
        self.allowed, self.persistent = allowed, persistent
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
                raise RefusedError(f"instruction {name} is not needed for plain data")
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

    def _additems(self, _: Any) -> None:
        values = self.to_mark()
        if not isinstance(self.stack[-1], set) or not all(isinstance(v, str) for v in values):
            raise TypeError("a set must be one of texts")
        self.stack[-1].update(values)

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
            raise RefusedError(f"it calls {type(target).__name__}, which is not a function")
        self.stack.append(self.allowed[target.module, target.name](*arguments))

    _newobj = _reduce  # a class and its arguments: here, a function like any other

    def _binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise RefusedError("it refers to something outside of it")
        self.stack.append(self.persistent(*self.take(1)))

    def _build(self, _: Any) -> None:
        (state,) = self.take(1)
        restore = getattr(self.stack[-1], "__setstate__", None)
        if restore is None:
            raise RefusedError(f"it sets the state of {type(self.stack[-1]).__name__}")
        restore(state)

    def name(self, module: Any, name: Any) -> None:
        if not all(type(part) is str and len(part) <= LONGEST for part in (module, name)):
            raise RefusedError("it asks for something by what is no name")
        if (module, name) not in self.allowed:
            raise RefusedError(f"it asks for {module}.{name}, which is not plain data")
        self.stack.append(Name(module, name))

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("append to something else than a list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        target, keys = self.stack[-1], values[::2]
        if not isinstance(target, dict):
            raise TypeError("a key and a value for something else than a dict")
        check_keys(keys)
        target.update(zip(keys, values[1::2], strict=True))


def check_keys(keys: Iterable[Any]) -> None:
    """Raises TypeError for keys that no plain dict has: what is nested deep may not be hashed."""
    if not all(isinstance(key, str | bytes | int) for key in keys):
        raise TypeError("keys must be text, bytes or whole numbers, in a dict")


def _latin_1(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes for Python 2: as text, to be encoded."""
    if type(text) is not str or encoding != "latin1":
        raise RefusedError("bytes in an unknown encoding")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """How Python 3 writes b"" for Python 2."""
    return b""


BYTES: Allowed = {("_codecs", "encode"): _latin_1, ("__builtin__", "bytes"): _no_bytes}
"""For ``load``: how Python 3 writes bytes in the protocols of Python 2."""
