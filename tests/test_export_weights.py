"""Models as weights and as pipelines of diffusers: there and back, nothing is lost."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import awaken
from safetensors.torch import load_file, save_file
from test_foreign import UNET
from test_interop import golden, save_diffusers

from legodiff import BrickSpec, LegoPipeline, LegoStack, SkipPlan, StackSpec
from legodiff.codec import PixelCodec
from legodiff.interop import state_dict
from legodiff.interop.diffusers_export import is_plain
from legodiff.interop.dit import dit_pipeline
from legodiff.interop.importing import import_model
from legodiff.interop.lego import lego_pipeline
from legodiff.interop.state_dict import tensors_in, write_state_dict
from legodiff.model.spec import ForeignSpec
from legodiff.plans import Curve, Point
from legodiff.sampling import Method

LEGO = StackSpec(
    *((8, 8), 3, 16, 2, (BrickSpec(4, 2, 1), BrickSpec("image", 4, 1))),
    classes=4,
    refine=False,
    hand_over="raw",
)
DIT = StackSpec(
    *((8, 8), 4, 16, 2, (BrickSpec("image", 2, 1),)),
    classes=4,
    refine=False,
    objective="ddpm",
)


def stack_of(spec):
    torch.manual_seed(0)
    made = awaken(LegoStack(spec)).eval()
    if spec == DIT:  # theirs reads no coordinates: two channels of 2 x 2
        made.bricks[0].embed.weight.data[:, -8:] = 0
    return made


@pytest.mark.parametrize("name", ["lego_pg", "lego_pr", "dit"])
def test_their_weights_leave_as_they_came(name):
    theirs, _ = golden(name)
    layout = name.partition("_")[0]
    pipe = (dit_pipeline if layout == "dit" else lego_pipeline)(theirs, 2)
    found = tensors_in(pipe.stack, layout)
    assert theirs.keys() - found.keys() <= {"model.map_augment.weight", "model.map_augment.bias"}
    assert found.keys() <= theirs.keys()
    for key, tensor in found.items():
        expected = theirs[key]
        if layout == "dit" and "final_layer.linear" in key:  # without the learned variance
            fields = expected.view(2, 2, 2, 4, *expected.shape[1:])
            expected = fields[:, :, 0].flatten(0, 2)
        assert torch.allclose(tensor, expected, atol=1e-6), key


@pytest.mark.parametrize(("spec", "layout"), [(LEGO, "lego"), (DIT, "dit")])
def test_importing_what_was_exported_gives_the_same_network(spec, layout, call, tmp_path):
    LegoPipeline(stack_of(spec), label_dropout=0.1).save_pretrained(tmp_path / "ours")
    words = ("export", tmp_path / "ours", "--to", "state-dict", "--out", tmp_path / "theirs")
    code, out, err = call(*words, "--layout", layout)
    assert (code, err) == (0, "")
    back = next(line for line in out.splitlines() if line.startswith("Back again:"))
    words = back.replace("OUT", str(tmp_path / "again")).split()[3:]
    assert call(*words)[0] == 0
    ours, again = (LegoStack.from_pretrained(tmp_path / name) for name in ("ours", "again"))
    noisy, sigma = torch.randn(3, spec.channels, 8, 8), torch.tensor([0.1, 1.0, 9.0])
    for labels in (torch.tensor([0, 2, 4]), None):  # 4 is no class
        pairs = zip(*(s.estimates(noisy, sigma, labels) for s in (ours, again)), strict=True)
        assert all((one - other).abs().max() <= 1e-6 * sigma.max() for one, other in pairs)


@pytest.mark.parametrize(
    ("layout", "changes", "reason"),
    [
        ("lego", {"refine": True, "hand_over": "estimate"}, "its bricks refine"),
        ("lego", {"hand_over": "estimate"}, "its bricks hand over estimates"),
        ("lego", {"sigma_data": 0.25}, "its sigma_data is 0.25, not 0.5"),
        ("lego", {"objective": "ddpm"}, 'its objective is "ddpm"'),
        ("lego", {"bricks": (BrickSpec(4, 2, 1),)}, "none of its bricks covers the image"),
        ("lego", {"image_size": (8, 16)}, "its images are not square"),
        ("dit", {"objective": "edm"}, 'its objective is "edm"'),
        ("dit", {"classes": 0}, "it has no classes"),
        ("dit", {"bricks": (BrickSpec(4, 2, 1),)}, "its brick does not cover the image"),
        ("dit", {"bricks": (BrickSpec(4, 2, 1),) * 2}, "it has more than one brick"),
        ("dit", {"class_std": 1.0}, "its brick reads coordinates"),
        ("dit", {"bricks": (ForeignSpec("UNet2DModel", UNET),)}, "a network of another kind"),
        ("npz", {}, "'npz': choose from legodiff, lego, dit"),
    ],
)
def test_what_a_layout_cannot_say_is_one_line(layout, changes, reason):
    spec = replace(LEGO if layout == "lego" else DIT, **changes)
    with pytest.raises(ValueError, match=rf"^layout [^\n]*{reason}[^\n]*$"):
        tensors_in(stack_of(spec), layout)


def test_weights_that_do_not_come_back_are_noticed(monkeypatch):
    other = stack_of(LEGO)
    monkeypatch.setattr(state_dict, "lego_pipeline", lambda *_: LegoPipeline(other))
    tensors_in(stack_of(LEGO), "lego")
    other.bricks[1].blocks[0].mlp[0].bias.data[3] += 1e-4
    with pytest.raises(ValueError, match="does not come back the same"):
        tensors_in(stack_of(LEGO), "lego")


def test_plain_tensors_and_a_spec_are_the_network(stack, tmp_path):
    write_state_dict(stack, tmp_path)
    spec = StackSpec.from_dict(json.loads((tmp_path / "spec.json").read_text()))
    again = LegoStack(spec)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    noisy, sigma = torch.randn(2, 1, 16, 16), torch.tensor([0.3, 7.0])
    with torch.no_grad():
        assert torch.equal(again(noisy, sigma), stack(noisy, sigma))
    write_state_dict(stack, tmp_path, dtype="bf16")
    half = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(half[k], t.bfloat16()) for k, t in stack.state_dict().items())
    with pytest.raises(ValueError, match="dtype 'int8': choose from fp32, bf16, fp16"):
        write_state_dict(stack, tmp_path, dtype="int8")
    stack.class_embedding.weight.data[3, 4] = 1e5
    with pytest.raises(ValueError, match=r"class_embedding\.weight has numbers that fp16 cannot"):
        write_state_dict(stack, tmp_path, dtype="fp16")


def test_an_export_is_replaced_only_when_asked_and_nothing_else_ever(model, call, tmp_path):
    words = ("export", model, "--to", "state-dict", "--out")
    assert call(*words, tmp_path / "out")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in before} == {"model.safetensors", "spec.json"}
    code, _, err = call(*words, tmp_path / "out", "--dtype", "bf16")
    assert (code, "holds an export already" in err) == (2, True)
    wrong = (*words, tmp_path / "out", "--layout", "lego", "--overwrite")
    assert "layout lego cannot say this model" in call(*wrong)[2]
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert call(*words, tmp_path / "out", "--dtype", "bf16", "--overwrite")[0] == 0
    assert load_file(tmp_path / "out" / "model.safetensors").popitem()[1].dtype == torch.bfloat16
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for folder in (model, tmp_path):
        code, _, err = call(*words, folder, "--overwrite")
        assert (code, "holds other files than an export" in err) == (2, True)
    assert LegoPipeline.from_pretrained(model)
    (tmp_path / "out" / "config.json").write_text("{}")  # now it may be a model's folder
    code, _, err = call(*words, tmp_path / "out", "--overwrite")
    assert (code, "holds other files than an export" in err) == (2, True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A network of diffusers that was imported."""
    folder = tmp_path_factory.mktemp("plain")
    words = {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}
    save_diffusers(folder / "theirs", **words, beta_end=0.012)
    import_model(folder / "theirs").pipe.save_pretrained(folder / "ours")
    return folder / "ours"


