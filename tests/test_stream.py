import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import Bars

from legodiff.data import Unreadable, index_at
from legodiff.train import stream
from legodiff.train.distributed import World
from legodiff.train.stream import READERS, Stream, batches


class Numbered(Bars):
    """Image k is filled with k; a flip, where one is drawn, with 200 + k."""

    def read(self, index, rng=None):
        flip = rng is not None and rng.random() < 0.5
        return np.full((1, 16, 16), index + 200 * flip, np.uint8), index


class Torn(Numbered):
    bad = (5, 6)

    def read(self, index, rng=None):
        if index in self.bad:
            raise Unreadable(f"{index}.png", "cut short")
        return super().read(index, rng)


def drawn(data=None, start=0, stop=96, batch=16, micro_batch=16, workers=0, world=None):
    """(position, image value, label) of every image a process takes."""
    found = []
    for part in batches(
        data or Numbered(),
        7,
        start=start,
        stop=stop,
        batch=batch,
        micro_batch=micro_batch,
        workers=workers,
        world=world or World(),
    ):
        values = part.images[:, 0, 0, 0].tolist()
        found += list(zip(part.positions, values, part.labels.tolist(), strict=True))
    return found


def test_the_kth_image_is_a_function_of_seed_and_k_alone():
    whole = {position: rest for position, *rest in drawn()}
    assert sorted(whole) == list(range(96))
    assert [label for _, label in whole.values()] == [index_at(k, 40, 7) for k in range(96)]
    for options in (
        {"workers": 2},
        {"micro_batch": 4},
        {"start": 48},
        {"batch": 8, "micro_batch": 8},
    ):
        part = drawn(**options)
        assert {position: rest for position, *rest in part}.items() <= whole.items()
    for processes in (2, 4):
        shares = [
            drawn(micro_batch=4, workers=rank % 2, world=World(rank, processes))
            for rank in range(processes)
        ]
        together = {position: rest for share in shares for position, *rest in share}
        assert together == whole
        assert sum(map(len, shares)) == 96


def test_each_epoch_shows_every_image_once_in_another_order():
    labels = [label for _, _, label in drawn(stop=80)]
    assert sorted(labels[:40]) == sorted(labels[40:]) == list(range(40))
    assert labels[:40] != labels[40:]


def test_what_varies_is_drawn_afresh_in_each_epoch():
    flips = {(label, value >= 200) for _, value, label in drawn(stop=400)}
    assert len(flips) == 80  # every image was seen both ways


def test_a_step_is_shared_out_by_position():
    world = World(rank=1, size=2)
    positions = [position for position, *_ in drawn(stop=32, micro_batch=4, world=world)]
    assert positions == [*range(8, 16), *range(24, 32)]


def test_an_unreadable_image_is_replaced_by_the_next_that_can_be_read():
    stream = Stream(Torn(), 7)
    position = next(k for k in range(40) if index_at(k, 40, 7) == 5)
    image, label, trouble = stream[position]
    assert (int(image[0, 0, 0]) % 200, label, trouble) == (7, 7, "5.png: cut short")
    fine = next(k for k in range(40) if index_at(k, 40, 7) == 9)
    assert stream[fine][1:] == (9, "")


def test_data_without_one_readable_image_are_refused():
    class Hopeless(Torn):
        bad = range(40)

    with pytest.raises(ValueError, match=r"^not one image can be read; the first: \d+\.png: cut"):
        Stream(Hopeless(), 7)[0]


def test_a_long_run_needs_no_long_list():
    stream = batches(
        Numbered(), 0, start=0, stop=10**12, batch=16, micro_batch=16, workers=0, world=World()
    )
    assert next(stream).positions == range(16)


def test_reading_processes_leave_ctrl_c_to_the_training_process():
    """Only on SIGTERM, the other signal a run may be asked to stop by, do readers end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stream = batches(
            Numbered(), 0, start=0, stop=160, batch=16, micro_batch=16, workers=2, world=World()
        )
        assert [next(stream).positions for _ in range(2)] == [range(16), range(16, 32)]
        for child in _children():  # both have begun by now
            os.kill(child, signal.SIGINT)
        assert len(list(stream)) == 8
    finally:
        signal.signal(signal.SIGINT, before)


def _children():
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children()]


@pytest.mark.parametrize(
    ("workers", "device", "expected"),
    [(None, "cpu", 0), (None, "cuda", READERS), (0, "cuda", 0), (3, "cpu", 3)],
)
def test_who_reads(monkeypatch, workers, device, expected):
    """Where nothing is said, a GPU does not wait for the reading of images."""
    seen = []

    def loader(*_, num_workers, **__):
        seen.append(num_workers)
        return []

    monkeypatch.setattr(stream, "DataLoader", loader)
    world = SimpleNamespace(rank=0, size=1, device=torch.device(device))
    how = {"start": 0, "stop": 0, "batch": 16, "micro_batch": 16, "workers": workers}
    assert list(batches(Numbered(), 0, **how, world=world)) == []
    assert seen == [expected]
