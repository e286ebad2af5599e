import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from legodiff import LegoStack, preset
from legodiff.model import layers
from legodiff.model.layers import Attention, Block, NoiseEmbedding, Output, position_embedding


def test_construction_leaves_zero_what_dit_sets_to_zero():
    stack = LegoStack(preset("tiny-pg-16", classes=3))
    zeros = [m for m in stack.modules() if isinstance(m, layers.Modulation)]
    zeros += [m.linear for m in stack.modules() if isinstance(m, Output)]
    assert len(zeros) == 4 + 3 + 3  # a modulation in each block and output, an output in each brick
    for layer in zeros:
        assert not layer.weight.any()
        assert not layer.bias.any()
    others = [m for m in stack.modules() if isinstance(m, nn.Linear) and m not in zeros]
    for layer in others:
        assert layer.weight.std() > 0
        assert not layer.bias.any()


def test_class_table_has_its_standard_deviation():
    for std in (0.02, 1.0):
        stack = LegoStack(preset("tiny-pg-16", classes=500, class_std=std))
        assert stack.class_embedding.weight.std().item() == pytest.approx(std, rel=0.05)


def test_a_fresh_block_is_the_identity():
    block = Block(32, 2, 4.0)
    layers.initialize(block, 1.0)
    tokens = torch.randn(2, 3, 4, 32)
    assert torch.equal(block(tokens, torch.randn(2, 32)), tokens)


def test_modulation_is_computed_once_per_image():
    """Its cost does not grow with the number of patches; all other costs do."""

    def flops(patches):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            block = Block(32, 2, 4.0)
            block.modulation(torch.empty(2, 32))
            modulation = counter.get_total_flops()
            block(torch.empty(2, patches, 4, 32), torch.empty(2, 32))
        return modulation, counter.get_total_flops() - 2 * modulation

    one, many = flops(1), flops(64)
    assert one[0] == many[0] == 2 * 2 * 32 * 6 * 32  # 2 images
    assert many[1] == 64 * one[1]


def test_each_linear_layer_is_one_matrix_product():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        Block(32, 2, 4.0)(torch.randn(3, 16, 4, 32), torch.randn(3, 32))
    products = {
        e.key: e.count for e in profile.key_averages() if e.key in ("aten::addmm", "aten::mm")
    }
    assert sum(products.values()) == 5  # modulation, qkv, out, and two of the MLP
    assert not [e.key for e in profile.key_averages() if "bmm" in e.key]


def test_attention_stays_within_a_patch():
    attention = Attention(32, 4)
    tokens = torch.randn(1, 3, 4, 32)
    changed = tokens.clone()
    changed[0, 1, 2] += 1
    difference = (attention(changed) - attention(tokens)).abs().sum(dim=-1)[0]
    assert (difference[1] > 0).all()
    assert not difference[[0, 2]].any()


def test_attention_is_softmax_attention():
    attention = Attention(8, 2)
    tokens = torch.randn(1, 1, 5, 8)
    q, k, v = attention.qkv(tokens[0, 0]).view(5, 3, 2, 4).unbind(1)  # each (5, heads, 4)
    heads = [((q[:, h] @ k[:, h].T) / math.sqrt(4)).softmax(-1) @ v[:, h] for h in range(2)]
    expected = attention.out(torch.cat(heads, dim=-1))
    assert torch.allclose(attention(tokens)[0, 0], expected, atol=1e-6)


def test_position_embedding_is_that_of_dit():
    """Independently: half of the channels from the column, half from the row, sine then cosine."""
    width, rows, columns = 16, 3, 5
    table = position_embedding((rows, columns), (rows, columns), width, torch.device("cpu"))
    for row in range(rows):
        for column in range(columns):
            expected = []
            for position in (column, row):
                angles = [position / 10_000 ** (i / (width / 4)) for i in range(width // 4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[row * columns + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_larger_grid_stays_inside_the_trained_positions():
    device = torch.device("cpu")
    trained = position_embedding((4, 4), (4, 4), 16, device)
    doubled = position_embedding((8, 8), (4, 4), 16, device).view(8, 8, 16)
    middle = (doubled[::2] + doubled[1::2]) / 2  # at -0.25 and 0.25 around each trained position
    pairs = (middle[:, ::2] + middle[:, 1::2]) / 2
    assert torch.allclose(pairs.reshape(16, 16), trained, atol=0.04)
    assert torch.equal(trained, position_embedding((4, 4), (4, 4), 16, device))


def test_noise_embedding_by_hand():
    embedding = NoiseEmbedding(8)
    seen = []
    embedding.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    embedding(torch.tensor([0.7]))
    frequencies = [10_000 ** (-i / 128) for i in range(128)]
    expected = [math.cos(0.7 * f) for f in frequencies] + [math.sin(0.7 * f) for f in frequencies]
    assert seen[0][0].tolist() == pytest.approx(expected, abs=1e-6)
