"""All metrics of a set of images against a reference, each with a name that says what it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from legodiff.evaluate.extract import Extracted
from legodiff.evaluate.features import FeatureNetwork
from legodiff.evaluate.frechet import distance, frechet_distance
from legodiff.evaluate.inception_score import inception_score
from legodiff.evaluate.kernel import kernel_distance
from legodiff.evaluate.neighbours import K, Manifold, manifold, precision_recall
from legodiff.evaluate.reference import Reference
from legodiff.store import write_atomically
from legodiff.train.distributed import World

ENOUGH = 10_000  # images below which a Fréchet distance says more of their number than of them
SCORED = 5000  # images in a part of the Inception Score, as ADM takes it
NEEDED = {"kernel distance": 2, "precision and recall": K + 1}  # images on each side


@dataclass(frozen=True)
class Metric:
    """A number, and what it is of."""

    name: str
    """Such as "FID-50k(train)": metric, features, number of images, reference."""
    value: float
    spread: float | None
    """Standard deviation over the parts or subsets it is the mean of, where it is one."""
    better: str
    """"lower" or "higher"."""


def measure(
    drawn: Extracted,
    reference: Reference,
    network: FeatureNetwork,
    around: Manifold | None,
    world: World,
    seed: int = 0,
) -> list[Metric]:
    """Every metric that features and reference allow, and for which there are enough of them.

    ``around`` is the manifold of the reference's features, if it has any; ``world`` shares the
    distances; ``seed`` draws the subsets of the kernel distance. Raises ValueError if the features
    are of another kind than the reference's.
    """
    if drawn.pool.mean.shape != reference.pool.mean.shape:
        raise ValueError(
            f"the reference has {len(reference.pool.mean)} features and {network.name} gives "
            f"{len(drawn.pool.mean)}; they are of different networks"
        )
    tail = f"{thousands(len(drawn.features))}({reference.name})"
    value = distance(drawn.pool, reference.pool)
    found = [Metric(f"{_name('FID', network)}-{tail}", value, None, "lower")]
    if drawn.spatial is not None and reference.spatial is not None:
        value = distance(drawn.spatial, reference.spatial)
        found.append(Metric(f"{_name('sFID', network)}-{tail}", value, None, "lower"))
    if drawn.logits is not None:
        score = inception_score(drawn.logits, parts=max(1, len(drawn.logits) // SCORED))
        name = f"{_name('IS', network)}-{thousands(len(drawn.features))}"
        found.append(Metric(name, score.mean, score.std, "higher"))
    if around is not None and _enough("kernel distance", drawn, reference):
        kernel = kernel_distance(drawn.features, around.features, seed=seed)
        found.append(Metric(f"{_name('KID', network)}-{tail}", *kernel, "lower"))
    if around is not None and _enough("precision and recall", drawn, reference):
        generated = manifold(drawn.features, world)
        shares = precision_recall(real=around, generated=generated, world=world)
        for what, share in zip(("precision", "recall"), shares, strict=True):
            found.append(Metric(f"{_name(what, network)}-{tail}", share, None, "higher"))
    return found


def _sides(drawn: Extracted, reference: Reference) -> tuple[int, int]:
    """How many features there are, of drawn images and of real ones."""
    return len(drawn.features), 0 if reference.features is None else len(reference.features)


def _enough(what: str, drawn: Extracted, reference: Reference) -> bool:
    return min(_sides(drawn, reference)) >= NEEDED[what]


def floor(features: Tensor, count: int, seed: int = 0) -> tuple[float, int]:
    """The Fréchet distance of real images from other real ones: about here one cannot tell.

    Of ``count`` of the reference's ``features`` (M, D) from all others, or of half of them where
    there are fewer than twice as many. Returns it, and how many it is of.
    """
    count = min(count, len(features) // 2)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    return frechet_distance(features[order[:count]], features[order[count:]]), count


def warnings(
    drawn: Extracted, reference: Reference, metrics: Sequence[Metric] = (), seed: int = 0
) -> list[str]:
    """What a reader must know before they believe the numbers."""
    count, width = drawn.features.shape
    found = []
    if count < ENOUGH:
        text = f"{count:,} images: Fréchet distances are biased upwards below {ENOUGH:,}"
        if reference.features is None or len(reference.features) < 4:
            text += "; the reference holds no images to say by how much"
        else:
            value, of = floor(reference.features, count, seed)
            rest = len(reference.features) - of
            text += f"; that of {of:,} real images from {rest:,} other real ones is {value:.4g}"
        found.append(text)
    if count <= width:
        found.append(f"{count:,} images do not span {width:,} features: the covariance lacks rank")
    for what, least in NEEDED.items():
        if not _enough(what, drawn, reference):
            here, real = _sides(drawn, reference)
            found.append(
                f"no {what}: that takes {least} images on each side, and there are {here:,} and, "
                f"in the reference, {real:,}"
            )
    lost = [metric for metric in metrics if not isfinite(metric.value)]
    return found + [f"{metric.name} is {metric.value}, which is written as null" for metric in lost]


def add_records(path: Path, metrics: Sequence[Metric], protocol: Mapping[str, Any]) -> None:
    """Writes metrics to a JSON file, a list, each with the whole protocol it was measured by.

    What is in the file stays, but for earlier results of the same. A number that is not finite
    becomes null. Raises ValueError if the file is something else.
    """
    known: Any = []
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            known = None
        if not isinstance(known, list) or not all(isinstance(one, dict) for one in known):
            raise ValueError(f"{path} holds something else than metrics; choose another --out")
    new = [json.loads(json.dumps({**_record(one), **protocol})) for one in metrics]

    def key(record: Mapping[str, Any]) -> list[Any]:
        return [record.get(what) for what in ("name", *protocol)]

    keys = [key(record) for record in new]
    kept = [record for record in known if key(record) not in keys]
    text = json.dumps([*kept, *new], indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text.encode() + b"\n")


def _record(metric: Metric) -> dict[str, Any]:
    """As JSON data."""
    values = asdict(metric)
    for name in ("value", "spread"):
        if values[name] is not None and not isfinite(values[name]):
            values[name] = None
    return values


def thousands(count: int) -> str:
    """50000 as "50k", 297 as "297"."""
    return f"{count / 1000:g}k" if count >= 1000 else str(count)


def _name(metric: str, network: FeatureNetwork) -> str:
    """ "FID" of FID's own network; elsewhere the metric's general name and the network's."""
    general = {"FID": "FD", "sFID": "sFD", "KID": "KD"}
    return metric if network.standard else f"{general.get(metric, metric)}-{network.name}"
