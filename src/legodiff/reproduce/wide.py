"""One canvas far beyond the training size: what it costs, and whether one sees the windows."""

import time
from typing import Any

import numpy as np
import torch
from PIL import Image

from legodiff.evaluate.seams import seams
from legodiff.pictures import save_png
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Drawing, Experiment, Scale
from legodiff.reproduce.pages import table, write_page, write_rows
from legodiff.reproduce.runs import Setting, trained
from legodiff.sampling import Method
from legodiff.train.log import peak_memory

HEAD = ("model", "canvas", "minutes", "TFLOPs", "FLOPs a pixel, times plain")
SEAM = "gradient at borders of the last windows, times elsewhere"
MEMORY = "peak memory"


def run(experiment: Experiment, setting: Setting) -> str:
    """Draws it with each model; returns the page.

    Memory is told on a GPU alone: elsewhere the most that the process has held is that of training.
    """
    rows: list[dict[str, Any]] = []
    lines, parts = [], []
    height, width = setting.scale.more["canvas"]
    device = setting.world.device
    for model in setting.scale.models:
        pipe = trained(model, setting.seeds[0], setting).pipe
        method = setting.method(pipe, setting.scale.guidances[0])
        classes = pipe.stack.spec.classes
        show = setting.show(f"drawing {width}x{height} with {model.name}")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        label, began = (0 if classes else None), time.perf_counter()
        found = pipe.render(
            *(method, [label], [0], (height, width)),
            batch=setting.batch,
            on_progress=lambda done, show=show: show(done, 1),  # type: ignore[misc]
        )
        seconds = time.perf_counter() - began
        plain = pipe.cost(method, pipe.stack.spec.image_size)[1]
        side = pipe.stack.spec.image_size[0] * pipe.codec.factor
        times = found.flops / (plain * height * width / side**2)
        seam = seam_of_windows(found.images[0], pipe, method)
        row = {"model": model.name, "height": height, "width": width, "seconds": seconds}
        cells = [f"{seconds / 60:.1f}", f"{found.flops / 1e12:.3g}", f"{times:.2f}", f"{seam:.3f}"]
        if device.type == "cuda":
            row[MEMORY] = peak_memory(device)
            cells.append(f"{row[MEMORY] / 1e9:.2f} GB")
        rows.append({**row, "flops": found.flops, "seam": seam})
        lines.append([model.name, f"{width}x{height}", *cells])
        save_png(setting.out / f"{model.name}.png", found.images[0])
        parts.append(f"![{model.name}]({model.name}.png)")
    write_rows(setting.out, rows)
    head = (*HEAD, SEAM, *([MEMORY] if device.type == "cuda" else []))
    return write_page(setting.out, experiment.title, [table(head, lines), experiment.note, *parts])


def drawings(scale: Scale, pipe: LegoPipeline) -> list[Drawing]:
    """One canvas."""
    method = scale.method(len(pipe.stack.bricks), scale.guidances[0])
    return [Drawing(1, method, pipe.stack.spec.canvas(scale.more["canvas"], scale.factor))]


def seam_of_windows(image: Image.Image, pipe: LegoPipeline, method: Method) -> float:
    """The gradient across the borders of the last windows of a canvas, over that elsewhere.

    Windows shift from one noise level to the next, and the last estimate is the image.
    """
    rows, columns = last_borders(pipe, method, (image.height, image.width))
    return seams(np.asarray(image)[None], rows, columns).ratio


def last_borders(
    pipe: LegoPipeline, method: Method, size: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Rows and columns of pixels, inside of a canvas, at which windows begin in the last call."""
    canvas = pipe.canvas(size)
    windows = pipe.windows(canvas)
    if windows is None:
        return [], []
    levels = method.levels(pipe.sampling)
    turn = sorted(set(levels), reverse=True).index(levels[-1])
    places = windows.places(windows.drawn(canvas), turn)
    factor = pipe.codec.factor
    rows, columns = (
        sorted({at[axis] * factor for at in places if 0 < at[axis] < canvas[axis]})
        for axis in (0, 1)
    )
    return rows, columns
