from math import exp, log

import pytest
import torch

from legodiff.evaluate.inception_score import inception_score


def test_by_hand():
    """Two images, two classes: 3/4 and 1/4, the other way round."""
    logits = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    expected = exp(0.75 * log(1.5) + 0.25 * log(0.5))
    found = inception_score(logits, parts=1)
    assert found.mean == pytest.approx(expected)
    assert found.std == 0


def test_sure_and_of_every_kind_is_the_number_of_classes():
    assert inception_score(torch.eye(7) * 100, parts=1).mean == pytest.approx(7)
    assert inception_score(torch.eye(7)[:1].repeat(20, 1) * 100).mean == pytest.approx(1)


def test_parts_are_judged_alone():
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    parts = [inception_score(part, parts=1).mean for part in logits.split(10)]
    found = inception_score(logits, parts=4)
    assert found.mean == pytest.approx(sum(parts) / 4)
    assert found.std == pytest.approx(torch.tensor(parts).std(correction=0).item(), rel=1e-5)
    with pytest.raises(ValueError, match="of 10 parts needs as many"):
        inception_score(logits[:9])
