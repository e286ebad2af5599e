import json

import numpy as np
import pytest
import torch
from toy_features import toy

from legodiff.evaluate import measure as module
from legodiff.evaluate.extract import Extracted
from legodiff.evaluate.frechet import Gaussian
from legodiff.evaluate.measure import Metric, add_records, floor, thousands, warnings
from legodiff.evaluate.neighbours import manifold
from legodiff.evaluate.reference import Reference
from legodiff.train.distributed import World

GENERATOR = torch.Generator().manual_seed(0)


def normal(count, width=8, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(count, width, generator=GENERATOR)


def drawn(features, spatial=None, logits=None):
    return Extracted(features, Gaussian.fit(features), spatial, logits)


def reference(features, spatial=None, name="train"):
    return Reference(name, Gaussian.fit(features), spatial, features, {})


def measure(found, real, network):
    around = None if real.features is None else manifold(real.features, World())
    return module.measure(found, real, network, around, World())


def values(metrics):
    return {metric.name: metric.value for metric in metrics}


def test_names_say_what_they_are_of():
    plain = drawn(normal(2000))
    names = [m.name for m in measure(plain, reference(normal(500), name="all"), toy(name="digits"))]
    tail = "digits-2k(all)"
    assert names == [f"FD-{tail}", f"KD-{tail}", f"precision-{tail}", f"recall-{tail}"]
    spatial = Gaussian.fit(normal(50, 3))
    full = drawn(normal(1500), spatial, normal(1500, 5))
    names = [m.name for m in measure(full, reference(normal(500), spatial), toy(standard=True))]
    tail = "1.5k(train)"
    assert names == [
        *(f"FID-{tail}", f"sFID-{tail}", "IS-1.5k", f"KID-{tail}"),
        *(f"precision-{tail}", f"recall-{tail}"),
    ]
    bare = Reference("adm", Gaussian.fit(normal(50)), None, None, {})
    assert [m.name for m in measure(plain, bare, toy(standard=True))] == ["FID-2k(adm)"]
    assert [thousands(count) for count in (50_000, 297, 1797)] == ["50k", "297", "1.797k"]


def test_a_shift_of_one_costs_one_a_feature():
    real = normal(400)
    found = values(measure(drawn(real + 1), reference(real), toy(standard=True)))
    assert found["FID-400(train)"] == pytest.approx(8)
    same = values(measure(drawn(real), reference(real), toy(standard=True)))
    assert same["FID-400(train)"] == pytest.approx(0, abs=1e-9)
    assert same["precision-400(train)"] == same["recall-400(train)"] == 1


def test_a_generator_that_collapsed_is_precise_and_remembers_nothing():
    """And one that draws everything and more has recall without precision: no mix-up of names."""
    real = normal(1000)
    collapsed = values(measure(drawn(normal(1000, scale=0.1)), reference(real), toy()))
    assert collapsed["precision-toy-1k(train)"] > 0.95
    assert collapsed["recall-toy-1k(train)"] < 0.05
    spread = values(measure(drawn(normal(1000, scale=5)), reference(real), toy()))
    assert spread["precision-toy-1k(train)"] < 0.05
    assert spread["recall-toy-1k(train)"] > 0.95


def test_they_are_those_of_torchmetrics():
    """Through images and a network of features, as a user of either would."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Features(torch.nn.Module):
        num_features = 48

        def forward(self, images):
            return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)

    sets = [
        torch.randint(0, top, (200, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
        for top in (256, 220)
    ]
    real, fake = (toy().run(images).pool for images in sets)
    found = measure(drawn(fake), reference(real), toy(standard=True))
    fid = FrechetInceptionDistance(feature=Features()).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=200)
    for metric in (fid, kid):
        for images, is_real in zip(sets, (True, False), strict=True):
            metric.update(images, real=is_real)
    assert found[0].value == pytest.approx(float(fid.compute()), rel=1e-6)
    assert found[1].value == pytest.approx(float(kid.compute()[0]), rel=1e-4)
    assert found[1].spread == pytest.approx(0, abs=1e-9)  # all of them in every subset


def test_few_images_are_told_how_far_real_ones_are_apart():
    features = normal(1000, 4)
    value, count = floor(features, 300)
    assert count == 300
    assert 0 < value < 0.2
    assert floor(features, 900)[1] == 500  # half of them at most
    few = warnings(drawn(normal(300, 4)), reference(features))
    assert few == [
        "300 images: Fréchet distances are biased upwards below 10,000; that of 300 real images "
        f"from 700 other real ones is {value:.4g}"
    ]
    thin = warnings(drawn(normal(4, 4)), Reference("x", Gaussian.fit(features), None, None, {}))
    assert thin[0].endswith("; the reference holds no images to say by how much")
    assert thin[1] == "4 images do not span 4 features: the covariance lacks rank"
    needs = "on each side, and there are 4 and, in the reference, 0"
    assert thin[2] == f"no kernel distance: that takes 2 images {needs}"
    assert thin[3] == f"no precision and recall: that takes 4 images {needs}"
    assert not warnings(drawn(torch.randn(10_000, 2)), reference(features))


@pytest.mark.parametrize(
    ("here", "real", "left"),
    [(2, 9, {"FD", "KD"}), (9, 3, {"FD", "KD"}), (9, 1, {"FD"}), (4, 4, None)],
)
def test_what_takes_more_images_is_left_out_and_told(here, real, left):
    found, known = drawn(normal(here)), normal(real)
    against = Reference("train", Gaussian.fit(normal(50)), None, known, {})
    names = {name.partition("-")[0] for name in values(measure(found, against, toy()))}
    assert names == (left or {"FD", "KD", "precision", "recall"})
    told = [note for note in warnings(found, against) if note.startswith("no ")]
    assert len(told) == {4: 0, 2: 1, 1: 2}[len(names)]


def test_a_distance_without_full_rank_is_finite():
    found = measure(drawn(normal(5, 64)), reference(normal(9, 64)), toy(standard=True))
    assert all(np.isfinite(metric.value) for metric in found)


def test_features_of_another_network_are_refused():
    with pytest.raises(ValueError, match="the reference has 7 features and toy gives 8"):
        measure(drawn(normal(9)), reference(normal(9, 7)), toy())


def test_numbers_that_are_none_are_null_and_told(tmp_path):
    path, nan = tmp_path / "metrics.json", float("nan")
    metrics = [
        Metric("nearest-a", float("inf"), None, "higher"),
        Metric("KID-a", nan, nan, "lower"),
        Metric("FID-a", 3.0, None, "lower"),
    ]
    add_records(path, metrics, {"images": 1})
    found = json.loads(path.read_text())
    assert [(one["value"], one["spread"]) for one in found] == [(None, None)] * 2 + [(3.0, None)]
    told = warnings(drawn(torch.randn(10_000, 2)), reference(normal(20_000, 2)), metrics)
    assert told == [
        "nearest-a is inf, which is written as null",
        "KID-a is nan, which is written as null",
    ]


def test_results_are_kept_until_they_are_measured_again(tmp_path):
    path, half = tmp_path / "metrics.json", {"images": {"steps": 9}}
    add_records(path, [Metric("FID-2k(a)", 3.0, None, "lower")], {"images": {"steps": 18}})
    add_records(path, [Metric("FID-2k(a)", 4.0, 0.5, "lower")], half)
    add_records(path, [Metric("FID-2k(a)", 5.0, 0.5, "lower")], half)
    found = json.loads(path.read_text())
    assert [(one["value"], one["images"]["steps"]) for one in found] == [(3.0, 18), (5.0, 9)]
    path.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="holds something else than metrics"):
        add_records(path, [], {})
    assert path.read_text() == '{"mine": 1}'
