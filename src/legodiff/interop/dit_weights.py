"""Weights of a DiT under the names of its authors' code and under ours, told once for both ways.

The authors of LEGO, like many others, build on that code: a brick of theirs is such a DiT.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from legodiff.model.layers import position_embedding

BLOCK = {
    "adaLN_modulation.1": "modulation",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
"""Layers of a block, theirs -> ours."""
NOISE = {"mlp.0": "first", "mlp.2": "second"}
"""Of the embedding of the noise level."""
POSITIONS_OFF = 1e-4  # their table is computed in other steps, and kept


class Tensors:
    """Tensors of a file by name, which remembers those that were used."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.used = tensors, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        """float32. Raises ValueError if it is missing or holds no numbers."""
        if name not in self.tensors:
            raise ValueError(f"there is no {name} among its {len(self.tensors)} tensors")
        self.used.add(name)
        tensor = self.tensors[name]
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds {tensor.dtype} or what is no number")
        return tensor.float()

    def count(self, prefix: str) -> int:
        """How many numbered parts ``prefix.0``, ``prefix.1`` ... there are."""
        number = 0
        while any(name.startswith(f"{prefix}.{number}.") for name in self.tensors):
            number += 1
        return number

    def check_all_used(self, but: Sequence[str] = ()) -> None:
        """Raises ValueError if there is a tensor that nobody asked for."""
        left = sorted(self.tensors.keys() - self.used - set(but))
        if left:
            raise ValueError(f"{len(left)} of its tensors have no place here, first {left[0]}")


def brick_shape(tensors: Tensors, prefix: str) -> tuple[int, int, int]:
    """Side of the patches, local field, and number of blocks of the DiT under ``prefix``."""
    local = tensors[f"{prefix}x_embedder.proj.weight"].shape[-1]
    tokens = tensors[f"{prefix}pos_embed"].shape[1]
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"{prefix}pos_embed has {tokens} positions, which are no square")
    return side * local, local, tensors.count(f"{prefix}blocks")


class Part(NamedTuple):
    """A tensor of ours, and those of theirs that say the same."""

    ours: str
    theirs: tuple[str, ...]
    read: Callable[..., Tensor] = lambda tensor: tensor
    """Theirs to ours."""
    write: Callable[[Tensor], tuple[Tensor, ...]] = lambda tensor: (tensor,)
    """Ours to theirs. Raises ValueError for what they cannot say."""


@dataclass(frozen=True)
class Layout:
    """The weights of a stack under the names of others."""

    parts: Sequence[Part]
    positions: Mapping[str, Tensor]
    """What they keep and we compute: position embeddings, each (1, N, D)."""

    def read(self, tensors: Tensors) -> dict[str, Tensor]:
        """Ours from theirs. Raises ValueError, in one line, for what has no place here."""
        for name, ours in self.positions.items():
            table = tensors[name]
            if table.shape != ours.shape or (table - ours).abs().max() > POSITIONS_OFF:
                raise ValueError("its position embedding is not the fixed sines and cosines of DiT")
        return {part.ours: part.read(*map(tensors.__getitem__, part.theirs)) for part in self.parts}

    def write(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Theirs from ours, which are of a stack of this layout."""
        written = dict(self.positions)
        for part in self.parts:
            written |= zip(part.theirs, part.write(weights[part.ours]), strict=True)
        return written


def linear(theirs: str, ours: str) -> Iterator[Part]:
    """Weight and bias of a layer that is the same on both sides."""
    for kind in ("weight", "bias"):
        yield Part(f"{ours}.{kind}", (f"{theirs}.{kind}",))


def noise_parts(theirs: str) -> Iterator[Part]:
    """The embedding of the noise level, under the prefix that they give it."""
    for layer, ours in NOISE.items():
        yield from linear(f"{theirs}{layer}", f"noise_embedding.{ours}")


def brick_parts(
    theirs: str,
    ours: str,
    shape: tuple[int, int, int],
    seen: Sequence[int | None],
    channels_out: int,
) -> Iterator[Part]:
    """One of our bricks as a DiT of theirs.

    Args:
        theirs, ours: prefix of the names, such as "model.0." and "bricks.0.".
        shape: side of the patches, local field, and number of blocks.
        seen: their number of each of our input channels; None for one that they do not have.
        channels_out: how many of their output channels are read, from the first on.
    """
    _, local, depth = shape
    yield Part(
        f"{ours}embed.weight",
        (f"{theirs}x_embedder.proj.weight",),
        partial(_read_embed, seen),
        partial(_write_embed, seen, local),
    )
    yield Part(f"{ours}embed.bias", (f"{theirs}x_embedder.proj.bias",))
    for number in range(depth):
        for layer, own in BLOCK.items():
            yield from linear(f"{theirs}blocks.{number}.{layer}", f"{ours}blocks.{number}.{own}")
    yield from linear(f"{theirs}final_layer.adaLN_modulation.1", f"{ours}output.modulation")
    for part in linear(f"{theirs}final_layer.linear", f"{ours}output.linear"):
        read = partial(_read_output, local, channels_out)
        yield part._replace(read=read, write=partial(_write_output, local))


def position_table(shape: tuple[int, int, int], width: int) -> Tensor:
    """DiT's position embedding of a brick of that shape: (1, N, D)."""
    side = shape[0] // shape[1]
    return position_embedding((side, side), (side, side), width, torch.device("cpu"))[None]


def _read_embed(seen: Sequence[int | None], weight: Tensor) -> Tensor:
    """A convolution (D, their channels, l, l) to a linear layer (D, our channels * l * l)."""
    none = torch.zeros_like(weight[:, :1])
    channels = [none if one is None else weight[:, one : one + 1] for one in seen]
    return torch.cat(channels, dim=1).flatten(1)


def _write_embed(seen: Sequence[int | None], local: int, weight: Tensor) -> tuple[Tensor]:
    channels = weight.view(len(weight), -1, local, local)
    if any(one is None and channels[:, number].any() for number, one in enumerate(seen)):
        raise ValueError("its brick reads coordinates, which theirs does not")
    order = {one: number for number, one in enumerate(seen) if one is not None}
    return (channels[:, [order[one] for one in sorted(order)]],)


def _read_output(local: int, channels: int, value: Tensor) -> Tensor:
    """(row, column, channel) of a local field to (channel, row, column), some channels of it."""
    fields = value.view(local, local, -1, *value.shape[1:])[:, :, :channels]
    return fields.movedim(2, 0).flatten(0, 2)


def _write_output(local: int, value: Tensor) -> tuple[Tensor]:
    fields = value.view(-1, local, local, *value.shape[1:])
    return (fields.movedim(0, 2).flatten(0, 2),)
