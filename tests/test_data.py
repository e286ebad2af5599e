import numpy as np
import pytest

from legodiff.data import index_at
from legodiff.data.digits import HELD_OUT, Digits


def test_every_epoch_shows_every_image_once_in_a_new_order():
    count = 13
    epochs = [[index_at(e * count + i, count, seed=5) for i in range(count)] for e in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [index_at(i, count, seed=6) for i in range(count)]


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    loaded = load_digits()
    train, held_out = Digits(8), Digits(8, "held-out")
    assert len(train) == 1797 - HELD_OUT
    assert len(held_out) == HELD_OUT
    images = np.concatenate([train.images, held_out.images])[:, 0]
    labels = [*train.labels, *held_out.labels]
    mine = {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)}
    grey = np.round(loaded.images * 255 / 16).astype(np.uint8)
    assert mine == {(image.tobytes(), t) for image, t in zip(grey, loaded.target, strict=True)}
    assert not {i.tobytes() for i in train.images} & {i.tobytes() for i in held_out.images}


def test_digits_are_enlarged():
    small, large = Digits(8), Digits(32)
    assert large.images.shape == (1500, 1, 32, 32)
    assert large.images.dtype == np.uint8
    pooled = large.images.reshape(1500, 1, 8, 4, 8, 4).mean(axis=(3, 5))
    assert np.abs(pooled - small.images).mean() < 12
    image, label = large.read(7, np.random.default_rng(0))
    assert np.array_equal(image, large.images[7])
    assert large.size == (32, 32)
    assert label == small.read(7)[1]
    assert large.class_names[label] == str(label)


def test_missing_scikit_learn_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"^[^\n]*pip install 'legodiff\[demo\]'$"):
        Digits(8)
