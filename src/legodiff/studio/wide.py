"""The tab where canvases are drawn: any size, classes in a row or painted, shown as they grow."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from legodiff.labels import labels_of
from legodiff.studio import gallery, html, painting, parts
from legodiff.studio.drawing import Studio
from legodiff.studio.elsewhere import listed
from legodiff.studio.requests import Canvas

WRAPS = [
    ("no sides meet", "none"),
    ("left and right meet", "x"),
    ("top and bottom meet", "y"),
    ("all sides meet: a tile", "both"),
]


def tab(studio: Studio, kept: gr.State) -> None:
    """Size, sides that meet, and classes; the picture, its cost, and which bricks ran when."""
    pipe, names = studio.pipe, parts.classes(studio)
    spec = pipe.stack.spec
    few = range(min(2, spec.classes))
    height, width = (side * pipe.codec.factor for side in spec.image_size)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            with gr.Row():
                rows = gr.Number(height, label="Height", precision=0, minimum=1, min_width=100)
                long = width * parts.fitting(studio, 4)
                columns = gr.Number(long, label="Width", precision=0, minimum=1, min_width=100)
            wrap = gr.Dropdown(WRAPS, value="none", label="Wrap")
            labels = gr.Textbox(
                listed(pipe, few) or "none",
                label="Classes from left to right",
                info=f"Such as {listed(pipe, [*few, None])}" if names else None,
                visible=bool(names),
                max_length=500,
            )
            brush = painting.editor(names)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            ways = parts.ways(studio)
            with gr.Row():
                draw = gr.Button("Draw the canvas", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column(scale=2, min_width=280):
            status, picture, strip = parts.raw(), parts.raw(), parts.raw()

    @parts.guarded
    def run(*values: Any) -> Iterator[parts.Shown]:
        rows, columns, wrap, labels, painted, seed, *numbers, entries = values
        listed = labels_of("classes", labels, spec.classes, pipe.class_names, 1000)
        request = Canvas(
            parts.way(numbers),
            tuple(listed) if spec.classes else (None,),
            parts.whole("seed", seed),
            (parts.whole("height", rows), parts.whole("width", columns)),
            wrap,
            painting.label_map(painted, len(names), spec.classes) if spec.classes else None,
        )
        drawn = yield from parts.following(studio.canvas(request))
        title = f"{request.size[0]}x{request.size[1]}, budget {request.way.budget:.0%}"
        shown = html.figure(drawn, title, [f"a canvas, {title}"])
        ran = html.strip(drawn.method, pipe.sampling, parts.bricks(studio))
        new = gallery.entry(studio, title, drawn, request)
        yield "", html.pair(shown), ran, gallery.add(new, entries)

    inputs = [rows, columns, wrap, labels, brush, seed, *ways, kept]
    drawn = draw.click(run, inputs, [status, picture, strip, kept], **parts.QUIET)
    stop.click(parts.stopped, None, status, **parts.QUIET, queue=False, cancels=[drawn])
