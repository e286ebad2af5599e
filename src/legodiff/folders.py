"""A pipeline's folder: writing it, reading and checking it, and the hash that names a model."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from legodiff import store
from legodiff.codec import Codec, LatentCodec, codec_from_dict
from legodiff.hub import Origin
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack
from legodiff.plans import Curve, read_curves, write_curves
from legodiff.sampling import Sampling

KEYS = ("format", "stack", "codec", "class_names", "sampling", "label_dropout", "run", "origin")


def describe(
    spec: StackSpec,
    codec: Codec,
    class_names: Sequence[str],
    sampling: Sampling,
    label_dropout: float,
    run: Mapping[str, Any] | None,
    origin: Origin | None,
) -> dict[str, Any]:
    """Everything but the weights, as JSON has it; the origin only if there is one."""
    values = {
        "stack": spec.to_dict(),
        "codec": codec.to_dict(),
        "class_names": list(class_names),
        "sampling": asdict(sampling),
        "label_dropout": label_dropout,
        "run": run,
        **({"origin": asdict(origin)} if origin else {}),
    }
    return dict(json.loads(json.dumps(values)))  # tuples to lists, as they will be read


def write(
    folder: Path,
    stack: LegoStack,
    config: Mapping[str, Any],
    curves: Sequence[Curve],
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes weights, configuration and plans; ``about`` goes into the metadata of the weights.

    Raises ValueError if a brick is a function, which no file can hold.
    """
    stack.check_saved()
    store.write_weights(folder / store.WEIGHTS, stack.state_dict(), about)
    store.write_config(folder, config)
    if curves:
        write_curves(folder, curves)


def read(
    folder_or_hub_id: str | os.PathLike[str],
    weights: str = "ema",
    revision: str | None = None,
    vae: str | os.PathLike[str] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Where a model lies, and what it is made of: the arguments of ``LegoPipeline``.

    The arguments are those of ``LegoPipeline.from_pretrained``. Raises ValueError, in one line, if
    there is none, if it is another VAE, or if the files do not fit together.
    """
    file = store.weights_file(weights)
    path, snapshot = store.find(folder_or_hub_id, revision, (store.CONFIG, file))
    config = store.read_config(path)
    where = path / store.CONFIG
    if unknown := config.keys() - set(KEYS):
        raise ValueError(f"{where}: unknown key {min(unknown)!r}")
    names = config.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: class_names must be a list of texts")
    dropout = config.get("label_dropout", 0.0)
    if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise ValueError(f"{where}: label_dropout must be a number from 0 to 1")
    codec = codec_from_dict(config["codec"]) if "codec" in config else None
    origin = store.build(Origin, "origin", config["origin"]) if config.get("origin") else None
    if snapshot is not None:
        origin = Origin(snapshot.repo, snapshot.commit, store.sha256(path / file))
    parts = {
        "stack": LegoStack.from_pretrained(path, weights),
        "codec": codec,
        "class_names": names,
        "sampling": store.build(Sampling, "sampling", config.get("sampling", {})),
        "label_dropout": dropout,
        "run": config.get("run"),
        "curves": read_curves(path),
        "origin": origin,
    }
    if vae is not None:
        if not isinstance(codec, LatentCodec):
            raise ValueError(f"{folder_or_hub_id} is a model of pixels; leave out the VAE {vae}")
        codec.attach(vae)
    return path, parts


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """A short hash of a configuration and of the first weights of every tensor.

    Where a model was downloaded does not change it.
    """
    named = {key: value for key, value in config.items() if key != "origin"}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    for tensor in tensors.values():
        digest.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
