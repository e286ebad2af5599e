"""What bricks and stacks are made of: plain data that can be checked, saved and compared."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import lcm
from typing import Any, ClassVar, Literal

from legodiff.model.precondition import OBJECTIVES
from legodiff.noise import BETAS
from legodiff.store import build

# The largest values that are taken for meant; a file that asks for more is refused unread.
SIDE, WIDTH, HEADS = 2**16, 2**14, 2**10
DEPTH, BRICKS = 2**10, 2**8
CHANNELS, CLASSES = 2**10, 10**7


def _check_count(what: str, value: Any, most: int, least: int = 1) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise ValueError(f"{what} is {value!r}; it must be a whole number from {least} to {most}")


def _check_choice(what: str, value: Any, allowed: Iterable[str]) -> None:
    if value not in tuple(allowed):
        raise ValueError(f"{what} is {value!r}; choose from {', '.join(allowed)}")


@dataclass(frozen=True)
class BrickSpec:
    """What one brick is. Raises ValueError for sizes that cannot be."""

    size: int | Literal["image"]
    """Side r of its square patches in pixels, or "image": one patch, the whole canvas."""
    local: int
    """Side of the local receptive field in pixels (the paper's l): one token covers l x l."""
    depth: int
    """Number of DiT blocks."""
    phase: int = 0
    """Pixels by which its patches are laid to the right of the corner and below it, so that their
    borders are not those of other bricks. What is left over at one side goes with the other."""

    def __post_init__(self) -> None:
        _check_count("brick: local", self.local, SIDE)
        _check_count("brick: depth", self.depth, DEPTH)
        if isinstance(self.size, str):
            _check_choice("brick: size", self.size, ["image"])
            _check_count("brick of the whole image: phase", self.phase, 0, least=0)
        else:
            _check_count("brick: size", self.size, SIDE)
            _check_count("brick: phase", self.phase, self.size - 1, least=0)
            if self.size % self.local:
                raise ValueError(
                    f"brick of size {self.size}: its local field of {self.local} does not divide "
                    f"it; choose local from the divisors of {self.size}"
                )

    def __str__(self) -> str:
        laid = f", laid {self.phase} aside" if self.phase else ""
        blocks = "block" if self.depth == 1 else "blocks"
        return f"{self.size} (l {self.local}, {self.depth} {blocks}{laid})"

    @property
    def is_image(self) -> bool:
        return self.size == "image"

    @property
    def step(self) -> int:
        """The number that must divide both sides of a canvas."""
        return self.local if self.size == "image" else self.size

    def patch(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels of this brick's patches on a canvas."""
        return canvas if self.size == "image" else (self.size, self.size)


NETWORKS = (
    *("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "SD3Transformer2DModel"),
    *("LegoStack", "callable"),
)
"""What a foreign brick may be: classes of diffusers, a stack of ours, or any function."""
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow", "edm", "denoise")


class Fixed(dict[str, Any]):
    """A dict that never changes, so that what holds it can be compared and hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


@dataclass(frozen=True)
class ForeignSpec:
    """A pretrained denoiser of another kind as a brick: what builds it and what it speaks.

    Raises ValueError for what cannot be.
    """

    network: str
    """One of ``NETWORKS``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What its class is called with."""
    prediction: str = "denoise"
    """What it gives: "epsilon", "v_prediction" or "sample" as diffusers calls them, "flow", "edm"
    (the raw output in EDM's preconditioning), or "denoise": it is called like a stack, with noisy
    images, sigma and labels, and gives the clean estimate."""
    schedule: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``noise.beta_sigmas``: the table behind timesteps, where there are such."""
    sigma_data: float = 0.5
    """Of EDM's preconditioning."""
    conditions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Other inputs, the same for every image: name and shape (1, ...); kept with the weights."""
    classes: int = 0
    """Classes that it is told."""
    no_class: bool = True
    """Whether it was also trained without class: then that is index ``classes``."""
    step: int = 1
    """The number that must divide both sides of a canvas."""

    def __post_init__(self) -> None:
        for name in ("config", "schedule", "conditions"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise ValueError(f"foreign brick: {name} is {value!r}; it must be named values")
            object.__setattr__(self, name, Fixed(json.loads(json.dumps(value))))
        _check_choice("foreign brick: network", self.network, NETWORKS)
        _check_choice("foreign brick: prediction", self.prediction, PREDICTIONS)
        _check_count("foreign brick: step", self.step, SIDE)
        if not isinstance(self.sigma_data, int | float) or not 0 < self.sigma_data < 1000:
            raise ValueError(f"foreign brick: sigma_data is {self.sigma_data!r}")
        _check_count("foreign brick: classes", self.classes, CLASSES, least=0)
        if unknown := self.schedule.keys() - BETAS:
            raise ValueError(f"foreign brick: schedule has no {min(unknown)!r}")
        for name, shape in self.conditions.items():
            if not isinstance(shape, list | tuple) or not name.isidentifier():
                raise ValueError(f"foreign brick: condition {name!r} is {shape!r}; give its shape")
            for side in shape:
                _check_count(f"foreign brick: a side of {name}", side, SIDE)

    def __str__(self) -> str:
        return self.network

    size: ClassVar[Literal["image"]] = "image"
    phase: ClassVar[int] = 0
    is_image: ClassVar[bool] = True

    def patch(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """It sees the whole canvas."""
        return canvas


Brick = BrickSpec | ForeignSpec


@dataclass(frozen=True)
class StackSpec:
    """What a stack is: everything needed to build it again. Raises ValueError for nonsense."""

    image_size: tuple[int, int]
    """(height, width) of the training images, in pixels of the model's space."""
    channels: int
    width: int
    """Embedding width d, the same in all bricks."""
    heads: int
    bricks: tuple[Brick, ...]
    """From the bottom to the top."""
    classes: int = 0
    """Number of classes; label index ``classes`` means "no class". 0: unconditional."""
    mlp_ratio: float = 4.0
    refine: bool = True
    """True: a brick adds to the estimate it is given. False (the paper): it predicts anew."""
    hand_over: Literal["estimate", "raw"] = "estimate"
    """What a brick reads of the one below: its clean estimate, or its raw output (refine=False)."""
    objective: Literal["edm", "ddpm"] = "edm"
    sigma_data: float = 0.5
    """Standard deviation of the clean images in the model's space."""
    class_std: float = 0.02
    """Standard deviation of the initial class embeddings. 1.0 learns faster in short runs."""

    def __post_init__(self) -> None:
        for name in ("image_size", "bricks"):  # lists, as JSON has them, become tuples
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        _check(self)

    @property
    def step(self) -> int:
        """A canvas fits the stack if this divides both of its sides."""
        return lcm(*(brick.step for brick in self.bricks))

    @property
    def finest(self) -> int:
        """Side of the smallest patches; of the tokens, if there is only an image-brick."""
        sides = [brick.size for brick in self.bricks if isinstance(brick.size, int)]
        return min(sides, default=min(_token(brick) for brick in self.bricks))

    def check_canvas(self, size: tuple[int, int]) -> None:
        """Raises ValueError, naming the nearest size that fits, if a brick does not divide it."""
        _check_divides(self.step, size)

    def canvas(self, size: tuple[int, int], factor: int = 1) -> tuple[int, int]:
        """The canvas for a picture of (height, width), ``factor`` of its pixels for one of ours.

        Beyond the training size it is seen in windows, so the finest brick alone decides which
        sizes there are. Raises ValueError, naming the nearest size, for others.
        """
        inside = all(side <= own * factor for side, own in zip(size, self.image_size, strict=True))
        step = (self.step if inside else self.finest) * factor
        _check_divides(step, size)
        return size[0] // factor, size[1] // factor

    def patch_counts(self, canvas: tuple[int, int]) -> tuple[int, ...]:
        """How many patches each brick cuts a canvas into: 1 for an image-brick."""
        patches = [brick.patch(canvas) for brick in self.bricks]
        return tuple(canvas[0] * canvas[1] // (rows * columns) for rows, columns in patches)

    def patch_ratios(self, ratio: float | Sequence[float]) -> tuple[float, ...]:
        """The share of its patches each brick trains on, from one number or one per brick.

        Image-bricks always run whole. Raises ValueError unless all are in (0, 1].
        """
        shares = [ratio] * len(self.bricks) if isinstance(ratio, int | float) else list(ratio)
        if len(shares) != len(self.bricks) or not all(0 < share <= 1 for share in shares):
            raise ValueError(
                f"patch ratio {ratio}: give one number in (0, 1], or one for each of the "
                f"{len(self.bricks)} bricks"
            )
        return tuple(
            1.0 if brick.is_image else float(share)
            for brick, share in zip(self.bricks, shares, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for brick in values["bricks"]:
            if brick.get("phase") == 0:  # configurations of before there was a phase stay the same
                del brick["phase"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StackSpec":
        """The inverse of ``to_dict``. Raises ValueError for unknown or missing keys."""
        bricks = values.get("bricks", ()) if isinstance(values, Mapping) else ()
        if not isinstance(bricks, list | tuple):
            raise ValueError(f"stack: bricks is {bricks!r}; it must be a list")
        built = tuple(map(_brick, bricks))
        return build(cls, "stack", {**values, "bricks": built} if built else values)


def _brick(values: Any) -> Brick:
    if isinstance(values, BrickSpec | ForeignSpec):
        return values
    if isinstance(values, Mapping) and "network" in values:
        return build(ForeignSpec, "foreign brick", values)
    return build(BrickSpec, "brick", values)


def _token(brick: Brick) -> int:
    return brick.local if isinstance(brick, BrickSpec) else brick.step


def _nearest(step: int, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) nearest to a size that ``step`` divides."""
    height, width = (max(1, round(side / step)) * step for side in size)
    return height, width


def _check_divides(step: int, size: tuple[int, int]) -> None:
    if min(size) < 1 or any(side % step for side in size):
        near = _nearest(step, size)
        raise ValueError(
            f"a canvas of {size[0]}x{size[1]} does not fit these bricks: {step} must divide both "
            f"sides; the nearest that fits is {near[0]}x{near[1]}"
        )


def _check(spec: StackSpec) -> None:
    _check_count("stack: channels", spec.channels, CHANNELS)
    _check_count("stack: width", spec.width, WIDTH)
    _check_count("stack: heads", spec.heads, HEADS)
    _check_count("stack: classes", spec.classes, CLASSES, least=0)
    _check_choice("stack: objective", spec.objective, OBJECTIVES)
    _check_choice("stack: hand_over", spec.hand_over, ["estimate", "raw"])
    if not isinstance(spec.refine, bool):
        raise ValueError(f"stack: refine is {spec.refine!r}; it must be true or false")
    for name in ("mlp_ratio", "sigma_data", "class_std"):
        value = getattr(spec, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < 1000:
            raise ValueError(f"stack: {name} is {value!r}; it must be a number between 0 and 1000")
    if spec.mlp_ratio * spec.width < 1:
        raise ValueError(f"stack: mlp_ratio {spec.mlp_ratio} leaves no hidden unit")
    if spec.width % spec.heads or spec.width % 4:
        raise ValueError(
            f"stack: width {spec.width} must be divisible by 4 and by its {spec.heads} heads"
        )
    if spec.hand_over == "raw" and spec.refine:
        raise ValueError('stack: hand_over="raw" needs refine=False (there is nothing to refine)')

    if not isinstance(spec.image_size, tuple) or len(spec.image_size) != 2:
        raise ValueError(f"stack: image_size is {spec.image_size!r}; it must be (height, width)")
    for side in spec.image_size:
        _check_count("stack: a side of image_size", side, SIDE)
    if not isinstance(spec.bricks, tuple) or not 1 <= len(spec.bricks) <= BRICKS:
        raise ValueError(f"stack: bricks must hold at least one brick, and at most {BRICKS}")
    for number, brick in enumerate(spec.bricks):
        if not isinstance(brick, BrickSpec | ForeignSpec):
            raise ValueError(f"stack: brick {number} is {brick!r}; it must be a BrickSpec")
        if isinstance(brick, ForeignSpec) and number > 0:
            raise ValueError("stack: a foreign brick reads no estimate; it must be the first")
        if isinstance(brick, ForeignSpec) and brick.classes:
            needed = spec.classes or not brick.no_class
            if needed and spec.classes != brick.classes:
                raise ValueError(
                    f"stack: {brick.network} knows {brick.classes} classes by number, and the "
                    f"stack has {spec.classes}; give data of the same classes"
                )
        if any(side % brick.step for side in spec.image_size):
            near = _nearest(spec.step, spec.image_size)
            raise ValueError(
                f"stack: brick {number} needs sides divisible by {brick.step}, and the image is "
                f"{spec.image_size[0]}x{spec.image_size[1]}; the nearest that fits all bricks is "
                f"{near[0]}x{near[1]}"
            )
