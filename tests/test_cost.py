import pytest
import torch
from conftest import awaken

from legodiff import BrickSpec, LegoStack, StackSpec, preset
from legodiff.model.cost import Meter, brick_flops, brick_parameters, shared_flops, subset_flops


def by_hand(spec, number, size):
    """2 x multiply-accumulates of one brick on one image, from the formulas."""
    brick, d = spec.bricks[number], spec.width
    rows, columns = brick.patch(size)
    patches = size[0] * size[1] // (rows * columns)
    tokens, field = rows * columns // brick.local**2, brick.local**2
    every = patches * tokens
    channels = spec.channels * (1 if number == 0 else 2)
    macs = every * channels * field * d  # pixels to tokens
    macs += every * 2 * field * d  # coordinates to tokens, once for the batch
    macs += brick.depth * (4 + 2 * spec.mlp_ratio) * every * d**2  # qkv, out, MLP
    macs += brick.depth * 2 * patches * tokens**2 * d  # attention
    macs += (6 * brick.depth + 2) * d**2  # modulation, once for the image
    macs += every * d * spec.channels * field  # tokens to pixels
    return 2 * macs


@pytest.mark.parametrize("name", ["tiny-pr-16", "lite-pg-16", "lego-s-pg-64", "lego-xl-u-32"])
@pytest.mark.parametrize("stretch", [(1, 1), (1, 2)])
def test_flops_are_those_of_the_formulas(name, stretch):
    spec = preset(name)
    size = (spec.image_size[0] * stretch[0], spec.image_size[1] * stretch[1])
    counted = brick_flops(spec, size)
    assert counted == tuple(by_hand(spec, k, size) for k in range(len(spec.bricks)))


def test_paper_scale_flops_agree_with_a_count_of_the_authors_code():
    """GFLOPs of their code with the modulation once per image; 64x64x3, LEGO-S and DiT-S/2."""
    total = sum(brick_flops(preset("lego-s-pg-64"))) / 1e9
    assert total == pytest.approx(39.69, abs=0.02)
    assert sum(brick_flops(preset("dit-s-2-64"))) / 1e9 == pytest.approx(62.86, abs=0.02)


def test_subsets_add_up():
    spec = preset("lego-s-pr-64")
    bricks = brick_flops(spec)
    for subset in [(0,), (1, 2), (0, 1, 2)]:
        expected = shared_flops(spec) + sum(bricks[k] for k in subset)
        assert subset_flops(spec, subset, spec.image_size) == expected


def test_parameters_add_up():
    spec = preset("tiny-pg-16", classes=4)
    parameters = brick_parameters(spec)
    assert sum(parameters) == sum(p.numel() for p in LegoStack(spec).parameters())
    assert parameters[-1] == 256 * 32 + 32 + 32 * 32 + 32 + 5 * 32


def test_attention_is_counted():
    """On CPU torch's counter leaves it out; one token more than doubles nothing but attention."""
    spec = StackSpec((64, 64), 1, 4, 1, (BrickSpec("image", 2, 1),))
    assert brick_flops(spec)[0] > 2 * 2 * 1024**2 * 4


def test_meter_counts_images_and_gives_the_estimate():
    stack = awaken(LegoStack(preset("tiny-pr-16", channels=1)))
    meter = Meter(stack)
    noisy, sigma = torch.randn(3, 1, 16, 16), torch.ones(3)
    with torch.no_grad():
        estimate = meter(noisy, sigma, None, bricks=(0, 2))
        meter(noisy[:2], sigma[:2], None, bricks=(0,))
        assert torch.equal(estimate, stack(noisy, sigma, bricks=(0, 2)))
    assert meter.evaluations == 5
    cost = {bricks: subset_flops(stack.spec, bricks, (16, 16)) for bricks in [(0, 2), (0,)]}
    assert meter.flops == 3 * cost[0, 2] + 2 * cost[0,]
