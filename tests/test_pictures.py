import json
import sys

import pytest
from matplotlib.axes import Axes
from PIL import Image

from legodiff import pictures
from legodiff.pictures import (
    animation,
    captioned,
    cost_picture,
    grid,
    loss_figure,
    save_figure,
    save_png,
    table_of_images,
    trade_off_figure,
)


def plain(colour, size=(50, 60)):
    return Image.new("RGB", size, colour)


def test_a_png_says_how_it_was_made(tmp_path):
    about = {"seed": 7, "plan": {"bands": [[0.0, [0, 1]]]}, "class": None, "software": "x"}
    save_png(tmp_path / "new" / "a.png", plain("red"), about)
    read = Image.open(tmp_path / "new" / "a.png")
    assert read.getpixel((3, 3)) == (255, 0, 0)
    assert {k: v for k, v in read.text.items() if k != "software"} == {
        key: json.dumps(value) for key, value in about.items() if key != "software"
    }
    assert read.text["software"] == "x"


def test_a_grid_goes_row_by_row():
    colours = ["red", "lime", "blue", "black", "yellow"]
    sheet = grid([plain(colour) for colour in colours], columns=3)
    assert sheet.size == (3 * 52 - 2, 2 * 62 - 2)
    for number, colour in enumerate(colours):
        row, column = divmod(number, 3)
        assert sheet.getpixel((column * 52 + 25, row * 62 + 30)) == plain(colour).getpixel((0, 0))
    assert sheet.getpixel((2 * 52 + 25, 62 + 30)) == (255, 255, 255)


def test_small_images_are_enlarged_without_smoothing():
    image = Image.new("L", (2, 2))
    image.putpixel((1, 0), 255)
    sheet = grid([image], columns=1)
    assert min(sheet.size) >= pictures.SMALLEST
    assert {colour for _, colour in sheet.getcolors()} == {(0, 0, 0), (255, 255, 255)}
    assert sheet.getpixel((sheet.width - 1, 0)) == (255, 255, 255)


def test_captions_and_tables_hold_their_pictures_unchanged():
    sheet = captioned(
        [("one\ntwo lines", plain("red")), ("a caption wider than it", plain("blue"))]
    )
    colours = {colour: count for count, colour in sheet.getcolors(100_000)}
    assert colours[255, 0, 0] == colours[0, 0, 255] == 50 * 60
    rows = [("first", [plain("red", (64, 64))] * 2), ("second", [plain("blue", (64, 64))] * 2)]
    sheet = table_of_images(
        rows, ["a", "b"], "a title that is much wider than the table below it is"
    )
    colours = {colour: count for count, colour in sheet.getcolors(1_000_000)}
    assert colours[255, 0, 0] == colours[0, 0, 255] == 2 * 64 * 64


def test_a_picture_of_costs_shows_what_was_counted_and_measured(tmp_path, monkeypatch):
    drawn, barh = [], Axes.barh
    watch = lambda self, *args, **more: drawn.append((args, more)) or barh(self, *args, **more)  # noqa: E731
    monkeypatch.setattr(Axes, "barh", watch)
    rows = [("a", 3.0, (20.0, 15.0, 40.0)), ("b", 1.0, (10.0, 9.0, 11.0))]
    cost_picture(tmp_path / "costs.png", rows, "two")
    (counted, _), (measured, more) = drawn
    assert counted[1] == (3.0, 1.0)
    assert measured[1] == [20.0, 10.0]
    assert more["xerr"] == [[5.0, 1.0], [20.0, 1.0]]  # to the left, to the right
    assert Image.open(tmp_path / "costs.png").width > 600


def test_a_loss_curve_is_drawn_and_says_what_it_needs(tmp_path, monkeypatch):
    """Two bricks of which one rests at times, two bands, and the average judged twice."""
    log = [
        {"images": n, "losses": [1 / n, 2 / n if n % 2 else None], "bands": [[1, 1], [1 / n, None]]}
        for n in range(1, 9)
    ]
    log[3]["ema_losses"] = log[7]["ema_losses"] = [0.3, 0.4]
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *a, **k: drawn.append(a[1:3]) or plot(*a, **k))
    save_figure(tmp_path / "loss.png", loss_figure(log, ["image", "8"], edges=[1.0]))
    assert Image.open(tmp_path / "loss.png").size[0] > 300
    assert drawn == [
        (list(range(1, 9)), [1 / n for n in range(1, 9)]),
        ([4, 8], [0.3, 0.3]),
        ([1, 3, 5, 7], [2 / n for n in (1, 3, 5, 7)]),
        ([4, 8], [0.4, 0.4]),
        (list(range(1, 9)), [1 / n for n in range(1, 9)]),
        ([], []),
    ]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install 'legodiff\[demo\]'"):
        loss_figure(log, ["image", "8"], edges=[1.0])


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_has_every_frame_and_rests_on_the_last(tmp_path, kind):
    frames = [Image.new("RGB", (8, 6), (40 * number, 0, 0)) for number in range(4)]
    animation(tmp_path / f"a.{kind}", frames, milliseconds=120)
    with Image.open(tmp_path / f"a.{kind}") as image:
        assert (image.n_frames, image.size) == (4, (8, 6))
        assert image.info["loop"] == 0
        times = []
        for number in range(4):
            image.seek(number)
            image.load()
            times.append(image.info["duration"])
            assert abs(image.convert("RGB").getpixel((3, 3))[0] - 40 * number) <= 2
        assert times == [120, 120, 120, 1000]


def test_a_trade_off_picture_has_a_line_for_each_kind(tmp_path):
    curves = {"planned": [(0.2, 0.1), (1.0, 0.0)], "paper": [(0.5, 0.3), (0.8, 0.2)]}
    save_figure(tmp_path / "a.png", trade_off_figure(curves, "a model", chosen=0.4))
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 300
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 16)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # one of each line
    lines = [
        trade_off_figure(curves, "a model", chosen=chosen).axes[0].lines for chosen in (None, 0.4)
    ]
    assert len(lines[0]) == 2
    assert list(lines[1][2].get_xdata()) == [0.4, 0.4]
