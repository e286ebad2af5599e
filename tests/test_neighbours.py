import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from legodiff.evaluate import neighbours
from legodiff.evaluate.bench import peak_memory
from legodiff.evaluate.neighbours import manifold
from legodiff.train.distributed import World

ALONE = World()


def features(seed, count=120, dim=4, shift=0.0, scale=1.0):
    normal = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return normal * scale + shift


def precision_recall(*, real, generated, world=ALONE):
    both = {"real": manifold(real, world), "generated": manifold(generated, world)}
    return neighbours.precision_recall(**both, world=world)


def nearest(some, others, world=ALONE):
    return neighbours.nearest(some, others, world)


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("shift", [0.0, 0.7, 3.0])
def test_it_is_prdc(block, shift, monkeypatch):
    prdc = pytest.importorskip("prdc")
    monkeypatch.setattr(neighbours, "BLOCK", block)
    real, generated = features(0), features(1, 90, shift=shift, scale=0.8)
    found = precision_recall(real=real, generated=generated)
    expected = prdc.compute_prdc(real.numpy(), generated.numpy(), nearest_k=3)
    assert found.precision == pytest.approx(expected["precision"])
    assert found.recall == pytest.approx(expected["recall"])


def test_a_collapsed_generator_is_precise_and_recalls_little():
    real = features(0, 1000)
    generated = real[:1] + features(1, 1000, scale=1e-3)
    found = precision_recall(real=real, generated=generated)
    assert found.precision == 1
    assert found.recall < 0.01
    wide = precision_recall(real=generated, generated=real)
    assert (wide.precision, wide.recall) == (found.recall, found.precision)


def test_real_and_generated_are_kept_apart_by_name():
    with pytest.raises(TypeError):
        neighbours.precision_recall(*(manifold(features(n), ALONE) for n in (0, 1)), ALONE)


def test_the_same_set_twice_is_all_inside():
    real = features(0)
    assert precision_recall(real=real, generated=real.clone()) == (1, 1)


def test_copies_of_a_feature_do_not_count_as_itself():
    real = features(0, 20).repeat(2, 1)  # everyone has a twin at distance 0
    found = manifold(real, ALONE)
    assert found.apart.max() < 1e-2
    assert found.near[:, 1].min() > 1e-2


@pytest.mark.parametrize("block", [16, 1024])
def test_one_pass_gives_the_nearest_and_the_third_nearest(block, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    some = features(0, 50, shift=100.0)
    found = manifold(some, ALONE)
    distances = torch.cdist(some.double(), some.double()).sort(dim=1).values[:, 1:4]
    assert torch.allclose(found.near.double(), distances.square(), atol=1e-3)
    assert torch.allclose(found.apart.double(), distances[:, 0], atol=1e-3)
    assert manifold(some[:2], ALONE).near.shape == (2, 1)  # no third there


class Together(World):
    """One of several threads that stand for processes."""

    def gather(self, value):
        self.said[self.rank] = value
        self.barrier.wait()
        found = list(self.said)
        self.barrier.wait()
        return found


def together(work, size=3):
    """What each of several processes gets."""
    said, barrier = [None] * size, threading.Barrier(size, timeout=60)
    worlds = [Together(rank, size) for rank in range(size)]
    for world in worlds:
        object.__setattr__(world, "said", said)
        object.__setattr__(world, "barrier", barrier)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, worlds))


def test_processes_take_the_blocks_in_turn_and_get_the_same(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 8)
    real, generated, rows = features(0, 50), features(1, 30, scale=0.8), []

    def work(world):
        shares = precision_recall(real=real, generated=generated, world=world)
        return shares, nearest(generated, real, world), manifold(real, world).near

    alone = work(ALONE)
    product = torch.addmm
    monkeypatch.setattr(
        torch,
        "addmm",
        lambda *a, **k: rows.append((threading.get_ident(), len(a[1]))) or product(*a, **k),
    )
    for shares, near, around in together(work):
        assert shares == alone[0]
        assert torch.equal(near.number, alone[1].number)
        assert torch.equal(near.distance, alone[1].distance)
        assert torch.equal(around, alone[2])
    # Real and generated to themselves, each to the other, then the nearest and the radii again.
    passes = [50, 30, 30, 50, 30, 50]
    assert sum(count for _, count in rows) == sum(passes)  # every row once, not by all
    by_thread = Counter(thread for thread, _ in rows)
    assert sorted(by_thread.values()) == sorted(
        sum(len(range(0, count, 8)[rank::3]) for count in passes) for rank in range(3)
    )


def test_distances_are_taken_on_the_device_of_the_process(monkeypatch):
    seen = []

    def product(*given, alpha):
        seen.extend(tensor.device.type for tensor in given)
        raise RuntimeError("seen")

    monkeypatch.setattr(torch, "addmm", product)
    with pytest.raises(RuntimeError, match="seen"):
        manifold(features(0), World(device=torch.device("meta")))
    assert seen == ["meta"] * 3


def test_nearest_is_the_nearest(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    some, others = features(0, 50, shift=100.0), features(1, 70, shift=100.0)
    found = nearest(some, others)
    distances = torch.cdist(some.double(), others.double())
    assert torch.equal(found.number, distances.argmin(dim=1))
    assert torch.allclose(found.distance.double(), distances.min(dim=1).values, atol=1e-3)


def test_memory_does_not_grow_with_the_square():
    """Blocks of rows, of which none is kept: what there is at once, counted."""

    def peak(count):
        real, generated = features(0, count), features(1, count)
        run = partial(precision_recall, real=real, generated=generated)
        return peak_memory(run, torch.device("cpu"))

    small, large = peak(2000), peak(8000)
    assert large < 5 * small
    each = large / 8000  # bytes of an image more
    assert small + 50_000 * each < 4e9
    assert 4 * 50_000**2 > 4e9  # what a whole table of distances would take


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="more than 3 images on each side"):
        precision_recall(real=features(0)[:3], generated=features(1))
