"""Parquet files, saved datasets and the Hugging Face Hub, by the package ``datasets``.

Always map-style, in random access: a shuffled stream could not be resumed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from legodiff.data.sources import LIMIT, Source, cache_folder, labels_from_values

IMAGE_NAMES, LABEL_NAMES = ("image", "img"), ("label", "labels")
SPLITS = ("train", "test", "validation", "valid", "val", "dev")
SAVED = ("state.json", "dataset_dict.json")
"""Files that tell a folder made by ``save_to_disk``."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Fetches from a column of a dataset."""

    rows: Any
    column: str

    def __call__(self, index: int) -> bytes | Image.Image:
        value = self.rows[index][self.column]
        if isinstance(value, dict):
            value = value.get("bytes") or Path(value.get("path") or "").read_bytes()
        if not isinstance(value, bytes):
            raise ValueError("the row holds no image")
        if len(value) > LIMIT:
            raise ValueError(f"larger than {LIMIT:,} bytes")
        return value


def open_parquet(paths: Sequence[str], place: str) -> Source:
    """Parquet files; if some are called train*, only these. Raises ValueError."""
    train = [path for path in paths if Path(path).name.startswith("train")]
    with _package(place) as datasets:
        rows = datasets.Dataset.from_parquet(
            train or list(paths), cache_dir=str(cache_folder() / "parquet")
        )
    return _source("parquet", place, rows)


def open_saved(folder: Path) -> Source:
    """A folder made by ``save_to_disk``, of one split or with a split "train"."""
    with _package(str(folder)) as datasets:
        rows = datasets.load_from_disk(str(folder))
    return _source("saved dataset", str(folder), _one_split(rows, str(folder)))


def open_hub(path: str) -> Source:
    """``hf:NAME`` or ``hf:NAME/SPLIT``; the split is "train" if none is named."""
    parts = path.removeprefix("hf:").strip("/").split("/")
    split = parts.pop() if len(parts) > 1 and (len(parts) == 3 or parts[-1] in SPLITS) else None
    if not parts[0] or len(parts) > 2:
        raise ValueError(f"{path}: write hf:NAME, hf:OWNER/NAME or hf:OWNER/NAME/SPLIT")
    with _package(path) as datasets:
        rows = datasets.load_dataset("/".join(parts), split=split)
    return _source("Hugging Face dataset", path, _one_split(rows, path))


@contextmanager
def _package(place: str) -> Iterator[Any]:
    """The package, silent; whatever it raises becomes one line."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{place} is read with a package that is not installed; "
            "run: pip install 'legodiff[data]'"
        ) from error
    loud = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    except Exception as error:  # pyarrow's, the Hub's, and its own
        lines = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(f"{place} cannot be opened: {lines[0]}") from error
    finally:
        if loud:
            datasets.enable_progress_bars()


def _one_split(rows: Any, place: str) -> Any:
    if not isinstance(rows, dict):
        return rows
    if "train" not in rows and len(rows) != 1:
        raise ValueError(f"{place} has the splits {', '.join(rows)}; add one: {place}/SPLIT")
    return rows["train"] if "train" in rows else next(iter(rows.values()))


def _source(kind: str, place: str, rows: Any) -> Source:
    import datasets

    image = _column(rows.features, _holds_images, IMAGE_NAMES)
    if image is None or not len(rows):
        columns = ", ".join(rows.features)
        raise ValueError(f"{place} has {len(rows)} rows and no column of images among: {columns}")
    label = _column(rows.features, lambda f: isinstance(f, datasets.ClassLabel), LABEL_NAMES)
    labels, class_names = _labels(rows, label, place)
    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    fetch = Rows(rows.select_columns([image]), image)
    return Source(kind, place, (), labels, class_names, fetch)


def _column(features: Any, fits: Any, names: Sequence[str]) -> str | None:
    """The column of the right type, first among those of a usual name; else by name alone."""
    ordered = sorted(features, key=lambda name: name not in names)
    by_type = [name for name in ordered if fits(features[name])]
    by_name = [name for name in ordered if name in names]
    return next(iter(by_type + by_name), None)


def _holds_images(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature
    binary = ("binary", "large_binary")
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in binary


def _labels(rows: Any, label: str | None, place: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if label is None:
        return np.zeros(len(rows), np.int64), ()
    values = rows.with_format(None)[label][:]
    names = getattr(rows.features[label], "names", None)
    if not all(isinstance(value, int | str | None) for value in values):
        raise ValueError(
            f"{place}: column {label} holds {values[0]!r}; labels are numbers or names"
        )
    if set(values) <= {None, -1}:  # as test splits hide them
        return np.zeros(len(rows), np.int64), ()
    labels, found = labels_from_values(values, place)
    return labels, tuple(names or found)
