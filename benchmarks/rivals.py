"""Stacks of bricks and plain DiTs that ``bricks.py`` holds against each other, as data."""

import json
from typing import Any

from legodiff.config import RunConfig, load_config

Rival = tuple[int, list[tuple[Any, ...]]]
BATCH = 32  # images
MEAN, STD = -0.8, 1.2  # of the logarithm of the noise levels of training
RIVALS: dict[str, Rival] = {
    # plain DiTs: width, then (size, l, blocks)
    "dit l8 w96 d4": (96, [("image", 8, 4)]),
    "dit l8 w128 d4": (128, [("image", 8, 4)]),
    "dit l8 w192 d4": (192, [("image", 8, 4)]),
    "dit l8 w256 d3": (256, [("image", 8, 3)]),
    "dit l8 w128 d8": (128, [("image", 8, 8)]),
    "dit l8 w64 d4": (64, [("image", 8, 4)]),
    "dit l8 w96 d3": (96, [("image", 8, 3)]),
    "dit l8 w128 d2": (128, [("image", 8, 2)]),
    "dit l8 w128 d3": (128, [("image", 8, 3)]),
    "dit l4 w96 d1": (96, [("image", 4, 1)]),
    "dit l4 w128 d1": (128, [("image", 4, 1)]),
    "dit l4 w64 d1": (64, [("image", 4, 1)]),
    "dit l4 w128 d2": (128, [("image", 4, 2)]),
    "dit l4 w64 d2": (64, [("image", 4, 2)]),
    "dit l4 w96 d2": (96, [("image", 4, 2)]),
    "dit l4 w64 d3": (64, [("image", 4, 3)]),
    "dit l4 w96 d3": (96, [("image", 4, 3)]),
    "dit l4 w96 d6": (96, [("image", 4, 6)]),
    "dit l4 w128 d3": (128, [("image", 4, 3)]),
    "dit l4 w192 d4": (192, [("image", 4, 4)]),
    # a coarse image-brick, and a detail brick of (size, l, blocks, phase)
    "lego w64 16": (64, [("image", 8, 5), (16, 4, 1)]),
    "lego w64 16 laid": (64, [("image", 8, 5), (16, 4, 1, 6)]),
    "lego w96 16": (96, [("image", 8, 5), (16, 4, 1)]),
    "lego w128 16": (128, [("image", 8, 5), (16, 4, 1)]),
    "lego w128 16 laid": (128, [("image", 8, 5), (16, 4, 1, 6)]),
    "lego w128 8 laid": (128, [("image", 8, 5), (8, 4, 1, 2)]),
    "lego w192 16": (192, [("image", 8, 3), (16, 4, 1)]),
    "lego w192 16 laid": (192, [("image", 8, 3), (16, 4, 1, 6)]),
    "lego w192 8 laid": (192, [("image", 8, 3), (8, 4, 1, 2)]),
    "lego w96 16 laid": (96, [("image", 8, 5), (16, 4, 1, 6)]),
    "lego w96 8 laid": (96, [("image", 8, 5), (8, 4, 1, 2)]),
    "lego w96 16 l2 laid": (96, [("image", 8, 5), (16, 2, 1, 7)]),
    "lego w256 16 laid": (256, [("image", 8, 3), (16, 4, 1, 6)]),
    "lego w96 two": (96, [("image", 8, 5), (16, 4, 1, 6), (16, 4, 1, 14)]),
    "lego w96 2+2": (96, [("image", 8, 2), (16, 4, 2, 6)]),
    "lego w128 2+1": (128, [("image", 8, 2), (16, 4, 1, 6)]),
    "lego w128 1+1": (128, [("image", 8, 1), (16, 4, 1, 6)]),
    "lego w128 2+2": (128, [("image", 8, 2), (16, 4, 2, 6)]),
    "lego w192 2+1": (192, [("image", 8, 2), (16, 4, 1, 6)]),
    "lego w128 1+2": (128, [("image", 8, 1), (16, 4, 2, 6)]),
    "lego w96 deep": (96, [("image", 8, 3), (16, 4, 3, 6)]),
    "lego w96 l4": (96, [("image", 4, 1), (16, 4, 1, 6)]),
    "lego w128 l4": (128, [("image", 4, 1), (16, 4, 1, 6)]),
    "lego w96 l4 2+1": (96, [("image", 4, 2), (16, 4, 1, 6)]),
    "lego w96 l4 32": (96, [("image", 4, 1), (32, 4, 1, 14)]),
    "lego w96 l4 l2": (96, [("image", 4, 1), (8, 2, 1, 3)]),
    "lego w96 u": (96, [("image", 8, 3), (16, 4, 1, 6), ("image", 8, 2)]),
}


def configure(
    name: str, side: int, seed: int, images: int, rate: float, changes: list[str]
) -> RunConfig:
    """The run of a rival."""
    width, bricks = RIVALS[name]
    keys = ("size", "local", "depth", "phase")
    rows = [dict(zip(keys, brick, strict=False)) for brick in bricks]
    return load_config(
        "digits",
        [
            *("model.preset=lite-pr-64", f"model.image_size=[{side}, {side}]"),
            *(f"model.width={width}", f"model.heads={width // 32}"),
            *(f"model.bricks={json.dumps(rows)}", f"train.images={images}"),
            *(f"train.batch={BATCH}", f"train.learning_rate={rate}", f"train.seed={seed}"),
            *(f"train.warmup_images={images // 20}", f"train.ema_halflife_images={images // 15}"),
            *("train.checkpoint_images=1000000000", "train.picture_images=0"),
            *(f"train.sigma_mean={MEAN}", f"train.sigma_std={STD}", *changes),
        ],
    )
