import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from legodiff.evaluate import lpips
from legodiff.evaluate.lpips import VGG16, AlexNet, Perceptual, as_floats, gradients, open_lpips

ONE_LINE = r"^[^\n]*{}[^\n]*$"
# What torchvision has of each, up to the last layer that LPIPS reads: convolutions as
# (channels, kernel, stride, padding) with their ReLU, poolings as (kernel, stride).
ALEX = [(64, 11, 4, 2), (3, 2), (192, 5, 1, 2), (3, 2), *[(c, 3, 1, 1) for c in (384, 256, 256)]]
VGG = [
    *[(64, 3, 1, 1)] * 2,
    *[(2, 2), *[(128, 3, 1, 1)] * 2],
    *[(2, 2), *[(256, 3, 1, 1)] * 3],
    *[(2, 2), *[(512, 3, 1, 1)] * 3],
    *[(2, 2), *[(512, 3, 1, 1)] * 3],
]


def torchvisions(net, seed=0):
    """A stand-in for torchvision's network: its layers, with random weights."""
    generator, layers, before = torch.Generator().manual_seed(seed), [], 3
    for layer in ALEX if net == "alex" else VGG:
        if len(layer) == 2:
            layers.append(nn.MaxPool2d(*layer))
            continue
        after, kernel, stride, padding = layer
        made = nn.utils.skip_init(nn.Conv2d, before, after, kernel, stride, padding)
        for parameter, scale in (
            (made.weight, (2 / made.weight[0].numel()) ** 0.5),
            (made.bias, 0.1),
        ):
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        layers += [made, nn.ReLU(inplace=True)]
        before = after
    return SimpleNamespace(features=nn.Sequential(*layers))


@pytest.fixture
def trunk(tmp_path):
    """Writes the weights of a stand-in as torchvision does, with a classifier behind them."""

    def write(net, **changes):
        path = tmp_path / f"random-{net}.pth"
        weights = torchvisions(net).features.state_dict(prefix="features.")
        weights = weights | {"classifier.1.weight": torch.ones(2, 2)} | changes
        torch.save({k: v for k, v in weights.items() if v is not None}, path)
        return path

    return write


