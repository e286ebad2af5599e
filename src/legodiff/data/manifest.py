"""A folder of encoded images: ``manifest.json`` and ``latents-00000.safetensors``, ...

A shard is two tensors: "moments" float16 (n, 2C, h, w), the means of the VAE's posterior, then its
deviations, and "labels" int64 (n,). The latents are raw: before the VAE's ``scaling_factor``.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from legodiff.store import build, write_atomically
from legodiff.vae import VaeSpec

MANIFEST, FORMAT = "manifest.json", "legodiff-latents-1"


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds, and how it was made."""

    vae: VaeSpec
    image_size: tuple[int, int]
    """(height, width) of the images in pixels."""
    count: int
    shard_size: int
    """Latents in each shard but the last."""
    class_names: tuple[str, ...] = ()
    crop: str = "centre"
    """How images were brought to their size."""
    source: str = ""
    """Where the images were."""
    mean: tuple[float, ...] | None = None
    """Per channel, of the raw latents; None until all are there. So is ``std``."""
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "class_names", "mean", "std"):  # lists in JSON
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        step, size = self.vae.downsampling, self.image_size
        for what, fine in {
            "image_size": _are(int, size, 2) and all(0 < side <= 2**16 for side in size),
            "count": _are(int, (self.count,), 1) and self.count > 0,
            "shard_size": _are(int, (self.shard_size,), 1) and self.shard_size > 0,
            "class_names": _are(str, self.class_names),
            "crop": isinstance(self.crop, str),
            "source": isinstance(self.source, str),
            "mean": self.mean is None or _are(float, self.mean, self.vae.channels),
            "std": self.std is None or _are(float, self.std, self.vae.channels),
        }.items():
            if not fine:
                raise ValueError(f"{what} cannot be {getattr(self, what)!r}")
        if size[0] % step or size[1] % step:
            raise ValueError(
                f"images of {size[0]}x{size[1]} pixels do not fit a VAE with one latent for "
                f"{step}x{step} of them; both sides must be divisible by {step}"
            )

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the latents."""
        step = self.vae.downsampling
        return self.image_size[0] // step, self.image_size[1] // step

    def rows(self, shard: int) -> range:
        """The indices of the latents in a shard."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.count))


def is_encoded(folder: Path) -> bool:
    """Whether a folder is one of ours, of any version: others hold a ``manifest.json`` as well."""
    if not (folder / MANIFEST).is_file():
        return False
    if shard_path(folder, 0).is_file():
        return True
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    found = values.get("format") if isinstance(values, dict) else None
    return isinstance(found, str) and found.startswith(FORMAT.rpartition("-")[0])


def read_manifest(folder: Path) -> Manifest:
    """Raises ValueError, in one line, if there is none, or none that this version reads."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{folder} holds no {MANIFEST}; are these encoded images?") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    found = values.pop("format", None) if isinstance(values, dict) else None
    if found != FORMAT:
        raise ValueError(f'{path} has format {found!r}; this version reads "{FORMAT}"')
    try:
        vae = build(VaeSpec, "vae", values.get("vae"))
        return build(Manifest, "manifest", {**values, "vae": vae})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json``, whole or not at all."""
    values = {"format": FORMAT, **asdict(manifest)}
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / MANIFEST, text.encode() + b"\n")


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / f"latents-{shard:05d}.safetensors"


def read_labels(folder: Path, manifest: Manifest, shard: int) -> np.ndarray | None:
    """The labels, int64 (n,), of a shard that is whole; None if it is missing or is not."""
    rows = len(manifest.rows(shard))
    shape = [rows, 2 * manifest.vae.channels, *manifest.size]
    try:
        file: Any
        with safe_open(shard_path(folder, shard), framework="numpy") as file:
            moments, labels = file.get_slice("moments"), np.asarray(file.get_tensor("labels"))
            whole = (moments.get_shape(), moments.get_dtype()) == (shape, "F16")
    except (OSError, SafetensorError):
        return None
    fits = labels.shape == (rows,) and labels.dtype == np.int64
    classes = max(1, len(manifest.class_names))
    if not whole or not fits or not ((labels >= 0) & (labels < classes)).all():
        return None
    return labels


class Shards:
    """Random access to a folder of shards, memory-mapped; it can be pickled and forked.

    Of index i it gives the posterior's mean and deviation, float32 (C, h, w) each.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._open: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        shard, row = divmod(index, self.manifest.shard_size)
        if shard not in self._open:
            path = shard_path(self.folder, shard)
            try:
                file: Any = safe_open(path, framework="numpy")
                self._open[shard] = file.get_slice("moments")
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path} is gone or broken ({error})") from error
        moments = self._open[shard][row : row + 1][0].astype(np.float32)  # (2C, h, w)
        return moments[: len(moments) // 2], moments[len(moments) // 2 :]


def _are(kind: type, values: Any, count: int | None = None) -> bool:
    """Whether this is a tuple of such values, of moderate size and of a certain number."""
    kinds = (int, float) if kind is float else (kind,)
    return (
        isinstance(values, tuple)
        and count in (None, len(values))
        and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
        and (kind is not float or all(-1e9 < v < 1e9 for v in values))
    )
