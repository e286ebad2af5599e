import json
import sys
from types import SimpleNamespace

import pytest
import torch

from legodiff.train.distributed import World
from legodiff.train.learner import Losses
from legodiff.train.log import BANDS, Log, Status, open_sinks, read_log


def make(path, images, seen, on_status=None, bricks=2, sinks=()):
    return Log(path, images, seen, on_status, bricks=bricks, world=World(), sinks=sinks)


def step(*losses, sigma=0.5):
    """The losses of one pass: a row for each brick that ran."""
    values = torch.tensor(losses, dtype=torch.float32)
    return [Losses(values, torch.full((values.shape[1],), sigma))]


def test_lines_average_the_steps_between_them(tmp_path):
    log = make(tmp_path / "log.jsonl", images=800, seen=0)  # a line every 4 images
    for number in range(1, 5):
        log.add(2 * number, step([number, number + 2], [10 * number] * 2), (0, 1), 0.1)
    log.write(8)
    log.write(8)  # nothing is left to write
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["images"] for line in lines] == [4, 8]
    assert lines[0]["losses"] == [2.5, 15.0]  # steps 1 and 2
    assert lines[1]["losses"] == [4.5, 35.0]
    assert lines[1]["loss"] == pytest.approx((4.5 + 35) / 2)
    assert lines[0]["learning_rate"] == 0.1
    assert lines[0]["images_per_second"] > 0
    assert lines[0]["memory_mb"] > 10


@pytest.mark.parametrize(("images", "every"), [(10, 1), (800, 4), (10**6, 5000), (10**9, 10_000)])
def test_lines_are_so_many_in_a_run_and_so_near_in_a_long_one(tmp_path, images, every):
    log = make(tmp_path / "log.jsonl", images, seen=0)
    for seen in (every, 2 * every - every // 2, 2 * every, 2 * every + 1):
        log.add(seen, step([1.0], [1.0]), (0, 1), 0.1)  # a line is written before the next step
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["images"] for line in lines] == [every, 2 * every]


def test_losses_are_told_by_noise_band_and_for_the_bricks_that_ran(tmp_path):
    log = make(tmp_path / "log.jsonl", images=800, seen=0, bricks=3)
    sigma = torch.tensor([0.05, 0.2, 0.5, 2.0, 5.0, 50.0])
    values = torch.arange(12.0).view(2, 6)
    log.add(6, [Losses(values, sigma), Losses(values + 2, sigma)], (0, 2), 0.1)
    log.write(6)
    (line,) = read_log(tmp_path / "log.jsonl")
    assert line["bands"][0] == [1, 2, 3, 4, 5, 6]
    assert line["bands"][1] == [None] * 6
    assert line["bands"][2] == [7, 8, 9, 10, 11, 12]
    assert line["losses"] == [3.5, None, 9.5]
    assert line["loss"] == 6.5
    assert len(BANDS) == 5


def test_what_was_noted_stands_in_the_next_line_once(tmp_path):
    log = make(tmp_path / "log.jsonl", images=200, seen=0)
    log.add(1, step([1.0], [1.0]), (0, 1), 0.1)
    log.note("dropped", [1, 2])
    log.note("dropped", [3, 4])
    log.write(1, ema_losses=[0.5])
    log.add(2, step([1.0], [1.0]), (0, 1), 0.1)
    log.write(2)
    first, second = read_log(tmp_path / "log.jsonl")
    assert first["dropped"] == [[1, 2], [3, 4]]
    assert first["ema_losses"] == [0.5]
    assert "dropped" not in second


