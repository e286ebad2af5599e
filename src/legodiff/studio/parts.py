"""What the tabs of the page share: how to draw, news on the way, mistakes told in a line."""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import wraps
from typing import Any, TypeVar

import gradio as gr

from legodiff.diffusion.samplers import SAMPLERS
from legodiff.studio import html
from legodiff.studio.drawing import Studio
from legodiff.studio.requests import Way

Result = TypeVar("Result")
Shown = tuple[Any, Any, Any, Any]
"""How far it is, and three things that are shown at the end."""
Run = Callable[..., Iterator[Shown]]

NO_CLASS = "no class"
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Events show their own progress, and are no API."""


def raw(value: str = "") -> gr.HTML:
    """HTML of ours, in a style of ours."""
    return gr.HTML(value, apply_default_css=False, padding=True)


def classes(studio: Studio) -> list[str]:
    """The classes by name, or by number if they have none."""
    return list(studio.pipe.class_names) or list(map(str, range(studio.pipe.stack.spec.classes)))


def bricks(studio: Studio) -> list[str]:
    """A name for each brick, bottom to top."""
    return [f"brick {at}: {brick}" for at, brick in enumerate(studio.pipe.stack.spec.bricks)]


def fitting(studio: Studio, most: int) -> int:
    """How many pictures of the training size one request may ask for: 1 to ``most``."""
    height, width = (side * studio.pipe.codec.factor for side in studio.pipe.stack.spec.image_size)
    return max(1, min(most, studio.limits.pixels // (height * width)))


def ways(studio: Studio, told: str | None = None) -> list[Any]:
    """Fields for how to draw: steps, sampler, guidance, and the dial, with what is told of it."""
    guided = bool(studio.pipe.stack.spec.classes and studio.pipe.label_dropout)
    with gr.Group():
        most = studio.limits.steps
        steps = gr.Slider(
            1, max(2, most), min(18, most), step=1, label="Steps", interactive=most > 1
        )
        sampler = gr.Dropdown(list(SAMPLERS), value="heun", label="Sampler")
        guidance = gr.Slider(0, 5, 1.0, step=0.1, label="Guidance (1 is none)", visible=guided)
    budget = gr.Slider(0.05, 1, 1.0, step=0.01, label="Budget: share of full compute", info=told)
    return [steps, sampler, guidance, budget]


def way(values: Sequence[Any]) -> Way:
    """What stands in the fields of ``ways``."""
    steps, sampler, guidance, budget = values
    return Way(int(steps), sampler, round(float(guidance), 4), round(float(budget), 4))


def labels(studio: Studio, chosen: Sequence[str]) -> tuple[int | None, ...]:
    """Class indices of what was chosen from ``classes``."""
    if not studio.pipe.stack.spec.classes:
        return (None,)
    if not chosen:
        raise ValueError(f"choose a class, or {NO_CLASS!r}")
    names = classes(studio)
    return tuple(None if one == NO_CLASS else names.index(one) for one in chosen)


def whole(name: str, value: Any) -> int:
    """A number of a field that may have been left empty."""
    if value is None:
        raise ValueError(f"{name}: write a whole number")
    return int(value)


def following(events: Generator[Any, None, Result]) -> Generator[Shown, None, Result]:
    """Shows how far a drawing is; returns it."""
    try:
        while True:
            yield html.news(next(events)), gr.skip(), gr.skip(), gr.skip()
    except StopIteration as end:
        drawn: Result = end.value
        return drawn
    finally:
        events.close()


def guarded(run: Run) -> Run:
    """Tells a mistake in one line, and leaves what is shown as it is."""

    @wraps(run)
    def told(*values: Any) -> Iterator[Shown]:
        try:
            yield from run(*values)
        except ValueError as error:
            yield html.wrong(str(error)), gr.skip(), gr.skip(), gr.skip()

    return told


def stopped() -> str:
    """What is told when a drawing was stopped."""
    return html.box('<p role="status">stopped</p>')
