import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from legodiff.once import once


@once
def table(count, device="cpu"):
    return torch.arange(count, device=device, dtype=torch.float32)


def test_a_table_is_made_once_for_its_arguments():
    table.cache_clear()
    assert table(3) is table(3)
    assert table(3).tolist() == [0, 1, 2]
    assert table(4) is not table(3)
    assert table(3, device="meta").device.type == "meta"


def test_what_sampling_made_serves_training():
    table.cache_clear()
    weight = torch.ones(5, requires_grad=True)
    with torch.inference_mode():
        table(5)
    (table(5) * weight).sum().backward()
    assert weight.grad.tolist() == [0, 1, 2, 3, 4]


def test_what_is_only_pretended_is_not_kept():
    table.cache_clear()
    with FakeTensorMode():
        assert isinstance(table(6), FakeTensor)
    assert not isinstance(table(6), FakeTensor)


def test_a_graph_makes_its_own():
    table.cache_clear()
    compiled = torch.compile(lambda x: x + table(7), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(7)), torch.arange(1.0, 8))
    assert table.cache_info().currsize == 0
