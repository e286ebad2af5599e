"""Images -> a folder of latents: once, in several processes, and on from where it stopped."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from legodiff.data import ImageData, Unreadable
from legodiff.data.latents import open_latents
from legodiff.data.manifest import (
    MANIFEST,
    Manifest,
    read_labels,
    read_manifest,
    shard_path,
    write_manifest,
)
from legodiff.store import write_atomically
from legodiff.vae import PRECISIONS, Vae, VaeSpec

USUAL = (0.7, 1.4)  # deviation of latents after the scaling of the VAE that suits them

Failure = tuple[str, str]
"""Name and reason of an image that cannot be read."""


@dataclass(frozen=True)
class Encoded:
    """What one process has done, and what came of it."""

    images: int
    """Encoded now; shards found complete do not count."""
    unreadable: list[Failure]
    """Images that the next readable one stands in for, of those encoded now."""
    deviation: tuple[float, ...] | None
    """Of each channel of (z - shift) * scale; None while other processes are not done."""
    warning: str | None
    """One line if that is not about 1."""


def encode(
    data: ImageData,
    vae: Vae,
    out: str | os.PathLike[str],
    *,
    batch: int = 16,
    shard_size: int = 4096,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    source: str = "",
    crop: str = "centre",
    workers: int = 0,
    strict: bool = False,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    on_unreadable: Callable[[str, str], object] = lambda name, reason: None,
) -> Encoded:
    """Writes the VAE's posterior of every image to a folder; see `legodiff.data.manifest`.

    The same call again goes on where the last one stopped. The shards are the same to the byte for
    any number of processes and of calls, on one machine with one ``batch``.

    Args:
        data: uint8 images; grey ones are repeated to the channels of the VAE.
        vae: from `legodiff.vae.open_vae`.
        out: a folder, made if it is missing.
        batch: images encoded at a time; a batch never crosses shards.
        shard_size: images in a shard.
        rank, world: this process encodes shards rank, rank + world, ...
        device: where to encode.
        precision: "fp32" or "bf16".
        source, crop: where the images are and how they were brought to size, for the record.
        workers: processes that read images.
        strict: an image that cannot be read stops everything.
        on_progress: called after each batch with the images done and all those of this process.
        on_unreadable: called with name and reason of each image that cannot be read.

    Raises ValueError, in one line and before it writes anything, if ``out`` was begun with another
    VAE, size, crop, number or classes of images, or if the images do not fit the VAE.
    """
    _check_settings(data, vae, batch, rank, world, precision)
    manifest = Manifest(
        vae=vae.spec,
        image_size=data.size,
        count=len(data),
        shard_size=shard_size,
        class_names=tuple(data.class_names),
        crop=crop,
        source=source,
    )
    out = Path(out)
    manifest = _open_folder(out, manifest)
    mine = range(rank, manifest.shards, world)
    missing = [shard for shard in mine if read_labels(out, manifest, shard) is None]
    total = sum(len(manifest.rows(shard)) for shard in mine)
    kept = done = total - sum(len(manifest.rows(shard)) for shard in missing)

    items = _read(
        [part for shard in missing for part in _batches(manifest, shard, batch)], data, workers
    )
    unreadable: list[Failure] = []
    for shard in missing:
        moments, labels, failures = [], [], []
        for _ in _batches(manifest, shard, batch):
            pixels, classes, failed = next(items)
            if strict and failed:
                raise Unreadable(*failed[0])
            moments.append(_moments(vae, pixels.to(device), precision))
            labels.append(classes)
            failures += failed
            for failure in failed:
                on_unreadable(*failure)
            done += len(pixels)
            on_progress(done, total)
        _write_shard(shard_path(out, shard), torch.cat(moments), torch.cat(labels), failures)
        unreadable += failures
    return _finish(out, manifest, done - kept, unreadable)


def _check_settings(
    data: ImageData, vae: Vae, batch: int, rank: int, world: int, precision: str
) -> None:
    if not len(data):
        raise ValueError("there are no images to encode")
    if data.channels not in (1, vae.in_channels):
        raise ValueError(
            f"images of {data.channels} channels, and the VAE {vae.spec} takes {vae.in_channels}"
        )
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be 1 or more")
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank} of {world}; it must be from 0 to {world - 1}")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")


def _open_folder(out: Path, wanted: Manifest) -> Manifest:
    """The manifest of a new folder, or that of one that was begun with the same."""
    if not (out / MANIFEST).exists():
        if shard_path(out, 0).exists():
            raise ValueError(f"{out} holds shards without a {MANIFEST}; choose another folder")
        write_manifest(out, wanted)
    found = read_manifest(out)
    for (what, old), new in zip(_facts(found).items(), _facts(wanted).values(), strict=True):
        if old != new and not (what == "VAE" and found.vae == wanted.vae):
            raise ValueError(
                f"{out} was begun with {what} {old}, and this is {new}; choose another folder"
            )
    return found


def _facts(manifest: Manifest) -> dict[str, str]:
    """What must not change while a folder is filled, in words."""
    vae, (height, width) = manifest.vae, manifest.image_size
    return {
        "VAE": f"{vae} of scale {vae.scale:g} and shift {vae.shift:g}",
        "image size": f"{height}x{width}",
        "crop": manifest.crop,
        "number of images": str(manifest.count),
        "shard size": str(manifest.shard_size),
        "classes": f"{len(manifest.class_names)} ({', '.join(manifest.class_names[:12])})",
    }


def _batches(manifest: Manifest, shard: int, batch: int) -> list[range]:
    rows = manifest.rows(shard)
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


class _Images(Dataset[tuple[np.ndarray | None, int, Failure | None]]):
    """Image, label and what is wrong with it if the next readable one stands in.

    A failure is data, as an exception would not pass whole between processes.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitem__(self, index: int) -> tuple[np.ndarray | None, int, Failure | None]:
        failure = None
        for ahead in range(len(self.data)):
            try:
                return *self.data.read((index + ahead) % len(self.data)), failure
            except Unreadable as error:
                failure = failure or (error.name, error.reason)
        return None, 0, failure


