import json

import numpy as np
import pytest
import torch

from legodiff import LegoPipeline, LegoStack
from legodiff.codec import PixelCodec
from legodiff.config import load_config
from legodiff.store import read_config, read_weights
from legodiff.train import loop
from legodiff.train.checkpoint import list_checkpoints
from legodiff.train.log import read_log
from legodiff.train.loop import learning_rate, step_seed, train


class Bars:
    """Two classes of 16x16 images: a vertical or a horizontal bar."""

    channels, class_names = 1, ("upright", "lying")

    def __len__(self):
        return 40

    def __getitem__(self, index):
        image = np.zeros((1, 16, 16), np.uint8)
        place = 3 + index % 10
        if index % 2:
            image[:, place : place + 3] = 255
        else:
            image[:, :, place : place + 3] = 255
        return image, index % 2


CODEC = PixelCodec((-0.6,), 0.6)


def config(*changes):
    return load_config(
        "digits",
        [
            *("model.preset=tiny-pr-16", "train.images=96", "train.batch=16"),
            *("train.checkpoint_images=32", "train.warmup_images=32", *changes),
        ],
    )


def weights(run, name="model"):
    return read_weights(run / f"{name}.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_run_folder_is_complete(tmp_path):
    run = tmp_path / "run"
    pipe = train(config(), Bars(), CODEC, run)
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "model.safetensors", "raw.safetensors", "log.jsonl"),
        *("checkpoints", "samples"),
    }
    assert [path.name for path in sorted((run / "samples").iterdir())] == [
        f"{n:012d}.png" for n in (32, 64, 96)
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
    assert all(len(line["losses"]) == 3 for line in lines)
    again = LegoPipeline.from_pretrained(run)
    assert same(again.stack.state_dict(), pipe.stack.state_dict())
    assert again.to_dict() == pipe.to_dict()
    assert again.label_dropout == 0.1


class StopError(Exception):
    """Ends a run where a test wants it to end."""


@pytest.mark.parametrize("stop_at", [16, 48, 80])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_and_resumed_run_is_bit_for_bit_the_one_that_was_not(
    tmp_path, monkeypatch, stop_at, workers
):
    settings = config(f"train.workers={workers}", "train.fill=noise")
    train(settings, Bars(), CODEC, tmp_path / "whole")
    rate = loop.learning_rate

    def until(settings, images):
        if images > stop_at:
            raise StopError
        return rate(settings, images)

    monkeypatch.setattr(loop, "learning_rate", until)
    with pytest.raises(StopError):
        train(settings, Bars(), CODEC, tmp_path / "stopped")
    monkeypatch.undo()
    torch.manual_seed(99)  # the global generators must not matter
    train(settings, Bars(), CODEC, tmp_path / "stopped", resume=True)
    for name in ("model", "raw"):
        assert same(weights(tmp_path / "whole", name), weights(tmp_path / "stopped", name))
    optimizer = [
        read_weights(list_checkpoints(tmp_path / name)[-1] / "optimizer.safetensors")
        for name in ("whole", "stopped")
    ]
    assert same(*optimizer)
    losses = [
        [(line["images"], line["losses"]) for line in read_log(tmp_path / name / "log.jsonl")]
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]


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


def test_a_gradient_that_is_not_finite_stops_the_run_in_one_line(tmp_path, monkeypatch):
    broken = lambda *args, **kwargs: torch.full((3, 16), torch.nan, requires_grad=True)  # noqa: E731
    monkeypatch.setattr(loop, "brick_losses", broken)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.nan))
    with pytest.raises(ValueError, match=r"^the gradient is not finite after 0 images[^\n]*$"):
        train(config(), Bars(), CODEC, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


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


def test_step_seeds_differ():
    seeds = {step_seed(seed, images) for seed in range(20) for images in range(0, 6400, 64)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_old_checkpoints_are_removed_and_half_written_ones_ignored(tmp_path):
    train(config("train.checkpoint_images=16"), Bars(), CODEC, tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"{n:012d}" for n in (64, 80, 96)]
    (tmp_path / "checkpoints" / ".000000000112.part").mkdir()
    assert len(list_checkpoints(tmp_path)) == 3
    state = json.loads((list_checkpoints(tmp_path)[-1] / "state.json").read_text())
    assert state == {"images": 96}


def test_every_setting_reaches_the_step(tmp_path, monkeypatch):
    """One short run, watched: what is drawn, what the loss is told, how the average moves."""
    seen = {"losses": [], "dropped": [], "clip": [], "rates": [], "weights": []}
    losses, drop, clip = loop.brick_losses, loop.drop_labels, torch.nn.utils.clip_grad_norm_
    step = torch.optim.AdamW.step

    def watch_losses(network, clean, sigma, labels, **arguments):
        seen["losses"].append((sigma, labels, arguments))
        return losses(network, clean, sigma, labels, **arguments)

    def watch_drop(labels, no_class, probability, generator):
        seen["dropped"].append((no_class, probability))
        return drop(labels, no_class, probability, generator)

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

    monkeypatch.setattr(loop, "brick_losses", watch_losses)
    monkeypatch.setattr(loop, "drop_labels", watch_drop)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watch_clip)
    monkeypatch.setattr(torch.optim.AdamW, "step", watch_step)
    settings = config(
        *("train.fill=noise", "train.detach=true", "train.patch_ratio=[1,0.5,0.25]"),
        *(
            "train.clip=0.7",
            "train.label_dropout=0.5",
            "train.sigma_mean=3",
            "train.sigma_std=0.01",
        ),
        *("train.ema_halflife_images=40", "train.ema_rampup=0.5", "train.weight_decay=0.03"),
        *("train.betas=[0.8,0.95]", "model.sigma_data=0.6"),
    )
    pipe = train(settings, Bars(), CODEC, tmp_path)

    for sigma, labels, arguments in seen["losses"]:
        assert torch.allclose(sigma.log(), torch.tensor(3.0), atol=0.1)
        assert 2 in labels  # half of them have lost their class
        generator = arguments.pop("generator")
        assert arguments == {
            "patch_ratio": (1.0, 0.5, 0.25),
            "fill": "noise",
            "fill_std": 0.6,
            "detach": True,
        }
        assert generator is not None
    assert set(seen["dropped"]) == {(2, 0.5)}
    assert set(seen["clip"]) == {0.7}
    assert seen["rates"] == [learning_rate(settings.train, 16 * n) for n in range(1, 7)]
    assert seen["group"]["weight_decay"] == 0.03
    assert seen["group"]["betas"] == (0.8, 0.95)

    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed)
        average = [p.detach() for p in LegoStack(pipe.stack.spec).parameters()]
    for number, weights in enumerate(seen["weights"], start=1):
        share = 0.5 ** (16 / min(40, 0.5 * 16 * number))
        average = [share * a + (1 - share) * w for a, w in zip(average, weights, strict=True)]
    for mine, theirs in zip(average, pipe.stack.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_seeds_of_order_noise_and_weights_all_follow_the_runs_seed(tmp_path, monkeypatch):
    """Two seeds differ in the first weights, in the images of the first batch and in the noise."""
    losses = loop.brick_losses
    first = {}

    def watch(network, clean, sigma, labels, **arguments):
        weights = network.bricks[0].embed.weight.detach().clone()
        first.setdefault(run, (weights, clean.clone(), sigma.clone()))
        return losses(network, clean, sigma, labels, **arguments)

    monkeypatch.setattr(loop, "brick_losses", watch)
    for run in (0, 1):
        train(config(f"train.seed={run}"), Bars(), CODEC, tmp_path / str(run))
    assert not any(torch.equal(a, b) for a, b in zip(first[0], first[1], strict=True))
