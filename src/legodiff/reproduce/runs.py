"""The models of an experiment: trained once, and found again by what they are."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from legodiff.config import RunConfig, load_config
from legodiff.evaluate.extract import Show
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Model, Scale
from legodiff.sampling import Method
from legodiff.train.distributed import World
from legodiff.train.inputs import open_inputs
from legodiff.train.log import read_log
from legodiff.train.loop import train
from legodiff.train.runs import finished, weights_written

SLOWEST = 0.05  # images a second; a log rounds what is less to 0


@dataclass(frozen=True)
class Setting:
    """Where and how an experiment is run."""

    scale: Scale
    models: Path
    """Folder of trained models, shared by experiments."""
    out: Path
    """Folder of what comes of this one."""
    seeds: tuple[int, ...]
    world: World
    show: Callable[[str], Show]
    images: int | None = None
    """Images that each model sees, instead of what its recipe says."""
    batch: int = 100
    """Images drawn at a time."""

    def method(self, pipe: LegoPipeline, guidance: float = 1.0) -> Method:
        """How a model draws with all of its bricks."""
        return self.scale.method(len(pipe.stack.bricks), guidance)

    def labels(self, pipe: LegoPipeline) -> list[int | None]:
        """The classes drawn, in turn."""
        classes = pipe.stack.spec.classes
        return list(range(classes)) if classes and self.scale.labelled else [None]

    def metrics_file(self, pipe: LegoPipeline, method: Method) -> Path:
        """What keeps the metrics of a model's images: named by all that decides them."""
        scale = self.scale
        how = (scale.data, scale.reference, scale.features, scale.samples, self.labels(pipe))
        return self.out / "judged" / f"{_digest([pipe.fingerprint, asdict(method), how])}.json"


@dataclass(frozen=True)
class Trained:
    """A model that has been trained."""

    run: Path
    pipe: LegoPipeline = field(repr=False)
    config: RunConfig
    seconds: float
    """Of its steps, those of what it is based on not counted."""


def configuration(model: Model, seed: int, setting: Setting) -> RunConfig:
    """The whole configuration of a model; what it is based on is trained first."""
    changes = [*model.changes, f"train.seed={seed}"]
    if setting.images is not None:
        changes.append(f"train.images={setting.images}")
    for other, key in ((model.base, "model.base"), (model.after, "train.init")):
        if other is not None:
            run = trained(_named(setting.scale, other), seed, setting).run
            changes.append(f"{key}={json.dumps(str(run))}")
    return load_config(model.recipe, changes, {"data.path": setting.scale.data})


def trained(model: Model, seed: int, setting: Setting) -> Trained:
    """A model, trained now or found; a training that was broken off goes on."""
    config = configuration(model, seed, setting)
    run = place(model, seed, config, setting)
    if setting.world.share(weights_written(run)) < config.train.images:
        train_on(config, run, setting, f"training {model.name}, seed {seed}", config.train.images)
    pipe = LegoPipeline.from_pretrained(run, setting.world.device)
    return Trained(run, pipe, config, training_seconds(run))


def train_on(config: RunConfig, run: Path, setting: Setting, what: str, whole: int) -> LegoPipeline:
    """Trains to the end of a configuration, from where the run is.

    Progress is told of ``what``, as a part of ``whole`` images. Raises KeyboardInterrupt if the
    run was asked to stop before its end: half a model is not judged.
    """
    data, codec = open_inputs(config, run, setting.world)
    show = setting.show(what)
    pipe = train(
        config,
        data,
        codec,
        run,
        world=setting.world,
        resume=True,
        on_log=lambda status: show(status.images, whole),
        say=lambda _: None,
    )
    if not setting.world.share(finished(run, config.train.images)):
        raise KeyboardInterrupt
    return pipe


def training_seconds(run: Path) -> float:
    """How long the steps of a run took, those of all calls together."""
    lines = read_log(run / "log.jsonl")
    seen: list[int] = [0, *(line["images"] for line in lines)]
    rates = [max(float(line["images_per_second"]), SLOWEST) for line in lines]
    both = zip(pairwise(seen), rates, strict=True)
    return sum((after - before) / rate for (before, after), rate in both)


def place(model: Model, seed: int, config: RunConfig, setting: Setting, *more: Any) -> Path:
    """Where a model is trained: a name that tells what it is, and a hash of what decides it.

    That is its whole configuration, and ``more``.
    """
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    text = text.replace(str(setting.models), "")
    digest = _digest([text, *more] if more else text)
    name = re.sub(r"[^a-z0-9]+", "-", model.name.lower()).strip("-")
    return setting.models / f"{name}-{seed}-{digest}"


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def _named(scale: Scale, name: str) -> Model:
    return next(model for model in scale.models if model.name == name)
