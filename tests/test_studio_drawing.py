import io
import json
import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from test_desk import ended

from legodiff import LegoPipeline, LegoStack, preset
from legodiff.codec import to_pil
from legodiff.diffusion import regions
from legodiff.diffusion.samplers import SAMPLERS
from legodiff.studio import drawing, progress, requests
from legodiff.studio.drawing import Studio
from legodiff.studio.progress import Progress
from legodiff.studio.requests import Canvas, Images, Limits, Way


@pytest.fixture
def studio(model):
    pipe = LegoPipeline.from_pretrained(model)
    return Studio(pipe, model, Limits(images=4, steps=10, pixels=4096, waiting=2))


def picture(studio, path):
    return Image.open(io.BytesIO(studio.shelf.get(path).png))


def test_images_are_the_pipelines(studio):
    asked = Images(Way(4, guidance=1.5, budget=0.7), (3, 0), (5, 6, 7))
    told, drawn = ended(studio.images(asked))
    same = studio.pipe(labels=[3, 0, 3], seeds=[5, 6, 7], steps=4, guidance=1.5, budget=0.7)
    assert (drawn.nfe, drawn.flops, drawn.method) == (same.nfe, same.flops, same.method)
    assert drawn.size == (16, 16)
    for path, image, seed in zip(drawn.pictures, same.images, same.seeds, strict=True):
        shown = picture(studio, path)
        assert np.array_equal(np.asarray(shown), np.asarray(image))
        assert shown.info["seed"] == str(seed)
        assert json.loads(shown.info["plan"]) == same.plan.to_dict()
        assert path.endswith(f"/{seed:06d}.png")
    assert all(0 < news.done <= 1 for news in told)
    assert drawn.milliseconds > 0 < drawn.expected


def test_full_compute_is_drawn_once(studio, monkeypatch):
    asked = Images(Way(2), (3,), (0,))
    drawn = ended(studio.images(asked))[1]
    monkeypatch.setattr(studio.pipe, "render", None)
    assert ended(studio.images(asked)) == ([], drawn)
    monkeypatch.undo()
    studio.shelf.pictures.clear()  # its pictures made room
    assert ended(studio.images(asked))[1] != drawn  # drawn anew, in another time
    assert studio.shelf.has(drawn.pictures[0])
    monkeypatch.setattr(drawing, "REMEMBERED", 2)
    for seed in range(5):
        ended(studio.images(Images(Way(2), (3,), (seed,))))
    assert len(studio.known) == 2


@pytest.mark.parametrize("wrap", ["none", "both"])
def test_a_canvas_is_the_pipelines_and_is_shown_window_by_window(studio, monkeypatch, wrap):
    monkeypatch.setattr(progress, "PREVIEW_SECONDS", 0)
    monkeypatch.setattr("legodiff.studio.desk.TICK", 0.001)
    previews = []
    put = studio.shelf.put
    monkeypatch.setattr(
        studio.shelf, "put", lambda png, name: previews.append((png, name)) or put(png, name)
    )
    asked = Canvas(Way(3, "euler"), (3, None), 1, (32, 48), wrap)
    drawn = ended(studio.canvas(asked))[1]
    windows, regions = asked.windows(studio.pipe), asked.regions(studio.pipe)
    same = studio.pipe.render(
        asked.way.full(studio.pipe), seeds=1, size=(32, 48), windows=windows, regions=regions
    )
    assert np.array_equal(
        np.asarray(picture(studio, drawn.pictures[0])), np.asarray(same.images[0])
    )
    assert drawn.flops == same.flops
    parts = [Image.open(io.BytesIO(png)) for png, name in previews if name == "preview.png"]
    assert {image.size for image in parts} == {(48, 32)}
    changes = [np.asarray(a).astype(int) - np.asarray(b) for a, b in pairwise(parts)]
    assert all(np.count_nonzero(change) <= 16 * 16 for change in changes)  # one window each
    assert sum(bool(change.any()) for change in changes) > 10
    kept = [one.name for one in studio.shelf.pictures.values()]
    assert 0 < kept.count("preview.png") <= progress.PREVIEWS
    assert kept.count("canvas.png") == 1


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_inside_is_what_the_bricks_estimate(studio, sampler):
    asked = Images(Way(3, sampler, budget=0.7), (3, 4), (8, 9))
    seen = ended(studio.inside(asked))[1]
    pipe, plan = studio.pipe, asked.way.method(studio.pipe).plan
    calls = []
    pipe.render(
        asked.way.method(pipe), 3, 8, watch=lambda sigma, *found: calls.append((sigma, *found))
    )
    told = [calls[0], *(b for a, b in pairwise(calls) if a[0] != b[0])]  # the first at each level
    assert len(calls) == (5 if sampler == "heun" else 3)
    assert seen.levels == tuple(sigma for sigma, _, _ in told)
    assert seen.bricks == tuple(plan.bricks(level) for level in seen.levels)
    assert len(set(seen.bricks)) == 2  # some are skipped somewhere
    sheet = np.asarray(picture(studio, seen.sheet))
    assert seen.size == (16, 16)
    assert sheet.shape == (3 * 16, 3 * 16)
    for column, (_, bricks, estimates) in enumerate(told):
        for brick, estimate in zip(bricks, estimates, strict=True):
            tile = sheet[16 * brick : 16 * brick + 16, 16 * column : 16 * column + 16]
            assert np.array_equal(tile, np.asarray(to_pil(pipe.codec.decode(estimate))[0]))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inside_shows_as_many_levels_as_there_may_be_pixels(studio, sampler):
    asked = Images(Way(9, sampler), (3,), (8,))
    whole = ended(studio.inside(asked))[1]
    sheet = np.asarray(picture(studio, whole.sheet))
    assert len(whole.levels) == 5  # of 4096 pixels, each takes three bricks of 16x16
    studio.limits = replace(studio.limits, pixels=3 * 16 * 16 * 9)
    every = ended(studio.inside(asked))[1]
    assert len(every.levels) == 9
    assert whole.levels == every.levels[::2]
    columns = np.split(np.asarray(picture(studio, every.sheet)), 9, axis=1)
    assert np.array_equal(np.concatenate(columns[::2], axis=1), sheet)
    studio.limits = replace(studio.limits, pixels=16 * 16)
    assert ended(studio.inside(asked))[1].levels == every.levels[-1:]  # the picture


