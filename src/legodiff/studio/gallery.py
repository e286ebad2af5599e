"""What a visitor drew, newest first, with what draws it again elsewhere."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

from legodiff.studio import html
from legodiff.studio.drawing import Drawn, Studio
from legodiff.studio.requests import Canvas, Images

ENTRIES = 24  # that a gallery keeps
WIDEST = 512  # pixels of a picture in it
ADDING = threading.Lock()


class Entry(NamedTuple):
    """A drawing of a visitor. Gradio hashes what it keeps, so all of it can be."""

    title: str
    pictures: tuple[str, ...]
    width: int
    """Of each as it is shown, in pixels."""
    regions: str | None
    command: str
    python: str
    apart_from_budget: Images | None
    """What was asked for, at full compute; None for canvases, each of which is kept."""


def entry(studio: Studio, title: str, drawn: Drawn, request: Images | Canvas) -> Entry:
    """What was drawn, and how to ask for it elsewhere."""
    pipe, opened = studio.pipe, studio.opened
    told = request.command(pipe, opened), request.python(pipe, opened)
    same = request.at_full_compute() if isinstance(request, Images) else None
    wide = min(WIDEST, html.width(drawn.size))
    return Entry(title, drawn.pictures, wide, drawn.regions, *told, same)


def add(new: Entry, entries: list[Entry]) -> list[Entry]:
    """Puts one more into a gallery; where only the dial was moved, in place of the newest.

    The list itself is changed, and returned: drawings of one visitor that overlap hold the same.
    """
    asked = new.apart_from_budget
    with ADDING:
        moved = bool(entries) and asked is not None and entries[0].apart_from_budget == asked
        entries[:] = [new, *entries[1 if moved else 0 :]][:ENTRIES]
    return entries


def shown(studio: Studio, entries: Sequence[Entry]) -> str:
    """The gallery; what has made room for newer pictures is left out."""
    cards = []
    for one in entries:
        if not all(map(studio.shelf.has, one.pictures)):
            continue
        body = html.downloads(one.pictures, [""] * len(one.pictures), one.width)
        if one.regions is not None:
            body += f'<a href="{one.regions}" download>regions.png</a>: what was painted'
        texts = [("Command line", one.command), ("Python", one.python)]
        cards.append(html.card(one.title, body, texts))
    return html.pair(*cards) if cards else html.box("<p>What you draw comes here.</p>")
