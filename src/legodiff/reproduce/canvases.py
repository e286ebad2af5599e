"""Canvases beside images of the data set, crop by crop: the paper's table 7."""

from typing import Any

import torch
from torch import Tensor

from legodiff.data import open_data
from legodiff.evaluate.crops import canvas_distances, grid_crops, random_crops
from legodiff.evaluate.images import pixels
from legodiff.evaluate.lpips import Perceptual, gradients, open_lpips
from legodiff.pictures import save_png, table_of_images
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Experiment
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
    pictures = [(name, [to_image(canvas) for canvas in some]) for name, some in drawn]
    save_png(setting.out / "drawn.png", table_of_images(pictures, ["", ""], "The same seeds"))
    parts = [_table(experiment, rows), experiment.note, "![drawn](drawn.png)"]
    return write_page(setting.out, experiment.title, parts)


def distance(setting: Setting) -> Perceptual:
    """LPIPS where its weights are; at the small scale otherwise a plain one, by its own name."""
    if setting.scale.more["perceptual"] == "lpips":
        return open_lpips().to(setting.world.device)
    return gradients()


def to_image(canvas: Tensor) -> Any:
    """uint8 (C, H, W) as a PIL image."""
    from legodiff.codec import to_pil

    return to_pil(canvas[None])[0]


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
    """A row for each way and size of crops."""
    rows, more = [], setting.scale.more
    for side in more["sides"]:
        data = open_data(setting.scale.reference or setting.scale.data, side, 3)
        real = torch.stack([torch.from_numpy(data.read(index)[0]) for index in range(more["real"])])
        each = min(len(grid_crops(canvas, (side, side))) for canvas in canvases)
        for way in ("grid", "random"):
            crops = torch.cat(
                [
                    grid_crops(canvas, (side, side))
                    if way == "grid"
                    else random_crops(canvas, (side, side), each, seed)
                    for seed, canvas in enumerate(canvases)
                ]
            )
            nearest, mean = canvas_distances(perceptual, crops, real).spreads()
            rows.append(
                {
                    "distance": perceptual.name,
                    "crops": f"{way} {side}",
                    "count": len(crops),
                    "nearest": nearest.mean,
                    "nearest std": nearest.std,
                    "mean": mean.mean,
                    "mean std": mean.std,
                }
            )
    return rows


def _table(experiment: Experiment, rows: Rows) -> str:
    kinds = list(dict.fromkeys(row["crops"] for row in rows))
    head = [rows[0]["distance"], "windows", "to", *kinds, "the paper"]
    lines = []
    for (model, way), some in groups(rows, "model", "windows").items():
        for to in ("nearest", "mean"):
            cells = []
            for kind in kinds:
                own = [row for row in some if row["crops"] == kind]
                means = sum(row[to] for row in own) / len(own)
                stds = sum(row[f"{to} std"] for row in own) / len(own)
                cells.append(f"{means:.3f} ± {stds:.3f}")
            known = experiment.known(model) if to == "nearest" else ""
            lines.append([model, way, to, *cells, known if way.endswith("paper") else ""])
    return table(head, lines)
