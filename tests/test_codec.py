import hashlib
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import awaken
from fake_hub import fake_hub
from safetensors.torch import load_file, save_file
from vaes import make_vae

from legodiff import LegoPipeline, LegoStack, preset
from legodiff.codec import LatentCodec, PixelCodec, codec_from_dict, to_pil
from legodiff.vae import VaeSpec, open_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNKNOWN = VaeSpec(4, 4, 0.18215)
KNOWN = VaeSpec(4, 4, 0.5, 0.25, "some/vae", "0123456789ab" + "c" * 52)
LATENT = LatentCodec(KNOWN, (0.1, -0.2, 0.3, 0.0), 0.7)
ONE_LINE = r"^[^\n]*{}[^\n]*$"


def test_the_default_is_plain_minus_one_to_one():
    pixels = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    encoded = PixelCodec().encode(pixels).flatten().tolist()
    assert encoded == pytest.approx([-1, -1 / 255, 1])


@pytest.mark.parametrize("codec", [PixelCodec(), PixelCodec((-0.5, 0.1, 0.9), 1.7)])
def test_all_256_values_survive(codec):
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    assert torch.equal(codec.decode(codec.encode(pixels)), pixels)


def test_decoding_clips():
    decoded = PixelCodec((0.0,)).decode(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2))
    assert decoded.flatten().tolist() == [0, 255]


def test_fit_gives_mean_zero_and_the_wanted_deviation():
    images = np.random.default_rng(0).integers(30, 90, (200, 3, 8, 8)).astype(np.uint8)
    images[:, 1] += 100
    encoded = PixelCodec.fit(images, 0.5).encode(torch.from_numpy(images))
    assert torch.allclose(encoded.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert encoded.std().item() == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(ValueError, match="same value"):
        PixelCodec.fit(np.full((3, 1, 4, 4), 7, np.uint8), 0.5)


def test_it_survives_json_and_refuses_others():
    codec = PixelCodec((0.25,), 1.5)
    assert PixelCodec.from_dict(json.loads(json.dumps(codec.to_dict()))) == codec
    for wrong in ({"kind": "vae"}, {"kind": "pixels", "mean": [0], "scale": 1, "gamma": 2}):
        with pytest.raises(ValueError, match="codec"):
            PixelCodec.from_dict(wrong)


def test_pil_images_are_height_by_width():
    grey, colour = to_pil(torch.zeros(1, 1, 4, 6, dtype=torch.uint8))[0], None
    pixels = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(1, 3, 4, 6)
    colour = to_pil(pixels)[0]
    assert (grey.mode, grey.size) == ("L", (6, 4))
    assert (colour.mode, colour.size) == ("RGB", (6, 4))
    assert colour.getpixel((5, 2)) == tuple(pixels[0, :, 2, 5].tolist())


def test_codecs_are_known_by_their_kind():
    for codec in (PixelCodec((0.25,), 1.5), LATENT, LatentCodec(UNKNOWN, (0.0,) * 4, 2)):
        assert codec_from_dict(json.loads(json.dumps(codec.to_dict()))) == codec
    for wrong in ({"kind": "vae"}, {"kind": ["pixels"]}, {}, None, "pixels"):
        with pytest.raises(ValueError, match="this version knows pixels and latents"):
            codec_from_dict(wrong)
    with pytest.raises(ValueError, match="kind 'pixels', not latents"):
        LatentCodec.from_dict(PixelCodec().to_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1}, "unknown key 'gamma'"),
        ({"_opened": {}}, "codec: "),
        ({"mean": [0, 0]}, "2 means for latents of 4 channels"),
        ({"mean": [0, 0, 0, float("nan")]}, "mean is"),
        ({"mean": "abcd"}, "mean is"),
        ({"scale": 0}, "scale is 0"),
        ({"scale": True}, "scale is True"),
        ({"vae": None}, "vae: None is not"),
        ({"vae": {"channels": 4, "downsampling": 4, "size": 3}}, "vae: unknown key 'size'"),
        ({"vae": {"channels": 10**9, "downsampling": 4}}, "channels is 1000000000"),
        ({"vae": {"channels": 4, "downsampling": 4, "scale": float("inf")}}, "scale is inf"),
        ({"vae": {"channels": 4, "downsampling": 4, "name": "a", "sha256": "AB"}}, "sha256 is"),
    ],
)
def test_latent_codecs_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=ONE_LINE.format(message)):
        codec_from_dict(LATENT.to_dict() | change)


