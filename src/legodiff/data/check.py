"""Looks at a collection of images before anything is trained on it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from legodiff.data import Unreadable, goes_by_name, open_data
from legodiff.data.detect import holds_latents, open_source
from legodiff.data.images import (
    Pictures,
    evenly_spaced,
    height_and_width,
    infer_channels,
    is_grey,
    open_image,
    to_mode,
)
from legodiff.data.sources import Source
from legodiff.data.suggest import Suggestion, suggest, suggest_size

SAMPLE = 4096  # images that the statistics are taken from at most
CHUNK = 256  # images between two reports of progress
FEW = 5_000  # images below which a model learns them by heart
UNBALANCED = 10  # times as many images in one class as in another
PLAIN_MODES = ("L", "LA", "P", "RGB", "RGBA", "CMYK")  # all their pixels can be converted

Result = TypeVar("Result")


@dataclass(frozen=True)
class Statistics:
    """Of pixels in [-1, 1], after cropping to ``size``."""

    size: tuple[int, int]
    """(height, width)"""
    images: int
    sampled: bool
    """Whether these are evenly spaced images rather than all readable ones."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel."""
    deviation: float
    """Of all pixels from the mean of their channel; the codec scales this to sigma_data."""
    plain: float
    """Share of the pixels that have the most frequent value."""


@dataclass(frozen=True)
class Report:
    """What ``check`` found."""

    path: str
    kind: str
    count: int
    sizes: dict[tuple[int, int], int]
    """(width, height) -> images, the most frequent first; upright."""
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    """By area; None if nothing can be read."""
    modes: dict[str, int]
    """PIL's mode as stored -> images."""
    classes: dict[str, int]
    """Name -> images; empty if there are no labels."""
    unreadable: dict[str, str]
    """Name -> reason."""
    channels: int | None
    statistics: Statistics | None
    warnings: tuple[str, ...]
    suggestion: Suggestion | None


class _Look(NamedTuple):
    size: tuple[int, int]
    mode: str
    grey: bool


def check(
    path: str,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    alpha: str = "white",
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    threads: int | None = None,
) -> Report:
    """Decodes every image at ``path`` and says what is there and how to train on it.

    ``size`` (one number or (height, width)), ``channels`` and ``alpha`` are as for ``open_data``;
    left out, they are suggested. ``on_progress`` is called with the images done and all. Raises
    ValueError if there is nothing to check.
    """
    asked = None if size is None else height_and_width(size)
    if holds_latents(path):
        raise ValueError(f"{path} holds latents; check the images they were made from")
    if goes_by_name(path):
        open_data(path, asked or 16, channels)  # refuses what training would refuse
    source = open_source(path)
    sample = evenly_spaced(len(source), SAMPLE)
    total = len(source) + len(sample)
    with ThreadPoolExecutor(threads) as pool:
        every = _in_threads(pool, lambda i: _look(source, i), range(len(source)))
        found = list(_reported(every, 0, total, on_progress))
        looks = [look for look in found if isinstance(look, _Look)]
        unreadable = {e.name: e.reason for e in found if isinstance(e, Unreadable)}
        if not looks:
            return _report(path, source, looks, unreadable, None, None, ())
        coloured = sum(not look.grey for look in looks)
        shorter = int(np.median([min(look.size) for look in looks]))
        chosen, size_reason = suggest_size(shorter, asked)
        pictures = Pictures(source, chosen, channels or (3 if coloured else 1), alpha=alpha)
        images = _in_threads(pool, lambda i: _pixels(pictures, i), sample)
        statistics = _measure(pictures, _reported(images, len(source), total, on_progress))
    suggestion = statistics and suggest(
        path,
        size=chosen,
        size_reason=size_reason,
        count=len(looks),
        channels=pictures.channels,
        coloured=coloured,
        deviation=statistics.deviation,
        plain=statistics.plain,
        settings=_settings(source, pictures, channels),
    )
    warnings = _warnings(source, looks, coloured, chosen)
    return _report(path, source, looks, unreadable, statistics, suggestion or None, warnings)


def _settings(source: Source, pictures: Pictures, channels: int | None) -> dict[str, object]:
    """What training must be told beside the size, as it would find something else by itself."""
    settings: dict[str, object] = {}
    if pictures.alpha != "white":
        plain = pictures.alpha.isalpha()
        settings["data.alpha"] = pictures.alpha if plain else f'"{pictures.alpha}"'  # YAML's #
    if channels or infer_channels(source) != pictures.channels:
        settings["data.channels"] = pictures.channels
    return settings


