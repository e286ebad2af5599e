"""Images as the latents of a VAE: shards of ours, or the paper's authors' ``.npy`` files."""

import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from legodiff.data import Unreadable
from legodiff.data.archives import Stamp, ZipMembers, members_of, read_member
from legodiff.data.manifest import MANIFEST, Shards, read_labels, read_manifest
from legodiff.data.sources import Files, Source, labels_of_files, list_files
from legodiff.vae import VaeSpec

SAMPLE = 4096  # latents that the statistics are taken from
AUTHORS_SCALE, AUTHORS_DOWNSAMPLING = 0.18215, 8  # Stable Diffusion's VAE


class Moments(Protocol):
    """Latents by index: means and deviations, (C, h, w) each; None where there is no deviation."""

    def __call__(self, index: int, /) -> tuple[np.ndarray, np.ndarray | None]: ...


class Latents:
    """Latents and labels in random access; they are `legodiff.data.ImageData` of float32."""

    def __init__(
        self,
        moments: Moments,
        labels: np.ndarray,
        class_names: tuple[str, ...],
        vae: VaeSpec,
        size: tuple[int, int],
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        self.class_names, self.vae, self.size = class_names, vae, size
        self.channels = vae.channels
        self._moments, self._labels, self._statistics = moments, labels, statistics

    @property
    def identity(self) -> VaeSpec | None:
        """The VAE that made the latents; None if that is not known."""
        return self.vae if self.vae.known else None

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int, rng: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
        """A raw latent, float32 (C, h, w), and its class index.

        ``rng`` draws it from the posterior, a normal distribution; without, it is the mean. Raises
        Unreadable, and IndexError beyond the end.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"latent {index} of {len(self)}")
        latent, std = self._moments(index)
        if rng is not None and std is not None:
            latent = latent + std * rng.standard_normal(latent.shape, dtype=np.float32)
        return latent, int(self._labels[index])

    def statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and deviation of each channel of what `read` draws: raw latents.

        From the manifest, or from an evenly spaced sample; latents that are unreadable are left
        out. Raises ValueError if all are.
        """
        if self._statistics is None:
            self._statistics = self._measure()
        return self._statistics

    def _measure(self) -> tuple[Sequence[float], Sequence[float]]:
        count, total, squares = 0, np.zeros(self.channels), np.zeros(self.channels)
        for index in np.linspace(0, len(self) - 1, min(len(self), SAMPLE)).round().astype(int):
            try:
                mean, std = self._moments(int(index))
            except Unreadable as error:
                reason = error
                continue
            mean = mean.astype(np.float64)
            spread = 0.0 if std is None else std.astype(np.float64) ** 2
            count += 1
            total += mean.mean(axis=(1, 2))
            squares += (mean**2 + spread).mean(axis=(1, 2))
        if not count:
            raise ValueError(f"not one latent can be read; the last: {reason}")
        centre = total / count
        deviation = np.sqrt(np.maximum(squares / count - centre**2, 0))
        return _rounded(centre), _rounded(deviation)


class Members:
    """Random access to ``.npy`` files of scaled latents, one each."""

    def __init__(self, source: Source, scale: float) -> None:
        self.source, self.scale = source, scale
        self.shape = self._first_shape()

    def __call__(self, index: int) -> tuple[np.ndarray, None]:
        latent = self._load(index)
        if latent.shape != self.shape:
            reason = f"its shape is {latent.shape}, not {self.shape}"
            raise Unreadable(self.source.name(index), reason)
        return latent / np.float32(self.scale), None

    def _load(self, index: int) -> np.ndarray:
        try:
            data = self.source.fetch(index)
            assert isinstance(data, bytes)
            return parse_npy(data)
        except Exception as error:  # a broken header is evaluated, and fails in many ways
            reason = " ".join(str(error).split())[:200] or repr(error)
            raise Unreadable(self.source.name(index), reason) from error

    def _first_shape(self) -> tuple[int, ...]:
        for index in range(len(self.source)):
            try:
                return self._load(index).shape
            except Unreadable as error:
                reason = error
        raise ValueError(f"not one latent can be read; the last is {reason}")


def parse_npy(data: bytes) -> np.ndarray:
    """An array float32 (C, h, w), finite. Raises ValueError and others if it is none."""
    stream = io.BytesIO(data)
    shape, _, dtype = HEADERS[np.lib.format.read_magic(stream)](stream)
    if dtype != np.float32 or len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"it holds {dtype} {shape}, not float32 (channels, height, width)")
    if math.prod(shape) * dtype.itemsize > len(data) - stream.tell():
        raise ValueError("it is cut short")
    stream.seek(0)
    latent = np.asarray(np.load(stream, allow_pickle=False))
    if not np.isfinite(latent).all():
        raise ValueError("it holds values that are not finite")
    return latent


HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_latents(path: str | os.PathLike[str]) -> Latents:
    """Opens encoded images: a folder of ours, or the authors' folder or zip of ``.npy`` files.

    Raises ValueError, in one line, if there are none, or if their encoding is not finished.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        return _open_npy(folder)
    manifest = read_manifest(folder)
    parts = [read_labels(folder, manifest, shard) for shard in range(manifest.shards)]
    labels = [part for part in parts if part is not None]
    if len(labels) < len(parts):
        raise ValueError(
            f"{folder}: encoding is not finished: {len(labels)} of {len(parts)} shards; "
            "run the same command again"
        )
    statistics = (manifest.mean, manifest.std) if manifest.mean and manifest.std else None
    return Latents(
        Shards(folder, manifest),
        np.concatenate(labels),
        manifest.class_names,
        manifest.vae,
        manifest.size,
        statistics,
    )


def _open_npy(path: Path) -> Latents:
    """The authors' latents: z * 0.18215 as float32 (C, h, w) each, and ``dataset.json``."""
    source = _npy_folder(path) if path.is_dir() else _npy_zip(path)
    members = Members(source, AUTHORS_SCALE)
    channels, height, width = members.shape
    return Latents(
        members,
        source.labels,
        source.class_names,
        VaeSpec(channels, AUTHORS_DOWNSAMPLING, AUTHORS_SCALE),
        (height, width),
    )


def _npy_folder(path: Path) -> Source:
    files = list_files(path)
    names = _arrays(files, path)
    known = set(files)

    def read(name: str) -> bytes | None:
        return (path / name).read_bytes() if name in known else None

    labels = labels_of_files(names, str(path), read)
    return Source("latents", str(path), names, *labels, Files(path, names))


def _npy_zip(path: Path) -> Source:
    try:
        stamp = Stamp.of(path)
    except OSError as error:
        raise ValueError(f"there are no latents at {path} ({error.strerror})") from error
    members = members_of(str(path), stamp)
    names = _arrays(members, path)

    def read(name: str) -> bytes | None:
        return read_member(str(path), stamp, members[name]) if name in members else None

    labels = labels_of_files(names, str(path), read)
    table = np.array([members[name] for name in names], np.int64)
    return Source("latents", str(path), names, *labels, ZipMembers(str(path), stamp, table))


def _arrays(files: Iterable[str], path: Path) -> list[str]:
    names = [name for name in files if name.endswith(".npy")]
    if not names:
        raise ValueError(f"{path} holds neither {MANIFEST} nor .npy files; are these latents?")
    return names


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") for value in values)
