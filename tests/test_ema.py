import pytest
import torch

from legodiff import LegoStack, preset
from legodiff.train.ema import Ema


def constant(value):
    stack = LegoStack(preset("tiny-pr-16"))
    for parameter in stack.parameters():
        torch.nn.init.constant_(parameter, value)
    return stack


def test_half_of_the_old_is_left_after_a_half_life():
    network = constant(1.0)
    ema = Ema(network, halflife=1000, rampup=1e9)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    for step in range(10):
        ema.update(network, images=(step + 1) * 100, batch=100)
    for parameter in ema.network.parameters():
        assert torch.allclose(parameter, torch.tensor(0.5), atol=1e-6)


def test_the_batch_size_does_not_matter():
    ema = Ema(constant(0.0), halflife=500, rampup=1e9)
    assert ema.decay(1000, 64) ** 4 == pytest.approx(ema.decay(1000, 256))


def test_early_on_the_half_life_is_a_share_of_the_images_seen():
    ema = Ema(constant(0.0), halflife=500_000, rampup=0.05)
    assert ema.decay(1000, 50) == pytest.approx(0.5)
    assert ema.decay(100_000_000, 500_000) == pytest.approx(0.5)
    assert Ema(constant(0.0), halflife=0, rampup=0.05).decay(10, 1) == 0  # no averaging


def test_the_average_is_apart_from_the_network_and_buffers_are_copied():
    network = constant(1.0)
    network.register_buffer("counter", torch.tensor(3.0))
    ema = Ema(network, halflife=1000, rampup=1e9)
    network.counter += 4
    ema.update(network, images=100, batch=100)
    assert ema.network.counter == 7
    assert not any(p.requires_grad for p in ema.network.parameters())
    assert not ema.network.training
    assert next(network.parameters()).requires_grad
