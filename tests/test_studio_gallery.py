import pytest
import torch

from legodiff import LegoPipeline
from legodiff.studio import gallery
from legodiff.studio.drawing import Drawn, Studio
from legodiff.studio.requests import Canvas, Images, Limits, Way


@pytest.fixture
def studio(model):
    limits = Limits(images=4, steps=20, pixels=4096, waiting=0)
    return Studio(LegoPipeline.from_pretrained(model), "runs/<b>", limits)


@pytest.fixture
def entry(studio):
    def new(title, request):
        path = studio.shelf.put(title.encode(), "0.png")
        method = request.way.method(studio.pipe)
        drawn = Drawn((path,), (16, 16), method, 1, 1, 1, 1.0, 1.0, None)
        return gallery.entry(studio, title, drawn, request)

    return new


def test_the_newest_is_first_and_the_oldest_go(entry, monkeypatch):
    monkeypatch.setattr(gallery, "ENTRIES", 3)
    entries = []
    for seed in range(5):
        entries = gallery.add(entry(f"seed {seed}", Images(seeds=(seed,))), entries)
    assert [one.title for one in entries] == ["seed 4", "seed 3", "seed 2"]


def test_moving_the_dial_replaces_the_newest(entry):
    entries = gallery.add(entry("whole", Images(Way(4), (3,), (1,))), [])
    entries = gallery.add(entry("half", Images(Way(4, budget=0.6), (3,), (1,))), entries)
    assert [one.title for one in entries] == ["half"]
    entries = gallery.add(entry("more steps", Images(Way(5), (3,), (1,))), entries)
    assert [one.title for one in entries] == ["more steps", "half"]


def test_drawings_that_overlap_are_both_kept(entry):
    entries = []  # both held it when they began
    for title, request in (("a", Images(seeds=(1,))), ("b", Canvas(size=(16, 32)))):
        assert gallery.add(entry(title, request), entries) is entries
    assert [one.title for one in entries] == ["b", "a"]


def test_each_canvas_is_kept(entry):
    painted = [torch.zeros(500, 500, dtype=torch.int64) for _ in range(2)]
    painted[1][250, 250] = 1  # where the text of a tensor does not show it
    entries = []
    for at, one in enumerate(painted):
        entries = gallery.add(entry(f"canvas {at}", Canvas(size=(16, 32), painted=one)), entries)
    assert [one.title for one in entries] == ["canvas 1", "canvas 0"]


def test_pictures_are_neither_tiny_nor_huge(studio, entry):
    assert entry("small", Images(seeds=(1,))).width == 112
    method = Way().method(studio.pipe)
    wide = Drawn(("/pictures/a/0.png",), (64, 4096), method, 1, 1, 1, 1.0, 1.0, None)
    assert gallery.entry(studio, "wide", wide, Canvas(size=(64, 4096))).width == 512


def test_what_made_room_is_left_out(studio, entry):
    entries = [entry("<i>here</i>", Images(seeds=(1,))), entry("gone", Images(seeds=(2,)))]
    studio.shelf.drop(entries[1].pictures[0])
    shown = gallery.shown(studio, entries)
    assert "&lt;i&gt;here" in shown
    assert "runs/&lt;b&gt;" in shown
    assert "gone" not in shown
    assert "What you draw comes here" in gallery.shown(studio, entries[1:])
