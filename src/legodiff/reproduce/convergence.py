"""Quality while training goes on, over time and over FLOPs: the paper's figure 2."""

import shutil
import time
from pathlib import Path
from typing import Any

from legodiff.pictures import new_figure, save_figure
from legodiff.reproduce.experiment import Experiment, Model
from legodiff.reproduce.pages import Rows, groups, spread, table, write_page, write_rows
from legodiff.reproduce.quality import check_features, judged, metric_names
from legodiff.reproduce.runs import Setting, configuration
from legodiff.train.estimate import training_flops
from legodiff.train.inputs import open_inputs
from legodiff.train.loop import train

STAGES = 5  # each twice as long as the one before


def run(experiment: Experiment, setting: Setting) -> str:
    """Trains each model, judges it on the way, and draws the curves; returns the page."""
    check_features(setting)
    rows: list[dict[str, Any]] = []
    for model in setting.scale.models:
        for seed in setting.seeds:
            for row in _stages(model, seed, setting):
                rows.append(row)
                write_rows(setting.out, rows)
    _figure(setting, rows)
    parts = [_table(rows), experiment.note, "![figure](figure.png)"]
    return write_page(setting.out, experiment.title, parts)


def _stages(model: Model, seed: int, setting: Setting) -> list[dict[str, Any]]:
    """One training, stopped to be judged; its rate is constant, so that it can be."""
    whole = configuration(model, seed, setting)
    folder, rows, seconds = setting.models / "figure2", [], 0.0
    _clear(folder, setting)  # of the model before
    for stage in reversed(range(STAGES)):
        images = whole.train.images // 2**stage
        settings = whole.train.model_copy(update={"images": images, "decay_to": 1.0})
        config = whole.model_copy(update={"train": settings})
        data, codec = open_inputs(config, folder, setting.world)
        show = setting.show(f"training {model.name}, seed {seed}")
        began = time.perf_counter()
        pipe = train(
            config,
            data,
            codec,
            folder,
            world=setting.world,
            resume=True,
            on_log=lambda status, show=show: show(status.images, whole.train.images),  # type: ignore[misc]
            say=lambda _: None,
        )
        seconds += time.perf_counter() - began
        pipe.stack.eval()
        found = judged(pipe, setting.method(pipe, setting.scale.guidances[0]), setting)
        flops = training_flops(pipe.stack.spec, settings) * images
        key = {"model": model.name, "seed": seed, "images": images}
        rows.append({**key, "training seconds": seconds, "training flops": flops, **found})
    _clear(folder, setting)
    return rows


def _clear(folder: Path, setting: Setting) -> None:
    """Removes a run, once all processes are done with it and before any goes on."""
    setting.world.gather(None)
    if setting.world.leads:
        shutil.rmtree(folder, ignore_errors=True)
    setting.world.gather(None)


def _table(rows: Rows) -> str:
    metric = metric_names(rows)[0]
    head = ["model", "images seen", "training, s", "training, TFLOPs", metric]
    lines = [
        [
            *(model, f"{images:,}"),
            spread([row["training seconds"] for row in some]),
            f"{some[0]['training flops'] / 1e12:.3g}",
            spread([row[metric] for row in some]),
        ]
        for (model, images), some in groups(rows, "model", "images").items()
    ]
    return table(head, lines)


def _figure(setting: Setting, rows: Rows) -> None:
    metric = metric_names(rows)[0]
    figure = new_figure(11, 4)
    axes = figure.subplots(1, 2)
    for (model,), own in groups(rows, "model").items():
        found = groups(own, "images").values()
        quality = [sum(row[metric] for row in some) / len(some) for some in found]
        for panel, name, unit in zip(axes, ("seconds", "flops"), (1, 1e12), strict=True):
            cost = [sum(row[f"training {name}"] for row in s) / len(s) / unit for s in found]
            panel.plot(cost, quality, "o-", label=model)
    for panel, name in zip(axes, ("training time, seconds", "training, TFLOPs"), strict=True):
        panel.set(xlabel=name, ylabel=metric, xscale="log", yscale="log")
        panel.grid(alpha=0.3, which="both")
        panel.xaxis.set_minor_formatter("")  # its labels would lie on each other
        panel.legend()
    save_figure(setting.out / "figure.png", figure)
