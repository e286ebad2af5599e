"""DiT's checkpoints as a stack of one image-brick, exactly.

DiT predicts the noise, and with the same network the variance of the reverse step, on latents of
Stable Diffusion. A stack of ours with the DDPM objective predicts the noise only, so the variance
is left out. The brick reads coordinates too, which DiT does not: their weights are zero.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from legodiff.codec import LatentCodec
from legodiff.interop.dit_weights import (
    Layout,
    Part,
    Tensors,
    brick_parts,
    brick_shape,
    noise_parts,
    position_table,
)
from legodiff.interop.lego import LATENTS
from legodiff.model.spec import BrickSpec, StackSpec
from legodiff.model.stack import LegoStack
from legodiff.noise import ddpm_sigmas
from legodiff.pipeline import LegoPipeline
from legodiff.sampling import Sampling
from legodiff.vae import VaeSpec

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Width -> attention heads of DiT-S, B, L and XL."""
LABELS = "y_embedder.embedding_table.weight"
LABEL_DROPOUT = 0.1


def dit_pipeline(
    tensors: Mapping[str, Tensor], heads: int | None = None, vae: VaeSpec = LATENTS
) -> LegoPipeline:
    """A pipeline from the tensors of ``DiT``, by the names of its ``state_dict``.

    ``heads`` are those of S, B, L and XL by default, by the width; ``vae`` is what made the
    latents. Raises ValueError, in one line, for tensors that are not such a model's.
    """
    found = Tensors(tensors)
    size, local, depth = brick_shape(found, "")
    width, channels = found["x_embedder.proj.weight"].shape[:2]
    if heads is None and width not in HEADS:
        raise ValueError(f"a DiT of width {width} is none of S, B, L and XL; give --heads")
    spec = StackSpec(
        image_size=(size, size),
        channels=channels,
        width=width,
        heads=heads or HEADS[width],
        bricks=(BrickSpec("image", local, depth),),
        classes=len(found[LABELS]) - 1,  # the last row is no class
        mlp_ratio=len(found["blocks.0.mlp.fc1.bias"]) / width,
        refine=False,
        objective="ddpm",
    )
    weights = dit_layout(spec).read(found)
    found.check_all_used()

    with torch.device("meta"):
        stack = LegoStack(spec)
    stack.load_weights(weights, "the file")
    table = ddpm_sigmas()
    return LegoPipeline(
        stack.eval(),
        LatentCodec(vae, mean=(0.0,) * channels, scale=1.0),
        sampling=Sampling(sigma_min=float(table[0]), sigma_max=float(table[-1])),
        label_dropout=LABEL_DROPOUT,
    )


def dit_layout(spec: StackSpec) -> Layout:
    """The weights of such a stack under the names of ``DiT``."""
    (brick,) = spec.bricks
    assert isinstance(brick, BrickSpec)
    shape = (spec.image_size[0], brick.local, brick.depth)
    seen = [*range(spec.channels), None, None]
    parts = [
        Part("class_embedding.weight", (LABELS,)),
        *noise_parts("t_embedder."),
        *brick_parts("", "bricks.0.", shape, seen, spec.channels),
    ]
    return Layout(parts, {"pos_embed": position_table(shape, spec.width)})
