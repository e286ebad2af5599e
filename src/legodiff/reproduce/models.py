"""The models that experiments train, at the paper's scale and at a small one."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from legodiff.reproduce.experiment import Model

Brick = tuple[Any, int, int]
"""Size, local receptive field, blocks."""
Make = Callable[..., Model]
"""(name, *bricks, ...) -> a model of one data set."""

ORDERS = {
    "PG": ("4", "8", "image"),
    "PR": ("image", "8", "4"),
    "U": ("image", "8", "4", "8", "image"),
}
# The paper's S, whose grid is 64, at a quarter of its side and half of its blocks.
SMALL: dict[str, Brick] = {"4": (4, 2, 1), "8": (8, 4, 2), "image": ("image", 2, 3)}
PLAIN: Brick = ("image", 2, 6)
ONCE = ("train.picture_images=0", "train.checkpoint_images=1000000")
BRIEF = ("train.images=24000", *ONCE)
PHOTOGRAPHS = (
    *("train.images=32000", "train.batch=32", "train.learning_rate=1e-3", *ONCE),
    *("train.warmup_images=2000", "train.decay_to=0.05", "train.ema_halflife_images=4000"),
    "train.workers=0",
)


def bricks(*chosen: Brick) -> str:
    """A change of a configuration: the bricks of its model."""
    rows = [{"size": size, "local": local, "depth": depth} for size, local, depth in chosen]
    return f"model.bricks={json.dumps(rows)}"


def on_digits(name: str, *chosen: Brick, changes: Sequence[str] = (), **more: Any) -> Model:
    """A stack of width 64 on digits of 16x16: 24,000 images."""
    return Model(name, "digits", (bricks(*chosen), *BRIEF, *changes), **more)


def on_photographs(name: str, *chosen: Brick, **more: Any) -> Model:
    """A stack of width 128 on crops of photographs, 32x32: 32,000 images."""
    return Model(name, "images-32", (bricks(*chosen), *PHOTOGRAPHS), **more)


def on_celeba(name: str, *chosen: Brick, changes: Sequence[str] = (), **more: Any) -> Model:
    """A stack of width 384 on CelebA of 64x64."""
    return Model(name, "celeba-64-s-pg", (bricks(*chosen), *changes), **more)


def small(orders: str = "PG PR", *changes: str) -> tuple[Model, ...]:
    """Small stacks in the paper's orders, on digits; "DiT" is a plain one."""
    chosen = {name: [SMALL[brick] for brick in ORDERS[name]] for name in ORDERS} | {"DiT": [PLAIN]}
    return tuple(
        on_digits("DiT" if name == "DiT" else f"LEGO-{name}", *chosen[name], changes=changes)
        for name in orders.split()
    )


def of_recipe(recipe: str, *names: str) -> tuple[Model, ...]:
    """Models of a recipe, each with another preset: "LEGO-L-PG=lego-l-pg-64"."""
    pairs = [name.split("=") for name in names]
    return tuple(Model(name, recipe, (f"model.preset={preset}",)) for name, preset in pairs)


def refined(base: Model, top: Brick, *changes: str) -> tuple[Model, ...]:
    """The paper's table 4: a base, and a brick on top of it while it rests or learns along.

    Beside them, which the paper has not: the base on its own, trained on as long as these.
    ``changes`` are those of what comes after the base.
    """

    def on_top(name: str, *more: str) -> Model:
        return Model(name, base.recipe, (bricks(top), *changes, *more), base=base.name)

    return (
        base,
        on_top("base (frozen) + LEGO-PR", "train.bricks=[1]"),
        on_top("base (unfrozen) + LEGO-PR"),
        Model("base, trained on", base.recipe, (*base.changes, *changes), after=base.name),
    )


def shared_out(make: Make, total: int, step: int) -> tuple[Model, ...]:
    """Figure 10: a 4x4 brick below an image-brick, ``total`` blocks among them, both with l 2.

    All patches are trained on, so that only the blocks differ.
    """
    found = []
    for image in range(0, total + 1, step):
        both: tuple[Brick, ...] = ((4, 2, total - image), ("image", 2, image))
        chosen = [brick for brick in both if brick[2]]
        name = f"{image} of {total} in the image-brick"
        found.append(make(name, *chosen, changes=("train.patch_ratio=1",), x=image / total))
    return tuple(found)


def patch_bricks(make: Make, sizes: Sequence[int], local: int, top: Brick) -> tuple[Model, ...]:
    """Figure 11: six blocks in patch-bricks below a fixed image-brick.

    Left: bricks of every choice of ``sizes``, with the same local field. Right: the smallest and
    the largest, whose local field is half its side, with more and more blocks in the smaller.
    """
    masks = sorted(range(1, 2 ** len(sizes)), key=lambda mask: (mask.bit_count(), mask))
    found = []
    for mask in masks:
        chosen = [size for bit, size in enumerate(sizes) if mask >> bit & 1]
        own: list[Brick] = [(size, local, 6 // len(chosen)) for size in chosen]
        name = "+".join(map(str, chosen))
        found.append(make(name, *own, top, x=name, line="sizes of the patch-bricks"))
    least, most = sizes[0], sizes[-1]
    for blocks in range(0, 7, 2):
        both: tuple[Brick, ...] = ((least, local, blocks), (most, most // 2, 6 - blocks))
        chosen_bricks = [brick for brick in both if brick[2]]
        line = f"share of the blocks in the {least}x{least} brick, the rest in {most}x{most}"
        name = f"{blocks} of 6 in {least}x{least}"
        found.append(make(name, *chosen_bricks, top, x=blocks / 6, line=line))
    return tuple(found)


def patch_ratios(make: Make, sizes: dict[str, Brick], *changes: str) -> tuple[Model, ...]:
    """PG and PR trained on more and more of their patches; of none, only the image-brick stays."""
    found = []
    for name in ("PG", "PR"):
        line = f"LEGO-{name}"
        found.append(make(f"{line}, no patches", sizes["image"], x=0.0, line=line))
        for share in (0.1, 0.25, 0.5, 0.75, 1.0):
            own = (*changes, f"train.patch_ratio={share}")
            chosen = [sizes[brick] for brick in ORDERS[name]]
            found.append(make(f"{line}, {share:.0%}", *chosen, changes=own, x=share, line=line))
    return tuple(found)