def test_latents_are_scaled_by_the_vae_then_by_the_data():
    latents = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1
    model = LATENT.encode(latents)
    assert model.dtype == torch.float32
    for channel, mean in enumerate(LATENT.mean):
        expected = ((latents[:, channel] - 0.25) * 0.5 - mean) * 0.7
        assert torch.allclose(model[:, channel], expected, atol=1e-6)
    assert torch.allclose(LATENT.latents(model), latents, atol=1e-5)
    assert torch.equal(LATENT.encode(latents.half()), LATENT.encode(latents.half().float()))


def test_latents_are_fitted_to_mean_zero_and_the_wanted_deviation():
    rng = np.random.default_rng(0)
    size = np.array([1.0, 3.0, 0.5, 2.0]).reshape(4, 1, 1)
    latents = rng.normal(size=(500, 4, 6, 6)) * size + 4 * size
    mean, std = latents.mean(axis=(0, 2, 3)), latents.std(axis=(0, 2, 3))
    codec = LatentCodec.fit(KNOWN, mean, std, 0.5)
    model = codec.encode(torch.from_numpy(latents))
    assert torch.allclose(model.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert model.std().item() == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(ValueError, match=r"deviation of 0\.0"):
        LatentCodec.fit(KNOWN, mean, std * 0, 0.5)


def test_previews_show_three_channels_about_grey():
    deviations = torch.tensor([-9.0, -3.0, 0.0, 3.0, 9.0])
    model = deviations.view(1, 1, 1, 5).repeat(1, 4, 1, 1) * LATENT.scale
    model[:, 1] *= -1
    shown = LATENT.preview(model)
    assert shown.shape == (1, 3, 1, 5)
    assert shown[0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    assert shown[0, 1, 0].tolist() == [255, 255, 128, 0, 0]
    two = LatentCodec(VaeSpec(2, 8), (0.0, 0.0), LATENT.scale).preview(model[:, :2])
    assert torch.equal(two, shown[:, :1].expand(-1, 3, -1, -1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def codec(folder):
    return LatentCodec(open_vae(folder).spec, (0.1, -0.2, 0.3, 0.0), 0.7)


def copied(folder, tmp_path, change=None, name="copy"):
    """A copy of a VAE with its weights changed."""
    copy = shutil.copytree(folder, tmp_path / name)
    if change:
        weights = load_file(copy / WEIGHTS)
        change(weights)
        save_file(weights, copy / WEIGHTS, metadata={"format": "pt"})
    return copy


def test_a_vae_says_what_its_latents_need(folder):
    vae = open_vae(folder)
    hashed = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert vae.spec == VaeSpec(4, 4, 0.5, 0.25, "any", hashed)
    assert vae.spec.name == str(folder)
    assert str(vae.spec) == f"{folder} ({hashed[:12]})"
    assert not vae.network.training
    assert vae.decode(torch.zeros(5, 4, 2, 3)).shape == (5, 3, 8, 12)
    assert vae.moments(torch.zeros(1, 3, 8, 12, dtype=torch.uint8)).shape == (1, 8, 2, 3)


def test_the_hash_is_of_the_weights(folder, tmp_path):
    def nudge(weights):
        weights["decoder.conv_out.bias"][0] += 1e-3

    assert open_vae(copied(folder, tmp_path)).spec == open_vae(folder).spec
    changed = open_vae(copied(folder, tmp_path, nudge, "nudged")).spec
    assert changed.sha256 != open_vae(folder).spec.sha256
    assert replace(changed, sha256=None, name=None) == replace(
        open_vae(folder).spec, sha256=None, name=None
    )


def test_a_vae_within_a_pipeline_and_one_with_old_names(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "pipeline" / "vae")
    assert open_vae(tmp_path / "pipeline").spec == open_vae(folder).spec
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights):
        for key in list(weights):
            for new, before in old.items():
                if f".{new}." in key:
                    weights[key.replace(new, before)] = weights.pop(key)

    latents = torch.randn(1, 4, 4, 4)
    renamed = open_vae(copied(folder, tmp_path, rename))
    assert torch.equal(renamed.decode(latents), open_vae(folder).decode(latents))


def test_weights_in_several_files_are_one_hash(folder, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderKL.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="20KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    hashed = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    vae = open_vae(tmp_path)
    assert vae.spec.sha256 == hashed
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(vae.decode(latents), open_vae(folder).decode(latents))


def test_decoding_is_the_vae_after_the_inverse(codec, folder):
    latents = torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = open_vae(folder).network.decode(latents).sample
    expected = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    decoded = codec.decode(codec.encode(latents))  # with the VAE it remembers
    assert decoded.dtype == torch.uint8
    assert (decoded.int() - expected.int()).abs().max() <= 1
    assert codec.ready
    assert len(decoded.unique()) > 20


def test_a_moved_vae_is_attached_and_another_is_refused(codec, folder, tmp_path):
    codec.attach(copied(folder, tmp_path))
    assert codec.ready
    other = make_vae(tmp_path / "other", seed=1)
    spec = open_vae(other).spec
    fresh = LatentCodec.from_dict(codec.to_dict())
    names = rf"{folder} \({codec.vae.sha256[:12]}\).*{other} \({spec.sha256[:12]}\)"
    with pytest.raises(ValueError, match=ONE_LINE.format(names)):
        fresh.attach(other)
    assert not fresh.ready


def test_the_recorded_place_may_hold_another_vae_by_now(folder, tmp_path):
    place = copied(folder, tmp_path)
    codec = LatentCodec(open_vae(place).spec, (0.0,) * 4, 1.0)
    shutil.rmtree(place)
    with pytest.raises(ValueError, match=ONE_LINE.format(rf"{place}.*name it with --vae DIR_OR_I")):
        codec.decode(torch.zeros(1, 4, 2, 2))
    make_vae(place, seed=2)
    names = f"{codec.vae.sha256[:12]}.*--vae.*{open_vae(place).spec.sha256[:12]}"
    with pytest.raises(ValueError, match=ONE_LINE.format(names)):
        codec.decode(torch.zeros(1, 4, 2, 2))


def test_latents_of_an_unknown_vae_take_any_that_fits(folder, tmp_path):
    codec = LatentCodec(UNKNOWN, (0.0,) * 4, 1.0)
    model = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=ONE_LINE.format("do not say which VAE .* --vae DIR_OR")):
        codec.decode(model)
    codec.attach(folder)
    assert codec.vae == UNKNOWN
    expected = open_vae(folder).decode(model / 0.18215)  # the recorded scale, not the VAE's
    assert (codec.decode(model).int() - expected.int()).abs().max() <= 1
    for changes, message in (
        ({"latent_channels": 3}, "channels 4, and the VAE .* has 3"),
        (
            {
                "block_out_channels": (8, 8),
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2,
            },
            "downsampling 4, and the VAE .* has 2",
        ),
    ):
        wrong = make_vae(tmp_path / message[:5], **changes)
        with pytest.raises(ValueError, match=ONE_LINE.format(message)):
            LatentCodec(UNKNOWN, (0.0,) * 4, 1.0).attach(wrong)


def test_only_safetensors_are_read(folder, tmp_path):
    copy = copied(folder, tmp_path)
    torch.save(load_file(copy / WEIGHTS), copy / "diffusion_pytorch_model.bin")
    stray = (copy / WEIGHTS).rename(copy / "diffusion_pytorch_model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=ONE_LINE.format("cannot be opened")):
        open_vae(copy)
    stray.unlink()
    with pytest.raises(ValueError, match=ONE_LINE.format("only safetensors are read")):
        open_vae(copy)


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    def shape(weights):
        weights["quant_conv.bias"] = torch.zeros(3)

    changes = {
        "missing keys quant_conv.bias": lambda weights: weights.pop("quant_conv.bias"),
        "unexpected keys more": lambda weights: weights.update(more=torch.zeros(1)),
        "size mismatch for quant_conv.bias": shape,
    }
    for message, change in changes.items():
        with pytest.raises(ValueError, match=ONE_LINE.format(message)):
            open_vae(copied(folder, tmp_path, change, message[:4]))
    copy = copied(folder, tmp_path)
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(ValueError, match=ONE_LINE.format("cannot be opened")):
        open_vae(copy)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"holds no config\.json"),
        ("{", r"config\.json is not JSON"),
        ("[]", "class None, not an AutoencoderKL"),
        ('{"_class_name": "UNet2DModel"}', "class 'UNet2DModel', not an AutoencoderKL"),
    ],
)
def test_folders_that_hold_no_vae_are_one_line(tmp_path, config, message):
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=ONE_LINE.format(message)):
        open_vae(tmp_path)


