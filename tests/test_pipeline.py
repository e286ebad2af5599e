import json

import numpy as np
import pytest
import torch
from conftest import awaken

from legodiff import LegoPipeline, LegoStack, SkipPlan, preset
from legodiff.codec import PixelCodec
from legodiff.diffusion.samplers import heun
from legodiff.model.cost import subset_flops
from legodiff.sampling import Method, Sampling


def pipeline(name="tiny-pr-16", classes=3, dropout=0.1, channels=1):
    torch.manual_seed(0)
    stack = awaken(LegoStack(preset(name, channels=channels, classes=classes))).eval()
    names = ("ant", "bee", "cow")[:classes]
    codec = PixelCodec((0.1,) * channels, 0.9)
    return LegoPipeline(stack, codec, names, Sampling(0.01, 20.0), dropout)


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


def arrays(samples):
    return np.stack([np.asarray(image) for image in samples.images]).astype(int)


def test_an_image_belongs_to_its_seed_whatever_the_batch(pipe):
    seeds = [5, 0, 123456789, 7, 8, 9, 10]
    whole = pipe(labels=1, seeds=seeds, steps=4, batch=7)
    for batch in (1, 2, 3):
        assert (
            np.abs(arrays(pipe(labels=1, seeds=seeds, steps=4, batch=batch)) - arrays(whole)).max()
            <= 1
        )
    alone = pipe(labels=1, seeds=[7], steps=4)
    assert np.abs(arrays(alone)[0] - arrays(whole)[3]).max() <= 1
    assert len({image.tobytes() for image in whole.images}) == 7
    assert whole.seeds == seeds


def test_it_is_the_sampler_on_the_seeds_noise(pipe):
    noise = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(42))[None]
    with torch.no_grad():
        drawn = heun(pipe.denoise, noise, pipe.sampling.sigmas(6), torch.tensor([2]))
    expected = pipe.codec.decode(drawn)[0, 0].numpy().astype(int)
    assert np.abs(arrays(pipe(labels=2, seeds=42, steps=6))[0] - expected).max() <= 1


@pytest.mark.parametrize(("guidance", "factor"), [(1.0, 1), (2.0, 2)])
def test_evaluations_and_flops_are_those_of_an_image(pipe, guidance, factor):
    samples = pipe(labels=[0, 1, 2], seeds=[0, 1, 2], steps=5, guidance=guidance, batch=2)
    assert samples.nfe == 9 * factor
    assert samples.flops == 9 * factor * subset_flops(pipe.stack.spec, (0, 1, 2), (16, 16))
    assert samples.plan == SkipPlan.full(3)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_plan_saves_what_its_bricks_cost(pipe, guidance):
    plan = pipe.paper_plan(0.5, 6)
    samples = pipe(labels=0, seeds=[0], steps=6, plan=plan, guidance=guidance)
    spec, factor = pipe.stack.spec, 2 if guidance != 1 else 1
    high, low = (subset_flops(spec, b, (16, 16)) for b in [(0, 1), (0, 1, 2)])
    assert samples.flops == factor * (5 * high + 6 * low)  # 3 steps each; one level counts once
    assert samples.nfe == factor * 11
    assert samples.plan == plan


@pytest.mark.parametrize("name", ["tiny-pr-16", "tiny-pg-16"])
def test_a_budget_is_kept_with_the_least_skipping(name):
    pipe = pipeline(name)
    full = pipe(labels=0, seeds=0, steps=8).flops
    cheapest = pipe(labels=0, seeds=0, steps=8, plan=pipe.paper_plan(1, 8)).flops / full
    for budget in (1.0, (1 + cheapest) / 2, cheapest):
        samples = pipe(labels=0, seeds=0, steps=8, budget=budget)
        assert samples.flops <= budget * full
        dearer = [pipe.paper_plan(n / 8, 8) for n in range(9)]
        position = dearer.index(samples.plan)
        if position:
            less_skipped = pipe(labels=0, seeds=0, steps=8, plan=dearer[position - 1])
            assert less_skipped.flops > budget * full
    with pytest.raises(ValueError, match=rf"cheapest plan takes {cheapest:.3f}"):
        pipe(labels=0, seeds=0, steps=8, budget=cheapest - 0.01)


def test_the_papers_rule_follows_the_top_brick():
    assert pipeline("tiny-pg-16").paper_plan(0.5, 8).bricks(0.01) == (0, 1)
    assert pipeline("tiny-pg-16").paper_plan(0.5, 8).bricks(20.0) == (0, 1, 2)
    assert pipeline("tiny-pr-16").paper_plan(0.5, 8).bricks(0.01) == (0, 1, 2)
    assert pipeline("tiny-pr-16").paper_plan(0.5, 8).bricks(20.0) == (0, 1)