def pixels(count, height, width, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def pairs(*shape):
    """Noise beside noise, a shifted picture, a darker one, and a flat one."""
    first = as_floats(pixels(4, *shape))
    first[3] = 0.5
    second = as_floats(pixels(4, *shape, seed=1))
    second[1], second[2] = first[1].roll(3, -1), first[2] * 0.5 - 0.2
    return first, second


@pytest.mark.parametrize(
    ("net", "size"), [("alex", (64, 71)), ("alex", (31, 40)), ("vgg", (32, 37))]
)
def test_it_is_torchmetrics(net, size, trunk, monkeypatch):
    """The code and heads that torchmetrics has of LPIPS' authors, on a trunk of random weights."""
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips")
    models = SimpleNamespace(
        alexnet=lambda weights: torchvisions("alex"), vgg16=lambda weights: torchvisions("vgg")
    )
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    monkeypatch.setattr(theirs, "_TORCHVISION_AVAILABLE", True)
    reference = theirs._LPIPS(net=net, pnet_rand=True)
    mine = open_lpips(net, trunk(net))
    first, second = pairs(*size)
    with torch.no_grad():
        expected = reference(first, second).flatten()
    assert mine(first, second).tolist() == pytest.approx(expected.tolist(), abs=1e-6, rel=1e-5)
    assert expected.min() > 1e-3
    assert mine.name == f"PD-random-{net}"
    assert [file.genuine for file in mine.files] == [False, True]


@pytest.mark.parametrize(
    ("network", "parameters"),
    [(AlexNet, 61_100_840 - 58_631_144), (VGG16, 138_357_544 - 123_642_856)],
)
def test_they_are_as_large_as_torchvisions(network, parameters):
    """All of the classifier, without its three fully connected layers."""
    with torch.device("meta"):
        made = network()
    assert sum(parameter.numel() for parameter in made.parameters()) == parameters
    weights = [name for name in made.state_dict() if name.endswith("weight")]
    numbers = (
        (0, 3, 6, 8, 10) if network is AlexNet else (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    )
    assert weights == [f"features.{number}.weight" for number in numbers]


def colours(images):
    """A trunk: the image itself, and its mean."""
    return [images, images.mean(dim=(2, 3), keepdim=True)]


def test_of_a_known_trunk_it_is_known():
    """Colours (3, 4, 0) and (0, 0, 2) have directions (.6, .8, 0) and (0, 0, 1)."""
    first = torch.tensor([0.3, 0.4, 0.0]).view(1, 3, 1, 1).repeat(1, 1, 2, 2)
    second = torch.tensor([0.0, 0.0, 0.2]).view(1, 3, 1, 1).repeat(1, 1, 2, 2)
    distance = Perceptual("PD", colours, [torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)])
    expected = 0.36 + 2 * 0.64 + 3
    assert distance(first, second).item() == pytest.approx(expected)
    second[..., 0] = first[..., 0]  # the mean over pixels
    assert distance(first, second).item() == pytest.approx(expected / 2)
    second[..., 0, 0] = 0  # black has no direction, and no NaN
    assert distance(first, second).item() == pytest.approx((0.36 + 2 * 0.64 + 2 * expected) / 4)


def test_with_equal_weights_it_is_of_cosines():
    first, second = (as_floats(pixels(5, 8, 6, seed)) for seed in (0, 1))
    distance = Perceptual("PD", colours, [torch.ones(3)] * 2)
    expected = sum(
        2 - 2 * torch.cosine_similarity(a, b, dim=1).mean(dim=(1, 2))
        for a, b in zip(colours(first), colours(second), strict=True)
    )
    assert torch.allclose(distance(first, second), expected, atol=1e-5)


def test_it_is_a_distance(trunk):
    distance = open_lpips("alex", trunk("alex"))
    first, second = pairs(40, 40)
    assert distance(first, first).tolist() == [0] * 4
    assert torch.allclose(distance(first, second), distance(second, first))
    alone = torch.cat([distance(a[None], b[None]) for a, b in zip(first, second, strict=True)])
    assert torch.allclose(distance(first, second), alone, atol=1e-6)


def test_it_is_the_square_between_its_vectors(trunk):
    distance = open_lpips("alex", trunk("alex"))
    first, second = pairs(40, 40)
    between = torch.cdist(distance.embed(first).double(), distance.embed(second).double()) ** 2
    assert torch.allclose(between.diagonal().float(), distance(first, second), atol=1e-6)
    assert not distance.embed(first.requires_grad_()).requires_grad


def test_bytes_become_floats():
    grey = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert as_floats(grey)[0, :, 0].tolist() == [pytest.approx([-1, -0.6, 1])] * 3
    assert torch.equal(as_floats(grey), as_floats(grey.repeat(1, 3, 1, 1)))
    for wrong in (grey.float(), grey[0], grey.repeat(1, 4, 1, 1)):
        with pytest.raises(ValueError, match=ONE_LINE.format("one or three channels")):
            as_floats(wrong)


@pytest.mark.parametrize(("network", "least"), [(AlexNet, 31), (VGG16, 16)])
def test_images_that_are_too_small_are_one_line(network, least):
    """And the smallest that are taken are those that go through."""
    with torch.device("meta"):
        made = network()
        assert len(made(torch.empty(1, 3, least, least))) == 5
        message = f"{network.__name__} needs images of at least {least}x{least} pixels"
        with pytest.raises(
            ValueError, match=ONE_LINE.format(f"{message}; these are 40x{least - 1}")
        ):
            made(torch.empty(1, 3, 40, least - 1))
        made.least = 1
        with pytest.raises(RuntimeError):
            made(torch.empty(1, 3, 40, least - 1))


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5), "images of one size"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4), "images of one size"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), "takes float images"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), "takes float images"),
        (*[torch.zeros(2, 3, 4, 4, dtype=torch.uint8)] * 2, "takes float images"),
    ],
)
def test_images_that_cannot_be_compared_are_one_line(first, second, reason):
    with pytest.raises(ValueError, match=ONE_LINE.format(f"PD.*{reason}")):
        Perceptual("PD", colours, [torch.ones(3)] * 2)(first, second)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none_are_one_line(weight):
    with pytest.raises(ValueError, match=ONE_LINE.format("a weight of map 1 is negative")):
        Perceptual("PD", colours, [torch.ones(3), torch.tensor([1.0, weight, 1.0])])


