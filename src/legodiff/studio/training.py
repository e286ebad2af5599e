"""The training of a run, live or finished: losses by brick and noise level, grids over time."""

from pathlib import Path
from typing import Any

import gradio as gr

from legodiff.pictures import figure_bytes, loss_figure
from legodiff.studio import html
from legodiff.studio.drawing import Studio
from legodiff.studio.parts import QUIET, raw
from legodiff.train.log import BANDS, read_log

EVERY = 5.0  # seconds between looks at a run


def tab(studio: Studio, run: Path, blocks: gr.Blocks) -> None:
    """Losses, and the pictures of a run with a slider through time."""
    losses = raw()
    at = gr.Slider(0, 1, 1, step=1, label="Picture", info="From the first to the newest.")
    grid = raw()
    timer = gr.Timer(EVERY)
    seen = gr.State(None)

    def look(known: Any, chosen: float) -> tuple[Any, ...]:
        found = _newest(run)
        if found == known:
            return gr.skip(), gr.skip(), gr.skip(), known
        last = max(0, found[1] - 1)
        follows = known is None or chosen >= known[1] - 1  # whoever looks at the newest stays there
        place = last if follows else int(chosen)
        slider = gr.Slider(0, max(1, last), place, step=1, interactive=last > 0)
        return _losses(studio, run), slider, _grid(studio, run, place), found

    def choose(chosen: float) -> str:
        return _grid(studio, run, int(chosen))

    gr.on([blocks.load, timer.tick], look, [seen, at], [losses, at, grid, seen], **QUIET)
    at.input(choose, at, grid, **QUIET, trigger_mode="always_last")


def _newest(run: Path) -> tuple[int, int]:
    """What tells whether a run went on: the size of its log, and how many pictures there are."""
    log = run / "log.jsonl"
    return log.stat().st_size if log.exists() else 0, len(_pictures(run))


def _pictures(run: Path) -> list[Path]:
    return sorted((run / "samples").glob("*.png"))


def _losses(studio: Studio, run: Path) -> str:
    """The curves, and the newest line in words."""
    names = [str(brick) for brick in studio.pipe.stack.spec.bricks]
    try:
        log = read_log(run / "log.jsonl")
        if not log:
            return html.box("<p>This run has not told its loss yet.</p>")
        path = studio.shelf.put(figure_bytes(loss_figure(log, names, BANDS)), "loss.png")
    except ValueError as error:
        return html.wrong(str(error))
    said = f"{log[-1]['images']:,} images, loss {log[-1]['loss']:.4f}"
    return html.box(f'<p role="status">{said}</p>{html.linked(path, "losses over images seen")}')


def _grid(studio: Studio, run: Path, at: int) -> str:
    """One of the run's pictures."""
    pictures = _pictures(run)
    if not pictures:
        return html.box("<p>This run has drawn no pictures yet.</p>")
    path = pictures[min(at, len(pictures) - 1)]
    shown = studio.shelf.put(path.read_bytes(), path.name)
    return html.box(
        f"<figure><figcaption>{int(path.stem):,} images</figcaption>"
        f"{html.linked(shown, 'samples of the run')}</figure>"
    )
