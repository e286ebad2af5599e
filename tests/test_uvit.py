import pytest
import torch

from legodiff.evaluate.opponents import UVITS
from legodiff.evaluate.uvit import SIGMA_DATA, UViT, UViTSpec
from legodiff.model.cost import counted
from legodiff.model.precondition import edm


def table_spec(letter, classes):
    width, heads, depth = UVITS[letter]
    return UViTSpec((64, 64), 3, width, heads, depth, classes=classes)


def by_hand(spec):
    """2 x multiply-accumulates for one image."""
    height, width = spec.image_size
    pieces, field = height * width // spec.patch**2, spec.channels * spec.patch**2
    tokens, d = pieces + (2 if spec.classes else 1), spec.width
    macs = 2 * pieces * field * d  # pixels to tokens and back
    macs += spec.depth * 12 * tokens * d**2  # qkv, out, MLP
    macs += spec.depth * 2 * tokens**2 * d  # attention
    macs += (spec.depth // 2) * tokens * 2 * d * d  # joints
    macs += height * width * 9 * spec.channels**2  # the convolution
    return 2 * macs


@pytest.mark.parametrize(("letter", "classes", "millions"), [("s", 0, 44), ("l", 1000, 287)])
def test_it_has_the_size_of_the_papers_tables(letter, classes, millions):
    spec = table_spec(letter, classes)
    with torch.device("meta"):
        network = UViT(spec)
    total = sum(parameter.numel() for parameter in network.parameters())
    assert total == pytest.approx(1e6 * millions, rel=0.01)
    run = lambda: network(torch.empty(1, 3, 64, 64), torch.empty(1))  # noqa: E731
    assert counted(run) == by_hand(spec)


def small(classes=0, seed=0):
    torch.manual_seed(seed)
    return UViT(UViTSpec((8, 16), 2, 16, 2, 5, classes=classes)).eval()


@torch.no_grad()
def test_without_an_output_it_is_its_preconditioning():
    network, noisy, sigma = small(), torch.randn(2, 2, 8, 16), torch.tensor([0.3, 4.0])
    network.smooth.weight.zero_()
    network.smooth.bias.zero_()
    assert torch.equal(network(noisy, sigma), edm(sigma, SIGMA_DATA).skip * noisy)


@torch.no_grad()
def test_a_block_of_the_second_half_reads_its_mirror_in_the_first():
    """Blocks that add 1, 10, 100 ... and joints that pass on either what is below or the mirror."""
    network, seen = small(), []
    for number, block in enumerate(network.blocks):
        for layer in (block.attention.out, block.mlp[1]):
            layer.weight.zero_()
            layer.bias.zero_()
        block.mlp[1].bias.fill_(10.0**number)
    network.positions.zero_()
    network.embed.weight.zero_()
    network.embed.bias.zero_()
    network.norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    below, mirror = torch.eye(16), torch.zeros(16, 16)
    for passed, total in (("below", 11_111), ("mirror", 10_001)):
        for joint in network.joints:
            order = (below, mirror) if passed == "below" else (mirror, below)
            joint.weight.copy_(torch.cat(order, dim=1))
            joint.bias.zero_()
        network(torch.randn(1, 2, 8, 16), torch.ones(1))
        assert torch.equal(seen[-1], torch.full((1, 8, 16), float(total)))


@torch.no_grad()
def test_it_knows_the_noise_level_the_class_and_where_a_token_is():
    network = small(classes=3)
    torch.nn.init.normal_(network.positions)
    torch.nn.init.dirac_(network.smooth.weight)  # which else tells the border
    noisy, sigma = torch.randn(1, 2, 8, 16), torch.ones(1)
    none = network(noisy, sigma)
    assert torch.equal(none, network(noisy, sigma, torch.tensor([3])))
    assert not torch.allclose(none, network(noisy, sigma, torch.tensor([1])), atol=1e-3)

    def moved():
        return network(noisy.roll(4, dims=2), sigma).roll(-4, dims=2)

    assert not torch.allclose(none, moved(), atol=1e-3)
    network.positions.zero_()
    assert torch.allclose(network(noisy, sigma), moved(), atol=1e-6)

    at, other = edm(sigma, SIGMA_DATA), edm(2 * sigma, SIGMA_DATA)
    raw = (network(noisy, sigma) - at.skip * noisy) / at.out
    alike = noisy * at.scale / other.scale  # the network reads the same pixels
    raw_other = (network(alike, 2 * sigma) - other.skip * alike) / other.out
    assert not torch.allclose(raw, raw_other, atol=1e-3)