def test_names_that_are_no_vae_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=ONE_LINE.format("neither a folder nor a Hub id")):
        open_vae(tmp_path / "missing")
    with pytest.raises(ValueError, match=ONE_LINE.format("no folder someone/vae, and the Hub did")):
        open_vae("someone/vae")


def test_a_vae_from_the_hub_is_remembered_by_its_commit(folder, tmp_path, monkeypatch):
    with fake_hub(tmp_path / "cache", monkeypatch) as hub:
        commit = hub.upload("some/vae", folder)
        inside = hub.commit(
            "some/pipeline",
            {f"vae/{name}": data for name, data in hub.files("some/vae").items()}
            | {"unet/diffusion_pytorch_model.safetensors": b"large", "vae/weights.bin": b"unsafe"},
        )
        spec = open_vae("some/vae").spec
        assert (spec, spec.name) == (open_vae(folder).spec, f"some/vae@{commit}")
        assert open_vae(f"some/pipeline@{inside}").spec == spec
        assert set(hub.fetched()) == {
            *("config.json", WEIGHTS, "vae/config.json", f"vae/{WEIGHTS}"),
        }
        hub.commit("some/vae", {"config.json": b"{}"})
        hub.asked.clear()
        assert open_vae(spec.name).spec == spec
        assert not hub.fetched()


