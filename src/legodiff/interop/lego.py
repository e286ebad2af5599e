"""The checkpoints of LEGO's authors as a pipeline of ours.

Their stack hands the raw output of a brick to the next, in front of the noisy image and behind it
the coordinates; labels are a linear layer of one-hot vectors, whose bias alone stands for no class.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from legodiff.codec import Codec, LatentCodec, PixelCodec
from legodiff.interop.dit_weights import (
    Layout,
    Part,
    Tensors,
    brick_parts,
    brick_shape,
    noise_parts,
    position_table,
)
from legodiff.model.spec import BrickSpec, StackSpec
from legodiff.model.stack import LegoStack
from legodiff.pipeline import LegoPipeline
from legodiff.vae import VaeSpec

SIZES = {"S": (384, 6), "L": (1024, 16), "XL": (1152, 16)}
"""Width and attention heads."""
GRIDS = {"PG": (4, 16, 0), "PR": (0, 16, 4), "U": (0, 16, 4, 16, 0)}
"""Sides of the patches from the bottom to the top; 0 is the whole image."""
LOCAL = {4: 2, 16: 8, 0: 2}
"""Local field of a brick of that side."""
DEPTHS = {
    "lego_S_PG_64": (2, 4, 6),
    "lego_S_PR_64": (6, 4, 2),
    "lego_S_U_32": (6, 4, 2, 4, 6),
    "lego_S_U_64": (6, 4, 2, 4, 6),
    "lego_L_PG_32": (4, 8, 12),
    "lego_L_PR_32": (12, 8, 4),
    "lego_L_PG_64": (6, 8, 12),
    "lego_L_PR_64": (12, 8, 6),
    "lego_L_U_32": (12, 8, 6, 8, 12),
    "lego_L_U_64": (12, 8, 6, 8, 12),
    "lego_L_PG_64_old": (6, 6, 12),
    "lego_L_PR_64_old": (12, 6, 6),
    "lego_XL_PG_32": (4, 12, 14),
    "lego_XL_PR_32": (14, 12, 4),
    "lego_XL_PG_64": (4, 12, 14),
    "lego_XL_PR_64": (14, 12, 4),
    "lego_XL_U_32": (14, 10, 4, 10, 14),
    "lego_XL_U_64": (14, 12, 4, 12, 14),
}
"""Name of a model -> blocks of its bricks, from the bottom to the top."""
LABELS = ("y_embedder.embedding_table.weight", "y_embedder.embedding_table.bias")
LATENTS = VaeSpec(channels=4, downsampling=8, scale=0.18215)
"""Stable Diffusion's, which DiT uses too."""


def official_spec(name: str, channels: int = 3, classes: int = 0) -> StackSpec:
    """The stack that their code calls by a name such as "lego_XL_PG_32".

    Raises ValueError for a name that it does not know.
    """
    if name not in DEPTHS:
        raise ValueError(f"unknown model {name!r}; choose from {', '.join(DEPTHS)}")
    _, size, order, grid, *_ = name.split("_")
    width, heads = SIZES[size]
    return StackSpec(
        image_size=(int(grid), int(grid)),
        channels=channels,
        width=width,
        heads=heads,
        bricks=tuple(
            BrickSpec(side or "image", LOCAL[side], depth)
            for side, depth in zip(GRIDS[order], DEPTHS[name], strict=True)
        ),
        classes=classes,
        refine=False,
        hand_over="raw",
    )


def lego_pipeline(
    tensors: Mapping[str, Tensor],
    heads: int | None = None,
    sigma_data: float = 0.5,
    label_dropout: float = 0.1,
    vae: VaeSpec = LATENTS,
) -> LegoPipeline:
    """A pipeline from the tensors of ``EDMPrecondLEGO`` or of the ``LEGO`` inside it.

    Args:
        tensors: by the names of their ``state_dict``.
        heads: of the attention; by default those of S, L and XL, by the width.
        sigma_data, label_dropout: what it was trained with.
        vae: what made the latents, of a model of four channels.

    Raises ValueError, in one line, for tensors that are not such a model's.
    """
    prefix = "model." if any(name.startswith("model.model.") for name in tensors) else ""
    found = Tensors({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    count = found.count("model")
    if not count:
        raise ValueError("there is no model.0: these are not the weights of a LEGO stack")
    shapes = [brick_shape(found, f"model.{number}.") for number in range(count)]
    image = max(size for size, _, _ in shapes)
    width = len(found["model.0.x_embedder.proj.bias"])
    channels = len(found["model.0.final_layer.linear.bias"]) // shapes[0][1] ** 2
    spec = StackSpec(
        image_size=(image, image),
        channels=channels,
        width=width,
        heads=heads or _heads(width),
        bricks=tuple(
            BrickSpec("image" if size == image else size, local, depth)
            for size, local, depth in shapes
        ),
        classes=found[LABELS[0]].shape[1] if LABELS[0] in found.tensors else 0,
        mlp_ratio=len(found["model.0.blocks.0.mlp.fc1.bias"]) / width,
        refine=False,
        hand_over="raw",
        sigma_data=sigma_data,
    )

    weights = lego_layout(spec).read(found)
    found.check_all_used(but=("map_augment.weight", "map_augment.bias"))  # used in training only

    with torch.device("meta"):
        stack = LegoStack(spec)
    stack.load_weights(weights, "the file")
    return LegoPipeline(
        stack.eval(),
        _codec(channels, vae),
        label_dropout=label_dropout if spec.classes else 0.0,
    )


def lego_layout(spec: StackSpec) -> Layout:
    """The weights of such a stack under the names of ``LEGO``, without a prefix."""
    image, channels = spec.image_size[0], spec.channels
    parts, positions = list(noise_parts("t_embedder.")), {}
    if spec.classes:
        parts.append(Part("class_embedding.weight", LABELS, _read_classes, _write_classes))
    for number, brick in enumerate(spec.bricks):
        assert isinstance(brick, BrickSpec)
        shape = (brick.patch((image, image))[0], brick.local, brick.depth)
        below = channels if number else 0
        seen = [*range(below, below + channels), *range(below)]  # they put it before the image
        seen += [below + channels, below + channels + 1]
        theirs = f"model.{number}."
        parts += brick_parts(theirs, f"bricks.{number}.", shape, seen, channels)
        positions[f"{theirs}pos_embed"] = position_table(shape, spec.width)
    return Layout(parts, positions)


def _read_classes(weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer of one-hot vectors to a table whose last row is no class."""
    return torch.cat([weight.T, torch.zeros(1, len(bias))]) + bias


def _write_classes(table: Tensor) -> tuple[Tensor, Tensor]:
    return (table[:-1] - table[-1]).T, table[-1]


def _heads(width: int) -> int:
    known = dict(SIZES.values())
    if width not in known:
        raise ValueError(f"a stack of width {width} is none of S, L and XL; give --heads")
    return known[width]


def _codec(channels: int, vae: VaeSpec) -> Codec:
    """Pixels in [-1, 1]; of four channels, latents as the VAE scales them."""
    if channels == vae.channels:
        return LatentCodec(vae, mean=(0.0,) * channels, scale=1.0)
    return PixelCodec(mean=(0.0,) * channels)
