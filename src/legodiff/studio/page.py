"""The page: five tabs over one model. Words and events only; ``drawing`` does the work."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from legodiff.diffusion.samplers import SAMPLERS
from legodiff.labels import labels_of, parse_numbers
from legodiff.model.cost import brick_flops, brick_parameters
from legodiff.studio import html, painting, training
from legodiff.studio.drawing import Drawn, Studio
from legodiff.studio.requests import Canvas, Images, Way
from legodiff.studio.training import raw

NO_CLASS = "no class"
GALLERY = 24  # drawings that a visitor's gallery keeps
HOUR = 3600  # seconds after which what a visitor left behind is forgotten
Shown = tuple[str, Any, Any, Any]
"""How far it is, pictures, what ran when, and the gallery."""


class Entry(NamedTuple):
    """A drawing in a visitor's gallery."""

    asked: str
    """What was asked for, but for the budget."""
    title: str
    pictures: tuple[str, ...]
    width: int
    """Of each, in pixels."""
    command: str
    python: str
    regions: str | None = None


def build(studio: Studio) -> gr.Blocks:
    """The page of a studio."""
    with gr.Blocks(
        title=f"legodiff studio: {studio.name}", analytics_enabled=False, delete_cache=(60, HOUR)
    ) as blocks:
        gr.Markdown(_heading(studio))
        gallery = gr.State([], time_to_live=HOUR)
        with gr.Tab("Generate"):
            _generate(studio, gallery)
        with gr.Tab("Canvas"):
            _canvas(studio, gallery)
        with gr.Tab("Inside"):
            _inside(studio)
        if studio.run is not None:
            with gr.Tab("Training"):
                training.tab(studio, blocks)
        with gr.Tab("Gallery"):
            shown = raw(html.box("<p>What you draw comes here.</p>"))
            gallery.change(
                lambda entries: _gallery(studio, entries), gallery, shown, **QUIET, queue=False
            )
    page: gr.Blocks = blocks
    return page


QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Events show their own progress, and are no API."""


def _heading(studio: Studio) -> str:
    spec = studio.pipe.stack.spec
    height, width = (side * studio.pipe.codec.factor for side in spec.image_size)
    classes = f"{spec.classes} classes" if spec.classes else "no classes"
    return (
        f"# {studio.name}\n{height}x{width} pixels, {classes}, {len(spec.bricks)} bricks, "
        f"{sum(brick_parameters(spec)) / 1e6:.3g} M parameters, on {studio.pipe.device}"
    )


def _way(studio: Studio, told: str | None = None) -> list[Any]:
    """How to draw: steps, sampler, guidance, and the dial, with what is told of it."""
    guided = bool(studio.pipe.stack.spec.classes and studio.pipe.label_dropout)
    with gr.Group():
        steps = gr.Slider(1, studio.limits.steps, 18, step=1, label="Steps")
        sampler = gr.Dropdown(list(SAMPLERS), value="heun", label="Sampler")
        guidance = gr.Slider(0, 5, 1.0, step=0.1, label="Guidance (1 is none)", visible=guided)
    budget = gr.Slider(
        0.05,
        1,
        1.0,
        step=0.01,
        label="Budget: share of full compute",
        info=told,
    )
    return [steps, sampler, guidance, budget]


def _generate(studio: Studio, gallery: gr.State) -> None:
    names = _choices(studio)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            labels = gr.Dropdown(
                [*names, NO_CLASS],
                value=names[:1] or [NO_CLASS],
                multiselect=True,
                label="Classes, taken in turns",
                visible=bool(names),
            )
            seeds = gr.Textbox(
                "0-3",
                label="Seeds",
                info=f"One image each: 0-3, or 7,11. At most {studio.limits.images}.",
                max_length=200,
            )
            way = _way(studio, "Moving it draws again, beside the same seeds at full compute.")
            with gr.Row():
                draw = gr.Button("Draw", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column(scale=2, min_width=280):
            status, pictures, strip = raw(), raw(), raw()
    outputs = [status, pictures, strip, gallery]

    def run(labels: list[str], seeds: str, *rest: Any) -> Iterator[Shown]:
        *numbers, entries = rest
        try:
            request = Images(_way_of(numbers), _labels_of(studio, labels), _seeds(studio, seeds))
            yield from _both(studio, request, entries)
        except ValueError as error:
            yield html.wrong(str(error)), gr.skip(), gr.skip(), gr.skip()

    events = [
        draw.click(run, [labels, seeds, *way, gallery], outputs, **QUIET, concurrency_limit=None),
        way[-1].change(
            run,
            [labels, seeds, *way, gallery],
            outputs,
            **QUIET,
            concurrency_limit=None,
            trigger_mode="always_last",
        ),
    ]
    stop.click(_stopped, None, status, **QUIET, queue=False, cancels=events)


def _both(studio: Studio, request: Images, entries: list[Entry]) -> Iterator[Shown]:
    """Draws what is asked for, and then the same at full compute."""
    pipe, full = studio.pipe, request.at_full_compute()
    alts = _alts(studio, request)
    whole = request.full_flops(pipe)
    title = f"Budget {request.way.budget:.0%}" if request != full else "Full compute"
    drawn = yield from _shown(studio.images(request))
    strip = html.strip(drawn.method, pipe.sampling, _bricks(studio))
    one = html.figure(drawn, title, alts, whole)
    entry = Entry(
        str(full),
        f"{title}, {len(request.seeds)} images, {request.way.steps} steps",
        drawn.pictures,
        drawn.size[1],
        request.command(pipe, studio.name),
        request.python(pipe, studio.name),
    )
    yield "", html.pair(one), strip, _added(entry, entries)
    if request == full:
        return
    beside = yield from _shown(studio.images(full))
    yield "", html.pair(one, html.figure(beside, "Full compute", alts, whole)), strip, gr.skip()


def _shown(
    events: Generator[Any, None, Drawn],
) -> Generator[Shown, None, Drawn]:
    """Shows how far a drawing is; returns it."""
    try:
        while True:
            yield html.news(next(events)), gr.skip(), gr.skip(), gr.skip()
    except StopIteration as end:
        drawn: Drawn = end.value
        return drawn
    finally:
        events.close()


def _canvas(studio: Studio, gallery: gr.State) -> None:
    pipe, names = studio.pipe, _choices(studio)
    height, width = (side * pipe.codec.factor for side in pipe.stack.spec.image_size)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            with gr.Row():
                rows = gr.Number(height, label="Height", precision=0, minimum=1, min_width=100)
                columns = gr.Number(4 * width, label="Width", precision=0, minimum=1, min_width=100)
            wrap = gr.Dropdown(
                [
                    ("no sides meet", "none"),
                    ("left and right meet", "x"),
                    ("top and bottom meet", "y"),
                    ("all sides meet: a tile", "both"),
                ],
                value="none",
                label="Wrap",
            )
            labels = gr.Textbox(
                ",".join(names[:2]) or "none",
                label="Classes from left to right",
                info=f"Such as {','.join([*names[:2], 'none'])}" if names else None,
                visible=bool(names),
                max_length=500,
            )
            brush = painting.editor(names)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            way = _way(studio)
            with gr.Row():
                draw = gr.Button("Draw the canvas", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column(scale=2, min_width=280):
            status, picture, strip = raw(), raw(), raw()

    def run(*values: Any) -> Iterator[Shown]:
        rows, columns, wrap, labels, painted, seed, *numbers, entries = values
        try:
            spec = pipe.stack.spec
            listed = labels_of("classes", labels, spec.classes, pipe.class_names, 1000)
            request = Canvas(
                _way_of(numbers),
                tuple(listed) if spec.classes else (None,),
                _whole("seed", seed),
                (_whole("height", rows), _whole("width", columns)),
                wrap,
                painting.label_map(painted, len(names), spec.classes) if spec.classes else None,
            )
            drawn = yield from _shown(studio.canvas(request))
            full = request.full_flops(pipe)
            title = f"{request.size[0]}x{request.size[1]}, budget {request.way.budget:.0%}"
            entry = Entry(
                str(request),
                title,
                drawn.pictures,
                drawn.size[1],
                request.command(pipe, studio.name),
                request.python(pipe, studio.name),
                drawn.regions,
            )
            shown = html.pair(html.figure(drawn, title, [f"a canvas, {title}"], full))
            strip = html.strip(drawn.method, pipe.sampling, _bricks(studio))
            yield "", shown, strip, _added(entry, entries)
        except ValueError as error:
            yield html.wrong(str(error)), gr.skip(), gr.skip(), gr.skip()

    inputs = [rows, columns, wrap, labels, brush, seed, *way, gallery]
    outputs = [status, picture, strip, gallery]
    event = draw.click(run, inputs, outputs, **QUIET, concurrency_limit=None)
    stop.click(_stopped, None, status, **QUIET, queue=False, cancels=[event])


def _inside(studio: Studio) -> None:
    names = _choices(studio)
    gr.Markdown(
        "What each brick makes of the estimate below it, from noise to picture. Drag the slider, "
        "or move it with the arrow keys."
    )
    with gr.Row():
        label = gr.Dropdown(
            [*names, NO_CLASS],
            value=(names or [NO_CLASS])[0],
            label="Class",
            visible=bool(names),
        )
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    way = _way(studio)
    look = gr.Button("Look inside", variant="primary")
    status, frames, strip, curve = raw(), raw(), raw(), raw()
    raw(_costs(studio))

    def run(label: str, seed: Any, *numbers: Any) -> Iterator[tuple[Any, ...]]:
        try:
            request = Images(_way_of(numbers), _labels_of(studio, [label]), (_whole("seed", seed),))
            events = studio.inside(request)
            try:
                while True:
                    yield html.news(next(events)), gr.skip(), gr.skip(), gr.skip()
            except StopIteration as end:
                seen = end.value
            finally:
                events.close()
            method = request.way.method(studio.pipe)
            bricks = _bricks(studio)
            strip = html.strip(method, studio.pipe.sampling, bricks)
            yield "", html.inside(seen, bricks), strip, training.trade_off(studio, request.way)
        except ValueError as error:
            yield html.wrong(str(error)), gr.skip(), gr.skip(), gr.skip()

    outputs = [status, frames, strip, curve]
    look.click(run, [label, seed, *way], outputs, **QUIET, concurrency_limit=None)


def _costs(studio: Studio) -> str:
    """What each brick costs, as bars."""
    spec = studio.pipe.stack.spec
    flops = brick_flops(spec)
    parameters = brick_parameters(spec)
    rows = [
        (name, flops[at], f"{flops[at] / 1e6:,.3g} MFLOPs, {parameters[at] / 1e6:.3g} M parameters")
        for at, name in reversed(list(enumerate(_bricks(studio))))
    ]
    return html.bars(rows, "What each brick costs, an evaluation of an image")


def _gallery(studio: Studio, entries: Sequence[Entry]) -> str:
    cards = []
    for entry in entries:
        if not all(map(studio.shelf.has, entry.pictures)):
            continue  # it made room for newer ones
        width = max(112, min(512, entry.width))
        shown = "".join(
            f'<a href="{path}" download><img src="{path}" alt="" width="{width}"></a>'
            for path in entry.pictures
        )
        body = f'<div class="pictures">{shown}</div>'
        if entry.regions is not None:
            body += f'<a href="{entry.regions}" download>regions.png</a>: what was painted'
        texts = [("Command line", entry.command), ("Python", entry.python)]
        cards.append(html.card(entry.title, body, texts))
    return html.pair(*cards) if cards else html.box("<p>What you draw comes here.</p>")


def _added(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """A gallery with one more; where only the dial was moved, in place of the newest."""
    same = entries and entries[0].asked == entry.asked
    return [entry, *entries[1 if same else 0 :]][:GALLERY]


def _stopped() -> str:
    return html.box('<p role="status">stopped</p>')


def _choices(studio: Studio) -> list[str]:
    """The classes by name, or by number if they have none."""
    return list(studio.pipe.class_names) or list(map(str, range(studio.pipe.stack.spec.classes)))


def _labels_of(studio: Studio, chosen: Sequence[str]) -> tuple[int | None, ...]:
    if not studio.pipe.stack.spec.classes:
        return (None,)
    if not chosen:
        raise ValueError(f"choose a class, or {NO_CLASS!r}")
    names = _choices(studio)
    return tuple(None if one == NO_CLASS else names.index(one) for one in chosen)


def _way_of(values: Sequence[Any]) -> Way:
    steps, sampler, guidance, budget = values
    return Way(int(steps), sampler, round(float(guidance), 4), round(float(budget), 4))


def _seeds(studio: Studio, text: str) -> tuple[int, ...]:
    return tuple(parse_numbers("seeds", text, studio.limits.images))


def _whole(name: str, value: Any) -> int:
    """A number of a field that may have been left empty."""
    if value is None:
        raise ValueError(f"{name}: write a whole number")
    return int(value)


def _bricks(studio: Studio) -> list[str]:
    """A name for each brick, bottom to top."""
    return [f"brick {at}: {brick}" for at, brick in enumerate(studio.pipe.stack.spec.bricks)]


def _alts(studio: Studio, request: Images) -> list[str]:
    names = _choices(studio)
    return [
        f"seed {seed}" + ("" if label is None else f", class {names[label]}")
        for seed, label in zip(request.seeds, request.paired, strict=True)
    ]
