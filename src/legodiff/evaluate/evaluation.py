"""One evaluation from beginning to end: images, a reference, a network, and what comes of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legodiff import __version__
from legodiff.evaluate.extract import Extracted, Show, extract
from legodiff.evaluate.features import FeatureNetwork
from legodiff.evaluate.images import Images
from legodiff.evaluate.measure import Metric, add_records, measure, thousands, warnings
from legodiff.evaluate.memorised import memorised, write_memorised
from legodiff.evaluate.neighbours import manifold
from legodiff.evaluate.reference import open_reference, write_statistics
from legodiff.train.distributed import World


@dataclass(frozen=True)
class Evaluation:
    """What was measured, by what protocol, and what must be known of it."""

    metrics: list[Metric]
    notes: list[str]
    protocol: dict[str, Any]


def evaluate(
    drawn: Images,
    reference: str,
    network: FeatureNetwork,
    world: World,
    batch: int,
    out: Path,
    name: str | None = None,
    show: Callable[[str], Show] = lambda _: lambda done, total: None,
) -> Evaluation:
    """Measures images against a reference; writes metrics.json and pictures into a folder.

    Args:
        drawn: what is measured.
        reference: data, or an NPZ of statistics; ``name`` is what the metrics call it.
        network: what images are compared in the features of.
        world: the processes that share the work; the first one writes.
        batch: images at a time.
        out: the folder; what is in its metrics.json stays.
        show: gives a function to tell the progress of a stage to.

    Raises ValueError, in one line, for what does not fit together.
    """

    def extracted(images: Images) -> Extracted:
        return extract(images, network, world, batch, show("real images"))

    real = open_reference(reference, drawn, network, extracted, name)
    found = extract(drawn, network, world, batch, show("images"))
    around = None if real.features is None else manifold(real.features, world)
    metrics = measure(found, real, network, around, world)
    near = None
    if real.images is not None and around is not None and len(around.features) > 1:
        near = memorised(found.features, around, world)
        tail = f"{network.name}-{thousands(drawn.count)}({real.name})"
        metrics.append(Metric(f"nearest-{tail}", near.ratio, None, "higher"))
    protocol = {
        "images": {**drawn.about, "count": drawn.count},
        "reference": real.about,
        "features": network.about,
        "software": f"legodiff {__version__}",
    }
    if world.leads:
        if near is not None and real.images is not None:
            write_memorised(out, near, drawn, real.images, real.name, network.name)
        add_records(out / "metrics.json", metrics, protocol)
    return Evaluation(metrics, warnings(found, real, metrics), protocol)


def write_reference(
    images: Images,
    network: FeatureNetwork,
    world: World,
    batch: int,
    out: Path,
    name: str,
    keep: int,
    show: Show,
) -> None:
    """Writes an NPZ of statistics of real images, with ``keep`` of their features."""
    found = extract(images, network, world, batch, show)
    if world.leads:
        write_statistics(out, found, network, {"name": name, **images.about}, keep)
