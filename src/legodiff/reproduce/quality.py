"""Trains models and judges what they draw: the paper's tables 1 to 4, figures 10 and 11."""

import json
from collections.abc import Mapping
from typing import Any

from PIL import Image

from legodiff.evaluate.evaluation import evaluate
from legodiff.evaluate.features import DIGITS, POOLED, FeatureNetwork, open_features
from legodiff.evaluate.images import drawn_images
from legodiff.model.cost import brick_parameters, subset_flops
from legodiff.pictures import new_figure, save_figure, save_png, table_of_images
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Drawing, Experiment, Model, Scale
from legodiff.reproduce.pages import Rows, groups, spread, table, write_page, write_rows
from legodiff.reproduce.runs import Setting, Trained, trained
from legodiff.sampling import Method
from legodiff.store import write_atomically
from legodiff.train.estimate import training_flops

SHOWN = 10  # images of each model in the picture


def run(experiment: Experiment, setting: Setting) -> str:
    """All models of an experiment, judged; returns the page."""
    check_features(setting)
    rows: list[dict[str, Any]] = []
    drawn: list[tuple[str, list[Image.Image | None]]] = []
    for model in setting.scale.models:
        for seed in setting.seeds:
            made = trained(model, seed, setting)
            for guidance in setting.scale.guidances:
                method = setting.method(made.pipe, guidance)
                rows.append({**about(model, seed, made), **judged(made.pipe, method, setting)})
                write_rows(setting.out, rows)
                if seed == setting.seeds[0] and guidance == setting.scale.guidances[-1]:
                    drawn.append((model.name, list(_shown(made.pipe, method, setting))))
    title = "The same seeds, drawn by each model"
    save_png(setting.out / "drawn.png", table_of_images(drawn, [""] * SHOWN, title))
    parts = [_table(experiment, rows), experiment.note, "![drawn](drawn.png)"]
    if any(row["x"] is not None for row in rows):
        _figure(experiment, setting, rows)
        parts.append("![figure](figure.png)")
    return write_page(setting.out, experiment.title, parts)


def drawings(scale: Scale, pipe: LegoPipeline) -> list[Drawing]:
    """The images of each guidance."""
    bricks = len(pipe.stack.bricks)
    return [Drawing(scale.samples, scale.method(bricks, g)) for g in scale.guidances]


def about(model: Model, seed: int, made: Trained) -> dict[str, Any]:
    """What a model is, and what it cost."""
    spec = made.pipe.stack.spec
    return {
        "model": model.name,
        "line": model.line,
        "x": model.x,
        "seed": seed,
        "parameters": sum(brick_parameters(spec)),
        "flops": subset_flops(spec, tuple(range(len(spec.bricks))), spec.image_size),
        "training seconds": made.seconds,
        "training flops": training_flops(spec, made.config.train),
        "images seen": made.config.train.images,
    }


def judged(pipe: LegoPipeline, method: Method, setting: Setting) -> dict[str, Any]:
    """The metrics of what a model draws by a method, by their names without their tails.

    What was judged before is found again; a path of data stands for what it holds.
    """
    scale, kept = setting.scale, setting.metrics_file(pipe, method)
    known = setting.world.share(json.loads(kept.read_text()) if kept.is_file() else None)
    if known is None:
        labels = setting.labels(pipe)
        images = drawn_images(pipe, method, scale.samples, labels, setting.batch)
        found = evaluate(
            images,
            scale.reference or scale.data,
            network(setting, images.size),
            setting.world,
            setting.batch,
            setting.out / "metrics",
            "train",
            setting.show,
        )
        values = {metric.name: metric.value for metric in found.metrics}
        known = {"guidance": method.guidance, "drawn flops": images.about["flops"], **values}
        write_atomically(kept, json.dumps(known).encode())
    return dict(known)


def network(setting: Setting, size: tuple[int, int]) -> FeatureNetwork:
    """What images are compared in the features of."""
    return open_features(setting.scale.features, None, setting.world.device, size)


def check_features(setting: Setting) -> None:
    """Raises ValueError, rather now than after training, if weights of the features are missing."""
    if setting.scale.features not in (DIGITS, POOLED):
        network(setting, (1, 1))


def metric_names(rows: Rows) -> list[str]:
    """The metrics of rows: what has a bracket with a reference, or is a score."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name.endswith(")") or name.startswith("IS-")]


def _shown(pipe: LegoPipeline, method: Method, setting: Setting) -> list[Image.Image]:
    labels = setting.labels(pipe)
    chosen = [labels[number % len(labels)] for number in range(SHOWN)]
    return pipe.render(method, chosen, range(SHOWN)).images


def _table(experiment: Experiment, rows: Rows) -> str:
    names = metric_names(rows)
    guided = len({row["guidance"] for row in rows}) > 1
    printed = ["the paper"] if experiment.printed else []
    head = ["model", *(["guidance"] if guided else []), "parameters", "GFLOPs", *names]
    head += ["training, s", "training, TFLOPs", *printed]
    lines = []
    for (model, guidance), some in groups(rows, "model", "guidance").items():
        first: Mapping[str, Any] = some[0]
        line = [model, *([f"{guidance:g}"] if guided else [])]
        line += [f"{first['parameters'] / 1e6:.3g} M", f"{first['flops'] / 1e9:.3g}"]
        line += [spread([row[name] for row in some]) for name in names]
        line.append(f"{sum(row['training seconds'] for row in some) / len(some):.0f}")
        line.append(f"{first['training flops'] * first['images seen'] / 1e12:.3g}")
        lines.append([*line, *([experiment.known(model)] if printed else [])])
    models = {row["model"] for row in rows}
    for printed_names, text in experiment.printed.items():
        if not models & {*printed_names.split(", ")}:
            lines.append([printed_names, *[""] * (len(head) - 2), text])
    return table(head, lines)


def _figure(experiment: Experiment, setting: Setting, rows: Rows) -> None:
    """The first metric, and the seconds of training, over the axis of the figure."""
    metric, axis = metric_names(rows)[0], setting.scale.more.get("axis", "")
    lines = list(dict.fromkeys(row["line"] for row in rows))
    figure = new_figure(6 * len(lines), 4)
    for axes, line in zip(figure.subplots(1, len(lines), squeeze=False)[0], lines, strict=True):
        some = groups([row for row in rows if row["line"] == line], "x", "model")
        points = {x: group for (x, _), group in some.items()}
        joined = "" if isinstance(next(iter(points)), str) else "-"  # kinds have none between them
        left = [[row[metric] for row in group] for group in points.values()]
        right = [[row["training seconds"] for row in group] for group in points.values()]
        other = axes.twinx()
        for place, values, colour in ((axes, left, "C0"), (other, right, "C1")):
            means = [sum(some) / len(some) for some in values]
            low = [mean - min(some) for mean, some in zip(means, values, strict=True)]
            high = [max(some) - mean for mean, some in zip(means, values, strict=True)]
            place.errorbar(
                list(points), means, [low, high], fmt=f"o{joined}", color=colour, capsize=3
            )
            place.set_ylim(0, 1.15 * max(max(some) for some in values))
        axes.set(xlabel=axis, title=line or experiment.title)
        axes.set_ylabel(metric, color="C0")
        other.set_ylabel("training, seconds", color="C1")
    save_figure(setting.out / "figure.png", figure)
