import re
from xml.etree import ElementTree

import pytest

from legodiff import LegoPipeline
from legodiff.sampling import Sampling
from legodiff.studio import html
from legodiff.studio.desk import Waiting
from legodiff.studio.drawing import Drawn, Inside
from legodiff.studio.progress import Progress
from legodiff.studio.requests import Way

EVIL = '<script>"&'


def parsed(text):
    """Fails where a tag is left open, or a text of others became one."""
    closed = re.sub(r"<(img|input|br)([^>]*)>", r"<\1\2/>", text)
    bare = closed.replace(" download ", ' download="" ')
    return ElementTree.fromstring(bare)


def words(text):
    return "".join(parsed(text).itertext())


@pytest.fixture(scope="module")
def method(model):
    return Way(6, "euler", guidance=1.5, budget=0.6).method(LegoPipeline.from_pretrained(model))


def drawn(method, **changes):
    how = {"pictures": ("/pictures/a/0.png",), "size": (16, 16), "nfe": 6, "flops": 5_000_000}
    how |= {"full_flops": 10_000_000, "milliseconds": 1234.0, "expected": 12.34, "point": None}
    return Drawn(method=method, **(how | changes))


def test_news_are_how_far_it_is():
    assert words(html.news(Waiting(2))) == "2 before you in the queue"
    assert words(html.news(Progress(0.0, None))) == "0% drawn"
    shown = html.news(Progress(0.25, 9.0, "/pictures/a/preview.png", (16, 64)))
    assert words(shown) == "25% drawn, 9 s left"
    assert parsed(shown).find("progress").get("value") == "0.250"
    image = parsed(shown).find(".//img")
    assert (image.get("src"), image.get("width")) == ("/pictures/a/preview.png", "448")


def test_a_figure_says_what_an_image_cost(method):
    found = parsed(html.figure(drawn(method), EVIL, [EVIL]))
    said = "".join(found.find("figcaption").itertext())
    assert said == (
        f"{EVIL}50% of the FLOPs (5 MFLOPs an image), 6 evaluations of euler; "
        "1.23 s an image, expected 12.3 ms"
    )
    image = found.find(".//img")
    assert image.get("alt") == EVIL
    assert image.get("width") == "112"  # small ones are enlarged by a whole number
    assert found.find(".//a").get("href") == "/pictures/a/0.png"
    larger = parsed(html.figure(drawn(method, size=(600, 300)), "a", ["b"]))
    assert larger.find(".//img").get("width") == "300"


def test_the_strip_is_bricks_by_levels(method):
    bricks = ["first", "second", EVIL]
    table = parsed(html.strip(method, Sampling(), bricks)).find(".//tbody")
    levels = sorted(method.levels(Sampling()), reverse=True)
    assert len(levels) == 6
    for row, brick in zip(table, (2, 1, 0), strict=True):
        assert row.find("th").get("title") == bricks[brick]
        said = [cell.get("aria-label") for cell in row.findall("td")]
        runs = [brick in method.plan.bricks(level) for level in levels]
        assert said == ["runs, guided" if run else "skipped" for run in runs]
        assert [cell.get("class") for cell in row.findall("td")] == [
            "guided" if run else None for run in runs
        ]
    assert len({row.find("td").get("class") for row in table}) == 2  # some rest, some do not


def test_inside_has_a_window_for_each_brick():
    seen = Inside((80.0, 1.0), ((0,), (0, 1)), "/pictures/a/inside.png", (16, 16))
    found = parsed(html.inside(seen, ["first", EVIL]))
    windows = found.findall(".//div[@role='img']")
    assert [one.get("aria-label") for one in windows] == [
        "the estimate of first",
        f"the estimate of {EVIL}",
    ]
    assert "calc(var(--level) * -112px) -112px / 224px 224px" in windows[1].get("style")
    assert [one.get("data-ran") for one in found.findall(".//span")] == ["11", "01"]
    assert found.find("div").get("data-levels") == "80 1"
    slider = found.find(".//input")
    assert (slider.get("min"), slider.get("max")) == ("0", "1")


def test_bars_are_as_long_as_their_values():
    found = parsed(html.bars([("small", 1.0, "1"), (EVIL, 4.0, "4")], EVIL))
    assert [one.get("style") for one in found.findall(".//div[@class='bar']")] == [
        "width:25.0%",
        "width:100.0%",
    ]


@pytest.mark.parametrize(
    "shown",
    [
        html.wrong(EVIL),
        html.card(EVIL, "<b>x</b>", [(EVIL, EVIL)]),
        html.box(html.linked("/pictures/a/0.png", EVIL)),
        html.box(html.downloads(["/pictures/a/0.png"], [EVIL], 16)),
    ],
)
def test_texts_of_others_stay_texts(shown):
    found = parsed(shown)
    assert EVIL in "".join(found.itertext()) or EVIL in {one.get("alt") for one in found.iter()}
    assert found.find(".//script") is None
