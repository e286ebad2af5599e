"""Denoisers of other kinds as bricks, against their own schedulers."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from legodiff import BrickSpec, LegoPipeline, LegoStack, StackSpec
from legodiff.config import TrainConfig
from legodiff.model.cost import subset_flops, subset_seconds
from legodiff.model.foreign import ForeignBrick
from legodiff.model.spec import ForeignSpec
from legodiff.noise import beta_sigmas, table_timestep
from legodiff.train.estimate import training_flops
from legodiff.train.runs import begin

diffusers = pytest.importorskip("diffusers")

UNET = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
DIT = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 8,  # the noise, and a learned variance
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 5,
}
CONDITIONED = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
}
SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "out_channels": 4,
    "pos_embed_max_size": 8,
}
SCHEDULES = {
    "linear": {},
    "scaled_linear": {"kind": "scaled_linear", "beta_first": 0.00085, "beta_last": 0.012},
    "squaredcos_cap_v2": {"kind": "squaredcos_cap_v2", "steps": 500},
}


def scheduler(prediction, schedule):
    values = {"beta_schedule": schedule.get("kind", "linear"), "prediction_type": prediction}
    values |= {"num_train_timesteps": schedule.get("steps", 1000), "clip_sample": False}
    names = {"beta_first": "beta_start", "beta_last": "beta_end"}
    values |= {names[name]: schedule[name] for name in names if name in schedule}
    return diffusers.DDPMScheduler(**values)


def brick(spec, channels):
    torch.manual_seed(0)
    made = ForeignBrick(spec, channels).eval()
    for parameter in made.parameters():
        if parameter.ndim == 1 or not parameter.any():  # what begins as zero
            torch.nn.init.normal_(parameter, std=0.1)
    for name in spec.conditions:
        torch.nn.init.normal_(getattr(made, name))
    return made


NETWORKS = {
    "unet": (ForeignSpec("UNet2DModel", UNET, "epsilon"), (3, 16, 16)),
    "dit": (ForeignSpec("DiTTransformer2DModel", DIT, "epsilon", classes=5), (4, 8, 8)),
    "conditioned": (
        ForeignSpec(
            *("UNet2DConditionModel", CONDITIONED, "epsilon"),
            conditions={"encoder_hidden_states": (1, 3, 12)},
        ),
        (4, 8, 8),
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_the_clean_estimate_is_that_of_its_own_scheduler(network, prediction, schedule):
    spec, shape = NETWORKS[network]
    values = {**vars(spec), "prediction": prediction, "schedule": SCHEDULES[schedule]}
    made = brick(ForeignSpec(**values), shape[0])
    theirs = scheduler(prediction, SCHEDULES[schedule])
    timesteps = [1, 17, 250, 480]
    abar = theirs.alphas_cumprod[timesteps].double()
    scaled = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 4, 2, 5]) if spec.classes else None
    words = {"class_labels": labels} if spec.classes else {}
    words |= {name: getattr(made, name).expand(4, -1, -1) for name in spec.conditions}
    raw = made.network(scaled, timestep=torch.tensor(timesteps), **words).sample[:, : shape[0]]
    expected = [
        theirs.step(raw[n], t, scaled[n]).pred_original_sample for n, t in enumerate(timesteps)
    ]
    noisy = (scaled / abar.sqrt().view(-1, 1, 1, 1)).float()
    sigma = ((1 - abar) / abar).sqrt().float()
    found = made(noisy, sigma, labels)
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).abs().max() <= 1e-4 * other.abs().max().clamp(min=1)


@torch.no_grad()
def test_a_flow_is_that_of_its_own_scheduler():
    conditions = {"encoder_hidden_states": (1, 3, 12), "pooled_projections": (1, 10)}
    spec = ForeignSpec("SD3Transformer2DModel", SD3, "flow", conditions=conditions)
    made = brick(spec, 4)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(10)
    noisy_flow = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for number in (1, 4, 9):  # at the first there is no clean image in what is noisy
        timestep, t = theirs.timesteps[number], theirs.sigmas[number]
        words = {name: getattr(made, name) for name in conditions}
        raw = made.network(noisy_flow, timestep=timestep.expand(1), **words).sample
        theirs._step_index = number
        after = theirs.step(raw, timestep, noisy_flow).prev_sample
        following = theirs.sigmas[number + 1]
        # A step of Euler along the line from the clean estimate to the noise.
        clean = made(noisy_flow / (1 - t), (t / (1 - t)).view(1))
        direction = (noisy_flow - clean) / t
        assert torch.allclose(noisy_flow + (following - t) * direction, after, atol=1e-4)


@torch.no_grad()
def test_edm_is_that_of_its_own_scheduler():
    torch.manual_seed(0)
    brick = ForeignBrick(ForeignSpec("UNet2DModel", UNET, "edm", sigma_data=0.7), 3).eval()
    theirs = diffusers.EDMEulerScheduler(sigma_data=0.7)
    noisy, sigma = torch.randn(4, 3, 16, 16), torch.tensor([0.01, 0.5, 3.0, 70.0])
    noisy = noisy * (sigma**2 + 0.49).sqrt().view(-1, 1, 1, 1)
    found = brick(noisy, sigma)
    for image, level, estimate in zip(noisy[:, None], sigma, found, strict=True):
        scaled, time = theirs.precondition_inputs(image, level), theirs.precondition_noise(level)
        raw = brick.network(scaled, time[None]).sample
        expected = theirs.precondition_outputs(image, raw, level)
        assert raw.std() > 0.05
        assert torch.allclose(estimate, expected[0], atol=1e-4)


def test_predictions_are_one_estimate_said_in_four_ways():
    """A network that knows the answer gives it, whatever it is asked to predict."""
    clean = torch.randn(3, 2, 4, 4)
    sigma = torch.tensor([0.01, 1.0, 90.0])
    s = sigma.view(-1, 1, 1, 1)
    noise = torch.randn(3, 2, 4, 4)
    noisy = clean + s * noise
    root = (1 + s**2).sqrt()
    raw = {
        "epsilon": noise,
        "v_prediction": noise / root - s / root * clean,
        "sample": clean,
        "flow": noise - clean,
        "denoise": clean,
    }
    for prediction, answer in raw.items():
        made = ForeignBrick(ForeignSpec("callable", prediction=prediction), 2)
        seen = []

        def network(scaled, *_, answer=answer, seen=seen, **__):
            seen.append(scaled)
            return torch.cat([answer, answer], dim=1)[:, : 4 if len(seen) else 2]

        made.network = network if prediction != "denoise" else lambda *_, a=answer: a
        assert torch.allclose(made(noisy, sigma), clean, atol=2e-4)
        for scaled in seen:
            expected = noisy / (1 + s) if prediction == "flow" else noisy / root
            assert torch.allclose(scaled, expected, atol=1e-5)


def test_tables_agree_with_diffusers():
    for name, schedule in SCHEDULES.items():
        abar = scheduler("epsilon", schedule).alphas_cumprod.double()
        table = beta_sigmas(**schedule)
        shown = abar > 1e-3
        assert torch.allclose(table[shown], (((1 - abar) / abar).sqrt())[shown], rtol=1e-3), name
        timesteps = table_timestep(table, **schedule)
        assert torch.allclose(timesteps, torch.arange(len(table)).double(), atol=1e-6)
    snr = diffusers.DDPMScheduler(rescale_betas_zero_snr=True).alphas_cumprod.double()[:-1]
    table = beta_sigmas(zero_snr=True)
    assert table[-1] == 1e6
    assert torch.allclose(table[:-1], ((1 - snr) / snr).sqrt(), rtol=1e-3)
    with pytest.raises(ValueError, match="betas of kind 'sigmoid': choose linear"):
        beta_sigmas("sigmoid")


def stack_on(spec, channels, size, classes=0):
    torch.manual_seed(0)
    whole = StackSpec(
        image_size=(size, size),
        channels=channels,
        width=16,
        heads=2,
        bricks=(spec, BrickSpec(4, 2, 1)),
        classes=classes,
    )
    made = LegoStack(whole).eval()
    for name in spec.conditions:
        torch.nn.init.normal_(getattr(made.bricks[0], name))
    return made


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_a_new_brick_on_top_is_the_identity_and_skipping_it_gives_the_base(network, tmp_path):
    spec, shape = NETWORKS[network]
    stack = stack_on(spec, shape[0], shape[1], spec.classes)
    noisy, sigma = torch.randn(2, *shape), torch.tensor([0.3, 7.0])
    labels = torch.tensor([1, 5]) if spec.classes else None
    base = stack.bricks[0](noisy, sigma, labels)
    first, second = stack.estimates(noisy, sigma, labels)
    assert torch.equal(first, base)
    assert torch.equal(second, base)
    for parameter in stack.bricks[1].parameters():
        parameter.add_(0.1)
    assert not torch.allclose(stack(noisy, sigma, labels), base)
    assert torch.equal(stack(noisy, sigma, labels, bricks=(0,)), base)
    stack.save_pretrained(tmp_path)
    again = LegoStack.from_pretrained(tmp_path)
    assert torch.equal(again(noisy, sigma, labels), stack(noisy, sigma, labels))
    assert again.spec == stack.spec
    assert hash(again.spec) == hash(stack.spec)
    json.dumps(stack.spec.to_dict())
    assert subset_flops(stack.spec, (0, 1), shape[1:]) > subset_flops(stack.spec, (0,), shape[1:])


@torch.no_grad()
def test_a_stack_is_a_brick():
    inner = StackSpec((8, 8), 3, 16, 2, (BrickSpec("image", 4, 1), BrickSpec(4, 2, 1)))
    spec = ForeignSpec("LegoStack", inner.to_dict())
    stack = stack_on(spec, 3, 8)
    noisy, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 7.0])
    assert torch.equal(stack(noisy, sigma), stack.bricks[0].network(noisy, sigma))


def test_a_function_is_a_brick_but_cannot_be_saved(tmp_path):
    stack = stack_on(ForeignSpec("callable"), 3, 8)
    noisy, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 7.0])
    with pytest.raises(ValueError, match=r"set stack\.bricks\[0\]\.network"):
        stack(noisy, sigma)
    stack.bricks[0].network = lambda noisy, sigma, labels: noisy / 2
    assert torch.equal(stack(noisy, sigma), noisy / 2)
    above = subset_flops(stack.spec, (1,), (8, 8))
    assert subset_flops(stack.spec, (0, 1), (8, 8)) == above  # those of a function are not known
    assert LegoPipeline(stack)(seeds=[0], steps=2).flops == 3 * above
    unset = stack_on(ForeignSpec("callable", prediction="epsilon"), 3, 8)
    with pytest.raises(ValueError, match=r"set stack\.bricks\[0\]\.network"):
        unset(noisy, sigma)
    with pytest.raises(ValueError, match="a function cannot be saved, only used"):
        stack.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"network": "AutoPipeline"}, "network is 'AutoPipeline'; choose from UNet2DModel"),
        ({"network": "UNet2DModel", "prediction": "eps"}, "prediction is 'eps'; choose from"),
        ({"network": "UNet2DModel", "schedule": {"start": 1}}, "schedule has no 'start'"),
        ({"network": "UNet2DModel", "config": [1]}, "config is .1.; it must be named values"),
        ({"network": "UNet2DModel", "conditions": {"a b": [1]}}, "condition 'a b' is"),
        ({"network": "UNet2DModel", "conditions": {"a": [0]}}, "a side of a is 0"),
        ({"network": "UNet2DModel", "step": 0}, "step is 0"),
        ({"network": "UNet2DModel", "colour": 1}, "unknown key 'colour'"),
    ],
)
def test_specs_that_cannot_be_are_one_line(values, reason):
    good = StackSpec((8, 8), 3, 16, 2, (BrickSpec(4, 2, 1),)).to_dict()
    with pytest.raises(ValueError, match=rf"^[^\n]*{reason}[^\n]*$"):
        StackSpec.from_dict({**good, "bricks": [values]})


def test_a_configuration_that_builds_nothing_is_one_line():
    spec = ForeignSpec("UNet2DModel", {**UNET, "down_block_types": ["None", "Such"]}, "epsilon")
    with pytest.raises(ValueError, match=r"^UNet2DModel cannot be built as configured: [^\n]*$"):
        ForeignBrick(spec, 3)


def test_it_must_be_the_first():
    foreign = ForeignSpec("UNet2DModel", UNET, "epsilon")
    with pytest.raises(ValueError, match="it must be the first"):
        StackSpec((16, 16), 3, 16, 2, (BrickSpec(4, 2, 1), foreign))


def test_a_model_without_no_class_wants_every_label():
    config = {**UNET, "num_class_embeds": 3}
    spec = ForeignSpec("UNet2DModel", config, "epsilon", classes=3, no_class=False)
    made = brick(spec, 3)
    noisy, sigma = torch.randn(1, 3, 16, 16), torch.ones(1)
    assert torch.isfinite(made(noisy, sigma, torch.tensor([2]))).all()
    for labels in (None, torch.tensor([3])):
        with pytest.raises(ValueError, match="trained without class; give every label"):
            made(noisy, sigma, labels)
    stack = stack_on(spec, 3, 16, classes=3)
    assert LegoPipeline(stack)(labels=[1], seeds=[0], steps=2).flops > 0
    assert subset_seconds(stack, (0, 1), (16, 16), batch=2, repeats=1) > 0
    assert training_flops(stack.spec, TrainConfig()) > subset_flops(stack.spec, (0, 1), (16, 16))
    settings = TrainConfig(label_dropout=0.1)
    with pytest.raises(ValueError, match=r"^train.label_dropout is 0.1 and UNet2DModel was not"):
        begin(stack, None, Path("run"), settings, print)


@pytest.mark.parametrize(
    ("own", "no_class", "classes", "fits"),
    [(3, True, 3, True), (3, True, 0, True), (3, False, 0, False), (3, True, 2, False),
     (3, True, 12, False), (0, True, 12, True)],
)  # fmt: skip
def test_the_classes_of_a_base_are_those_of_the_stack(own, no_class, classes, fits):
    spec = ForeignSpec("UNet2DModel", UNET, "epsilon", classes=own, no_class=no_class)
    message = f"knows 3 classes by number, and the stack has {classes}; give data"
    with nullcontext() if fits else pytest.raises(ValueError, match=message):
        StackSpec((16, 16), 3, 16, 2, (spec, BrickSpec(4, 2, 1)), classes=classes)
