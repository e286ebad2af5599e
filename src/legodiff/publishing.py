"""Publishing a model: the folder that the Hub is given, and nothing else of what lies about."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from legodiff import __version__, folders, hub, store
from legodiff.card import Facts, model_card
from legodiff.drawing import Samples
from legodiff.pictures import grid, save_figure, save_png, trade_off_figure
from legodiff.pipeline import LegoPipeline
from legodiff.plans import Curve, lines

CARD, SAMPLES, METRICS = "README.md", "samples.png", "metrics.json"
OURS = re.compile(
    r"model\.safetensors|config\.json|plans\.json|README\.md|samples\.png|plans-\d+\.png"
)
"""All that is ever uploaded."""
SHOWN, COLUMNS = 16, 8
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
ABOUT = {"weights": "ema|raw", "images": r"\d{1,18}", "halflife_images": r"[\d.e+]{1,20}"}
"""Metadata of weights that goes along, and its form."""
PLACES = ("path", "init", "vae", "name")
"""Keys under which a configuration names a place: a folder, a file or a Hub id."""
ABSOLUTE = re.compile(r"(?:file:|hf:)?(?:[/\\]|~[\w.-]*[/\\]|[A-Za-z]:[/\\]|\.\.?[/\\])")
INSIDE = re.compile(
    r"(?<![\w./\\~-])(?<!http:)(?<!https:)(?:file://|~[\w.-]*|[A-Za-z]:)?[/\\][^\s,;()'\"]+"
)
"""Paths of this machine: a text that begins as one, and one within a text."""


def push(
    pipe: LegoPipeline,
    hub_id: str,
    private: bool = True,
    commit_message: str | None = None,
    revision: str | None = None,
    license: str | None = None,
    samples: Samples | None = None,
) -> hub.Pushed:
    """Uploads a model with its card; the words are those of ``LegoPipeline.push_to_hub``."""
    repo, branch = hub.branch(hub_id, revision)
    check(None, license)
    pipe.stack.check_saved()
    hub.check_login()
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        write_folder(pipe, folder, repo, license, samples or examples(pipe))
        message = commit_message or f"Upload with legodiff {__version__}"
        return hub.upload(folder, repo, OURS, branch=branch, private=private, message=message)


def examples(
    pipe: LegoPipeline,
    steps: int = 18,
    guidance: float = 1.0,
    on_progress: Callable[[float], None] | None = None,
) -> Samples | None:
    """Images for a card: seeds from 0, the classes in turn; None without the VAE of latents."""
    classes = pipe.stack.spec.classes
    try:
        pipe.codec.prepare()
    except ValueError:
        return None
    return pipe(
        labels=[number % classes for number in range(SHOWN)] if classes else None,
        seeds=range(SHOWN),
        steps=steps,
        guidance=guidance,
        on_progress=on_progress,
    )


def check(folder: Path | None, license: str | None) -> None:
    """Raises ValueError for a folder that holds something, and for what is no name of a licence."""
    if license is not None and not LICENSE.fullmatch(license):
        raise ValueError(
            f"license {license!r}: name it as the Hub does, such as apache-2.0 or cc-by-4.0"
        )
    if folder is not None and folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder; choose another")


def write_folder(
    pipe: LegoPipeline,
    folder: Path,
    hub_id: str,
    license: str | None = None,
    samples: Samples | None = None,
) -> None:
    """Writes what the Hub is given: weights, configuration, plans, pictures and the card.

    Of places on this machine only the last part is kept. What lies beside the model tells of it
    only if its weights are still these. Raises ValueError if the folder holds something.
    """
    check(folder, license)
    store.make_folder(folder)
    config = without_paths(pipe.to_dict())
    own = pipe.fingerprint
    name = folders.fingerprint(config, pipe.stack.state_dict())  # the configuration is another
    curves = [replace(curve, model=name) for curve in pipe.curves if curve.model == own]
    about, metrics = _records(pipe)
    folders.write(folder, pipe.stack, config, curves, about)
    if samples is not None:
        made = {"seeds": samples.seeds, "labels": samples.labels, **samples.method.to_dict()}
        about_picture = {"software": f"legodiff {__version__}", "model": name, **made}
        save_png(folder / SAMPLES, grid(samples.images, COLUMNS), about_picture)
    facts = Facts(
        hub_id,
        config,
        store.sha256(folder / store.WEIGHTS),
        about,
        curves,
        metrics,
        samples,
        SAMPLES,
        _plans_pictures(folder, curves),
        license,
    )
    store.write_atomically(folder / CARD, model_card(facts).encode())


def without_paths(values: Any, key: str = "") -> Any:
    """The same data, but of every path on this machine only the last part. Class names stay."""
    if isinstance(values, Mapping):
        return {
            name: value if name == "class_names" else without_paths(value, name)
            for name, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [without_paths(value, key) for value in values]
    if not isinstance(values, str):
        return values
    on_hub = values.startswith("hf:") or (key != "path" and hub.NAME.fullmatch(values))
    named = key in PLACES and not (on_hub and not os.path.exists(values))
    if named or ABSOLUTE.match(values):
        return _last(values)
    return INSIDE.sub(lambda found: _last(found[0]), values)


def _records(pipe: LegoPipeline) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What lies beside a model: the metadata of its weights, and metrics of these weights."""
    if pipe.folder is None or not (weights := pipe.folder / store.WEIGHTS).is_file():
        return {}, []
    found, names = store.read_weights(weights), pipe.stack.state_dict()
    there = {name: found[name] for name in names if name in found}  # a file has its own order
    if folders.fingerprint(pipe.to_dict(), there) != pipe.fingerprint:
        return {}, []  # others: raw ones, or they changed since
    about = store.read_about(weights)
    kept = {k: about[k] for k, form in ABOUT.items() if re.fullmatch(form, about.get(k, ""))}
    path = pipe.folder / METRICS
    metrics = store.read_json(path) if path.is_file() else []
    if not isinstance(metrics, list) or not all(isinstance(one, dict) for one in metrics):
        raise ValueError(f"{path} holds no metrics; remove it, or run legodiff evaluate again")
    return kept, [
        without_paths(_of_this(one, pipe.fingerprint))
        for one in metrics
        if _models(one) <= {pipe.fingerprint}
    ]


def _models(values: Any) -> set[str]:
    """The fingerprints of models that a record names, anywhere."""
    if not isinstance(values, dict):
        return set()
    own = {values["model"]} if isinstance(values.get("model"), str) else set()
    return own.union(*map(_models, values.values()))


def _of_this(values: Any, model: str) -> Any:
    """A record without the name of the model, which the card is about."""
    if not isinstance(values, dict):
        return values
    return {k: _of_this(v, model) for k, v in values.items() if (k, v) != ("model", model)}


def _plans_pictures(folder: Path, curves: list[Curve]) -> list[str]:
    """Draws each curve; none if there is nothing to draw them with."""
    if find_spec("matplotlib") is None:
        return []
    names = [f"plans-{number}.png" for number in range(1, len(curves) + 1)]
    for name, curve in zip(names, curves, strict=True):
        method = curve.full.method
        title = f"{method.sampler}, {method.steps} steps"
        save_figure(folder / name, trade_off_figure(lines(curve), title))
    return names


def _last(path: str) -> str:
    """The last part of a path, of whichever system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "unnamed"