def test_skipped_and_full_again_is_the_first_result(pipe):
    first = arrays(pipe(labels=0, seeds=[3], steps=4))
    skipped = arrays(pipe(labels=0, seeds=[3], steps=4, plan=SkipPlan(((0.0, (0,)),))))
    assert np.abs(skipped - first).max() > 1
    assert np.array_equal(arrays(pipe(labels=0, seeds=[3], steps=4)), first)


def test_labels_are_indices_names_or_none(pipe):
    samples = pipe(labels=["bee", 1, np.int64(1), None, 3], seeds=[0] * 5, steps=2)
    assert samples.labels == [1, 1, 1, None, None]
    images = arrays(samples)
    assert np.abs(images[0] - images[1:3]).max() <= 1
    assert np.abs(images[3] - images[4]).max() <= 1
    assert np.abs(images[0] - images[3]).max() > 1


def test_labels_and_seeds_pair_up(pipe):
    assert pipe(steps=1).seeds == [0]
    assert pipe(labels=[2, 1], steps=1).seeds == [0, 1]
    assert pipe(labels=2, seeds=[4, 6], steps=1).labels == [2, 2]
    assert pipe(labels=[2], seeds=range(3), steps=1).labels == [2, 2, 2]


def test_other_canvases(pipe):
    small = pipe(labels=0, seeds=0, steps=2, size=(8, 16))
    assert small.images[0].size == (16, 8)
    assert small.flops == 3 * subset_flops(pipe.stack.spec, (0, 1, 2), (8, 16))
    large = pipe(labels=0, seeds=[0, 1], steps=2, size=(24, 44))
    assert large.images[0].size == (44, 24)
    method = Method(SkipPlan.full(3), 2)
    assert large.nfe == 3 * 3 * 4  # calls, and windows of 16x16 on 48x64, the gap included
    assert large.flops == large.nfe * subset_flops(pipe.stack.spec, (0, 1, 2), (16, 16))
    assert pipe.cost(method, (24, 44)) == (large.nfe, large.flops)
    alone = pipe(labels=0, seeds=1, steps=2, size=(24, 44), batch=3)
    assert np.abs(arrays(alone)[0] - arrays(large)[1]).max() <= 1


def test_colour_images(pipe):
    image = pipeline(channels=3)(labels=0, seeds=0, steps=2).images[0]
    assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": 4}, r"label 4: choose from 0 to 2 \(ant, bee, cow\)"),
        ({"labels": -1}, "choose from 0 to 2"),
        ({"labels": "dog"}, "label 'dog': choose"),
        ({"labels": 1.5}, "label 1.5: choose"),
        ({"labels": [0, 1], "seeds": [0, 1, 2]}, "2 labels and 3 seeds"),
        ({"labels": []}, "0 labels and 0 seeds"),
        ({"seeds": [-1]}, "a seed must be"),
        ({"seeds": 2**63}, "a seed must be"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "magic"}, "unknown sampler 'magic'; choose from heun"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number from 1 on"),
        ({"steps": "2"}, "steps is '2'"),
        ({"sampler": ["heun"]}, r"unknown sampler \['heun'\]"),
        ({"guidance_interval": 5}, "guidance interval 5: give two noise levels"),
        ({"guidance_interval": "15"}, "guidance interval '15': give"),
        ({"guidance_interval": (0.2, None)}, r"guidance interval \(0.2, None\): give"),
        ({"size": (16, 18)}, "16x18 does not fit these bricks: 4 must divide"),
        ({"size": 16}, r"size is 16; give \(height, width\), two whole numbers of pixels"),
        ({"size": (16,)}, r"size is \(16,\); give"),
        ({"size": (16, 16.5)}, r"size is \(16, 16.5\); give"),
        ({"size": "16"}, "size is '16'; give"),
        ({"budget": 0.0}, "budget is 0.0"),
        ({"budget": 0.5, "plan": SkipPlan.full(3)}, "a budget or a plan"),
        ({"plan": SkipPlan.full(4)}, "a brick that this stack of 3 has not"),
        ({"budget": (0.5,)}, r"budget is \(0.5,\); it is a share"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": 1.5}, "batch is 1.5; it must be a whole number from 1 on"),
        ({"labels": torch.tensor(4)}, "label 4: choose from 0 to 2"),
        ({"labels": torch.tensor(0.5)}, "label 0.5: choose from 0 to 2"),
        ({"guidance": 2.0}, "guidance needs labels"),
        ({"guidance": float("nan"), "labels": 0}, "guidance is nan"),
    ],
)
def test_wrong_arguments_are_one_clear_line(pipe, arguments, message):
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        pipe(**{"steps": 1} | arguments)


