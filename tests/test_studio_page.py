"""The page in a real browser, held against the pipeline."""

import io
import json
import shutil
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import pytest
import torch
from conftest import awaken
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from legodiff import LegoPipeline, LegoStack, SkipPlan, preset
from legodiff.codec import PixelCodec
from legodiff.diffusion.regions import across, label_map
from legodiff.sampling import Method
from legodiff.studio import server
from legodiff.studio.drawing import Studio
from legodiff.studio.requests import Limits

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium; on Debian: apt install chromium"
)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}
NAMES = ("sea", "land", "<b>sky</b>")


@contextmanager
def served(studio):
    """A studio that is answered for from a thread; it knows its ``url``, and Gradio's ``page``."""
    at = server.bound(0)
    serving = server.Server(studio)
    thread = threading.Thread(target=serving.run, args=([at],), daemon=True)
    thread.start()
    while thread.is_alive() and not serving.started:
        time.sleep(0.05)
    studio.url = f"http://127.0.0.1:{at.getsockname()[1]}"
    studio.page = server.page_of(serving.whole)
    yield studio
    serving.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A model of three classes in a run folder, served from a thread."""
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("run")
    stack = awaken(LegoStack(preset("tiny-pr-16", channels=1, classes=3))).eval()
    LegoPipeline(stack, PixelCodec((0.0,)), NAMES, label_dropout=0.1).save_pretrained(run)
    (run / "samples").mkdir()
    write_log(run, [100, 200])
    pipe = LegoPipeline.from_pretrained(run)
    studio = Studio(pipe, "runs/scenes", Limits(images=4, steps=30, pixels=16384, waiting=2))
    with served(studio):
        yield studio


def write_log(run, seen):
    """A log of three bricks, and a picture for each line."""
    lines = [
        {"images": n, "loss": 10 / n, "losses": [10 / n] * 3, "bands": [[10 / n] * 6] * 3}
        for n in seen
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for n in seen:
        Image.new("L", (40, 20), n % 256).save(run / "samples" / f"{n:012d}.png")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        expect.set_options(timeout=60_000)
        context = browser.new_context()
        context.set_default_timeout(60_000)
        yield context
        browser.close()


@pytest.fixture(params=[WIDE], ids=["wide"])
def page(studio, browser, request):
    """A page whose every request stays on this machine."""
    page = browser.new_page()
    page.set_viewport_size(request.param)
    asked, wrong = [], []
    page.on("request", lambda one: asked.append(one.url))
    page.on("pageerror", lambda error: wrong.append(error))
    page.goto(studio.url)
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_visible()
    yield page
    outside = [url for url in asked if not url.startswith((studio.url, "data:", "blob:"))]
    assert outside == []
    assert wrong == []
    page.close()


def open_tab(page, name):
    """On a narrow page it may be in a menu."""
    tab = page.get_by_role("tab", name=name)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()


def shown(page, figure):
    """The pictures of a figure as they are downloaded."""
    links = figure.locator("a[download]").all()
    paths = [page.url.rstrip("/") + link.get_attribute("href") for link in links]
    return [Image.open(io.BytesIO(page.request.get(path).body())) for path in paths]


def same(pictures, images):
    assert len(pictures) == len(images)
    for one, other in zip(pictures, images, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


def press_draw(page, name="Draw"):
    page.get_by_role("button", name=name, exact=True).click()


def figures(page):
    return page.locator(".lego-pair:visible > figure")


def set_budget(page, value):
    field = page.get_by_label("number input for Budget: share of full compute").locator(
        "visible=true"
    )
    field.fill(str(value))
    field.press("Enter")


@pytest.mark.parametrize("page", [WIDE, NARROW], indirect=True, ids=["wide", "narrow"])
def test_what_is_generated_is_what_the_pipeline_draws(page, studio):
    page.get_by_label("Seeds").fill("4,9")
    press_draw(page)
    expect(figures(page)).to_have_count(1)
    pictures = shown(page, figures(page).first)
    same(pictures, studio.pipe(labels="sea", seeds=[4, 9]).images)
    assert [one.info["seed"] for one in pictures] == ["4", "9"]
    assert page.locator(".lego-pair img").first.get_attribute("alt") == "seed 4, class sea"
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]


def test_the_dial_draws_again_beside_full_compute(page, studio):
    page.get_by_label("Seeds").fill("1")
    set_budget(page, 0.6)
    expect(figures(page)).to_have_count(2)
    expect(figures(page).first).to_contain_text("Budget 60%")
    expect(figures(page).last).to_contain_text("Full compute")
    cheap = studio.pipe(labels="sea", seeds=[1], budget=0.6)
    same(shown(page, figures(page).first), cheap.images)
    same(shown(page, figures(page).last), studio.pipe(labels="sea", seeds=[1]).images)
    strip = page.locator("table.strip:visible tbody tr")
    levels = sorted(set(cheap.method.levels(studio.pipe.sampling)), reverse=True)
    for row, brick in zip(strip.all(), (2, 1, 0), strict=True):
        ran = [cell.get_attribute("aria-label") == "runs" for cell in row.locator("td").all()]
        assert ran == [brick in cheap.plan.bricks(level) for level in levels]
    slider = page.get_by_label("range slider for Budget: share of full compute").first
    slider.focus()
    page.keyboard.press("ArrowLeft")  # with the keyboard alone
    expect(figures(page).first).to_contain_text("Budget 59%")


def test_a_canvas_of_classes_from_left_to_right(page, studio):
    open_tab(page, "Canvas")
    page.get_by_label("Height").fill("32")
    page.get_by_label("Width").fill("48")
    page.get_by_label("Classes from left to right").fill("sea,none,land")
    press_draw(page, "Draw the canvas")
    expect(figures(page)).to_have_count(1)
    method = Method(SkipPlan.full(3))
    expected = studio.pipe.render(
        method,
        seeds=0,
        size=(32, 48),
        windows=studio.pipe.windows((32, 48)),
        regions=across([0, 3, 1], (32, 48), blend=8),
    )
    same(shown(page, figures(page).first), expected.images)


def test_classes_are_painted(page, studio):
    open_tab(page, "Canvas")
    page.get_by_label("Height").fill("16")
    page.get_by_label("Width").fill("48")
    page.get_by_text("Or paint them").click()
    canvas = page.locator("canvas:visible").first
    expect(canvas).to_be_visible()
    page.get_by_label("Brush", exact=True).click()
    expect(page.get_by_label("Brush Size", exact=True)).to_be_visible()
    at = canvas.bounding_box()
    middle = at["y"] + at["height"] / 2
    page.mouse.move(at["x"] + 0.3 * at["width"], middle)
    page.mouse.down()
    page.mouse.move(at["x"] + 0.7 * at["width"], middle, steps=10)
    page.mouse.up()
    press_draw(page, "Draw the canvas")
    expect(figures(page)).to_have_count(1)
    (picture,) = shown(page, figures(page).first)
    assert picture.info["labels"] == "painted"
    open_tab(page, "Gallery")
    link = page.get_by_role("link", name="regions.png")
    path = page.url.rstrip("/") + link.get_attribute("href")
    indices = torch.from_numpy(np.array(Image.open(io.BytesIO(page.request.get(path).body()))))
    assert sorted(set(indices.flatten().tolist())) == [0, 3]  # the first colour, and no class
    assert indices[:, 0].eq(3).all()
    assert indices[len(indices) // 2, indices.shape[1] // 2] == 0
    expected = studio.pipe.render(
        Method(SkipPlan.full(3)),
        seeds=0,
        size=(16, 48),
        windows=studio.pipe.windows((16, 48)),
        regions=label_map(indices.long(), (16, 48), blend=8),
    )
    same([picture], expected.images)


def test_inside_shows_each_estimate(page):
    open_tab(page, "Inside")
    set_budget(page, 0.7)
    press_draw(page, "Look inside")
    slider = page.locator(".inside input[type=range]")
    slider.focus()
    levels = page.locator(".inside").get_attribute("data-levels").split()
    assert len(levels) == 18
    for key, at in (("Home", 0), ("ArrowRight", 1), ("End", 17)):
        page.keyboard.press(key)
        expect(page.locator(".inside output")).to_have_text(levels[at])
        window = page.locator(".inside .window").first
        left = window.evaluate("one => getComputedStyle(one).backgroundPositionX")
        width = window.evaluate("one => one.clientWidth")
        assert float(left.removesuffix("px")) == -at * width
    top = page.locator(".inside span").last
    expect(top).to_have_text("")
    page.keyboard.press("Home")
    expect(top).to_have_text("(skipped)")  # at high noise, where the paper's rule leaves it out
    expect(page.get_by_text("No trade-off is known")).to_be_visible()
    expect(page.get_by_text("brick 2:").last).to_contain_text("MFLOPs")


@pytest.mark.parametrize(
    ("seeds", "line"),
    [
        ("abc", "seeds abc: write whole numbers and ranges"),
        ("0-9", "these are too many; 4 at most"),
        ("", "write whole numbers"),
        ("../../etc/passwd", "write whole numbers"),
        ("<img src=x onerror=alert(1)>", "seeds <img src=x onerror=alert(1)>: write"),
    ],
)
def test_a_mistake_is_told_in_a_line(page, seeds, line):
    page.get_by_label("Seeds").fill(seeds)
    press_draw(page)
    expect(page.get_by_role("alert")).to_contain_text(line)
    assert page.locator(".lego-pair").count() == 0


@pytest.mark.parametrize(
    ("tab", "button"),
    [("Generate", "Draw"), ("Canvas", "Draw the canvas"), ("Inside", "Look inside")],
)
def test_a_run_is_stopped(page, studio, monkeypatch, tab, button):
    calls = []
    estimates = studio.pipe.stack.estimates

    def slow(*inputs):
        calls.append(1)
        time.sleep(0.2)
        return estimates(*inputs)

    page.get_by_label("Seeds").fill("77")
    open_tab(page, tab)
    monkeypatch.setattr(studio.pipe.stack, "estimates", slow)
    monkeypatch.setattr(studio, "_clock", lambda size, batch: lambda method: 1.0)
    press_draw(page, button)
    expect(page.locator(".lego progress")).to_be_visible()
    press_draw(page, "Stop")
    expect(page.get_by_text("stopped")).to_be_visible()
    before = -1
    while before != len(calls):  # a call takes 0.2 seconds
        before = len(calls)
        time.sleep(1.5)
    assert before < 35  # of an image; a canvas takes more
    monkeypatch.undo()
    open_tab(page, "Generate")
    page.get_by_label("Seeds").fill("5")
    press_draw(page)
    expect(figures(page)).to_have_count(1)


def test_two_visitors_do_not_meet(page, studio, browser):
    other = browser.new_page()
    other.goto(studio.url)
    for one, seed in ((page, "21"), (other, "22")):
        one.get_by_label("Seeds").fill(seed)
    for one in (page, other):
        press_draw(one)
    for one, seed in ((page, 21), (other, 22)):
        expect(figures(one)).to_have_count(1)
        same(shown(one, figures(one).first), studio.pipe(labels="sea", seeds=seed).images)
        open_tab(one, "Gallery")
        expect(one.locator("details")).to_have_count(1)
    other.close()


def test_the_gallery_keeps_drawings_that_overlap(page, studio, monkeypatch):
    go = threading.Event()
    canvas = studio._canvas

    def late(*how):
        go.wait(60)
        return canvas(*how)

    monkeypatch.setattr(studio, "_canvas", late)
    open_tab(page, "Canvas")
    page.get_by_label("Height").fill("16")
    page.get_by_label("Width").fill("32")
    press_draw(page, "Draw the canvas")
    open_tab(page, "Generate")
    page.get_by_label("Seeds").fill("31")
    press_draw(page)
    expect(page.get_by_text("1 before you in the queue")).to_be_visible()
    go.set()
    expect(figures(page)).to_have_count(1)
    open_tab(page, "Gallery")
    titles = page.locator("details:visible summary")
    expect(titles).to_have_text(["Full compute, 1 image, 18 steps", "16x32, budget 100%"])


def test_the_gallery_goes_when_the_page_is_closed_and_not_before(studio, browser):
    page = browser.new_page()
    page.goto(studio.url)
    page.get_by_label("Seeds").fill("41")
    press_draw(page)
    expect(figures(page)).to_have_count(1)
    sessions = list(studio.page.state_holder.session_data.values())
    session = next(one for one in sessions if "--seeds 41 " in str(one.state_data))
    kept = next(key for key, value in session.state_data.items() if "--seeds 41 " in str(value))
    ttl, drawn_at = session._state_ttl[kept]
    session._state_ttl[kept] = ttl, drawn_at - timedelta(days=1)  # a long look at it
    time.sleep(2.5)  # Gradio cleans up every second
    assert len(session.state_data[kept]) == 1
    page.close()
    for _ in range(300):
        if session.is_closed and kept not in session.state_data:
            return
        time.sleep(0.1)
    pytest.fail("what a visitor left behind is still in memory")


def test_what_a_tight_studio_offers_can_be_drawn(browser):
    stack = awaken(LegoStack(preset("tiny-pr-16", channels=1, classes=3))).eval()
    pipe = LegoPipeline(stack, PixelCodec((0.0,)), ("sea, blue", "land", "sky"))
    limits = Limits(images=3, steps=1, pixels=2 * 16 * 16, waiting=0)
    with served(Studio(pipe, "tight", limits)) as studio:
        page = browser.new_page()
        page.goto(studio.url)
        press_draw(page)
        expect(figures(page).locator("img")).to_have_count(2)
        same(shown(page, figures(page)), pipe(labels=0, seeds=[0, 1], steps=1).images)
        open_tab(page, "Canvas")
        press_draw(page, "Draw the canvas")
        expect(figures(page)).to_have_count(1)
        (picture,) = shown(page, figures(page))
        assert (picture.size, picture.info["labels"]) == ((32, 16), "[0, 1]")
        open_tab(page, "Inside")
        press_draw(page, "Look inside")
        expect(page.locator(".inside")).to_be_visible()
        page.close()


def test_the_gallery_keeps_what_was_drawn_and_how(page, studio):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Seeds").fill("3")
    press_draw(page)
    expect(figures(page)).to_have_count(1)
    page.get_by_label("Seeds").fill("8")
    set_budget(page, 0.7)
    expect(figures(page)).to_have_count(2)
    open_tab(page, "Gallery")
    expect(page.locator("details")).to_have_count(2)
    page.locator("details summary").first.click()
    page.locator("details button.copy:visible").first.click()
    expect(page.get_by_text("copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == (
        "legodiff sample runs/scenes --labels sea --seeds 8 --steps 18 --sampler heun "
        "--guidance 1 --budget 0.7 --out drawn"
    )


def test_training_is_followed(page, studio):
    open_tab(page, "Training")
    expect(page.get_by_text("200 images, loss 0.0500")).to_be_visible()
    expect(page.get_by_alt_text("samples of the run")).to_be_visible()
    write_log(studio.run, [100, 200, 400])
    expect(page.get_by_text("400 images, loss 0.0250")).to_be_visible()
    expect(page.locator("figcaption", has_text="400 images")).to_be_visible()
    page.get_by_label("range slider for Picture").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("figcaption", has_text="200 images")).to_be_visible()
    write_log(studio.run, [100, 200])
    (studio.run / "samples" / f"{400:012d}.png").unlink()


def test_names_are_shown_as_they_are(page):
    page.get_by_label("Classes, taken in turns").click()
    page.get_by_role("option", name="<b>sky</b>").click()
    page.keyboard.press("Escape")
    page.get_by_label("Seeds").fill("0-1")
    press_draw(page)
    expect(figures(page)).to_have_count(1)
    alts = [image.get_attribute("alt") for image in page.locator(".lego-pair img").all()]
    assert alts == ["seed 0, class sea", "seed 1, class <b>sky</b>"]


def test_everything_is_reached_with_the_keyboard(page):
    page.get_by_label("Seeds").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").strip() == "Draw":
            break
    page.keyboard.press("Enter")
    expect(figures(page)).to_have_count(1)
    page.locator(".lego-pair a").first.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