def _reported(
    items: Iterator[Result], start: int, total: int, on_progress: Callable[[int, int], object]
) -> Iterator[Result]:
    done = start
    for done, item in enumerate(items, start + 1):
        yield item
        if done % CHUNK == 0:
            on_progress(done, total)
    on_progress(done, total)


def _in_threads(
    pool: ThreadPoolExecutor, task: Callable[[int], Result], indices: Sequence[int]
) -> Iterator[Result]:
    """Results in order; at most a chunk of them waits in memory."""
    for start in range(0, len(indices), CHUNK):
        yield from pool.map(task, indices[start : start + CHUNK])


def _look(source: Source, index: int) -> _Look | Unreadable:
    try:
        image = open_image(source, index)
    except Unreadable as error:
        return error
    try:
        if image.mode not in PLAIN_MODES:
            to_mode(image, 3, "white")
    except ValueError as error:
        return Unreadable(source.name(index), str(error))
    return _Look(image.size, image.mode, is_grey(image))


def _pixels(pictures: Pictures, index: int) -> np.ndarray | Unreadable:
    try:
        return pictures.read(index)[0]
    except Unreadable as error:
        return error


def _measure(pictures: Pictures, images: Iterator[np.ndarray | Unreadable]) -> Statistics | None:
    """Exact, from the number of pixels of each value; None if no image can be read."""
    counts = np.zeros((pictures.channels, 256), np.int64)
    readable = 0
    for pixels in images:
        if isinstance(pixels, np.ndarray):
            readable += 1
            for channel, row in zip(pixels, counts, strict=True):
                row += np.bincount(channel.ravel(), minlength=256)
    if not readable:
        return None
    values = np.arange(256) / 127.5 - 1
    shares = counts / counts.sum(axis=1, keepdims=True)  # (C, 256)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    return Statistics(
        size=pictures.size,
        images=readable,
        sampled=len(pictures) > SAMPLE,
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(variance).tolist()),
        deviation=float(np.sqrt(variance.mean())),
        plain=float(shares.max(axis=1).mean()),
    )


def _class_counts(source: Source) -> dict[str, int]:
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    return dict(zip(source.class_names, counts.tolist(), strict=False))


def _warnings(
    source: Source, looks: list[_Look], coloured: int, size: tuple[int, int]
) -> tuple[str, ...]:
    found = []
    if len(looks) < FEW:
        found.append(
            f"{len(looks):,} images are likely to be memorised; from {FEW:,} on that is rarer"
        )
    counts = _class_counts(source)
    empty = [name for name, count in counts.items() if not count]
    if empty:
        found.append(f"{len(empty)} classes have no images: {', '.join(empty[:5])}")
    filled = {name: count for name, count in counts.items() if count}
    if filled and max(filled.values()) > UNBALANCED * min(filled.values()):
        most, least = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
        found.append(
            f"classes are unbalanced: {most} has {filled[most]:,} images, {least} {filled[least]:,}"
        )
    height, width = size
    small = sum(look.size[0] < width or look.size[1] < height for look in looks)
    if small:
        found.append(f"{small:,} images are smaller than {width}x{height} and are enlarged")
    if 0 < coloured < len(looks):
        found.append(f"{len(looks) - coloured:,} images are grey and {coloured:,} in colour")
    return tuple(found)


def _report(
    path: str,
    source: Source,
    looks: list[_Look],
    unreadable: dict[str, str],
    statistics: Statistics | None,
    suggestion: Suggestion | None,
    warnings: tuple[str, ...],
) -> Report:
    sizes = Counter(look.size for look in looks)
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    if unreadable:
        warnings = (*warnings, f"{len(unreadable):,} of {len(source):,} images cannot be read")
    return Report(
        path=path,
        kind=source.kind,
        count=len(source),
        sizes=dict(sizes.most_common()),
        smallest=by_area[0] if by_area else None,
        largest=by_area[-1] if by_area else None,
        modes=dict(Counter(look.mode for look in looks).most_common()),
        classes=_class_counts(source),
        unreadable=unreadable,
        channels=suggestion.channels if suggestion else None,
        statistics=statistics,
        warnings=warnings,
        suggestion=suggestion,
    )
