"""Quality while training goes on, over time and over FLOPs: the paper's figure 2."""

import json
from dataclasses import asdict, replace
from typing import Any

from legodiff.config import RunConfig
from legodiff.pictures import new_figure, save_figure
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Drawing, Experiment, Model, Scale
from legodiff.reproduce.pages import Rows, groups, spread, table, write_page, write_rows
from legodiff.reproduce.quality import check_features, judged, metric_names
from legodiff.reproduce.runs import Setting, configuration, place, train_on, training_seconds
from legodiff.store import write_atomically
from legodiff.train.estimate import training_flops

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


def drawings(scale: Scale, pipe: LegoPipeline) -> list[Drawing]:
    """The images of each stage."""
    method = scale.method(len(pipe.stack.bricks), scale.guidances[0])
    return [Drawing(STAGES * scale.samples, method)]


def _stages(model: Model, seed: int, setting: Setting) -> list[dict[str, Any]]:
    """One training, stopped to be judged; its rate is constant, so that it can be.

    What was found is kept beside the run, which also is named by how it is judged: afterwards the
    models of earlier stages are gone.
    """
    whole = _until(1, configuration(model, seed, setting))
    judging = asdict(replace(setting.scale, models=()))
    run = place(model, seed, whole, setting, judging, STAGES)
    kept = run / "stages.json"
    rows: list[dict[str, Any]] = setting.world.share(
        json.loads(kept.read_text()) if kept.is_file() else []
    )
    for stage in reversed(range(STAGES - len(rows))):
        config = _until(2**stage, whole)
        images, what = config.train.images, f"training {model.name}, seed {seed}"
        pipe = train_on(config, run, setting, what, whole.train.images)
        seconds = training_seconds(run)
        pipe.stack.eval()
        found = judged(pipe, setting.method(pipe, setting.scale.guidances[0]), setting)
        flops = training_flops(pipe.stack.spec, config.train) * images
        key = {"model": model.name, "seed": seed, "images": images}
        rows.append({**key, "training seconds": seconds, "training flops": flops, **found})
        if setting.world.leads:
            write_atomically(kept, json.dumps(rows).encode())
    return rows


def _until(part: int, whole: RunConfig) -> RunConfig:
    """The configuration of the first of so many parts of a training at a constant rate."""
    images = whole.train.images // part
    settings = whole.train.model_copy(update={"images": images, "decay_to": 1.0})
    return whole.model_copy(update={"train": settings})


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