def test_time_spent_on_pictures_does_not_count(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("legodiff.train.log.time.perf_counter", lambda: clock[0])
    log = make(tmp_path / "log.jsonl", images=1000, seen=0)
    log.add(10, step([1.0] * 10, [1.0] * 10), (0, 1), 0.1)
    clock[0] = 1.0
    with log.paused():
        clock[0] = 100.0
    clock[0] = 101.0
    log.write(10)
    assert read_log(tmp_path / "log.jsonl")[0]["images_per_second"] == 5.0


def test_the_share_of_time_that_images_were_waited_for(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("legodiff.train.log.time.perf_counter", lambda: clock[0])
    log = make(tmp_path / "log.jsonl", images=200, seen=0)
    for seen, wait in ((1, 3.0), (2, 0.0)):
        with log.waiting():
            clock[0] += wait
        clock[0] += 1.0
        log.add(seen, step([1.0], [1.0]), (0, 1), 0.1)
        log.write(seen)
    assert [line["data_wait"] for line in read_log(tmp_path / "log.jsonl")] == [0.75, 0.0]


def test_a_line_has_the_longest_wait_and_the_notes_of_all_processes(tmp_path, monkeypatch):
    log = make(tmp_path / "log.jsonl", images=200, seen=0)
    clock = [log.began]
    monkeypatch.setattr("legodiff.train.log.time.perf_counter", lambda: clock[0])
    other = (1.5, {"unreadable": ["b.jpg"], "dropped": [7]})
    monkeypatch.setattr(World, "gather", lambda _, own: [own, other])
    log.note("unreadable", "a.jpg")
    clock[0] += 2.0
    log.add(1, step([1.0], [1.0]), (0, 1), 0.1)
    log.write(1)
    (line,) = read_log(tmp_path / "log.jsonl")
    assert line["data_wait"] == 0.75
    assert (line["unreadable"], line["dropped"]) == (["a.jpg", "b.jpg"], [7])


def test_other_places_get_the_numbers_of_each_line(tmp_path, monkeypatch):
    told = []
    log = make(tmp_path / "log.jsonl", images=200, seen=0, sinks=[told.append])
    log.add(1, step([1.0], [3.0]), (0, 1), 0.1)
    log.write(1)
    assert told == read_log(tmp_path / "log.jsonl")

    scalars = {}
    writer = SimpleNamespace(
        add_scalar=lambda name, value, images: scalars.update({(name, images): value}),
        flush=lambda: None,
    )
    module = SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    (sink,) = open_sinks(["tensorboard"], tmp_path, {})
    sink(told[0])
    assert scalars["losses/1", 1] == 3.0
    assert scalars["bands/0/sigma<1", 1] == 1.0
    assert ("bands/0/sigma<0.1", 1) not in scalars
    tracked = []
    run = SimpleNamespace(log=lambda values, step: tracked.append((step, values["loss"])))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    (sink,) = open_sinks(["wandb"], tmp_path, {})
    sink(told[0])
    assert tracked == [(1, 2.0)]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_place_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=rf"^train\.log asks for {name}, which is not installed"):
        open_sinks([name], tmp_path, {})


def test_lines_beyond_the_resumed_point_are_removed(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"images": n}) + "\n" for n in (4, 8, 12)))
    make(path, images=100, seen=8)
    assert [line["images"] for line in read_log(path)] == [4, 8]


def test_a_cut_off_last_line_is_removed_when_resuming(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"images": 4}\n{"images": 8}\n{"ima')
    make(path, images=100, seen=8)
    assert [line["images"] for line in read_log(path)] == [4, 8]


def test_the_status_is_told_every_so_often(tmp_path, monkeypatch):
    clock = [0.0]  # REPORT_SECONDS is 0.5
    monkeypatch.setattr("legodiff.train.log.time.perf_counter", lambda: clock[0])
    told = []
    log = make(tmp_path / "log.jsonl", images=10**9, seen=100, on_status=told.append)
    for clock[0], seen in ((0.2, 110), (0.6, 130), (0.7, 140), (1.2, 190)):
        log.add(seen, step([0.5], [0.5]), (0, 1), 0.1)
    clock[0] = 1.3
    log.add(200, step([0.5], [0.5]), (0, 1), 0.1)
    log.write(200)  # the end of a run: the bar must come to its end
    assert [status.images for status in told] == [130, 190, 200]
    assert [status.images_per_second for status in told] == pytest.approx(
        [30 / 0.6, 60 / 0.6, 10 / 0.1]
    )
    assert str(told[0]) == "50 images/s, loss 0.5000"
    assert isinstance(told[0], Status)


def test_a_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no log\.jsonl"):
        read_log(tmp_path / "log.jsonl")
