"""Run folders: beginning one, and going on with one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from legodiff import store
from legodiff.codec import Codec
from legodiff.config import FREE, RunConfig, TrainConfig
from legodiff.data import ImageData
from legodiff.model.spec import ForeignSpec
from legodiff.model.stack import LegoStack
from legodiff.noise import ddpm_sigmas
from legodiff.pipeline import LegoPipeline
from legodiff.sampling import Sampling
from legodiff.train.checkpoint import list_checkpoints, load_checkpoint, read_state
from legodiff.train.distributed import World
from legodiff.train.finetune import adopt
from legodiff.train.learner import Learner


def pipeline_of(
    network: LegoStack, config: RunConfig, data: ImageData, codec: Codec
) -> LegoPipeline:
    """The pipeline that draws with a network in training."""
    spec = network.spec
    sampling = Sampling()
    if spec.objective == "ddpm":
        table = ddpm_sigmas()
        sampling = Sampling(sigma_min=float(table[0]), sigma_max=float(table[-1]))
    return LegoPipeline(
        network,
        codec,
        class_names=data.class_names,
        sampling=sampling,
        label_dropout=config.train.label_dropout if spec.classes else 0.0,
        run=config.model_dump(mode="json") | {"dataset_images": len(data)},
    )


def begin(
    network: LegoStack,
    data: ImageData,
    run: Path,
    settings: TrainConfig,
    say: Callable[[str], None],
) -> None:
    """Gives a run that has no checkpoint yet the weights it is to begin with.

    Raises ValueError if they do not fit, or if labels would be dropped before a brick that was
    never trained without class.
    """
    first = network.spec.bricks[0]
    named = isinstance(first, ForeignSpec) and first.classes and not first.no_class
    if named and settings.label_dropout:
        raise ValueError(
            f"train.label_dropout is {settings.label_dropout:g} and {first} was not trained "
            "without class; add --set train.label_dropout=0"
        )
    if settings.init is not None and not list_checkpoints(run):
        say(str(adopt(network, data.class_names, Path(settings.init))))


def finished(run: Path, images: int) -> bool:
    """Whether the newest checkpoint of a run has seen so many images, or more."""
    checkpoints = list_checkpoints(run)
    return bool(checkpoints) and read_state(checkpoints[-1])["images"] >= images


def weights_written(run: Path) -> int:
    """Images seen by the weights in a run folder; 0 if there are none."""
    path = run / store.WEIGHTS
    return int(store.read_about(path).get("images", 0)) if path.exists() else 0


def open_run(
    run: Path,
    pipeline: LegoPipeline,
    learner: Learner,
    world: World,
    resume: bool,
    say: Callable[[str], None],
) -> int:
    """Starts a run folder or goes on with one; returns the images seen.

    A run that was broken off before its first checkpoint is begun anew. Raises ValueError, and
    leaves everything as it is, if the folder holds another run or something else.
    """
    new = {"format": store.FORMAT} | pipeline.to_dict()
    old = store.read_config(run) if (run / store.CONFIG).exists() else new
    checkpoints = list_checkpoints(run)
    if checkpoints and not resume:
        raise ValueError(
            f"{run} already holds a run; choose another folder, or go on with --resume auto"
        )
    if not checkpoints and (run / store.WEIGHTS).exists():
        raise ValueError(f"{run} holds a model and no checkpoint to go on from; choose another")
    allowed = {f"run.{name}" for name in FREE}
    different = _differences(old, new)
    if checkpoints and (wrong := [name for name in different if name not in allowed]):
        raise ValueError(f"{run} was begun with another {', '.join(wrong)}")
    if not checkpoints:
        if world.leads:
            store.write_config(run, pipeline.to_dict())
        return 0
    if different:
        say(f"going on with another {', '.join(name.removeprefix('run.') for name in different)}")
    state = load_checkpoint(checkpoints[-1], learner)
    epoch = state["images"] / (pipeline.run or {})["dataset_images"]
    say(f"resumed {run} after {state['images']:,} images, in epoch {int(epoch)}")
    return int(state["images"])


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted names of the values in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            name
            for key in sorted(old.keys() | new.keys())
            for name in _differences(old.get(key), new.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if old == new else [path]
