"""What images are compared with: statistics of real ones, in files of ours and of others.

=====================================  =========================================================
``mu, sigma``                          EDM's and pytorch-fid's: FID
``mu, sigma, mu_s, sigma_s``           ADM's: also sFID; with ``arr_0``, its images: all metrics
the same and ``features, about``       ours, ``legodiff evaluate stats``: all metrics
``arr_0``                              images alone
=====================================  =========================================================
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from legodiff import store
from legodiff.arrays import npz_names, read_npz
from legodiff.evaluate.extract import Extracted
from legodiff.evaluate.features import FeatureNetwork
from legodiff.evaluate.frechet import Gaussian
from legodiff.evaluate.images import Images, open_images

STATISTICS = ("mu", "sigma", "mu_s", "sigma_s", "features", "about")
KEPT = 10_000  # features that a file of statistics keeps by default: as many as ADM's for ImageNet


@dataclass(frozen=True)
class Reference:
    """Real images, as features."""

    name: str
    """In brackets behind a metric, such as "train"."""
    pool: Gaussian
    spatial: Gaussian | None
    features: Tensor | None
    """float32 (M, D), of all of them or of some; None where only statistics are known."""
    about: dict[str, Any]
    """What they are of, as JSON."""
    images: Images | None = None
    """All of them, where they are at hand: their features are in the same order."""


def open_reference(
    path: str,
    like: Images,
    network: FeatureNetwork,
    extracted: Callable[[Images], Extracted],
    name: str | None = None,
) -> Reference:
    """Statistics in an NPZ; or data, cropped and scaled to the size and channels of ``like``.

    ``extracted`` gives features of images; ``name`` is that of the reference, by default what it
    is called on the disk. Raises ValueError, in one line, for anything else.
    """
    file = Path(path)
    names = npz_names(file) if file.suffix == ".npz" and file.is_file() else []
    if "mu" in names:
        statistics = read_statistics(file, network)
        if "arr_0" not in names or statistics.features is not None:
            return statistics
        images = open_images(path)
        if images.size != like.size:
            raise ValueError(f"{path} has images of {images.size}, and they are {like.size}")
        return replace(statistics, features=extracted(images).features, images=images)
    images = open_images(path, like.size, like.channels)
    if names and images.size != like.size:
        raise ValueError(f"{path} has images of {images.size}, and they are {like.size}")
    found = extracted(images)
    called = name or _called(path)
    about = {"name": called, **images.about}
    return Reference(called, found.pool, found.spatial, found.features, about, images)


def _called(path: str) -> str:
    kind, _, part = path.partition(":")
    return (part or "train") if kind == "digits" else Path(path).stem


def write_statistics(
    path: Path, found: Extracted, network: FeatureNetwork, about: dict[str, Any], keep: int = KEPT
) -> None:
    """Writes an NPZ that ``read_statistics`` reads, and ADM's and pytorch-fid's tools as well.

    ``keep`` is how many features go along, evenly spaced over the images: for the kernel
    distance, precision and recall, and the nearest image.
    """
    count = len(found.features)
    chosen = torch.linspace(0, count - 1, min(keep, count)).round().long()
    values = {
        "mu": found.pool.mean.numpy(),
        "sigma": found.pool.covariance.numpy(),
        "features": found.features[chosen].numpy(),
    }
    if found.spatial is not None:
        values |= {
            "mu_s": found.spatial.mean.numpy(),
            "sigma_s": found.spatial.covariance.numpy(),
        }
    text = json.dumps({**about, "features": network.about})
    values["about"] = np.frombuffer(text.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **values)  # type: ignore[arg-type]
    store.write_atomically(path, buffer.getvalue())


def read_statistics(path: Path, network: FeatureNetwork) -> Reference:
    """The reference in a file of statistics: ours, ADM's, EDM's or pytorch-fid's.

    Raises ValueError, in one line, if it is of other features, or damaged.
    """
    arrays = read_npz(path, STATISTICS)
    about = _about(path, arrays)
    known = about.pop("features", None)
    if known is None and not network.standard:
        raise ValueError(f"{path} is of FID's Inception ({about['kind']}), not of {network.name}")
    if known is not None and known["sha256"] != network.sha256:
        raise ValueError(
            f"{path} is of {known['name']} ({known['sha256'][:12]}), not of {network.name} "
            f"({network.sha256[:12]})"
        )
    features = arrays.get("features")
    return Reference(
        about.get("name", path.stem),
        _gaussian(path, arrays, ""),
        _gaussian(path, arrays, "_s") if "mu_s" in arrays else None,
        torch.from_numpy(features).float() if features is not None and len(features) else None,
        about,
    )


def _about(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if "about" not in arrays:
        adm = "mu_s" in arrays
        kind = "ADM's statistics" if adm else "statistics as of EDM and pytorch-fid"
        return {"kind": kind, "path": path.name}
    try:
        about = json.loads(arrays["about"].tobytes())
        if isinstance(about["features"]["name"], str) and isinstance(
            about["features"]["sha256"], str
        ):
            return dict(about)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{path}: what it says of itself cannot be read; make it again")


def _gaussian(path: Path, arrays: dict[str, np.ndarray], suffix: str) -> Gaussian:
    try:
        mean, covariance = arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"]
    except KeyError as error:
        raise ValueError(f"{path} holds no {error.args[0]} beside the others") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path}: mu{suffix} {mean.shape} and sigma{suffix} {covariance.shape} do not fit"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path}: mu{suffix} or sigma{suffix} is not finite")
    return Gaussian(torch.from_numpy(mean).double(), torch.from_numpy(covariance).double())
