from itertools import product

import pytest
import torch

from legodiff.diffusion.regions import across, boxes, label_map

WRAPS = list(product((False, True), repeat=2))


@pytest.mark.parametrize("wrap", WRAPS)
def test_masks_add_up_to_one(wrap):
    labels = torch.randint(0, 4, (5, 7), generator=torch.Generator().manual_seed(0))
    for blend in (0, 1, 6, 100):
        regions = label_map(labels, (20, 30), blend, wrap)
        assert regions.masks.shape == (4, 20, 30)
        assert regions.masks.min() >= 0
        assert torch.allclose(regions.masks.sum(0), torch.ones(20, 30), atol=1e-5)
    one = label_map(torch.tensor([[0, 1]]), (4, 10), 2, wrap).masks[1, 0]
    assert one[0].item() == pytest.approx(0.4 if wrap[1] else 0.0)


def test_boxes_lie_on_each_other_and_on_the_background():
    regions = boxes([(1, (0, 0, 1, 0.5)), (2, (0.5, 0.25, 1, 1))], (4, 8), background=9)
    assert regions.labels == (1, 2, 9)
    found = torch.tensor(regions.labels)[regions.masks.argmax(0)]
    assert found.tolist() == [[1, 1, 1, 1, 9, 9, 9, 9]] * 2 + [[1, 1, 2, 2, 2, 2, 2, 2]] * 2
    with pytest.raises(ValueError, match=r"region 3: 0, 0.5, 1, 0.5 is no box"):
        boxes([(3, (0, 0.5, 1, 0.5))], (4, 8), 9)
    with pytest.raises(ValueError, match="blend is -1"):
        across([0, 1], (8, 8), blend=-1)


def test_labels_lie_side_by_side():
    regions = across([5, 2, 5], (1, 6))
    assert regions.labels == (2, 5)
    assert regions.masks[:, 0].tolist() == [[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1]]
