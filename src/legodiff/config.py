"""What a run is: one validated, complete description. YAML and ``a.b=c`` in, JSON out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from PIL import ImageColor
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from legodiff import store
from legodiff.model.presets import preset
from legodiff.model.spec import BrickSpec, ForeignSpec, StackSpec

RECIPES = Path(__file__).parent / "recipes"


class Part(BaseModel):
    """Unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Shares = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value]),
]
"""One share in (0, 1] for all, or one for each."""


def _colour(value: Any) -> str:
    try:
        ImageColor.getrgb(value)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"data.alpha is {value!r}: name a colour: white, grey, --set 'data.alpha=\"#204080\"' "
            "(with both quotes, as # begins a comment)"
        ) from error
    return str(value)


class ModelConfig(Part):
    """A preset and, beside it, any fields of ``StackSpec`` to change (``refine: false``)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    preset: str = "lite-pr-16"

    def spec(self, channels: int, classes: int, bricks: Sequence[int] | None = None) -> StackSpec:
        """The stack for images of these channels and classes, which follow from the data.

        ``bricks``: the ones that learn; what is above them is not there yet.
        """
        changes = dict(self.model_extra or {})
        for name in ("channels", "classes"):
            if name in changes:
                raise ValueError(f"model.{name} follows from the data and cannot be set")
        spec = preset(self.preset, channels, classes, **changes)
        if bricks is None:
            return spec
        if not bricks or max(bricks) >= len(spec.bricks):
            raise ValueError(
                f"train.bricks is {list(bricks)}: choose from 0 to {len(spec.bricks) - 1}"
            )
        return replace(spec, bricks=spec.bricks[: max(bricks) + 1])


class DataConfig(Part):
    """What to train on; the size of the images is the model's."""

    path: str = "digits"
    """A folder, an archive, "hf:NAME", or "digits": scikit-learn's handwritten digits."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; by default what the images are."""
    alpha: Annotated[str, BeforeValidator(_colour)] = "white"
    """The colour behind transparent pixels, as PIL names colours: grey, "#204080"."""
    flip: bool = False
    """Show half of the images mirrored, left to right."""
    strict: bool = False
    """Stop at an unreadable image; otherwise it is named, counted and replaced by the next."""
    vae: str | None = None
    """Folder or Hub id of the VAE of latents, to show pictures while training."""


class TrainConfig(Part):
    """Everything is counted in images seen. Defaults are the paper's where it has one."""

    images: Annotated[int, Field(ge=1)] = 2_000_000
    batch: Annotated[int, Field(ge=1, le=2**20)] = 64
    """Images a step, of all processes together."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    init: str | None = None
    """A run or model folder whose weights to begin with."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    warmup_images: Annotated[int, Field(ge=0)] = 10_000
    decay_to: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the learning rate that is left at the end; it falls linearly."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.99,
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the whole gradient."""
    ema_halflife_images: Annotated[float, Field(ge=0)] = 500_000
    ema_rampup: Annotated[float, Field(gt=0)] = 0.05
    """The half-life is at most this share of the images seen."""
    label_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    patch_ratio: Shares = ()
    """Share of its patches a patch-brick trains on, one number or one a brick.

    By default 1 if the top brick covers the image (it would see half-filled canvases), else 0.5.
    """
    fill: Literal["skip", "clean", "noise", "zero"] = "skip"
    detach: bool = False
    bricks: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Bricks that learn, by default all. Lower ones are frozen, and there are none above them."""
    brick_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Factors of the learning rate, one a brick: 0.1 lets a pretrained one learn slowly."""
    brick_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps that leave a brick out, so that every subset is trained."""
    sigma_mean: Annotated[float, Field(ge=-20, le=20)] = -1.2
    sigma_std: Annotated[float, Field(gt=0, le=10)] = 1.2
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the network; weights stay fp32. "auto": bf16 on a GPU that has it, else fp32."""
    most_bad_steps: Annotated[int, Field(ge=1)] = 10
    """Steps in a row whose loss or gradient is not finite before the run is stopped."""

    # What does not change the result. It may differ when a run is resumed; see FREE for the rest.
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Images a process takes at once; by default all of its share. Halved if memory runs out."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory."""
    compile: bool = False
    """Blocks through torch.compile, which takes a minute or so: they keep less in memory."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: each with the whole network, or each with a part of it."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read images ahead; 0 reads between steps. None: 4 on a GPU, else 0."""
    checkpoint_images: Annotated[int, Field(ge=1)] = 100_000
    keep: Annotated[int, Field(ge=1)] = 3
    """Newest checkpoints to keep, beside the best."""
    picture_images: Annotated[int, Field(ge=0)] | None = None
    """Images between pictures; 0 for none, by default as often as checkpoints."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the log goes beside log.jsonl."""

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        if self.bricks is not None and self.brick_rates:
            raise ValueError("train.brick_rates are for runs in which all bricks learn")
        if self.bricks is not None and self.brick_dropout:
            raise ValueError(
                "train.brick_dropout needs all bricks to learn; leave train.bricks out"
            )
        return self

    def ratio(self, spec: StackSpec) -> float | tuple[float, ...]:
        if len(self.patch_ratio) == 1:
            return self.patch_ratio[0]
        if self.patch_ratio:
            return self.patch_ratio if self.bricks is None else self.patch_ratio[: len(spec.bricks)]
        return 1.0 if spec.bricks[-1].is_image else 0.5


