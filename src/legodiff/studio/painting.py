"""Classes painted with a brush: a colour for each, turned into a map of labels."""

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
import numpy as np
import torch
from torch import Tensor

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#bfef45", "#9a6324")
"""Of the first classes; what is not painted has no class."""
SIDE = (512, 192)  # width and height of what is painted on; it is stretched to the canvas


def editor(names: Sequence[str]) -> Any:
    """Where one paints; hidden for a model without classes."""
    shown = names[: len(COLOURS)]
    legend = " ".join(
        f'<span style="white-space:nowrap"><span style="background:{colour};display:inline-block;'
        f'width:.9em;height:.9em"></span> {name}</span>'
        for colour, name in zip(COLOURS, map(escape, shown), strict=False)
    )
    with gr.Accordion("Or paint them", open=False, visible=bool(names)):
        gr.HTML(
            f"<p>Each colour is a class: {legend}. What is left white has none. Choose the brush, "
            "then a colour.</p>"
        )
        return gr.ImageEditor(
            sources=(),
            transforms=(),
            layers=False,
            height=300,
            canvas_size=SIDE,
            fixed_canvas=True,
            type="numpy",
            brush=gr.Brush(colors=list(COLOURS[: len(shown)]), color_mode="fixed", default_size=40),
            label="Painted classes",
            show_label=False,
            buttons=[],
        )


def label_map(painted: Any, classes: int, none: int) -> Tensor | None:
    """Class indices, int64 (h, w), of what an editor gave; None if nothing is painted.

    ``none``: the index that means no class.
    """
    layers = (painted or {}).get("layers") or []
    if not layers:
        return None
    image = np.asarray(layers[0])  # what lies below it is white
    if image.ndim != 3 or image.shape[2] != 4:
        raise ValueError("what was painted is no picture with transparency; paint it again")
    if image.shape[0] * image.shape[1] > 4 * SIDE[0] * SIDE[1]:
        raise ValueError(
            f"what was painted has {image.shape[1]}x{image.shape[0]} pixels, which is far more "
            f"than the {SIDE[0]}x{SIDE[1]} of the editor; paint it there"
        )
    inked = image[..., 3] > 127
    if not inked.any():
        return None
    colours = np.array([_rgb(colour) for colour in COLOURS[:classes]])
    distance = np.abs(image[..., None, :3].astype(np.int64) - colours).sum(-1)
    return torch.from_numpy(np.where(inked, distance.argmin(-1), none))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:], 16)
