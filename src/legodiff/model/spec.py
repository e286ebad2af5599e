"""What bricks and stacks are made of: plain data that can be checked, saved and compared."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf, lcm
from typing import Any, Literal

from legodiff.model.precondition import OBJECTIVES
from legodiff.store import build


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class BrickSpec:
    """What one brick is. Raises ValueError for sizes that cannot be."""

    size: int | Literal["image"]
    """Side r of its square patches in pixels, or "image": one patch, the whole canvas."""
    local: int
    """Side of the local receptive field in pixels (the paper's l): one token covers l x l."""
    depth: int
    """Number of DiT blocks."""

    def __post_init__(self) -> None:
        for name, value in (("local", self.local), ("depth", self.depth)):
            if not _is_count(value):
                raise ValueError(
                    f"brick: {name} is {value!r}; it must be a whole number, 1 or more"
                )
        if self.size == "image":
            return
        if not _is_count(self.size):
            raise ValueError(
                f'brick: size is {self.size!r}; it must be a side in pixels or "image"'
            )
        if self.size % self.local:
            raise ValueError(
                f"brick of size {self.size}: its local field of {self.local} does not divide it; "
                f"choose local from the divisors of {self.size}"
            )

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


@dataclass(frozen=True)
class StackSpec:
    """What a stack is: everything needed to build it again. Raises ValueError for nonsense."""

    image_size: tuple[int, int]
    """(height, width) of the training images, in pixels of the model's space."""
    channels: int
    width: int
    """Embedding width d, the same in all bricks."""
    heads: int
    bricks: tuple[BrickSpec, ...]
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

    def check_canvas(self, size: tuple[int, int]) -> None:
        """Raises ValueError, naming the nearest size that fits, if a brick does not divide it."""
        if min(size) < 1 or any(side % self.step for side in size):
            near = [max(1, round(side / self.step)) * self.step for side in size]
            raise ValueError(
                f"a canvas of {size[0]}x{size[1]} does not fit these bricks: "
                f"{self.step} must divide both sides; the nearest that fits is {near[0]}x{near[1]}"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StackSpec":
        """The inverse of ``to_dict``. Raises ValueError for unknown or missing keys."""
        bricks = values.get("bricks", ())
        if not isinstance(bricks, list | tuple):
            raise ValueError(f"stack: bricks is {bricks!r}; it must be a list")
        built = tuple(
            brick if isinstance(brick, BrickSpec) else build(BrickSpec, "brick", brick)
            for brick in bricks
        )
        return build(cls, "stack", {**values, "bricks": built})


def _check(spec: StackSpec) -> None:
    for name in ("channels", "width", "heads"):
        if not _is_count(getattr(spec, name)):
            raise ValueError(
                f"stack: {name} is {getattr(spec, name)!r}; it must be a whole number, 1 or more"
            )
    if spec.classes != 0 and not _is_count(spec.classes):
        raise ValueError(
            f"stack: classes is {spec.classes!r}; it must be a whole number, 0 or more"
        )
    size = spec.image_size
    if not isinstance(size, tuple) or len(size) != 2 or not all(_is_count(side) for side in size):
        raise ValueError(f"stack: image_size is {size!r}; it must be (height, width)")
    if not isinstance(spec.bricks, tuple) or not spec.bricks:
        raise ValueError("stack: bricks is empty; a stack needs at least one brick")
    if spec.width % spec.heads or spec.width % 4:
        raise ValueError(
            f"stack: width {spec.width} must be divisible by 4 and by its {spec.heads} heads"
        )
    for name in ("mlp_ratio", "sigma_data", "class_std"):
        value = getattr(spec, name)
        if not isinstance(value, int | float) or not 0 < value < inf:
            raise ValueError(f"stack: {name} is {value!r}; it must be a number above 0")
    if not isinstance(spec.refine, bool):
        raise ValueError(f"stack: refine is {spec.refine!r}; it must be true or false")
    for name, value, allowed in (
        ("objective", spec.objective, tuple(OBJECTIVES)),
        ("hand_over", spec.hand_over, ("estimate", "raw")),
    ):
        if value not in allowed:
            raise ValueError(f"stack: {name} is {value!r}; choose from {', '.join(allowed)}")
    if spec.hand_over == "raw" and spec.refine:
        raise ValueError('stack: hand_over="raw" needs refine=False (there is nothing to refine)')
    for number, brick in enumerate(spec.bricks):
        if not isinstance(brick, BrickSpec):
            raise ValueError(f"stack: brick {number} is {brick!r}; it must be a BrickSpec")
        if any(side % brick.step for side in spec.image_size):
            raise ValueError(
                f"stack: brick {number} needs sides divisible by {brick.step}, "
                f"and the image is {spec.image_size[0]}x{spec.image_size[1]}"
            )