FREE = (
    *("train.micro_batch", "train.recompute", "train.compile"),
    *("train.parallel", "train.workers"),
    *("train.checkpoint_images", "train.keep", "train.picture_images", "train.log"),
    *("train.images", "train.most_bad_steps", "data.path", "data.strict", "data.vae"),
    # What helps after steps that are not finite: the steps from there on are others.
    *("train.learning_rate", "train.clip", "train.precision"),
)
"""Settings that may differ when a run is resumed."""


class RunConfig(Part):
    """Everything a run is made of."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, and 1e-3 is a number (in YAML 1.1 it is text for want of a dot)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(
    recipe: str | Path = "digits",
    changes: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> RunConfig:
    """A recipe with changes, checked: ``options`` by dotted key, then ``train.images=20000``.

    ``recipe`` is the name of one that comes with the package, a YAML file, or a run folder, whose
    own configuration it then is; a ``Path`` is never a name. Raises ValueError, one line for each
    thing that is wrong.
    """
    if recipe in recipes():
        values = _of_yaml(RECIPES / f"{recipe}.yaml")
    else:
        values = _of_yaml(Path(recipe)) if Path(recipe).is_file() else _of_run(Path(recipe))
    for key, value in (options or {}).items():
        _assign(values, key.split("."), value)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {change}: write it as section.key=value")
        try:
            _assign(values, key.split("."), yaml.load(text, _Loader))
        except yaml.YAMLError as error:
            raise ValueError(f"--set {change}: {text!r} is not a YAML value") from error
    return _check(_with_base(values))


def _with_base(values: dict[str, Any]) -> dict[str, Any]:
    """A model on a ``model.base``: its network becomes the first brick, its weights the beginning.

    What comes of it holds all of the base. Raises ValueError if the folder holds no model, or one
    for images of another size than is asked for.
    """
    model = values.get("model")
    if not isinstance(model, dict) or model.get("base") is None:
        return values
    base = model["base"]
    spec = StackSpec.from_dict(
        store.read_config(store.locate(base, needed=[store.CONFIG]))["stack"]
    )
    first = spec.bricks[0]
    if len(spec.bricks) > 1 or isinstance(first, BrickSpec):
        first = ForeignSpec("LegoStack", spec.to_dict(), classes=spec.classes, step=spec.step)
    if not model.get("bricks"):
        raise ValueError(
            "model.base needs model.bricks, those to put on top: [{size: 4, local: 2, depth: 2}]"
        )
    if isinstance(model["bricks"], list):
        model["bricks"] = [asdict(first), *model["bricks"]]
    fixed = {"image_size": list(spec.image_size), "sigma_data": spec.sigma_data}
    for name, own in fixed.items():
        if model.get(name) not in (None, own):
            raise ValueError(
                f"model.{name} is {model[name]} and that of the base {base} is {own}; leave it out"
            )
    model |= fixed
    del model["base"]
    _section(values, "train").setdefault("init", str(base))
    return values


def _of_yaml(path: Path) -> dict[str, Any]:
    try:
        values: Any = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold the sections model, data and train")
    return {name: {} if section is None else section for name, section in values.items()}


def _of_run(recipe: Path) -> dict[str, Any]:
    """The configuration of a run folder, but for what it began with."""
    if not recipe.is_dir():
        raise ValueError(
            f"there is no recipe {recipe}; give a YAML file, a run folder or one of "
            f"{', '.join(recipes())}"
        )
    values = store.read_config(recipe).get("run")
    if not isinstance(values, dict):
        raise ValueError(f"{recipe} does not say how it was trained; name a recipe")
    sections = {name: dict(values[name]) for name in RunConfig.model_fields if name in values}
    for name in ("init", "bricks"):
        sections.get("train", {}).pop(name, None)
    return sections


def _check(values: Any) -> RunConfig:
    """A ``RunConfig`` from plain data. Raises ValueError, one line for each thing wrong."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                known = ", ".join(_siblings(item["loc"]))
                lines.append(f"{where}: unknown key; known here: {known}")
            elif item["type"] == "value_error":  # of ours: it says what was given
                lines.append(str(item["ctx"]["error"]))
            else:
                expected = (
                    "a section of named values" if "model_type" in item["type"] else item["msg"]
                )
                lines.append(f"{where} is {item['input']!r}: {expected[0].lower()}{expected[1:]}")
        raise ValueError("\n".join(lines)) from error


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, key = path
    for section in sections:
        values = _section(values, section)
    values[key] = value


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of values, made if it is missing or empty. Raises ValueError if it is none."""
    if values.get(name) is None:
        values[name] = {}
    inner = values[name]
    if not isinstance(inner, dict):
        raise ValueError(f"{name} is not a section of named values, but {inner!r}")
    return inner


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    part: type[BaseModel] = RunConfig
    for name in location[:-1]:
        part = part.model_fields[str(name)].annotation  # type: ignore[assignment]
    return list(part.model_fields)
