"""A model card, written from what is recorded with a model. What is not recorded is not claimed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from legodiff import __version__
from legodiff.drawing import Samples
from legodiff.hub import Origin
from legodiff.model.cost import brick_flops, brick_parameters, shared_flops
from legodiff.model.spec import BrickSpec, StackSpec
from legodiff.plans import Curve, table

NAMED = 20  # classes whose names are listed, at most
LONGEST = 300  # characters of a value
TAGS = ("legodiff", "diffusion", "image-generation")
DATA = {
    "path": "data",
    "flip": "half of the images mirrored",
    "alpha": "behind transparent pixels",
}
"""Keys of a run's ``data``, in words; so are those of ``train``."""
TRAINING = {
    "batch": "images a step",
    "learning_rate": "learning rate",
    "warmup_images": "warm-up, in images",
    "decay_to": "share of the learning rate left at the end",
    "weight_decay": "weight decay",
    "ema_halflife_images": "half-life of the average, in images",
    "ema_rampup": "... and at most this share of the images seen",
    "label_dropout": "images shown without their label",
    "patch_ratio": "share of the patches trained on",
    "fill": "in place of other patches",
    "brick_dropout": "steps that leave a brick out",
    "sigma_mean": "mean of ln(sigma)",
    "sigma_std": "deviation of ln(sigma)",
    "precision": "precision",
    "seed": "seed",
    "init": "began with the weights of",
    "bricks": "bricks that learnt",
}


@dataclass(frozen=True)
class Facts:
    """All that a card is written from."""

    hub_id: str
    config: Mapping[str, Any]
    """As in ``config.json``."""
    sha256: str
    """Of ``model.safetensors``."""
    about: Mapping[str, str]
    """Its metadata: "images" seen, "weights": "ema" or "raw"."""
    curves: Sequence[Curve] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    """As in ``metrics.json``."""
    samples: Samples | None = None
    samples_picture: str = ""
    plans_pictures: Sequence[str] = ()
    """One for each curve, or none."""
    license: str | None = None


