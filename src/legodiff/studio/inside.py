"""The tab that looks inside: each brick's estimate over the noise levels, and what bricks cost."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from legodiff.model.cost import brick_flops, brick_parameters
from legodiff.pictures import figure_bytes, trade_off_figure
from legodiff.plans import lines
from legodiff.studio import html, parts
from legodiff.studio.drawing import Studio
from legodiff.studio.requests import Images, Way


def tab(studio: Studio) -> None:
    """One image, level by level and brick by brick; costs, and the trade-off curve."""
    names = [*parts.classes(studio), parts.NO_CLASS]
    gr.Markdown(
        "What each brick makes of the estimate below it, from noise to picture. Drag the slider, "
        "or move it with the arrow keys."
    )
    with gr.Row():
        label = gr.Dropdown(names, value=names[0], label="Class", visible=len(names) > 1)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    ways = parts.ways(studio)
    with gr.Row():
        look = gr.Button("Look inside", variant="primary")
        stop = gr.Button("Stop")
    status, frames, strip, curve = parts.raw(), parts.raw(), parts.raw(), parts.raw()
    parts.raw(_costs(studio))

    @parts.guarded
    def run(label: str, seed: Any, *numbers: Any) -> Iterator[parts.Shown]:
        way, labels = parts.way(numbers), parts.labels(studio, [label])
        request = Images(way, labels, (parts.whole("seed", seed),))
        seen = yield from parts.following(studio.inside(request))
        bricks = parts.bricks(studio)
        ran = html.strip(way.method(studio.pipe), studio.pipe.sampling, bricks)
        yield "", html.inside(seen, bricks), ran, _trade_off(studio, way)

    seen = look.click(run, [label, seed, *ways], [status, frames, strip, curve], **parts.QUIET)
    stop.click(parts.stopped, None, status, **parts.QUIET, queue=False, cancels=[seen])


def _costs(studio: Studio) -> str:
    """What each brick costs, as bars."""
    spec = studio.pipe.stack.spec
    flops, parameters = brick_flops(spec), brick_parameters(spec)
    rows = [
        (name, flops[at], f"{flops[at] / 1e6:,.3g} MFLOPs, {parameters[at] / 1e6:.3g} M parameters")
        for at, name in reversed(list(enumerate(parts.bricks(studio))))
    ]
    return html.bars(rows, "What each brick costs, an evaluation of an image")


def _trade_off(studio: Studio, way: Way) -> str:
    """What a budget buys, with what was chosen; a line in words if nothing was planned."""
    pipe = studio.pipe
    curve = pipe.curve(way.full(pipe))
    if curve is None:
        return html.box(
            "<p>No trade-off is known for this sampler, steps and guidance; "
            "<code>legodiff plan</code> finds it. The dial follows the paper's rule.</p>"
        )
    size = pipe.stack.spec.image_size
    share = way.method(pipe).flops(pipe.sampling, pipe.stack.spec, size) / curve.full.flops
    figure = trade_off_figure(lines(curve), f"{studio.name}: what a budget buys", share)
    path = studio.shelf.put(figure_bytes(figure), "trade-off.png")
    return html.box(html.linked(path, "difference from full compute over share of FLOPs"))
