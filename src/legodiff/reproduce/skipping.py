"""Leaves out the top brick in more and more of the steps: the paper's figures 4, 7, 8 and 9."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from legodiff.diffusion.skipping import SkipPlan
from legodiff.evaluate.bench import Candidate, alternate
from legodiff.model.stack import LegoStack
from legodiff.pictures import new_figure, save_figure
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Drawing, Experiment, Scale
from legodiff.reproduce.pages import Rows, groups, spread, table, write_page, write_rows
from legodiff.reproduce.quality import check_features, judged, metric_names
from legodiff.reproduce.runs import Setting, trained
from legodiff.sampling import Method

ROUNDS = 9  # in which both are timed
SIDES = {"low noise": SkipPlan.skip_low_noise, "high noise": SkipPlan.skip_high_noise}
"""Where the top brick is left out: PG's rule, and PR's. Both are tried on each."""


def run(experiment: Experiment, setting: Setting) -> str:
    """Quality and time over the share of steps without the top brick; returns the page."""
    check_features(setting)
    rows: list[dict[str, Any]] = []
    for model in setting.scale.models:
        for seed in setting.seeds:
            pipe = trained(model, seed, setting).pipe
            time = milliseconds(pipe, setting.batch)
            for side, share, method in _methods(setting.scale, pipe):
                key = {"model": model.name, "side": side, "share": share, "seed": seed}
                cost = {"milliseconds": time(method)}
                rows.append(key | judged(pipe, method, setting) | cost)
                write_rows(setting.out, rows)
    _figure(setting, rows)
    parts = [_table(rows), experiment.note, "![figure](figure.png)"]
    return write_page(setting.out, experiment.title, parts)


def drawings(scale: Scale, pipe: LegoPipeline) -> list[Drawing]:
    """The images of each plan; what is the same on both sides is drawn once."""
    plans = {method.plan: method for _, _, method in _methods(scale, pipe)}
    return [Drawing(scale.samples, method) for method in plans.values()]


def _methods(scale: Scale, pipe: LegoPipeline) -> Iterator[tuple[str, float, Method]]:
    """Each side, each share of the steps, and how is drawn then."""
    full = scale.method(len(pipe.stack.bricks), scale.guidances[0])
    sigmas = pipe.sampling.sigmas(full.steps, full.sampler)
    for side, rule in SIDES.items():
        for share in scale.more["shares"]:
            plan = rule(len(pipe.stack.bricks), share, sigmas)
            yield side, share, replace(full, plan=plan)


def milliseconds(pipe: LegoPipeline, batch: int) -> Callable[[Method], float]:
    """What tells how long an image takes by a method with or without the top brick.

    Both sets of bricks are measured in turn, as a machine is now fast, now slow.
    """
    spec, device = pipe.stack.spec, pipe.device
    noisy = torch.zeros(batch, spec.channels, *spec.image_size, device=device)
    sigma, every = torch.ones(batch, device=device), tuple(range(len(spec.bricks)))
    sets = (every, every[:-1])
    candidates = [
        Candidate("", partial(_evaluate, pipe.stack, noisy, sigma, bricks), batch, 0, 0)
        for bricks in sets
    ]
    times = alternate(candidates, ROUNDS, device=device)
    one = {bricks: median(found) for bricks, found in zip(sets, times, strict=True)}
    return lambda method: sum(
        method.evaluations(level) * one[method.plan.bricks(level)]
        for level in method.levels(pipe.sampling)
    )


@torch.no_grad()
def _evaluate(stack: LegoStack, noisy: Tensor, sigma: Tensor, bricks: tuple[int, ...]) -> None:
    stack(noisy, sigma, bricks=bricks)


def _table(rows: Rows) -> str:
    metric = metric_names(rows)[0]
    head = ["model", "skipped at", "share of steps", metric, "ms an image", "GFLOPs an image"]
    lines = [
        [
            *(model, side, f"{share:.3g}"),
            spread([row[metric] for row in some]),
            spread([row["milliseconds"] for row in some]),
            f"{some[0]['drawn flops'] / 1e9:.3g}",
        ]
        for (model, side, share), some in groups(rows, "model", "side", "share").items()
    ]
    return table(head, lines)


def _figure(setting: Setting, rows: Rows) -> None:
    """A row of panels for each model, as the paper draws them: quality, and time."""
    metric = metric_names(rows)[0]
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = new_figure(11, 3.6 * len(models))
    panels = figure.subplots(len(models), 2, squeeze=False)
    for model, (left, right) in zip(models, panels, strict=True):
        for side in SIDES:
            own = [row for row in rows if (row["model"], row["side"]) == (model, side)]
            found = groups(own, "share")
            shares = [share for (share,) in found]
            for axes, name in ((left, metric), (right, "milliseconds")):
                means = [sum(row[name] for row in some) / len(some) for some in found.values()]
                axes.plot(shares, means, "o-", label=side)
        for axes, name in ((left, metric), (right, "milliseconds an image")):
            axes.set(xlabel="share of the steps without the top brick", ylabel=name, title=model)
            axes.grid(alpha=0.3)
            axes.legend(title="skipped at")
            axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    save_figure(setting.out / "figure.png", figure)
