"""Who is measured against a stack: a plain DiT, a U-ViT, and the DiT of diffusers.

An opponent is what a function makes of a stack; a new one is a new row of ``OPPONENTS``.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from legodiff.evaluate.contenders import Contender, of_stack
from legodiff.evaluate.uvit import UViT, UViTSpec
from legodiff.model.foreign import ForeignBrick
from legodiff.model.presets import PRESETS, SIZES
from legodiff.model.spec import BrickSpec, ForeignSpec, StackSpec

UVITS = {"s": (512, 8, 13), "l": (1024, 16, 21)}
"""Width, heads and blocks of the U-ViTs of the paper's tables 1 and 2, for 64x64 pixels."""


def dit(name: str, spec: StackSpec, size: tuple[int, int]) -> Contender | None:
    """A plain DiT of the same width and as many blocks; of the paper's sizes, the paper's DiT."""
    bricks = [brick for brick in spec.bricks if isinstance(brick, BrickSpec)]
    if len(bricks) < len(spec.bricks):
        return None  # what a network of others is worth in blocks, nobody knows
    letter = _letter(spec)
    depth = SIZES[letter][3] if letter else sum(brick.depth for brick in bricks)
    local = min([b.local for b in bricks if b.is_image] or [b.local for b in bricks])
    plain = replace(spec, bricks=(BrickSpec("image", local, depth),))
    known = (preset for preset, other in PRESETS.items() if _shape(other) == _shape(plain))
    return of_stack(next(known, f"DiT of {name}"), plain) if plain != spec else None


def _shape(spec: StackSpec) -> tuple[Any, ...]:
    """What a stack's cost comes from, channels and classes aside."""
    return spec.image_size, spec.width, spec.heads, spec.mlp_ratio, spec.bricks


def uvit(name: str, spec: StackSpec, size: tuple[int, int]) -> Contender | None:
    """The U-ViT beside a stack in the paper's tables."""
    letter = _letter(spec)
    if size != (64, 64) or letter not in UVITS:
        return None
    width, heads, depth = UVITS[letter]
    own = UViTSpec(size, spec.channels, width, heads, depth, classes=spec.classes)
    return Contender(f"U-ViT-{letter.upper()}/{own.patch}", UViT, own)


def diffusers(name: str, spec: StackSpec, size: tuple[int, int]) -> Contender | None:
    """The DiT of diffusers, of the width and depth of the plain one."""
    plain = dit(name, spec, size)
    own = plain.spec if plain else spec
    if len(own.bricks) > 1 or not isinstance(own.bricks[0], BrickSpec) or size[0] != size[1]:
        return None
    config = {
        "num_attention_heads": own.heads,
        "attention_head_dim": own.width // own.heads,
        "in_channels": own.channels,
        "num_layers": own.bricks[0].depth,
        "patch_size": own.bricks[0].local,
        "sample_size": size[0],
        "num_embeds_ada_norm": own.classes or 1,  # it cannot be without classes
    }
    brick = ForeignSpec(
        "DiTTransformer2DModel",
        config,
        prediction="edm",
        sigma_data=own.sigma_data,
        classes=own.classes or 1,
        step=own.bricks[0].local,
    )
    foreign = replace(own, bricks=(brick,), classes=brick.classes)
    known = plain.name if plain else name
    return Contender(f"diffusers {known}", _foreign_brick, foreign)


def _foreign_brick(spec: StackSpec) -> nn.Module:
    brick = spec.bricks[0]
    assert isinstance(brick, ForeignSpec)
    return ForeignBrick(brick, spec.channels)


OPPONENTS: dict[str, Callable[[str, StackSpec, tuple[int, int]], Contender | None]] = {
    "dit": dit,
    "uvit": uvit,
    "diffusers": diffusers,
}
"""Name -> what it makes of a stack's name, spec and canvas; None: there is none."""


def _letter(spec: StackSpec) -> str | None:
    """The size of a stack if it is one of the paper's: s, l or xl."""
    for name, known in PRESETS.items():
        same = (known.width, known.bricks) == (spec.width, spec.bricks)
        if same and name.startswith(("lego-", "dit-")):
            return name.split("-")[1]
    return None


def gather(
    stacks: Sequence[Contender], against: Sequence[str], size: tuple[int, int]
) -> list[Contender]:
    """The stacks and after them their opponents, each once. Raises ValueError for unknown ones."""
    if unknown := [name for name in against if name not in OPPONENTS]:
        known = ", ".join(OPPONENTS)
        raise ValueError(f"there is no opponent {unknown[0]!r}; choose from {known}, or none")
    found = list(stacks)
    for stack in stacks:
        for opponent in (OPPONENTS[name](stack.name, stack.spec, size) for name in against):
            if opponent and all(opponent.spec != other.spec for other in found):
                found.append(opponent)
    return found
