import multiprocessing
import time
from functools import partial

import numpy as np
import pytest
import torch
from small_runs import CODEC, Bars, checkpoint_tensors, config, quiet, same, weights
from torch._dynamo.testing import CompileCounterWithBackend

from legodiff import LegoPipeline, LegoStack
from legodiff.data import Unreadable
from legodiff.model.compiled import compile_blocks
from legodiff.store import read_config
from legodiff.train import learner as learners
from legodiff.train import loop
from legodiff.train.checkpoint import Checkpoints, list_checkpoints
from legodiff.train.distributed import World
from legodiff.train.estimate import estimate
from legodiff.train.log import read_log
from legodiff.train.loop import learning_rate
from legodiff.train.runs import finished


def train(*arguments, **options):
    return loop.train(*arguments, **({"say": quiet} | options))


def test_a_run_folder_is_complete(tmp_path):
    run = tmp_path / "run"
    pipe = train(config("train.picture_images=48"), Bars(), CODEC, run)
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "model.safetensors", "raw.safetensors", "log.jsonl", "loss.png"),
        *("checkpoints", "samples"),
    }
    assert [path.name for path in sorted((run / "samples").iterdir())] == [
        f"{n:012d}.png" for n in (48, 96)
    ]
    assert [path.name for path in list_checkpoints(run)] == [f"{n:012d}" for n in (32, 64, 96)]
    saved = read_config(run)
    assert saved["class_names"] == ["upright", "lying"]
    assert saved["codec"] == {"kind": "pixels", "mean": [-0.6], "scale": 0.6}
    assert saved["run"]["train"]["images"] == 96
    assert same(weights(run), pipe.stack.state_dict())
    assert not same(weights(run), weights(run, "raw"))  # the average is not the last weights
    lines = read_log(run / "log.jsonl")
    assert lines[-1]["images"] == 96
    assert all(len(line["losses"]) == len(line["bands"]) == 3 for line in lines)
    judged = [line for line in lines if "ema_losses" in line]
    assert [line["images"] for line in judged] == [32, 64, 96]
    assert all(len(line["ema_losses"]) == len(line["raw_losses"]) == 3 for line in judged)
    again = LegoPipeline.from_pretrained(run)
    assert same(again.stack.state_dict(), pipe.stack.state_dict())
    assert again.to_dict() == pipe.to_dict()
    assert again.label_dropout == 0.1


class StopError(Exception):
    """Ends a run where a test wants it to end."""


def stop_after(monkeypatch, images):
    """Ends runs in the step that follows so many images."""
    rate = loop.learning_rate

    def until(settings, seen):
        if seen > images:
            raise StopError
        return rate(settings, seen)

    monkeypatch.setattr(loop, "learning_rate", until)


@pytest.mark.parametrize("stop_at", [16, 48, 80])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_and_resumed_run_is_bit_for_bit_the_one_that_was_not(
    tmp_path, monkeypatch, stop_at, workers
):
    settings = config(f"train.workers={workers}", "train.fill=noise")
    train(settings, Bars(), CODEC, tmp_path / "whole")
    stop_after(monkeypatch, stop_at)
    with pytest.raises(StopError):
        train(settings, Bars(), CODEC, tmp_path / "stopped")
    monkeypatch.undo()
    torch.manual_seed(99)  # the global generators must not matter
    train(settings, Bars(), CODEC, tmp_path / "stopped", resume=True)
    for name in ("model", "raw"):
        assert same(weights(tmp_path / "whole", name), weights(tmp_path / "stopped", name))
    assert same(checkpoint_tensors(tmp_path / "whole"), checkpoint_tensors(tmp_path / "stopped"))
    losses = [
        [(line["images"], line["losses"]) for line in read_log(tmp_path / name / "log.jsonl")]
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]


def test_a_run_that_breaks_off_first_ends_the_checkpoint_it_is_writing(tmp_path, monkeypatch):
    finish = Checkpoints._finish

    def slowly(*arguments):
        time.sleep(1)
        finish(*arguments)

    monkeypatch.setattr(Checkpoints, "_finish", slowly)
    stop_after(monkeypatch, 32)
    with pytest.raises(StopError):
        train(config(), Bars(), CODEC, tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"{32:012d}", "index.json"]


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    train(config(), Bars(), CODEC, tmp_path)
    before = weights(tmp_path)
    log = (tmp_path / "log.jsonl").read_text()
    pipe = train(config(), Bars(), CODEC, tmp_path, resume=True)
    assert same(before, weights(tmp_path))
    assert same(before, pipe.stack.state_dict())
    assert (tmp_path / "log.jsonl").read_text() == log


