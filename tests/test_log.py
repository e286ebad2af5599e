import json

import pytest
import torch

from legodiff.train.log import Log, Status, read_log


def test_lines_average_the_steps_between_them(tmp_path):
    log = Log(tmp_path / "log.jsonl", images=800, seen=0, on_status=None)  # a line every 4 images
    for step in range(1, 5):
        log.add(2 * step, torch.tensor([[step, step + 2.0], [10.0 * step, 10.0 * step]]), 0.1)
    log.write(8)  # nothing is left to write
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["images"] for line in lines] == [4, 8]
    assert lines[0]["losses"] == [2.5, 15.0]  # steps 1 and 2
    assert lines[1]["losses"] == [4.5, 35.0]
    assert lines[1]["loss"] == pytest.approx((4.5 + 35) / 2)
    assert lines[0]["learning_rate"] == 0.1
    assert lines[0]["images_per_second"] > 0


def test_lines_beyond_the_resumed_point_are_removed(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"images": n}) + "\n" for n in (4, 8, 12)))
    Log(path, images=100, seen=8, on_status=None)
    assert [line["images"] for line in read_log(path)] == [4, 8]


def test_a_cut_off_last_line_is_removed_when_resuming(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"images": 4}\n{"images": 8}\n{"ima')
    Log(path, images=100, seen=8, on_status=None)
    assert [line["images"] for line in read_log(path)] == [4, 8]


def test_the_status_is_told_every_so_often(tmp_path, monkeypatch):
    clock = [0.0]  # REPORT_SECONDS is 0.5
    monkeypatch.setattr("legodiff.train.log.time.perf_counter", lambda: clock[0])
    told = []
    log = Log(tmp_path / "log.jsonl", images=10**9, seen=100, on_status=told.append)
    for clock[0], seen in ((0.2, 110), (0.6, 130), (0.7, 140), (1.2, 190)):
        log.add(seen, torch.full((2, 1), 0.5), 0.1)
    clock[0] = 1.3
    log.add(200, torch.full((2, 1), 0.5), 0.1)
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