@pytest.mark.parametrize("weights", [[torch.ones(3)], [torch.ones(3), torch.ones(4)]])
def test_weights_of_another_trunk_are_one_line(weights):
    with pytest.raises(ValueError, match=ONE_LINE.format(r"maps have \[3, 3\] channels, not")):
        Perceptual("PD", colours, weights)(*[torch.zeros(1, 3, 4, 4)] * 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features.8.bias": None}, "there is no features.8.bias"),
        ({"features.9.bias": torch.ones(1)}, "features.9.bias has no place here"),
        ({"features.0.bias": torch.ones(63)}, r"features.0.bias is \(63,\), not \(64,\)"),
        ({"features.0.bias": torch.ones(64).long()}, "features.0.bias holds what is no number"),
        (
            {"features.0.bias": torch.ones(64) * torch.nan},
            "features.0.bias holds what is no number",
        ),
    ],
)
def test_a_trunk_that_does_not_fit_is_one_line(changes, reason, trunk):
    with pytest.raises(ValueError, match=ONE_LINE.format(f"random-alex.pth: {reason}")):
        open_lpips("alex", trunk("alex", **changes))


def heads(**changes):
    channels = (64, 192, 384, 256, 256)
    made = {f"lin{i}.model.1.weight": torch.ones(1, c, 1, 1) for i, c in enumerate(channels)}
    return {name: tensor for name, tensor in (made | changes).items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lin4.model.1.weight": None}, "there is no lin4.model.1.weight"),
        ({"lin5.model.1.weight": torch.ones(1)}, "lin5.model.1.weight has no place here"),
        ({"lin0.model.1.weight": torch.ones(1, 65, 1, 1)}, r"is \(1, 65, 1, 1\), not \(1, 64"),
        ({"lin0.model.1.weight": -torch.ones(1, 64, 1, 1)}, "a weight of map 0 is negative"),
    ],
)
def test_heads_that_do_not_fit_are_one_line(changes, reason, trunk, tmp_path):
    save_file(heads(**changes), tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match=ONE_LINE.format(reason)):
        open_lpips("alex", trunk("alex"), tmp_path / "heads.safetensors")


def test_a_network_that_lpips_has_not_is_one_line():
    with pytest.raises(
        ValueError, match="unknown network 'squeeze' of LPIPS; choose from alex, vgg"
    ):
        open_lpips("squeeze")


def test_it_is_called_lpips_with_its_own_files_only(trunk, tmp_path, monkeypatch):
    path = trunk("alex")
    save_file(heads(), tmp_path / "even.safetensors")
    files = open_lpips("alex", path, tmp_path / "even.safetensors").files
    assert open_lpips("alex", path, tmp_path / "even.safetensors").name == "PD-random-alex"
    known = [
        dataclasses.replace(asset, sha256=file.sha256)
        for asset, file in zip(lpips.NETS["alex"][1:], files, strict=True)
    ]
    monkeypatch.setitem(lpips.NETS, "alex", (AlexNet, known[0], lpips.NETS["alex"][2]))
    assert open_lpips("alex", path, tmp_path / "even.safetensors").name == "PD-even"
    monkeypatch.setitem(lpips.NETS, "alex", (AlexNet, *known))
    made = open_lpips("alex", path, tmp_path / "even.safetensors")
    assert made.name == "LPIPS-alex"
    assert [file.path for file in made.files] == [path, tmp_path / "even.safetensors"]


def test_half_precision_in_a_file_is_single_in_memory(trunk, tmp_path):
    weights = torchvisions("alex").features.half().state_dict(prefix="features.")
    save_file(weights, tmp_path / "half.safetensors")
    half, whole = (
        open_lpips("alex", tmp_path / "half.safetensors"),
        open_lpips("alex", trunk("alex")),
    )
    first, second = pairs(40, 40)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert torch.allclose(half(first, second), whole(first, second), rtol=1e-3)


def test_the_plain_distance_sees_edges_and_colours():
    plain, flat = gradients(), torch.zeros(1, 3, 16, 16)
    edge = flat.clone()
    edge[..., 8:] = 1
    red = flat.clone()
    red[:, 0] = 0.5
    assert plain(flat, flat).item() == 0
    assert 0 < plain(edge, edge.roll(1, -1)).item() < plain(edge, edge.transpose(2, 3)).item()
    assert plain(flat, red).item() > 0.1
