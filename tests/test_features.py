from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from legodiff.evaluate import features as module
from legodiff.evaluate.assets import INCEPTION
from legodiff.evaluate.features import IMAGENET, coloured, open_features
from legodiff.evaluate.inception import Inception
from legodiff.store import sha256

CPU = torch.device("cpu")
IMAGES = torch.randint(
    *(0, 256, (2, 3, 24, 24)), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "mine.safetensors"
    tensors = {k: v for k, v in Inception().state_dict().items() if "num_batches" not in k}
    save_file(tensors, path)
    return path


@torch.no_grad()
def test_inception_is_called_so_only_with_the_file_that_fid_is_defined_by(
    inception_file, monkeypatch
):
    network = open_features("inception", str(inception_file), CPU, (24, 24))
    assert (network.name, network.standard) == ("mine", False)
    assert network.sha256 == sha256(inception_file)
    monkeypatch.setattr(module, "INCEPTION", replace(INCEPTION, sha256=network.sha256))
    known = open_features("inception", str(inception_file), CPU, (24, 24))
    assert (known.name, known.standard) == ("Inception", True)
    found = known.run(IMAGES)
    assert found.pool.shape == (2, 2048)
    assert found.spatial.shape == (2, 2023)
    assert found.logits.shape == (2, 1008)
    grey = IMAGES[:, :1]
    assert torch.equal(known.run(grey).pool, known.run(grey.repeat(1, 3, 1, 1)).pool)


def test_missing_weights_are_named_with_where_to_get_them(monkeypatch, tmp_path):
    for name in ("LEGODIFF_ASSETS", "LEGODIFF_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(ValueError, match=r"FID's Inception is missing: put https://\S+ \(sha256"):
        open_features("inception", None, CPU, (24, 24))


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: FID's Inception does not fit: \d+"):
        open_features("inception", str(tmp_path / "other.safetensors"), CPU, (24, 24))


def test_digits_are_those_of_the_demo():
    network = open_features("digits", None, CPU, (8, 8))
    again = open_features("digits", None, CPU, (8, 8))
    assert network.name == "digits"
    assert network.sha256 == again.sha256 != open_features("digits", None, CPU, (16, 16)).sha256
    grey = IMAGES[:, :1, :8, :8]
    assert network.run(grey).pool.shape == (2, 32)
    with pytest.raises(ValueError, match="of grey images, and these have colour"):
        network.run(IMAGES)
    with pytest.raises(ValueError, match="of square images"):
        open_features("digits", None, CPU, (8, 16))
    with pytest.raises(ValueError, match="take no --features-weights"):
        open_features("digits", "x.pth", CPU, (8, 8))


def test_pooled_features_are_means_of_colour_and_of_the_gradient():
    """Of a ramp of 2 grey levels a pixel in one colour: 64 features, in closed form."""
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[0, 1] = 6 * torch.arange(8)
    found = open_features("pooled", None, CPU, (8, 8)).run(image).pool.view(4, 4, 4) * 255
    assert torch.allclose(found[[0, 2]], torch.zeros(2, 4, 4))
    assert torch.allclose(found[1], torch.tensor([3.0, 15, 27, 39]).expand(4, 4))
    assert torch.allclose(found[3], torch.full((4, 4), 2.0))
    grey = open_features("pooled", None, CPU, (8, 8)).run(IMAGES[:, :1]).pool
    assert grey.shape == (2, 64)


class Means(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


class Lost(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_file_is_any_network(tmp_path):
    torch.jit.script(Means()).save(tmp_path / "means.pt")
    network = open_features(str(tmp_path / "means.pt"), None, CPU, (24, 24))
    assert network.name == "means"
    assert not network.standard
    assert torch.allclose(network.run(IMAGES).pool, IMAGES.float().mean(dim=(2, 3)))
    torch.jit.script(Lost()).save(tmp_path / "lost.pt")
    with pytest.raises(ValueError, match=r"lost\.pt gave no features \(B, D\) for 2 images"):
        open_features(str(tmp_path / "lost.pt"), None, CPU, (24, 24)).run(IMAGES)
    (tmp_path / "text.pt").write_text("no")
    with pytest.raises(ValueError, match=r"text\.pt is no TorchScript file"):
        open_features(str(tmp_path / "text.pt"), None, CPU, (24, 24))
    with pytest.raises(ValueError, match="choose inception, dinov2, digits, pooled, or a"):
        open_features("resnet", None, CPU, (24, 24))


@torch.no_grad()
def test_dinov2_is_that_of_transformers_own_preparation(tmp_path):
    """Bicubic to 224, then ImageNet's mean and deviation: within rounding of PIL's."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14
    )
    made = transformers.Dinov2Model(config).eval()
    made.save_pretrained(tmp_path / "dino")
    network = open_features("dinov2", str(tmp_path / "dino"), CPU, (24, 24))
    assert network.name == "DINOv2-32"
    prepare = transformers.BitImageProcessor(
        size={"height": 224, "width": 224},
        do_center_crop=False,
        resample=3,
        image_mean=IMAGENET[0],
        image_std=IMAGENET[1],
    )
    pixels = prepare([image.movedim(0, -1).numpy() for image in IMAGES], return_tensors="pt")
    theirs = made(pixels["pixel_values"]).pooler_output
    assert torch.allclose(network.run(IMAGES).pool, theirs, atol=0.004)
    assert not torch.allclose(network.run(IMAGES.flip(-1)).pool, theirs, atol=0.004)
    (tmp_path / "dino" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        open_features("dinov2", str(tmp_path / "dino"), CPU, (24, 24))


def test_colour_stays_and_grey_becomes_colour():
    assert coloured(IMAGES) is IMAGES or torch.equal(coloured(IMAGES), IMAGES)
    assert torch.equal(coloured(IMAGES[:, :1])[:, 2], IMAGES[:, 0])
