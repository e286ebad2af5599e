"""What a run is: one validated, complete description. YAML and ``a.b=c`` in, JSON out."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from legodiff.model.presets import preset
from legodiff.model.spec import StackSpec

RECIPES = Path(__file__).parent / "recipes"


class Part(BaseModel):
    """Unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Shares = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value]),
]
"""One share in (0, 1] for all, or one for each."""


class ModelConfig(Part):
    """A preset and, beside it, any fields of ``StackSpec`` to change (``refine: false``)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    preset: str = "lite-pr-16"

    def spec(self, channels: int, classes: int) -> StackSpec:
        """The stack for images of these channels and classes, which follow from the data."""
        changes = dict(self.model_extra or {})
        for name in ("channels", "classes"):
            if name in changes:
                raise ValueError(f"model.{name} follows from the data and cannot be set")
        return preset(self.preset, channels, classes, **changes)


class DataConfig(Part):
    """What to train on."""

    path: str = "digits"
    """"digits": scikit-learn's handwritten digits."""


class TrainConfig(Part):
    """Everything is counted in images seen. Defaults are the paper's where it has one."""

    images: Annotated[int, Field(ge=1)] = 2_000_000
    batch: Annotated[int, Field(ge=1, le=2**20)] = 64
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read images ahead; 0 reads them in between steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    warmup_images: Annotated[int, Field(ge=0)] = 10_000
    decay_to: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the learning rate that is left at the end; it falls linearly."""
    betas: tuple[float, float] = (0.9, 0.99)
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
    sigma_mean: Annotated[float, Field(ge=-20, le=20)] = -1.2
    sigma_std: Annotated[float, Field(gt=0, le=10)] = 1.2
    checkpoint_images: Annotated[int, Field(ge=1)] = 100_000

    def ratio(self, spec: StackSpec) -> float | tuple[float, ...]:
        if self.patch_ratio:
            return self.patch_ratio if len(self.patch_ratio) > 1 else self.patch_ratio[0]
        return 1.0 if spec.bricks[-1].is_image else 0.5


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


def load_config(recipe: str | Path = "digits", changes: Sequence[str] = ()) -> RunConfig:
    """A recipe with changes of the form ``train.images=20000``, checked.

    ``recipe`` is a YAML file, or the name of one that comes with the package. Raises ValueError,
    one line for each thing that is wrong.
    """
    path = RECIPES / f"{recipe}.yaml" if str(recipe) in recipes() else Path(recipe)
    if not path.is_file():
        raise ValueError(f"there is no recipe {recipe}; give a YAML file or {', '.join(recipes())}")
    try:
        values: Any = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold the sections model, data and train")
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {change}: write it as section.key=value")
        try:
            _assign(values, key.split("."), yaml.load(text, _Loader))
        except yaml.YAMLError as error:
            raise ValueError(f"--set {change}: {text!r} is not a YAML value") from error
    return _check(values)


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
            else:
                expected = (
                    "a section of named values" if "model_type" in item["type"] else item["msg"]
                )
                lines.append(f"{where} is {item['input']!r}: {expected[0].lower()}{expected[1:]}")
        raise ValueError("\n".join(lines)) from error


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, key = path
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ValueError(f"--set {'.'.join(path)}: {section} is not a section")
        values = inner
    values[key] = value


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    part: type[BaseModel] = RunConfig
    for name in location[:-1]:
        part = part.model_fields[str(name)].annotation  # type: ignore[assignment]
    return list(part.model_fields)
