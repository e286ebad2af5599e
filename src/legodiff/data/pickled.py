"""Numpy arrays of bytes inside pickles, for ``legodiff.pickles``: made by us, of checked sizes."""

from typing import Any

import numpy as np

from legodiff.pickles import BYTES, Allowed, Name, RefusedError


class Uint8Array:
    """Stands in for a numpy array in a pickle; ``array`` is the real one, made by us."""

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind != Name("numpy", "ndarray"):
            raise RefusedError("an array of an unknown kind")
        self.array = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw
        if not isinstance(dtype, _Uint8) or type(raw) is not bytes:
            raise RefusedError("an array of something else than bytes")
        if not all(type(n) is int and n >= 0 for n in shape) or not 1 <= len(shape) <= 4:
            raise RefusedError(f"an array of shape {shape!r}")
        flat = np.frombuffer(raw, np.uint8)
        self.array = flat.reshape(shape, order="F" if fortran else "C")


class _Uint8:
    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise RefusedError(f"numbers of type {code!r}; only bytes (u1) are read")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: a byte has none."""


def _not_called(*_: Any) -> Any:
    raise RefusedError("an array made in an unknown way")


UINT8_ARRAYS: Allowed = {
    ("numpy.core.multiarray", "_reconstruct"): Uint8Array,
    ("numpy._core.multiarray", "_reconstruct"): Uint8Array,
    ("numpy", "ndarray"): _not_called,
    ("numpy", "dtype"): _Uint8,
    **BYTES,
}
"""For ``load``: numpy arrays of uint8, which come as ``Uint8Array``."""