def model_card(facts: Facts) -> str:
    """The card as Markdown, with the front matter that the Hub reads."""
    spec = StackSpec.from_dict(facts.config["stack"])
    parts = [
        _front(facts.license),
        _what(facts, spec),
        _use(facts, spec),
        _bricks(spec),
        _data(facts.config, spec),
        _training(facts),
        *([_plans(facts)] if facts.curves else []),
        _metrics(facts.metrics),
        _files(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _front(license: str | None) -> str:
    lines = ["library_name: legodiff", "pipeline_tag: unconditional-image-generation", "tags:"]
    lines += [f"- {tag}" for tag in TAGS]
    return "\n".join(["---", *([f"license: {license}"] if license else []), *lines, "---"])


def _what(facts: Facts, spec: StackSpec) -> str:
    count = len(spec.bricks)
    kinds = "one brick" if count == 1 else f"{count} bricks, any of which can be skipped"
    text = (
        f"# {facts.hub_id}\n\nA diffusion model made of LEGO bricks: {kinds}. It draws images of "
        f"{_size(facts.config, spec)}, {_classes(spec)}."
    )
    if facts.samples is not None:
        text += f"\n\n![Samples]({facts.samples_picture})\n\n*{_caption(facts)}*"
    return text


def _caption(facts: Facts) -> str:
    samples = facts.samples
    assert samples is not None
    method, names = samples.method, facts.config["class_names"]
    text = f"Drawn with these weights for this card: seeds {_span(samples.seeds)}"
    if set(samples.labels) != {None}:
        labels = ["none" if k is None else names[k] if names else str(k) for k in samples.labels]
        text += f"; classes, row by row: {', '.join(map(_text, labels))}"
    return (
        f"{text}; {method.sampler}, {method.steps} steps, guidance {method.guidance:g}: "
        f"{samples.nfe} evaluations and {samples.flops / 1e9:.3g} GFLOPs an image."
    )


def _use(facts: Facts, spec: StackSpec) -> str:
    given = "labels=[0], seeds=[0]" if spec.classes else "seeds=[0]"
    text = f"""## Use
```python
from legodiff import LegoPipeline

pipe = LegoPipeline.from_pretrained("{facts.hub_id}", revision="main")
pipe({given}).images[0].save("image.png")
```

```sh
legodiff sample {facts.hub_id}@main --seeds 0-15 --out samples
```

`main` may change: put the hash of a commit in its place, and what is drawn stays the same."""
    vae = _get(facts.config, "codec", "vae")
    if isinstance(vae, Mapping):
        named = f"{_text(vae['name'])}, sha256 `{vae['sha256']}`" if vae.get("sha256") else ""
        text += (
            f"\n\nPixels need the VAE that made the latents: {named or 'it is not recorded'}; "
            "`vae=` and `--vae` say where it lies."
        )
    return text


def _bricks(spec: StackSpec) -> str:
    flops, parameters, shared = brick_flops(spec), brick_parameters(spec), shared_flops(spec)
    rows = []
    for number, brick in enumerate(spec.bricks):
        size = "image" if brick.size == "image" else f"{brick.size}x{brick.size}"
        kind = [size, "", f"a {brick}"]
        if isinstance(brick, BrickSpec):
            kind = [size, f"{brick.local}x{brick.local}", str(brick.depth)]
        cost = [f"{parameters[number] / 1e6:.3f} M", f"{flops[number] / 1e9:.4g}"]
        rows.append([str(number), *kind, *cost])
    rows.append(["shared", "", "", "", f"{parameters[-1] / 1e6:.3f} M", f"{shared / 1e9:.4g}"])
    total = [f"{sum(parameters) / 1e6:.3f} M", f"{(sum(flops) + shared) / 1e9:.4g}"]
    rows.append(["all", "", "", "", *total])
    headings = ["brick", "patch", "token", "blocks", "parameters", "GFLOPs"]
    return (
        f"## Bricks\n{_markdown(headings, rows)}\n\nFrom the bottom to the top; width "
        f"{spec.width}, {spec.objective}. FLOPs = 2 x multiply-accumulates, one image, one "
        "evaluation, counted."
    )


def _data(config: Mapping[str, Any], spec: StackSpec) -> str:
    rows = _rows(_get(config, "run", "data"), DATA)
    rows += _rows(config.get("run"), {"dataset_images": "images"})
    rows += [["size", _size(config, spec)], ["classes", str(spec.classes)]]
    if names := config.get("class_names"):
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        rows.append(["their names", ", ".join(map(_text, names[:NAMED])) + more])
    codec = config.get("codec") or {}
    rows += _rows(codec, {"mean": "mean taken off", "scale": "scale after that"})
    text = f"## Data\n{_markdown(['', ''], rows)}"
    return text if config.get("run") else f"{text}\n\nWhat it was trained on is not recorded."


def _training(facts: Facts) -> str:
    settings = _get(facts.config, "run", "train")
    rows = []
    if seen := facts.about.get("images"):
        rows.append(["images seen", seen])
    rows += _rows(settings, {"images": "images planned"})
    kinds = {"ema": "their average over training", "raw": "as they were last"}
    if kind := kinds.get(facts.about.get("weights", "")):
        rows.append(["weights", kind])
    rows += _rows(settings, TRAINING)
    if not rows:
        return "## Training\nHow it was trained is not recorded."
    text = f"## Training\n{_markdown(['', ''], rows)}"
    return text if seen else f"{text}\n\nHow many images were seen is not recorded."


def _plans(facts: Facts) -> str:
    parts = [
        "## Any budget\nThe least error that `legodiff plan` found at every cost: the root of the "
        "mean squared difference from the full method's images of the same seeds, in deviations "
        "of the data. `--budget 0.5` takes the best within half of the FLOPs."
    ]
    for number, curve in enumerate(facts.curves):
        method = curve.full.method
        parts.append(
            f"**{method.sampler}, {method.steps} steps, guidance {method.guidance:g}**: "
            f"{curve.full.flops / 1e9:.3g} GFLOPs an image. Measured on {curve.images} images that "
            f"the model drew; milliseconds on {_text(curve.machine)}."
        )
        if facts.plans_pictures:
            parts.append(f"![Error over cost]({facts.plans_pictures[number]})")
        parts.append(_markdown(*table(curve)))
    return "\n\n".join(parts)


def _metrics(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return "## Metrics\nNothing was measured: no metrics of these weights lay beside them."
    rows, protocols = [], dict[str, list[str]]()
    for record in metrics:
        name = _text(record.get("name"))
        rows.append([name, *(_plain(record.get(key), 5) for key in ("value", "spread", "better"))])
        rest = {k: v for k, v in record.items() if k not in ("name", "value", "spread", "better")}
        protocols.setdefault(_protocol(rest), []).append(name)
    text = f"## Metrics\n{_markdown(['metric', 'value', 'spread', 'better'], rows)}"
    for protocol, names in protocols.items():
        text += f"\n\n{', '.join(names)}: {protocol or 'the protocol is not recorded'}."
    return text


def _files(facts: Facts) -> str:
    text = f"## Files\nsha256 of `model.safetensors`: `{facts.sha256}`."
    if origin := facts.config.get("origin"):
        text += f" The weights were downloaded from {Origin(**origin)}."
    licence = "" if facts.license else " No licence was given."
    return (
        f"{text}{licence} This card was written by legodiff {__version__} from what is recorded "
        "with the model; nothing else is known of it."
    )


def _size(config: Mapping[str, Any], spec: StackSpec) -> str:
    factor = _get(config, "codec", "vae", "downsampling") or 1
    height, width = (side * factor for side in spec.image_size)
    inside = "x".join(map(str, (*spec.image_size, spec.channels)))
    if factor > 1:
        return f"{height}x{width} pixels, as latents of {inside}"
    return f"{height}x{width} pixels, {spec.channels} channel{'s' * (spec.channels > 1)}"


def _classes(spec: StackSpec) -> str:
    return f"of {spec.classes} classes" if spec.classes else "without classes"


def _span(numbers: Sequence[int]) -> str:
    if len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _get(values: Any, *path: str) -> Any:
    """What lies under the keys; None if anything on the way is missing."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _rows(values: Any, names: Mapping[str, str]) -> list[list[str]]:
    """The values that are there, by what they are called in words."""
    found = [(word, _get(values, key)) for key, word in names.items()]
    return [[word, _plain(value)] for word, value in found if value not in (None, "", [])]


def _plain(value: Any, digits: int = 7) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return (
        f"{value:.{digits}g}" if isinstance(value, float) else _text("" if value is None else value)
    )


def _protocol(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{_text(key)}: {_flat(value)}" for key, value in values.items())


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ((key, _flat(one)) for key, one in value.items())
        return ", ".join(f"{_text(key)} {text}" for key, text in inner)
    return _text(value if isinstance(value, str) else json.dumps(value))


def _text(value: Any) -> str:
    """One line that Markdown shows as it is."""
    text = " ".join(str(value).split())[:LONGEST]
    for sign in "\\`*|<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