def test_without_diffusers_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (tmp_path / WEIGHTS).write_bytes(b"")
    with pytest.raises(ValueError, match=ONE_LINE.format(r"pip install 'legodiff\[latent\]'")):
        open_vae(tmp_path)


def latent_pipeline(codec, channels=4):
    torch.manual_seed(0)
    stack = awaken(LegoStack(preset("tiny-pr-16", channels=channels, classes=0))).eval()
    return LegoPipeline(stack, codec)


def test_a_pipeline_draws_latents_and_shows_pixels(codec, folder, tmp_path):
    pipe = latent_pipeline(codec)
    pipe.save_pretrained(tmp_path / "model")
    image = pipe(seeds=[3], steps=2).images[0]
    assert image.size == (64, 64)
    again = LegoPipeline.from_pretrained(tmp_path / "model", vae=copied(folder, tmp_path))
    assert again.codec == codec
    assert again.codec.ready
    assert again(seeds=[3], steps=2).images[0].tobytes() == image.tobytes()


def test_a_pipeline_looks_for_its_vae_before_it_draws(tmp_path):
    pipe = latent_pipeline(LATENT)
    steps = []
    with pytest.raises(ValueError, match=ONE_LINE.format("some/vae.*--vae DIR_OR_ID")):
        pipe(seeds=[3], steps=2, on_progress=steps.append)
    assert not steps
    image = pipe(seeds=[3], steps=2, preview=True).images[0]
    assert image.size == (16, 16)
    assert image.mode == "RGB"


def test_a_pipeline_refuses_what_does_not_fit(folder, tmp_path):
    with pytest.raises(ValueError, match=ONE_LINE.format("latents of 4 channels for a model of 3")):
        latent_pipeline(LATENT, channels=3)
    with pytest.raises(ValueError, match=ONE_LINE.format("latents of 1 channels for a model of 3")):
        latent_pipeline(LatentCodec(VaeSpec(1, 8), (0.0,), 1.0), channels=3)
    with pytest.raises(ValueError, match="codec: 3 means for a model of 4 channels"):
        latent_pipeline(PixelCodec())
    latent_pipeline(LATENT).save_pretrained(tmp_path / "latents")
    with pytest.raises(ValueError, match=ONE_LINE.format(r"some/vae \(0123456789ab\).*vae")):
        LegoPipeline.from_pretrained(tmp_path / "latents", vae=folder)
    latent_pipeline(PixelCodec(), channels=3).save_pretrained(tmp_path / "pixels")
    with pytest.raises(ValueError, match=ONE_LINE.format("a model of pixels; leave out the VAE")):
        LegoPipeline.from_pretrained(tmp_path / "pixels", vae=folder)
