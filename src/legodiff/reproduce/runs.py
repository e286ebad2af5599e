"""The models of an experiment: trained once, and found again by what they are."""

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from legodiff.config import RunConfig, load_config
from legodiff.diffusion.skipping import SkipPlan
from legodiff.evaluate.extract import Show
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Model, Scale
from legodiff.sampling import Method
from legodiff.store import write_atomically
from legodiff.train.checkpoint import list_checkpoints
from legodiff.train.distributed import World
from legodiff.train.inputs import open_inputs
from legodiff.train.loop import train

TOLD = "reproduce.json"  # in a run: how long it took


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
        scale = self.scale
        return Method(
            plan=SkipPlan.full(len(pipe.stack.bricks)),
            steps=scale.steps,
            sampler=scale.sampler,
            options=dict(scale.options),
            guidance=guidance,
        )

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
    """Of training, that of what it is based on not counted."""


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
    run = setting.models / _folder(model, seed, config, setting.models)
    told = run / TOLD
    if not told.is_file():
        data, codec = open_inputs(config, run, setting.world)
        show, began = setting.show(f"training {model.name}, seed {seed}"), time.perf_counter()
        train(
            config,
            data,
            codec,
            run,
            world=setting.world,
            resume=bool(list_checkpoints(run)),
            on_log=lambda status: show(status.images, config.train.images),
            say=lambda _: None,
        )
        if setting.world.leads:
            seconds = time.perf_counter() - began
            write_atomically(told, json.dumps({"seconds": seconds}).encode())
        setting.world.gather(None)
    pipe = LegoPipeline.from_pretrained(run, setting.world.device)
    return Trained(run, pipe, config, float(json.loads(told.read_text())["seconds"]))


def _folder(model: Model, seed: int, config: RunConfig, models: Path) -> str:
    """A name that tells what it is, and a hash of the whole configuration."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    digest = _digest(text.replace(str(models), ""))
    name = re.sub(r"[^a-z0-9]+", "-", model.name.lower()).strip("-")
    return f"{name}-{seed}-{digest}"


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def _named(scale: Scale, name: str) -> Model:
    return next(model for model in scale.models if model.name == name)