def test_a_network_of_diffusers_leaves_as_it_came(plain, call, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    code, out, err = call("export", plain, "--to", "diffusers", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "trust_remote_code" not in out
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert {name: value for name, value in index.items() if name != "_diffusers_version"} == {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    assert not list((tmp_path / "out").rglob("*.py"))
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(theirs) is diffusers.DDIMPipeline
    theirs.set_progress_bar_config(disable=True)
    drawn = theirs(num_inference_steps=2, output_type="np", generator=torch.Generator())
    assert drawn.images.shape == (1, 16, 16, 3)
    ours, again = LegoPipeline.from_pretrained(plain), import_model(tmp_path / "out").pipe
    noisy, sigma = torch.randn(3, 3, 16, 16), torch.tensor([0.1, 1.0, 9.0])
    with torch.no_grad():
        assert torch.equal(again.stack(noisy, sigma), ours.stack(noisy, sigma))
        assert again.sampling == ours.sampling
        scheduler = theirs.scheduler
        scheduler.set_timesteps(20)
        for timestep in scheduler.timesteps[[0, 7, 19]]:
            # Theirs walks in x / sqrt(1 + sigma²), from one entry of its table to another.
            own = scheduler.alphas_cumprod[timestep].double()
            after = timestep - 50
            next_ = scheduler.alphas_cumprod[after].double() if after >= 0 else torch.ones(())
            sigma, following = (((1 - abar) / abar).sqrt() for abar in (own, next_))
            scaled = torch.randn(2, 3, 16, 16)
            raw = theirs.unet(scaled, timestep).sample
            found = scheduler.step(raw, timestep, scaled).prev_sample
            noisy = (scaled / own.sqrt()).float()
            clean = ours.stack(noisy, sigma.float().expand(2))
            expected = (clean + following / sigma * (noisy - clean)) * next_.sqrt()
            assert torch.allclose(found.double(), expected.double(), atol=1e-4)


def test_what_diffusers_has_no_pipeline_for_is_not_plain(plain):
    pipe = LegoPipeline.from_pretrained(plain)
    assert is_plain(pipe)
    pipe.codec = PixelCodec((0.2, 0.0, 0.0))
    assert not is_plain(pipe)
    pipe.codec = PixelCodec()
    brick = pipe.stack.spec.bricks[0]
    bricks = (BrickSpec(4, 2, 1),)
    for changed in (
        (replace(brick, prediction="edm"),),
        (replace(brick, classes=3, config={**brick.config, "num_class_embeds": 3}),),
        (brick, *bricks),
        bricks,
    ):
        classes = getattr(changed[0], "classes", 0)
        pipe.stack.spec = replace(pipe.stack.spec, bricks=changed, classes=classes)
        assert not is_plain(pipe)


@pytest.fixture(scope="module")
def ours(model, tmp_path_factory):
    """A stack in a folder of diffusers, with a plan for a budget."""
    diffusers_pipeline = pytest.importorskip("legodiff.interop.diffusers_pipeline")
    from legodiff.interop.diffusers_export import write_diffusers

    pipe = LegoPipeline.from_pretrained(model)
    full = Method(SkipPlan.full(3), 4)
    few = Method(SkipPlan(((0.0, (0, 1, 2)), (1.0, (0,)))), 2)
    points = (Point(few, 10, 0.1), Point(full, 100, 0.0, kind="full"))
    pipe.curves = (Curve(pipe.fingerprint, points[1], 1, "here", points),)
    folder = tmp_path_factory.mktemp("ours") / "out"
    assert not write_diffusers(pipe, folder)
    return pipe, folder, diffusers_pipeline


def opened(folder, **options):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(images):
    return [np.asarray(image) for image in images]


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_stack_in_diffusers_draws_our_images(ours):
    pipe, folder, module = ours
    theirs = opened(folder)
    assert type(theirs) is module.LegoDiffusersPipeline
    out = theirs([3, "zero", None], 4, generator=generators([5, 6, 7]))
    expected = pipe([3, 0, None], [5, 6, 7], steps=4).images
    assert np.array_equal(pixels(out.images), pixels(expected))
    words = {"guidance_scale": 2.0, "sampler": "dpmpp_2m", "return_dict": False}
    (images,) = theirs(torch.tensor([3, 1]), 4, generator=generators([5, 6]), **words)
    expected = pipe([3, 1], [5, 6], steps=4, guidance=2.0, sampler="dpmpp_2m").images
    assert np.array_equal(pixels(images), pixels(expected))
    out = theirs(3, 4, budget=0.5, generator=generators([5]))
    expected = pipe(3, [5], steps=4, budget=0.5)
    assert expected.nfe == 3  # what the plan says, which left with the model
    assert np.array_equal(pixels(out.images), pixels(expected.images))


def test_numbers_of_images_and_kinds_of_output(ours):
    _, folder, _ = ours
    theirs = opened(folder)
    pil = theirs(3, 1, generator=generators([0, 1])).images
    for kind, axes in (("np", (0, 1, 2)), ("pt", (0, 2, 3))):
        values = theirs(3, 1, generator=generators([0, 1]), output_type=kind).images
        assert np.array_equal(np.squeeze(values), np.stack(pixels(pil)) / np.float32(255))
        assert tuple(values.shape[axis] for axis in axes) == (2, 16, 16)
    one = torch.Generator().manual_seed(0)
    both = theirs(3, 1, generator=one, batch_size=2).images
    assert np.array_equal(np.asarray(both[0]), np.asarray(pil[0]))
    assert not np.array_equal(*pixels(both))
    again = theirs(3, 1, generator=one).images  # a generator goes on, as everywhere in diffusers
    assert not np.array_equal(np.asarray(again[0]), np.asarray(pil[0]))
    assert len(theirs([3, 4], 1).images) == 2
    assert len(theirs(batch_size=3, num_inference_steps=1).images) == 3
    for words, reason in (
        ({"class_labels": [1, 2, 3], "generator": generators([0, 1])}, "3 class_labels and 2 gen"),
        ({"class_labels": 11}, "choose from 0 to 9"),
        ({"output_type": "latent"}, "choose pil, np or pt"),
        ({"guidance_scale": 2.0}, "guidance needs labels"),
        ({"sampler": "none"}, "unknown sampler"),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{reason}[^\n]*$"):
            theirs(**words)


def test_weights_that_do_not_fit_raise(ours, tmp_path):
    _, folder, module = ours
    file = folder / "stack" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    config = (folder / "stack" / "config.json").read_text()
    name = "stack.bricks.1.embed.bias"
    for changed in (
        {key: tensor for key, tensor in tensors.items() if key != name},
        {**tensors, "stack.more": torch.ones(1)},
        {**tensors, name: torch.ones(3)},
    ):
        save_file(changed, tmp_path / file.name, {"format": "pt"})
        (tmp_path / "config.json").write_text(config)
        with pytest.raises((ValueError, RuntimeError), match=name + "|stack.more"):
            module.LegoModel.from_pretrained(tmp_path)


def test_it_leaves_again_as_it_was(ours, tmp_path):
    _, folder, _ = ours
    opened(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    again = opened(tmp_path)
    first = load_file(folder / "stack" / "diffusion_pytorch_model.safetensors")
    for name, tensor in again.stack.state_dict().items():
        assert torch.equal(tensor, first[name].bfloat16().float())
    assert len(again(3, 1).images) == 1