def test_who_leaves_is_not_decoded_for(studio, monkeypatch):
    decoded, looked, go = [], threading.Event(), threading.Event()
    decode = studio.pipe.codec.decode

    class Slow:
        factor, ready = 1, True

        def prepare(self):
            pass

        def decode(self, images):
            decoded.append(len(images))
            if len(decoded) > 1:  # the first is the image itself
                looked.set()
                go.wait(5)
            return decode(images)

    studio.pipe.codec = Slow()
    events = studio.inside(Images(Way(5), (3,), (8,)))
    next(events)
    assert looked.wait(5)
    events.close()
    go.set()
    studio.desk.worker.shutdown(wait=True)
    assert decoded == [1, 3]  # of five levels, three bricks each


@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_full_compute_of_a_canvas_is_counted_with_the_regions_it_was_drawn_with(
    studio, monkeypatch, size
):
    laid = []

    def across(*how):
        laid.append(how)
        return regions.across(*how)

    monkeypatch.setattr(requests, "across", across)
    asked = Canvas(Way(2, "euler"), (3, None), size=size)
    full = ended(studio.canvas(asked))[1]
    assert len(laid) == 1
    assert full.full_flops == full.flops
    cheap = ended(studio.canvas(replace(asked, way=replace(asked.way, budget=0.8))))[1]
    assert cheap.full_flops == pytest.approx(full.flops, rel=0.1)  # windows shift
    assert cheap.full_flops > cheap.flops


@pytest.mark.parametrize(("classes", "mode"), [(255, "L"), (256, "I;16"), (1000, "I;16")])
def test_what_was_painted_keeps_its_classes(classes, mode):
    pipe = LegoPipeline(LegoStack(preset("tiny-pr-16", channels=1, classes=classes)))
    studio = Studio(pipe, "many", Limits(images=1, steps=2, pixels=4096, waiting=0))
    painted = torch.tensor([[0, classes - 1, classes]])
    asked = Canvas(Way(1, "euler"), size=(16, 48), painted=painted)
    kept = picture(studio, ended(studio.canvas(asked))[1].regions)
    assert kept.mode == mode
    assert np.array(kept).tolist() == painted.tolist()


def test_who_leaves_stops_the_drawing(studio, monkeypatch):
    calls, looked, go = [], threading.Event(), threading.Event()
    estimates = studio.pipe.stack.estimates

    def slow(*inputs):
        if calls:
            looked.set()
            go.wait(5)
        calls.append(1)
        return estimates(*inputs)

    monkeypatch.setattr(studio.pipe.stack, "estimates", slow)
    monkeypatch.setattr(studio, "_clock", lambda size, batch: lambda method: 1.0)
    events = studio.images(Images(Way(10, "euler"), (3,), (0,)))
    assert isinstance(next(events), Progress)
    looked.wait(5)
    events.close()
    go.set()
    studio.desk.worker.shutdown(wait=True)
    assert len(calls) <= 2  # of ten


def test_two_at_once_get_their_own(studio):
    found = {}

    def ask(seed):
        found[seed] = ended(studio.images(Images(Way(3, budget=0.9), (3,), (seed,))))[1]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        alone = studio.pipe(labels=3, seeds=seed, steps=3, budget=0.9).images[0]
        shown = picture(studio, found[seed].pictures[0])
        assert np.array_equal(np.asarray(shown), np.asarray(alone))


def test_only_a_run_with_a_log_has_a_training(studio, tmp_path):
    assert studio.run is None
    studio.pipe.folder = tmp_path
    assert studio.run is None
    (tmp_path / "log.jsonl").touch()
    assert studio.run == tmp_path
