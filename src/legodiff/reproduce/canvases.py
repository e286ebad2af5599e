"""Canvases beside images of the data set, crop by crop: the paper's table 7."""

from typing import Any

import torch
from torch import Tensor

from legodiff.codec import to_pil
from legodiff.data.images import evenly_spaced
from legodiff.evaluate.crops import compare
from legodiff.evaluate.images import open_images, pixels
from legodiff.evaluate.lpips import Perceptual, gradients, open_lpips
from legodiff.pictures import save_png, table_of_images
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Drawing, Experiment, Scale
from legodiff.reproduce.pages import Rows, groups, table, write_page, write_rows
from legodiff.reproduce.runs import Setting, trained

WAYS: dict[str, dict[str, Any]] = {"stride 7, as the paper": {"stride": 7}, "shifted": {}}


def run(experiment: Experiment, setting: Setting) -> str:
    """Draws canvases with each model and each way of windows; returns the page."""
    scale, rows, drawn = setting.scale, [], []
    perceptual = distance(setting)
    for model in scale.models:
        for seed in setting.seeds:
            pipe = trained(model, seed, setting).pipe
            for way, words in WAYS.items():
                canvases = _draw(pipe, setting, words, f"{model.name}, {way}")
                for row in _compare(perceptual, canvases, setting):
                    key = {"model": model.name, "windows": way, "seed": seed}
                    rows.append(key | row)
                write_rows(setting.out, rows)
                if seed == setting.seeds[0]:
                    drawn.append((f"{model.name}, {way}", canvases[:2]))
    pictures = [(name, [to_pil(canvas[None])[0] for canvas in some]) for name, some in drawn]
    save_png(setting.out / "drawn.png", table_of_images(pictures, ["", ""], "The same seeds"))
    parts = [_table(experiment, rows), experiment.note, "![drawn](drawn.png)"]
    return write_page(setting.out, experiment.title, parts)


def drawings(scale: Scale, pipe: LegoPipeline) -> list[Drawing]:
    """The canvases, in each way of windows."""
    canvas = pipe.stack.spec.canvas(scale.more["canvas"], scale.factor)
    method = scale.method(len(pipe.stack.bricks), scale.guidances[0])
    return [
        Drawing(scale.more["canvases"], method, canvas, pipe.windows(canvas, **words))
        for words in WAYS.values()
    ]


def distance(setting: Setting) -> Perceptual:
    """LPIPS at the paper's scale; at the small one a plain distance that needs no weights."""
    if setting.scale.more["perceptual"] == "lpips":
        return open_lpips().to(setting.world.device)
    return gradients()


def _draw(pipe: LegoPipeline, setting: Setting, words: dict[str, Any], what: str) -> list[Tensor]:
    scale, classes = setting.scale, max(1, pipe.stack.spec.classes)
    size, count = scale.more["canvas"], scale.more["canvases"]
    windows = pipe.windows(pipe.canvas(size), **words)
    show = setting.show(f"drawing {what}")
    labels = [number % classes if scale.labelled else None for number in range(count)]
    method = setting.method(pipe, scale.guidances[0])
    found = pipe.render(
        method,
        labels,
        range(count),
        size,
        4,
        on_progress=lambda done: show(done, count),
        windows=windows,
    )
    return [torch.from_numpy(pixels(image).copy()) for image in found.images]


def _compare(
    perceptual: Perceptual, canvases: list[Tensor], setting: Setting
) -> list[dict[str, Any]]:
    """A row for each cell of the table."""
    more, rows = setting.scale.more, []
    for side in more["sides"]:
        real = open_images(setting.scale.reference or setting.scale.data, (side, side), 3)
        chosen = evenly_spaced(real.count, more["real"])
        for cell in compare(perceptual, canvases, real.read(chosen)):
            values = {"mean": cell.spread.mean, "std": cell.spread.std}
            rows.append({"cell": cell.name, "crops": cell.crops, **values})
    return rows


def _table(experiment: Experiment, rows: Rows) -> str:
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    head = ["model", "windows", *cells, "the paper"]
    lines = []
    for (model, way), some in groups(rows, "model", "windows").items():
        line = [model, way]
        for cell in cells:
            own = [row for row in some if row["cell"] == cell]
            mean, std = (sum(row[what] for row in own) / len(own) for what in ("mean", "std"))
            line.append(f"{mean:.3f} ± {std:.3f}")
        lines.append([*line, experiment.known(model) if way.endswith("paper") else ""])
    return table(head, lines)
