"""One evaluation from beginning to end: by one process and by two, and of few images."""

import json
import multiprocessing
import os

import pytest
import torch
from small_runs import ended, free_port
from toy_features import toy

from legodiff.evaluate import neighbours, reference
from legodiff.evaluate.evaluation import evaluate, write_reference
from legodiff.evaluate.images import Images
from legodiff.train.distributed import World, joined

PIXELS = torch.randint(
    *(0, 256, (60, 3, 8, 8)), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def images(pixels):
    return Images(len(pixels), 3, (8, 8), lambda at: pixels[list(at)], {})


def silent(*_):
    pass


@pytest.fixture(autouse=True)
def real(monkeypatch):
    """Forty images as the reference called "data"."""
    known = reference.open_images

    def open_images(path, *rest):
        return images(PIXELS[:40]) if path == "data" else known(path, *rest)

    monkeypatch.setattr(reference, "open_images", open_images)


def run(out, world, against="data", drawn=PIXELS[40:]):
    return evaluate(images(drawn), str(against), toy(), world, 7, out, "real")


def one_of_two(rank, port, out):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined(torch.device("cpu")) as world:
        found = run(out, world)
        first, second = world.gather([(one.name, one.value) for one in found.metrics])
        assert first == second


def test_two_processes_give_the_numbers_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 8)
    run(tmp_path / "one", World())
    fork, port = multiprocessing.get_context("fork"), free_port()
    both = [
        fork.Process(target=one_of_two, args=(rank, port, tmp_path / "two")) for rank in range(2)
    ]
    for child in both:
        child.start()
    assert ended(both) == [0, 0]
    one, two = ((tmp_path / name / "metrics.json").read_text() for name in ("one", "two"))
    assert one == two
    names = [record["name"] for record in json.loads(one)]
    assert [name.partition("-")[0] for name in names] == [
        *("FD", "KD", "precision", "recall", "nearest"),
    ]
    for name in ("nearest.csv", "nearest.png", "distances.png"):
        assert (tmp_path / "two" / name).is_file()


def test_every_distance_among_real_images_is_taken_once(tmp_path, monkeypatch):
    rows, product = [], torch.addmm
    monkeypatch.setattr(
        torch, "addmm", lambda *a, **k: rows.append((len(a[1]), a[2].shape[1])) or product(*a, **k)
    )
    run(tmp_path, World())
    assert rows.count((40, 40)) == 1


def test_few_images_are_measured_by_what_they_allow(tmp_path):
    found = run(tmp_path / "two", World(), drawn=PIXELS[40:42])
    kinds = [metric.name.partition("-")[0] for metric in found.metrics]
    assert kinds == ["FD", "KD", "nearest"]
    assert any(note.startswith("no precision and recall") for note in found.notes)
    write_reference(
        images(PIXELS[:40]), toy(), World(), 7, tmp_path / "bare.npz", "real", 0, silent
    )
    found = run(tmp_path / "bare", World(), tmp_path / "bare.npz")
    assert [metric.name for metric in found.metrics] == ["FD-toy-20(real)"]
    assert any(note.startswith("no kernel distance") for note in found.notes)


def test_what_is_not_a_number_does_not_lose_the_others(tmp_path, monkeypatch):
    """All real images alike: they are at no distance from each other."""
    alike = torch.cat([PIXELS[:1].repeat(40, 1, 1, 1), PIXELS[40:]])
    monkeypatch.setattr(f"{__name__}.PIXELS", alike)
    found = run(tmp_path, World())
    assert any(note.endswith("which is written as null") for note in found.notes)
    values = {r["name"]: r["value"] for r in json.loads((tmp_path / "metrics.json").read_text())}
    assert values["nearest-toy-20(real)"] is None
    assert values["FD-toy-20(real)"] > 0
