import csv

import pytest
import torch
from PIL import Image
from toy_features import toy

from legodiff.evaluate import memorised as module
from legodiff.evaluate.images import Images
from legodiff.evaluate.memorised import write_memorised
from legodiff.evaluate.neighbours import manifold
from legodiff.train.distributed import World

PIXELS = torch.randint(
    *(0, 256, (40, 1, 8, 8)), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def images(pixels):
    return Images(len(pixels), 1, (8, 8), lambda at: pixels[list(at)], {})


def of(pixels):
    return toy().run(pixels).pool


def memorised(drawn, real):
    return module.memorised(drawn, manifold(real, World()), World())


def test_copies_are_found_with_what_they_are_copies_of():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:9]
    found = memorised(of(PIXELS[order]), of(PIXELS))
    assert torch.equal(found.nearest.number, order)
    assert found.nearest.distance.max() < 1e-3
    assert found.ratio < 0.01


def test_a_draw_from_the_same_distribution_is_as_far_as_real_images_are():
    generator = torch.Generator().manual_seed(2)
    drawn, real = (torch.randn(500, 6, generator=generator) for _ in range(2))
    assert memorised(drawn, real).ratio == pytest.approx(1, abs=0.1)


def test_distances_of_real_images_leave_out_the_image_itself():
    features = torch.tensor([[0.0], [1.0], [5.0]])
    assert memorised(features, features).real.tolist() == pytest.approx([1, 1, 4], abs=1e-3)


def test_pictures_and_table_show_them(tmp_path):
    drawn = images(PIXELS[:20])
    found = memorised(of(PIXELS[:20]), of(PIXELS))
    write_memorised(tmp_path, found, drawn, images(PIXELS), "train", "toy")
    rows = list(csv.reader((tmp_path / "nearest.csv").open()))
    assert rows[0] == ["drawn", "nearest", "distance"]
    assert [(row[0], row[1]) for row in rows[1:]] == [(str(n), str(n)) for n in range(20)]
    with Image.open(tmp_path / "nearest.png") as picture:
        grey = picture.convert("L")
    # Pairs stand one above the other, and here they are the same.
    width = grey.width
    top, bottom = (grey.crop((width - 700, y, width, y + 64)) for y in (76, 76 + 68))
    assert top.tobytes() == bottom.tobytes()
    assert (tmp_path / "distances.png").stat().st_size > 1000
    one = memorised(of(PIXELS[:2]), of(PIXELS))
    write_memorised(tmp_path, one, images(PIXELS[:2]), images(PIXELS), "train", "toy")


def test_the_nearest_pairs_come_first(tmp_path, monkeypatch):
    tables = []
    draw = module.table_of_images
    monkeypatch.setattr(module, "table_of_images", lambda *args: tables.append(args) or draw(*args))
    found = memorised(of(PIXELS[:20]), of(PIXELS[20:]))
    write_memorised(tmp_path, found, images(PIXELS[:20]), images(PIXELS[20:]), "train", "toy")
    ((_, columns, _),) = tables
    shown = [float(column) for column in columns]
    assert shown == sorted(shown)
    assert shown[0] == pytest.approx(float(found.nearest.distance.min()), abs=0.01)
    assert shown[-1] == pytest.approx(float(found.nearest.distance.median()), abs=0.05)
