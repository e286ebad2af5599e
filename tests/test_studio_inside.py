import io

import numpy as np
import pytest
from PIL import Image
from test_publishing import pipeline, with_plans

from legodiff.studio import inside
from legodiff.studio.drawing import Studio
from legodiff.studio.requests import Limits, Way


@pytest.fixture
def studio():
    return Studio(
        with_plans(pipeline()), "model", Limits(images=1, steps=20, pixels=4096, waiting=1)
    )


def curve(studio, way):
    """The picture of the trade-off, as numbers, if there is one."""
    shown = inside._trade_off(studio, way)
    if "<img" not in shown:
        return shown
    path = shown.partition('href="')[2].partition('"')[0]
    return np.asarray(Image.open(io.BytesIO(studio.shelf.get(path).png)).convert("RGB"))


def test_the_trade_off_shows_what_a_budget_chose(studio):
    full = studio.pipe.curves[0].full.method
    all_of_it = curve(studio, Way(full.steps, full.sampler))
    less = curve(studio, Way(full.steps, full.sampler, budget=0.9))
    assert all_of_it.shape == less.shape
    assert (all_of_it != less).any()  # the mark has moved


def test_what_was_not_planned_is_said_in_words(studio):
    assert "No trade-off is known" in curve(studio, Way(7))


def test_costs_name_every_brick(studio):
    shown = inside._costs(studio)
    for number in range(len(studio.pipe.stack.bricks)):
        assert f"brick {number}" in shown