def test_the_papers_rule_says_what_cannot_be(pipe):
    with pytest.raises(ValueError, match="unknown sampler 'foo'; choose from heun"):
        pipe.paper_plan(0.5, 4, "foo")
    with pytest.raises(ValueError, match=r"steps is 2\.5"):
        pipe.paper_plan(0.5, 2.5)


def test_numbers_of_torch_and_numpy_are_numbers(pipe):
    one, several = torch.tensor(1), torch.tensor([1, 2])
    assert pipe(labels=one, seeds=np.array(7), steps=1).labels == [1]
    assert pipe(labels=several, seeds=several, steps=1).seeds == [1, 2]
    samples = pipe(steps=np.int64(2), size=np.array([16, 16]), batch=np.int64(1))
    assert samples.images[0].size == (16, 16)
    json.dumps(samples.method.to_dict())


def test_guidance_is_refused_where_it_has_nothing_to_work_with():
    with pytest.raises(ValueError, match="trained with label dropout, and this one was not"):
        pipeline(dropout=0.0)(labels=0, guidance=2.0)
    unconditional = pipeline(classes=0, dropout=0.0)
    with pytest.raises(ValueError, match="trained without any"):
        unconditional(guidance=2.0)
    with pytest.raises(ValueError, match="trained without classes"):
        unconditional(labels=1)
    assert unconditional(seeds=[1], steps=1).labels == [None]


def test_a_broken_model_is_found_out():
    pipe = pipeline()
    next(pipe.stack.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        pipe(labels=0, steps=1)


def test_save_and_load_keep_everything(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = LegoPipeline.from_pretrained(tmp_path)
    assert again.to_dict() == pipe.to_dict()
    assert again.fingerprint == pipe.fingerprint
    assert (again.class_names, again.codec, again.sampling) == (
        *(pipe.class_names, pipe.codec, pipe.sampling),
    )
    for arguments in ({"steps": 3}, {"steps": 2, "guidance": 2.0}):
        drawn = [arrays(p(labels=[0, 1], seeds=[1, 2], **arguments)) for p in (pipe, again)]
        assert np.array_equal(*drawn)


def test_a_bare_stack_is_a_pipeline_too(tmp_path):
    pipe = pipeline(channels=3)
    pipe.stack.save_pretrained(tmp_path)
    again = LegoPipeline.from_pretrained(tmp_path)
    assert again.codec == PixelCodec()
    assert again.class_names == ()
    again(labels=0, seeds=0, steps=1)
    pipe.save_pretrained(tmp_path)
    assert LegoStack.from_pretrained(tmp_path).spec == pipe.stack.spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"sampling": {"sigma_mx": 3}}, "sampling: unknown key 'sigma_mx'; did you mean sigma_max"),
        ({"codec": {"kind": "vae"}}, "codec of kind 'vae'"),
    ],
)
def test_configurations_with_unknown_parts_are_refused(tmp_path, change, message):
    pipeline().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        LegoPipeline.from_pretrained(tmp_path)


def test_progress_counts_images(pipe):
    told = []
    pipe(labels=0, seeds=range(3), steps=4, batch=2, on_progress=told.append)
    assert told == [0.5, 1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0]


def test_a_rounded_pipeline_is_the_model_it_was_opened_as():
    """Its plans stay its plans, and its pictures tell that it was rounded."""
    torch.manual_seed(0)
    pipe = LegoPipeline(awaken(LegoStack(preset("tiny-pr-16", channels=1))).eval())
    known, plain = pipe.fingerprint, pipe(seeds=[0, 1], steps=3)
    assert pipe.precision == {}
    with pytest.raises(ValueError, match=r"pipe\.to\(dtype=torch\.bfloat16\)"):
        pipe.to(torch.bfloat16)
    assert pipe.to(dtype=torch.bfloat16).to("cpu", torch.bfloat16) is pipe
    assert pipe.fingerprint == known
    assert pipe.precision == {"precision": "bfloat16"}
    for one, other in zip(pipe(seeds=[0, 1], steps=3).images, plain.images, strict=True):
        apart = np.abs(np.asarray(one).astype(int) - np.asarray(other))
        assert 0 < apart.max() < 40
