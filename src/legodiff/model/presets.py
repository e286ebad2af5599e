"""Named stacks: the paper's tables 5 and 6, the plain DiTs beside them, and small ones.

The tables are data; ``preset`` reads a row and fills in what depends on the images.
"""

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from legodiff.model.spec import BrickSpec, StackSpec

# name: width, heads, blocks in the (small, middle, image) brick, blocks in a DiT of the same size
SIZES = {
    "s": (384, 6, (2, 4, 6), 12),
    "l": (1024, 16, (4, 8, 12), 24),
    "xl": (1152, 16, (4, 12, 14), 28),
}
# grid: size and local field of the (small, middle, image) brick
GRIDS: dict[int, tuple[tuple[Any, int], ...]] = {
    64: ((4, 2), (16, 8), ("image", 2)),
    32: ((4, 2), (8, 4), ("image", 2)),
}
# image size: local field of the image-brick; size, local field and phase of the bricks on top, and
# their share of a DiT's blocks. docs/architecture.md says what is measured of it.
LITE: dict[int, tuple[int, tuple[tuple[int, int, int], ...], float]] = {
    32: (4, ((8, 2, 3),), 1 / 6),
    64: (4, ((16, 4, 6),), 1 / 3),
    128: (8, ((16, 4, 6),), 1 / 6),
    256: (16, ((32, 8, 12), (16, 4, 6)), 1 / 6),
}
# order of the small (0), middle (1) and image (2) brick, from the bottom to the top
ORDERS = {"pg": (0, 1, 2), "pr": (2, 1, 0), "u": (2, 1, 0, 1, 2)}


def _paper() -> dict[str, StackSpec]:
    specs = {}
    for size, (width, heads, depths, dit_depth) in SIZES.items():
        for grid, geometry in GRIDS.items():
            common = StackSpec(
                image_size=(grid, grid),
                channels=3,
                width=width,
                heads=heads,
                bricks=(BrickSpec("image", 2, dit_depth),),
                refine=False,
            )
            for local in (2, 4):
                dit = (BrickSpec("image", local, dit_depth),)
                specs[f"dit-{size}-{local}-{grid}"] = replace(common, bricks=dit)
            for order, rows in ORDERS.items():
                bricks = tuple(BrickSpec(*geometry[row], depths[row]) for row in rows)
                specs[f"lego-{size}-{order}-{grid}"] = replace(common, bricks=bricks)
    return specs


def _lite() -> dict[str, StackSpec]:
    """Most of the depth in an image-brick of large tokens, refined by patch-bricks laid aside."""
    specs = {}
    for size, (width, heads, _, dit_depth) in SIZES.items():
        for grid, (local, details, share) in LITE.items():
            above = tuple(
                BrickSpec(side, field, int(share * dit_depth), phase=phase)
                for side, field, phase in details
            )
            depth = dit_depth - sum(brick.depth for brick in above)
            specs[f"lego-{size}-lite-{grid}"] = StackSpec(
                image_size=(grid, grid),
                channels=3,
                width=width,
                heads=heads,
                bricks=(BrickSpec("image", local, depth), *above),
                class_std=1.0,
            )
    return specs


def _small(grid: int, width: int, heads: int, *bricks: tuple[Any, ...]) -> StackSpec:
    return StackSpec(
        image_size=(grid, grid),
        channels=3,
        width=width,
        heads=heads,
        bricks=tuple(BrickSpec(*brick) for brick in bricks),
        class_std=1.0,
    )


PRESETS: dict[str, StackSpec] = {
    **_paper(),
    **_lite(),
    # Small images and short budgets: image-brick of large tokens below, patch-bricks on top.
    "lite-pr-16": _small(16, 64, 2, ("image", 4, 4), (8, 4, 2), (4, 2, 1)),
    "lite-pg-16": _small(16, 64, 2, (4, 2, 1), (8, 4, 2), ("image", 4, 4)),
    "lite-dit-16": _small(16, 64, 2, ("image", 4, 7)),
    "lite-pr-32": _small(32, 128, 4, ("image", 4, 5), (8, 2, 1)),
    "lite-dit-32": _small(32, 128, 4, ("image", 4, 6)),
    "lite-pr-64": _small(64, 256, 4, ("image", 4, 4), (16, 4, 2, 6)),
    "lite-coarse-64": _small(64, 256, 4, ("image", 8, 6), (16, 4, 2, 6)),
    "lite-dit-64": _small(64, 256, 4, ("image", 4, 6)),
    # The smallest stacks with all that a big one has; for tests.
    "tiny-pr-16": _small(16, 32, 2, ("image", 4, 2), (8, 4, 1), (4, 2, 1)),
    "tiny-pg-16": _small(16, 32, 2, (4, 2, 1), (8, 4, 1), ("image", 4, 2)),
}


def preset(name: str, /, channels: int = 3, classes: int = 0, **changes: Any) -> StackSpec:
    """A named stack for images of ``channels`` channels and ``classes`` classes (0: none).

    ``changes`` are other fields of ``StackSpec``, such as ``objective="ddpm"``. Raises ValueError
    for an unknown name or field.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=3) or list(PRESETS)
        raise ValueError(f"unknown preset {name!r}; did you mean {', '.join(near)}?")
    values = PRESETS[name].to_dict() | {"channels": channels, "classes": classes} | changes
    return StackSpec.from_dict(values)
