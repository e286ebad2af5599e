"""The tab where images are drawn: the budget dial, and the same seeds at full compute beside it."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from legodiff.labels import parse_numbers
from legodiff.studio import gallery, html, parts
from legodiff.studio.drawing import Studio
from legodiff.studio.requests import Images


def tab(studio: Studio, kept: gr.State) -> None:
    """Classes, seeds and the dial; the pictures, their cost, and which bricks ran when."""
    names, most = parts.classes(studio), studio.limits.images
    first = parts.fitting(studio, min(4, most))
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            labels = gr.Dropdown(
                [*names, parts.NO_CLASS],
                value=names[:1] or [parts.NO_CLASS],
                multiselect=True,
                label="Classes, taken in turns",
                visible=bool(names),
            )
            seeds = gr.Textbox(
                f"0-{first - 1}" if first > 1 else "0",
                label="Seeds",
                info=f"One image each: 0-3, or 7,11. At most {most}.",
                max_length=200,
            )
            ways = parts.ways(studio, "Moving it draws again, beside the same at full compute.")
            with gr.Row():
                draw = gr.Button("Draw", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column(scale=2, min_width=280):
            status, pictures, strip = parts.raw(), parts.raw(), parts.raw()

    @parts.guarded
    def run(labels: list[str], seeds: str, *rest: Any) -> Iterator[parts.Shown]:
        *numbers, entries = rest
        found = tuple(parse_numbers("seeds", seeds, most))
        request = Images(parts.way(numbers), parts.labels(studio, labels), found)
        yield from _both(studio, request, entries)

    inputs, outputs = [labels, seeds, *ways, kept], [status, pictures, strip, kept]
    drawn = draw.click(run, inputs, outputs, **parts.QUIET)
    moved = ways[-1].change(run, inputs, outputs, **parts.QUIET, trigger_mode="always_last")
    stop.click(parts.stopped, None, status, **parts.QUIET, queue=False, cancels=[drawn, moved])


def _both(studio: Studio, request: Images, entries: list[gallery.Entry]) -> Iterator[parts.Shown]:
    """Draws what is asked for, and then the same at full compute."""
    pipe, full = studio.pipe, request.at_full_compute()
    alts = _alts(studio, request)
    title = f"Budget {request.way.budget:.0%}" if request != full else "Full compute"
    drawn = yield from parts.following(studio.images(request))
    one = html.figure(drawn, title, alts)
    strip = html.strip(drawn.method, pipe.sampling, parts.bricks(studio))
    count = len(request.seeds)
    images = "1 image" if count == 1 else f"{count} images"
    said = f"{title}, {images}, {request.way.steps} steps"
    new = gallery.entry(studio, said, drawn, request)
    yield "", html.pair(one), strip, gallery.add(new, entries)
    if request == full:
        return
    beside = yield from parts.following(studio.images(full))
    other = html.figure(beside, "Full compute", alts)
    yield "", html.pair(one, other), strip, gr.skip()


def _alts(studio: Studio, request: Images) -> list[str]:
    names = parts.classes(studio)
    return [
        f"seed {seed}" + ("" if label is None else f", class {names[label]}")
        for seed, label in zip(request.seeds, request.paired, strict=True)
    ]