def _read(
    batches: list[range], data: ImageData, workers: int
) -> Iterator[tuple[Tensor, Tensor, list[Failure]]]:
    """Pixels uint8 (B, C, H, W), labels int64 (B,) and failures of each batch."""
    shape = (data.channels, *data.size)
    ranges: Any = batches  # which need not be lists, whatever their type says
    loader = DataLoader(_Images(data), batch_sampler=ranges, num_workers=workers, collate_fn=list)
    for items in loader:
        failures = [failure for _, _, failure in items if failure is not None]
        images = [image for image, _, _ in items if image is not None]
        if len(images) < len(items):
            name, reason = failures[0]
            raise ValueError(f"not one image can be read; the first is {name}: {reason}")
        for image in images:
            if image.shape != shape or image.dtype != np.uint8:
                raise ValueError(f"an image is {image.dtype} {image.shape}, not uint8 {shape}")
        labels = torch.tensor([label for _, label, _ in items], dtype=torch.int64)
        yield torch.from_numpy(np.stack(images)), labels, failures


def _moments(vae: Vae, pixels: Tensor, precision: str) -> Tensor:
    """float16 (B, 2C, h, w) on the CPU, the same whenever it is done."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        moments = vae.moments(pixels, precision).half().cpu()
    if not moments.isfinite().all():
        raise ValueError(
            f"the VAE {vae.spec} gives values that are not finite; is it whole? "
            "If precision is not fp32, try that"
        )
    return moments


def _write_shard(path: Path, moments: Tensor, labels: Tensor, failures: list[Failure]) -> None:
    # One entry of metadata, as the order of several is left to chance.
    about = {"unreadable": json.dumps(failures)}
    write_atomically(
        path, save({"moments": moments.contiguous(), "labels": labels}, metadata=about)
    )


def _finish(out: Path, manifest: Manifest, images: int, unreadable: list[Failure]) -> Encoded:
    """Adds the statistics once all shards are there, whoever comes last."""
    shards = range(manifest.shards)
    if any(read_labels(out, manifest, shard) is None for shard in shards):
        return Encoded(images, unreadable, None, None)
    mean, std = open_latents(out).statistics()
    if manifest.std is None:
        write_manifest(out, replace(manifest, mean=tuple(mean), std=tuple(std)))
    deviation = tuple(value * manifest.vae.scale for value in std)
    return Encoded(images, unreadable, deviation, _warning(manifest.vae, deviation))


def _warning(vae: VaeSpec, deviation: tuple[float, ...]) -> str | None:
    odd = [n for n, value in enumerate(deviation) if not USUAL[0] <= value <= USUAL[1]]
    if not odd:
        return None
    listed = ", ".join(f"{deviation[n]:.2f} in channel {n}" for n in odd[:4])
    return (
        f"scaled latents deviate by {listed}, and {USUAL[0]} to {USUAL[1]} is usual: is "
        f"{vae.scale:g} the scaling factor of the VAE {vae}, and are the images what it is for?"
    )
