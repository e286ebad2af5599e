"""Is it learnt by heart? The nearest training image of every drawn one (or other real image)."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from legodiff.codec import to_pil
from legodiff.evaluate.images import Images
from legodiff.evaluate.neighbours import Manifold, Nearest, nearest
from legodiff.pictures import new_figure, save_figure, save_png, table_of_images
from legodiff.store import write_atomically
from legodiff.train.distributed import World

SHOWN = 12  # pairs in the picture, from the nearest to the middle


class Memorised(NamedTuple):
    """How near drawn images are to real ones, in the features of a network."""

    nearest: Nearest
    """Of each drawn image."""
    real: Tensor
    """float32 (M,): distance of each real image to the nearest other one."""

    @property
    def ratio(self) -> float:
        """Median distance of the drawn over that of the real; far below 1: learnt by heart."""
        return float(self.nearest.distance.median() / self.real.median())


def memorised(drawn: Tensor, real: Manifold, world: World) -> Memorised:
    """Of features (N, D) of drawn images, and those of real ones, two or more; all of them."""
    return Memorised(nearest(drawn, real.features, world), real.apart)


def write_memorised(
    folder: Path, found: Memorised, drawn: Images, real: Images, name: str, features: str
) -> None:
    """Writes ``nearest.png``, pairs; ``distances.png``, a histogram; ``nearest.csv``, all.

    ``name`` is that of the real images, and ``features`` what distances are taken in.
    """
    distance, number = found.nearest.distance, found.nearest.number
    order = distance.argsort()
    ranks = torch.linspace(0, (len(order) - 1) / 2, SHOWN).round().long().tolist()
    shown = [int(order[rank]) for rank in dict.fromkeys(ranks)]
    rows = [
        ("drawn", to_pil(drawn.read(shown).cpu())),
        (f"nearest of {name}", to_pil(real.read([int(number[s]) for s in shown]))),
    ]
    columns = [f"{float(distance[position]):.2f}" for position in shown]
    title = f"From the nearest to the median of {drawn.count:,}: distance in {features} features"
    save_png(folder / "nearest.png", table_of_images(rows, columns, title))

    figure = new_figure(7, 4)
    axes = figure.subplots()
    both = {f"drawn to {name}": distance, f"{name} to each other": found.real}
    top = float(torch.cat(list(both.values())).quantile(0.995))
    for name, values in both.items():
        axes.hist(values.numpy(), bins=50, range=(0, top), density=True, alpha=0.55, label=name)
    axes.set(xlabel=f"distance to the nearest, in {features} features", ylabel="density")
    axes.legend(loc="upper right")  # looking for the best place takes long
    save_figure(folder / "distances.png", figure)

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("drawn", "nearest", "distance"))
    writer.writerows(
        (position, int(number[position]), f"{float(distance[position]):.6g}")
        for position in range(len(distance))
    )
    write_atomically(folder / "nearest.csv", text.getvalue().encode())
