import copy

import numpy as np
import pytest
import torch
from toy_features import toy

from legodiff.evaluate.extract import extract
from legodiff.evaluate.images import Images
from legodiff.train.distributed import World

PIXELS = torch.randint(0, 256, (23, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def images(count=23):
    return Images(count, 3, (8, 8), lambda at: PIXELS[list(at)].to(torch.uint8), {})


class Together(World):
    """Processes that run one after the other: what they all give is known from the time before."""

    said: list

    def gather(self, value):
        mine = self.said[self.rank]
        mine.append(copy.deepcopy(value))
        return [said[len(mine) - 1] for said in self.known]


def run(world, batch=5, network=None):
    network = network or toy(spatial=True, logits=True)
    return extract(images(), network, world, batch, lambda done, total: None)


def test_features_are_those_of_each_image_in_order():
    whole = run(World(), batch=64)
    direct = toy().run(PIXELS.to(torch.uint8)).pool
    assert torch.equal(whole.features, direct)
    assert torch.equal(whole.logits, direct[:, :3])
    assert np.allclose(whole.pool.covariance, np.cov(direct.double().numpy().T), atol=1e-12)
    assert np.allclose(whole.spatial.covariance, np.cov(direct[:, :2].double().numpy().T))
    assert run(World(), network=toy()).spatial is None


@pytest.mark.parametrize("batch", [1, 7, 23])
def test_batches_and_processes_change_nothing(batch):
    whole, said = run(World(), batch=64), [[], [], []]
    for attempt in range(2):  # first each alone, then with what all gave
        known, said = said, [[], [], []]
        for rank in range(3):
            world = Together(rank, 3)
            object.__setattr__(world, "said", said)
            object.__setattr__(world, "known", known if attempt else [said[0]] * 3)
            found = run(world, batch)
            if attempt:
                assert torch.equal(found.features, whole.features)
                assert torch.equal(found.logits, whole.logits)
                assert torch.allclose(found.spatial.covariance, whole.spatial.covariance)
                assert torch.allclose(found.spatial.mean, whole.spatial.mean)


def test_every_image_is_seen_once():
    seen, told = [], []
    extract(images(), toy(seen=seen), World(), 10, lambda done, total: told.append((done, total)))
    assert seen == [10, 10, 3]
    assert told == [(0, 23), (10, 23), (20, 23), (23, 23)]


def test_too_few_images_are_one_line():
    with pytest.raises(ValueError, match="at least two images"):
        extract(images(1), toy(), World(), 4, lambda done, total: None)
