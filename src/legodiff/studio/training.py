"""The training of a run, live or finished: losses by brick and noise level, grids over time."""

from pathlib import Path
from typing import Any

import gradio as gr

from legodiff.pictures import figure_bytes, loss_figure, trade_off_figure
from legodiff.plans import lines
from legodiff.studio import html
from legodiff.studio.drawing import Studio
from legodiff.studio.requests import Way
from legodiff.train.log import BANDS, read_log

EVERY = 5.0  # seconds between looks at a run


def raw(value: str = "") -> gr.HTML:
    """HTML of ours, in a style of ours."""
    return gr.HTML(value, apply_default_css=False, padding=True)


def tab(studio: Studio, blocks: gr.Blocks) -> None:
    """Losses, and the pictures of a run with a slider through time."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    losses = raw()
    at = gr.Slider(0, 1, 1, step=1, label="Picture", info="From the first to the newest.")
    grid = raw()
    timer = gr.Timer(EVERY)
    seen = gr.State(None)

    def look(known: Any, chosen: float) -> tuple[Any, ...]:
        found = _newest(studio)
        if found == known:
            return gr.skip(), gr.skip(), gr.skip(), known
        pictures = _pictures(studio)
        last = max(0, len(pictures) - 1)
        follows = known is None or chosen >= known[1] - 1  # whoever looks at the newest stays there
        place = last if follows else int(chosen)
        slider = gr.Slider(0, max(1, last), place, step=1, interactive=last > 0)
        return _losses(studio), slider, _grid(studio, place), found

    def choose(chosen: float) -> str:
        return _grid(studio, int(chosen))

    gr.on([blocks.load, timer.tick], look, [seen, at], [losses, at, grid, seen], **quiet)
    at.input(choose, at, grid, **quiet, trigger_mode="always_last")


def _newest(studio: Studio) -> tuple[int, int]:
    """What tells whether a run went on: the size of its log, and how many pictures there are."""
    assert studio.run is not None
    log = studio.run / "log.jsonl"
    return log.stat().st_size if log.exists() else 0, len(_pictures(studio))


def _pictures(studio: Studio) -> list[Path]:
    assert studio.run is not None
    return sorted((studio.run / "samples").glob("*.png"))


def _losses(studio: Studio) -> str:
    """The curves, and the newest line in words."""
    assert studio.run is not None
    log = read_log(studio.run / "log.jsonl") if (studio.run / "log.jsonl").exists() else []
    if not log:
        return html.box("<p>This run has not told its loss yet.</p>")
    names = [str(brick) for brick in studio.pipe.stack.spec.bricks]
    last = log[-1]
    said = f"{last['images']:,} images, loss {last['loss']:.4f}"
    try:
        path = studio.shelf.put(figure_bytes(loss_figure(log, names, BANDS)), "loss.png")
    except ValueError as error:  # no matplotlib
        return html.wrong(str(error))
    return html.box(f'<p role="status">{said}</p>{html.linked(path, "losses over images seen")}')


def _grid(studio: Studio, at: int) -> str:
    """One of the run's pictures."""
    pictures = _pictures(studio)
    if not pictures:
        return html.box("<p>This run has drawn no pictures yet.</p>")
    path = pictures[min(at, len(pictures) - 1)]
    shown = studio.shelf.put(path.read_bytes(), path.name)
    return html.box(
        f"<figure><figcaption>{int(path.stem):,} images</figcaption>"
        f"{html.linked(shown, 'samples of the run')}</figure>"
    )


def trade_off(studio: Studio, way: Way) -> str:
    """What a budget buys, with what was chosen; a line in words if nothing was planned."""
    pipe = studio.pipe
    full = way.full(pipe)
    curve = pipe.curve(full)
    if curve is None:
        return html.box(
            "<p>No trade-off is known for this sampler, steps and guidance; "
            "<code>legodiff plan</code> finds it. The dial follows the paper's rule.</p>"
        )
    size = pipe.stack.spec.image_size
    share = way.method(pipe).flops(pipe.sampling, pipe.stack.spec, size) / curve.full.flops
    title = f"{studio.name}: what a budget buys"
    figure = trade_off_figure(lines(curve), title, share)
    path = studio.shelf.put(figure_bytes(figure), "trade-off.png")
    return html.box(html.linked(path, "difference from full compute over share of FLOPs"))