def test_a_folder_with_another_run_is_left_alone(tmp_path):
    train(config(), Bars(), CODEC, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="already holds a run"):
        train(config(), Bars(), CODEC, tmp_path)
    with pytest.raises(ValueError, match=r"begun with another run\.train\.batch$"):
        train(config("train.batch=8"), Bars(), CODEC, tmp_path, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_the_seed_decides_everything(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config(f"train.seed={seed}"), Bars(), CODEC, tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("preset", ["tiny-pr-16", "tiny-pg-16"])
@pytest.mark.parametrize("objective", ["edm", "ddpm"])
def test_it_learns(tmp_path, preset, objective):
    changes = [
        *(f"model.preset={preset}", f"model.objective={objective}", "train.images=4000"),
        *("train.batch=40", "train.warmup_images=400", "train.learning_rate=4e-3"),
        "train.checkpoint_images=10000",
    ]
    pipe = train(config(*changes), Bars(), CODEC, tmp_path)
    low, high = (0.002, 80) if objective == "edm" else (0.01, 157.4)
    assert pipe.sampling.sigma_min == pytest.approx(low, rel=0.001)
    assert pipe.sampling.sigma_max == pytest.approx(high, rel=0.001)
    lines = read_log(tmp_path / "log.jsonl")
    first, last = lines[0]["losses"], np.mean([line["losses"] for line in lines[-20:]], axis=0)
    assert (last < 0.75 * np.array(first)).all()


def poison(monkeypatch, first, last):
    """Makes the loss of the images at these positions of the run nan."""
    forward = learners.Objective.forward

    def poisoned(self, images, labels, positions, bricks):
        values, sigma = forward(self, images, labels, positions, bricks)
        bad = torch.tensor([first <= position < last for position in positions])
        return learners.Losses(values + torch.where(bad, torch.nan, 0.0), sigma)

    monkeypatch.setattr(learners.Objective, "forward", poisoned)


def test_a_step_that_is_not_finite_is_dropped_named_and_counted(tmp_path, monkeypatch):
    settings = config()
    before = []
    update = loop.Trainer.update

    def watched(trainer, seen, rate, passes):
        start = [p.detach().clone() for p in trainer.learner.network.parameters()]
        moved = update(trainer, seen, rate, passes)
        now = trainer.learner.network.parameters()
        before.append(
            (seen, moved, all(torch.equal(a, b) for a, b in zip(start, now, strict=True)))
        )
        return moved

    monkeypatch.setattr(loop.Trainer, "update", watched)
    poison(monkeypatch, 37, 39)  # in the third step of 16 images
    said = []
    train(settings, Bars(), CODEC, tmp_path, say=said.append)
    assert before == [(n, n != 48, n == 48) for n in (16, 32, 48, 64, 80, 96)]
    lines = read_log(tmp_path / "log.jsonl")
    dropped = [event for line in lines for event in line.get("dropped", [])]
    assert dropped == [{"from": 32, "to": 48, "not_finite": [37, 38]}]
    assert sum("images at [37, 38] is not finite" in line for line in said) == 1
    assert all(np.isfinite(line["loss"]) for line in lines if line["loss"] is not None)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_too_many_bad_steps_end_the_run_with_the_last_checkpoint(tmp_path, monkeypatch):
    settings = config("train.most_bad_steps=2")
    poison(monkeypatch, 32, 96)
    with pytest.raises(
        ValueError, match=r"^2 steps in a row were not finite, up to image 64; go on[^\n]*$"
    ):
        train(settings, Bars(), CODEC, tmp_path)
    late = config("train.most_bad_steps=2", "train.checkpoint_images=96")
    with pytest.raises(ValueError, match=r"up to image 64; begin anew with a smaller"):
        train(late, Bars(), CODEC, tmp_path / "late")
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"{32:012d}"]
    monkeypatch.undo()
    train(settings, Bars(), CODEC, tmp_path, resume=True)
    train(settings, Bars(), CODEC, tmp_path / "calm")
    assert same(checkpoint_tensors(tmp_path), checkpoint_tensors(tmp_path / "calm"))


class Torn(Bars):
    torn = (3, 4)

    def read(self, index, rng=None):
        if index in self.torn:
            raise Unreadable(f"photo{index}.jpg", "truncated")
        return super().read(index, rng)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_counted_and_replaced(tmp_path, workers):
    said = []
    settings = config(f"train.workers={workers}")
    train(settings, Torn(), CODEC, tmp_path, say=said.append)
    named = [line for line in said if "unreadable" in line]
    assert sorted(line.split(": ")[1] for line in named) == ["photo3.jpg", "photo4.jpg"]
    lines = read_log(tmp_path / "log.jsonl")
    counted = [event for line in lines for event in line.get("unreadable", [])]
    assert 4 <= len(counted) <= 6  # 96 images of 40: each twice or three times
    strict = config(f"train.workers={workers}", "data.strict=true")
    why = r"^photo[34]\.jpg: truncated; leave out --strict-data"
    with pytest.raises(ValueError, match=why) as error:
        train(strict, Torn(), CODEC, tmp_path / "strict")
    assert error.traceback  # which holds all that the run held, but no process:
    assert not multiprocessing.active_children()


def test_the_first_image_may_be_the_unreadable_one(tmp_path):
    data, settings = Torn(), config("train.images=16")
    data.torn = (0,)
    train(settings, data, CODEC, tmp_path, say=quiet)
    assert finished(tmp_path, 16)
    assert not finished(tmp_path, 17)
    assert not finished(tmp_path / "none", 0)
    assert estimate(settings, data, CODEC, World()).images_per_second > 0


def test_an_unconditional_model_sees_no_labels(tmp_path):
    class Plain(Bars):
        class_names = ()

    pipe = train(config(), Plain(), CODEC, tmp_path)
    assert pipe.stack.class_embedding is None
    assert pipe.label_dropout == 0
    assert isinstance(pipe.stack, LegoStack)


def test_learning_rate_warms_up_and_falls():
    settings = config(
        *("train.images=1000", "train.warmup_images=100", "train.learning_rate=2.0"),
        "train.decay_to=0.1",
    ).train
    assert learning_rate(settings, 50) == pytest.approx(2 * 0.5 * (1 - 0.9 * 0.05))
    assert learning_rate(settings, 500) == pytest.approx(2 * 0.55)
    assert learning_rate(settings, 1000) == pytest.approx(0.2)
    flat = settings.model_copy(update={"warmup_images": 0, "decay_to": 1.0})
    assert learning_rate(flat, 1) == learning_rate(flat, 1000) == 2.0


@pytest.mark.parametrize(("warmup", "told"), [(32, 0), (48, 0), (49, 1)])
def test_a_run_that_is_mostly_warm_up_says_so(tmp_path, warmup, told):
    said = []
    train(config(f"train.warmup_images={warmup}"), Bars(), CODEC, tmp_path, say=said.append)
    assert sum("of 96; --set train.warmup_images=4 learns more" in line for line in said) == told


def test_every_setting_reaches_the_step(tmp_path, monkeypatch):
    """One short run, watched: what is drawn, what the loss is told, how the average moves."""
    seen = {"losses": [], "dropped": [], "clip": [], "rates": [], "weights": []}
    losses, drop, clip = (
        *(learners.brick_losses, learners.drop_labels),
        torch.nn.utils.clip_grad_norm_,
    )
    step = torch.optim.AdamW.step

    def watch_losses(network, clean, noise, sigma, labels, **arguments):
        if torch.is_grad_enabled():
            seen["losses"].append((clean, noise, sigma, labels, arguments))
        return losses(network, clean, noise, sigma, labels, **arguments)

    def watch_drop(labels, no_class, probability, uniform):
        seen["dropped"].append((no_class, probability))
        return drop(labels, no_class, probability, uniform)

    def watch_clip(parameters, limit):
        seen["clip"].append(limit)
        return clip(parameters, limit)

    def watch_step(optimizer, *arguments):
        out = step(optimizer, *arguments)
        (group,) = optimizer.param_groups
        seen["rates"].append(group["lr"])
        seen["weights"].append([p.detach().clone() for p in group["params"]])
        seen["group"] = group
        return out

    monkeypatch.setattr(learners, "brick_losses", watch_losses)
    monkeypatch.setattr(learners, "drop_labels", watch_drop)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watch_clip)
    monkeypatch.setattr(torch.optim.AdamW, "step", watch_step)
    settings = config(
        *("train.fill=noise", "train.detach=true", "train.patch_ratio=[1,0.5,0.25]"),
        *("train.clip=0.7", "train.label_dropout=0.5", "train.sigma_mean=3"),
        *("train.ema_halflife_images=40", "train.ema_rampup=0.5", "train.weight_decay=0.03"),
        *("train.betas=[0.8,0.95]", "model.sigma_data=0.6", "train.sigma_std=0.01"),
        "train.micro_batch=8",
    )
    pipe = train(settings, Bars(), CODEC, tmp_path)

    assert len(seen["losses"]) == 13  # one to see that it fits into memory, two for each step
    for clean, _, sigma, _, arguments in seen["losses"][1:]:
        assert len(clean) == 8
        assert torch.allclose(sigma.log(), torch.tensor(3.0), atol=0.1)
        samples, fill = arguments.pop("samples"), arguments.pop("fill")
        assert [None if s is None else s.index.shape[1] for s in samples] == [None, 2, 4]
        assert fill.std().item() == pytest.approx(0.6, abs=0.05)
        assert tuple(arguments.pop("bricks")) == (0, 1, 2)
        assert arguments == {"detach": True}
    assert torch.cat([labels for _, _, _, labels, _ in seen["losses"]]).eq(2).any()
    assert set(seen["dropped"]) == {(2, 0.5)}
    assert set(seen["clip"]) == {0.7}
    assert seen["rates"] == [learning_rate(settings.train, 16 * n) for n in range(1, 7)]
    assert seen["group"]["weight_decay"] == 0.03
    assert seen["group"]["betas"] == (0.8, 0.95)

    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed)
        average = [p.detach() for p in LegoStack(pipe.stack.spec).parameters()]
    for number, there in enumerate(seen["weights"], start=1):
        share = 0.5 ** (16 / min(40, 0.5 * 16 * number))
        average = [share * a + (1 - share) * w for a, w in zip(average, there, strict=True)]
    for mine, theirs in zip(average, pipe.stack.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_seeds_of_order_noise_and_weights_all_follow_the_runs_seed(tmp_path, monkeypatch):
    """Two seeds differ in the first weights, in the images of the first batch and in the noise."""
    losses = learners.brick_losses
    first = {}

    def watch(network, clean, noise, sigma, labels, **arguments):
        if not torch.equal(clean[0], clean[1]):  # not what the memory is tried with
            weights = network.bricks[0].embed.weight.detach().clone()
            first.setdefault(run, (weights, clean.clone(), noise.clone()))
        return losses(network, clean, noise, sigma, labels, **arguments)

    monkeypatch.setattr(learners, "brick_losses", watch)
    for run in (0, 1):
        train(config(f"train.seed={run}"), Bars(), CODEC, tmp_path / str(run))
    assert not any(torch.equal(a, b) for a, b in zip(first[0], first[1], strict=True))


def test_passes_recomputing_and_compiling_do_not_change_what_is_learnt(tmp_path, monkeypatch):
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(learners, "compile_blocks", partial(compile_blocks, backend=counter))
    changes = ("train.patch_ratio=0.5",)
    train(config(*changes), Bars(), CODEC, tmp_path / "once")
    train(config(*changes, "train.micro_batch=4"), Bars(), CODEC, tmp_path / "passes")
    train(config(*changes, "train.recompute=true"), Bars(), CODEC, tmp_path / "recomputed")
    assert not counter.frame_count
    train(config(*changes, "train.compile=true"), Bars(), CODEC, tmp_path / "compiled")
    graphs = counter.frame_count
    assert graphs == 3  # a shape of tokens each; judging and drawing pictures made none
    both = config(*changes, "train.compile=true", "train.recompute=true")
    train(both, Bars(), CODEC, tmp_path / "both")
    assert counter.frame_count == 2 * graphs
    once = weights(tmp_path / "once", "raw")
    for name in ("passes", "recomputed", "compiled", "both"):
        other = weights(tmp_path / name, "raw")
        assert max((once[key] - other[key]).abs().max() for key in once) < 1e-6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_the_same_with_weights_in_single(tmp_path, precision, monkeypatch):
    dtypes = set()
    linear = torch.nn.functional.linear
    changes = (
        *("train.images=256", "train.learning_rate=2e-3"),
        "train.checkpoint_images=1000",
    )
    train(config(*changes), Bars(), CODEC, tmp_path / "single")

    def watch(inputs, *arguments):
        out = linear(inputs, *arguments)
        dtypes.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", watch)
    train(config(*changes, f"train.precision={precision}"), Bars(), CODEC, tmp_path / "half")
    assert {"bf16": torch.bfloat16, "fp16": torch.float16}[precision] in dtypes
    assert {tensor.dtype for tensor in weights(tmp_path / "half").values()} == {torch.float32}
    ends = [
        np.mean([line["loss"] for line in read_log(tmp_path / name / "log.jsonl")][-5:])
        for name in ("single", "half")
    ]
    assert ends[0] < 0.97
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_a_scale_too_large_for_fp16_is_made_smaller_and_no_step_is_bad(tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler(device, 2.0**32, enabled=enabled)
    )
    said = []
    settings = config("train.precision=fp16", "train.images=400", "train.checkpoint_images=1000")
    train(settings, Bars(), CODEC, tmp_path, say=said.append)
    assert not any("not finite" in line for line in said)
    moved = weights(tmp_path, "raw")["bricks.0.output.linear.weight"]
    assert moved.abs().max() > 0


def test_a_resumed_fp16_run_is_bit_for_bit_the_same(tmp_path, monkeypatch):
    settings = config("train.precision=fp16")
    train(settings, Bars(), CODEC, tmp_path / "whole")
    stop_after(monkeypatch, 48)
    with pytest.raises(StopError):
        train(settings, Bars(), CODEC, tmp_path / "stopped")
    monkeypatch.undo()
    train(settings, Bars(), CODEC, tmp_path / "stopped", resume=True)
    assert same(checkpoint_tensors(tmp_path / "whole"), checkpoint_tensors(tmp_path / "stopped"))


def test_brick_by_brick_the_lower_ones_rest(tmp_path):
    base = config("train.bricks=[0]")
    one = train(base, Bars(), CODEC, tmp_path / "one")
    assert len(one.stack.spec.bricks) == 1
    said = []
    settings = config("train.bricks=[1]", f"train.init={tmp_path / 'one'}")
    two = train(settings, Bars(), CODEC, tmp_path / "two", say=said.append)
    assert len(two.stack.spec.bricks) == 2
    below = one.stack.state_dict()
    above = two.stack.state_dict()
    assert all(torch.equal(above[name], below[name]) for name in below)
    assert above["bricks.1.output.linear.weight"].abs().max() > 0
    assert not any(
        name.startswith("optimizer/bricks.0") for name in checkpoint_tensors(tmp_path / "two")
    )
    assert any("re-initialised: bricks.1" in line for line in said[0].splitlines())
    with pytest.raises(ValueError, match=r"train\.bricks is \[3\]: choose from 0 to 2"):
        train(config("train.bricks=[3]"), Bars(), CODEC, tmp_path / "three")


def test_a_dropped_brick_neither_runs_nor_moves(tmp_path, monkeypatch):
    settings = config("train.brick_dropout=0.5", "train.images=160")
    ran = []
    update = loop.Trainer.update

    def watched(trainer, seen, rate, passes):
        bricks = trainer.bricks(seen - 16)
        before = [
            [p.detach().clone() for p in b.parameters()] for b in trainer.learner.network.bricks
        ]
        assert len(passes[0][1].values) == len(bricks)
        moved = update(trainer, seen, rate, passes)
        for number, brick in enumerate(trainer.learner.network.bricks):
            rests = all(
                torch.equal(a, b) for a, b in zip(before[number], brick.parameters(), strict=True)
            )
            assert rests == (number not in bricks)
        ran.append(tuple(bricks))
        return moved

    monkeypatch.setattr(loop.Trainer, "update", watched)
    train(settings, Bars(), CODEC, tmp_path)
    assert len(set(ran)) > 2
    with pytest.raises(ValueError, match="brick_dropout needs all bricks"):
        config("train.brick_dropout=0.5", "train.bricks=[0]")


def test_images_of_another_size_are_refused(tmp_path):
    class Wide(Bars):
        size = (16, 32)

    with pytest.raises(ValueError, match=r"the images are \(16, 32\) and the model is for"):
        train(config(), Wide(), CODEC, tmp_path)
