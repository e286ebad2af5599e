import pytest
import torch
from small_runs import CODEC, Bars, config

from legodiff import StackSpec
from legodiff.model.spec import ForeignSpec
from legodiff.train.distributed import World
from legodiff.train.learner import (
    Objective,
    build_learner,
    build_network,
    choose_precision,
    freeze,
    parameter_groups,
)

BARS = Bars()


def batch(count=8):
    items = [BARS.read(index) for index in range(count)]
    images = torch.stack([torch.from_numpy(image) for image, _ in items])
    return images, torch.tensor([label for _, label in items])


def make(*changes):
    settings = config(*changes)
    spec = settings.model.spec(1, 2, settings.train.bricks)
    network = build_network(spec, settings.train.seed)
    return build_learner(network, CODEC, settings.train, World())


def test_a_network_is_drawn_from_its_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    spec = config().model.spec(1, 2)
    first, again, other = (build_network(spec, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["bricks.0.embed.weight"], other["bricks.0.embed.weight"])


def test_the_loss_of_an_image_depends_on_its_position_alone():
    learner = make("train.fill=noise")
    images, labels = batch()
    with torch.no_grad():
        whole = learner.objective(images, labels, range(40, 48), (0, 1, 2))
        part = learner.objective(images[3:5], labels[3:5], range(43, 45), (0, 1, 2))
        other = learner.objective(images, labels, range(41, 49), (0, 1, 2))
    assert torch.allclose(whole.values[:, 3:5], part.values, rtol=1e-4)
    assert torch.equal(whole.sigma[3:5], part.sigma)
    assert not torch.allclose(whole.values, other.values, rtol=1e-2)


def test_the_average_has_a_loss_of_its_own():
    learner = make()
    images, labels = batch()
    with torch.no_grad():
        before = learner.average(images, labels, range(8), (0, 1, 2)).values
        learner.network.bricks[2].output.linear.bias.fill_(1.0)
        after = learner.average(images, labels, range(8), (0, 1, 2)).values
        raw = learner.objective(images, labels, range(8), (0, 1, 2)).values
    assert torch.equal(before, after)
    assert not torch.allclose(before, raw)


def test_the_optimizer_holds_what_learns():
    everything = make()
    assert len(everything.trained) == len(list(everything.network.parameters()))
    upper = make("train.bricks=[1]")
    names = [name for name, p in upper.network.named_parameters() if p.requires_grad]
    assert {name.split(".")[1] for name in names} == {"1"}  # of bricks.1 and nothing else
    assert len(upper.trained) == len(names)
    lower = make("train.bricks=[0]")
    assert len(lower.trained) == len(list(lower.network.parameters()))  # and what all share


def test_what_all_bricks_share_rests_with_the_lowest():
    network = build_network(config().model.spec(1, 2), 0)
    freeze(network, [1, 2])
    assert not network.class_embedding.weight.requires_grad
    assert not network.noise_embedding.first.weight.requires_grad
    freeze(network, [0, 2])
    assert network.class_embedding.weight.requires_grad
    assert not any(p.requires_grad for p in network.bricks[1].parameters())


def test_what_no_brick_reads_does_not_learn():
    """A base of another kind alone: DDP would wait for gradients that never come."""
    base = ForeignSpec("LegoStack", config().model.spec(1, 2).to_dict(), classes=2)
    network = build_network(StackSpec((16, 16), 1, 16, 2, (base,), classes=2), 0)
    for bricks in (None, [0]):
        freeze(network, bricks)
        resting = [name for name, p in network.named_parameters() if not p.requires_grad]
        assert {name.split(".")[0] for name in resting} == {"noise_embedding", "class_embedding"}
        clean, sigma = torch.randn(2, 1, 16, 16), torch.ones(2)
        network(clean, sigma, torch.tensor([0, 1])).sum().backward()
        used = [p for p in network.parameters() if p.requires_grad and p.grad is not None]
        assert len(used) == sum(p.requires_grad for p in network.parameters())
    rates = config("train.brick_rates=[0.5]").train
    assert [group["factor"] for group in parameter_groups(network, rates)] == [0.5]


def test_recomputing_keeps_less_for_the_backward_pass():
    """Bytes that autograd saves, counted."""
    saved = {}
    for choice in ("false", "true"):
        learner, sizes = make(f"train.recompute={choice}", "train.patch_ratio=1"), []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            learner.objective(*batch(), range(8), (0, 1, 2))
        saved[choice] = sum(sizes)
    assert saved["true"] < 0.5 * saved["false"]


def test_every_tensor_has_a_name():
    learner = make()
    tensors = learner.tensors()
    count = len(list(learner.network.parameters()))
    assert len(tensors) == 5 * count  # raw, ema, and three of the optimizer
    assert tensors["raw/bricks.0.embed.weight"] is not tensors["ema/bricks.0.embed.weight"]
    for kind in ("step", "exp_avg", "exp_avg_sq"):
        assert not tensors[f"optimizer/bricks.0.embed.weight/{kind}"].any()


def test_precision_is_what_the_device_has(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_precision("auto", cpu) == torch.float32
    assert choose_precision("bf16", cpu) == torch.bfloat16
    assert choose_precision("fp16", cpu) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert choose_precision("auto", cuda) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose_precision("auto", cuda) == torch.float32
    with pytest.raises(ValueError, match=r"precision is bf16, which cuda has not; use fp16"):
        choose_precision("bf16", cuda)


def test_losses_are_single_precision_whatever_the_network_is():
    learner = make("train.precision=bf16")
    assert isinstance(learner.objective, Objective)
    losses = learner.objective(*batch(), range(8), (0, 1, 2))
    assert losses.values.dtype == losses.sigma.dtype == torch.float32
