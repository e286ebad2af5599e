"""One canvas far beyond the training size: what it costs, and whether one sees the windows."""

import time
from typing import Any

import numpy as np

from legodiff.evaluate.seams import seams
from legodiff.pictures import save_png
from legodiff.reproduce.experiment import Experiment
from legodiff.reproduce.pages import table, write_page, write_rows
from legodiff.reproduce.runs import Setting, trained
from legodiff.train.log import peak_memory

HEAD = ("model", "canvas", "minutes", "peak memory", "TFLOPs", "FLOPs a pixel, times plain")


def run(experiment: Experiment, setting: Setting) -> str:
    """Draws it with each model; returns the page."""
    rows: list[dict[str, Any]] = []
    lines, parts = [], []
    height, width = setting.scale.more["canvas"]
    for model in setting.scale.models:
        pipe = trained(model, setting.seeds[0], setting).pipe
        method = setting.method(pipe, setting.scale.guidances[0])
        classes = pipe.stack.spec.classes
        label, began = (0 if classes else None), time.perf_counter()
        show = setting.show(f"drawing {width}x{height} with {model.name}")
        found = pipe.render(
            *(method, [label], [0], (height, width)),
            batch=setting.batch,
            on_progress=lambda done, show=show: show(done, 1),  # type: ignore[misc]
        )
        seconds = time.perf_counter() - began
        plain = pipe.cost(method, pipe.stack.spec.image_size)[1]
        side = pipe.stack.spec.image_size[0] * pipe.codec.factor
        times = found.flops / (plain * height * width / side**2)
        image = np.asarray(found.images[0])[None]
        seam = seams(image, range(side, height, side), range(side, width, side))
        memory = peak_memory(setting.world.device)
        rows.append(
            {
                **{"model": model.name, "height": height, "width": width, "seconds": seconds},
                **{"peak memory": memory, "flops": found.flops, "seam": seam.ratio},
            }
        )
        cells = [f"{seconds / 60:.1f}", f"{memory / 1e9:.2f} GB", f"{found.flops / 1e12:.3g}"]
        lines.append([model.name, f"{width}x{height}", *cells, f"{times:.2f}", f"{seam.ratio:.3f}"])
        save_png(setting.out / f"{model.name}.png", found.images[0])
        parts.append(f"![{model.name}]({model.name}.png)")
    write_rows(setting.out, rows)
    head = (*HEAD, "gradient at window borders, times elsewhere")
    return write_page(setting.out, experiment.title, [table(head, lines), experiment.note, *parts])
