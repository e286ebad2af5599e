"""The weights of a stack as plain tensors: under our names, or those of LEGO's or DiT's authors."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from legodiff import store
from legodiff.interop.dit import dit_layout, dit_pipeline
from legodiff.interop.lego import lego_layout, lego_pipeline
from legodiff.model.spec import BrickSpec, StackSpec
from legodiff.model.stack import LegoStack

SPEC = "spec.json"
LAYOUTS = ("legodiff", "lego", "dit")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAME = 1e-6
"""How far off a weight may be that went there and back: a class's row is a sum on their side."""


def write_state_dict(
    stack: LegoStack, folder: Path, layout: str = "legodiff", dtype: str = "fp32"
) -> None:
    """Writes ``model.safetensors``, and ``spec.json``: the ``to_dict`` of the stack's spec.

    Args:
        stack: what is written.
        folder: where.
        layout: whose names: "legodiff", "lego" (of ``EDMPrecondLEGO``) or "dit".
        dtype: of all tensors: "fp32", "bf16" or "fp16".

    Raises ValueError, in one line, if a layout cannot say this model, or a dtype its numbers.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    stack.check_saved()
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors_in(stack, layout).items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that {dtype} cannot hold; choose another --dtype")
    store.write_weights(folder / store.WEIGHTS, tensors)
    text = json.dumps(stack.spec.to_dict(), indent=2)
    store.write_atomically(folder / SPEC, text.encode() + b"\n")


def tensors_in(stack: LegoStack, layout: str) -> dict[str, Tensor]:
    """The weights by the names of a layout, such that importing them gives the same network.

    Raises ValueError, in one line, if the layout cannot say this network.
    """
    own = {name: tensor.detach().float().cpu() for name, tensor in stack.state_dict().items()}
    if layout == "legodiff":
        return own
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}: choose from {', '.join(LAYOUTS)}")
    _check(stack.spec, layout)
    try:
        if layout == "lego":
            written = lego_layout(stack.spec).write(own)
            again = lego_pipeline(written, stack.spec.heads).stack
            written = {f"model.{name}": tensor for name, tensor in written.items()}
        else:
            written = dit_layout(stack.spec).write(own)
            again = dit_pipeline(written, stack.spec.heads).stack
        _check_same(own, again.state_dict())
    except ValueError as error:
        raise ValueError(f"layout {layout} cannot say this model: {error}") from error
    return written


def _check(spec: StackSpec, layout: str) -> None:
    """Raises ValueError if a network is none of the authors'."""
    bricks = [brick for brick in spec.bricks if isinstance(brick, BrickSpec)]
    whole = [brick.patch(spec.image_size) == spec.image_size for brick in bricks]
    wrong = {
        "a brick of it is a network of another kind": len(bricks) < len(spec.bricks),
        "its images are not square": spec.image_size[0] != spec.image_size[1],
        "its bricks refine the estimate below": spec.refine,
    }
    if layout == "lego":
        wrong |= {
            'its objective is "ddpm"': spec.objective == "ddpm",
            "its bricks hand over estimates": len(bricks) > 1 and spec.hand_over == "estimate",
            "none of its bricks covers the image": not any(whole),
            f"its sigma_data is {spec.sigma_data}, not 0.5": spec.sigma_data != 0.5,
        }
    else:
        wrong |= {
            "it has more than one brick": len(spec.bricks) > 1,
            'its objective is "edm"': spec.objective == "edm",
            "its brick does not cover the image": not all(whole),
            "it has no classes": not spec.classes,
        }
    for reason, found in wrong.items():
        if found:
            raise ValueError(f"layout {layout} cannot say this model: {reason}")


def _check_same(own: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless weights that went there and back are what they were."""
    for name, tensor in own.items():
        limit = SAME * tensor.abs().max().clamp(min=1)
        if tensor.shape != again[name].shape or (tensor - again[name]).abs().max() > limit:
            raise ValueError(f"{name} does not come back the same")
