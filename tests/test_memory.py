import pytest
import torch
from small_runs import CODEC, Bars, config, quiet, weights

from legodiff.train import learner as learners
from legodiff.train.distributed import World
from legodiff.train.learner import build_learner, build_network
from legodiff.train.loop import train
from legodiff.train.memory import fit_micro_batch, out_of_memory


def shortage(monkeypatch, most):
    """Memory runs out with more than so many images at once."""
    forward = learners.Objective.forward

    def tight(self, images, *arguments):
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, images, *arguments)

    monkeypatch.setattr(learners.Objective, "forward", tight)


def fit(*changes, world=None, say=quiet):
    settings = config(*changes)
    network = build_network(settings.model.spec(1, 2), 0)
    learner = build_learner(network, CODEC, settings.train, World())
    example = torch.from_numpy(Bars().read(0)[0])
    return fit_micro_batch(learner, example, settings.train, world or World(), say), learner


def test_the_line_at_the_start_says_what_a_batch_is_made_of(monkeypatch):
    said = []
    monkeypatch.setattr(World, "any", lambda self, flag: flag)
    size, _ = fit("train.batch=512", "train.micro_batch=64", world=World(0, 2), say=said.append)
    assert size == 64
    assert said == ["batch 512 = 2 processes x 64 images x 4 passes"]


@pytest.mark.parametrize(("batch", "asked", "size"), [(48, 20, 16), (16, 100, 16), (7, 3, 1)])
def test_passes_are_equal(batch, asked, size):
    assert fit(f"train.batch={batch}", f"train.micro_batch={asked}")[0] == size


def test_out_of_memory_halves_what_is_taken_at_once_and_not_the_batch(tmp_path, monkeypatch):
    said = []
    train(config(), Bars(), CODEC, tmp_path / "roomy", say=quiet)
    shortage(monkeypatch, 5)
    train(config(), Bars(), CODEC, tmp_path / "tight", say=said.append)
    assert said[:3] == [
        "out of memory with 16 images at once: going on with 8",
        "out of memory with 8 images at once: going on with 4",
        "batch 16 = 1 process x 4 images x 4 passes",
    ]
    roomy, tight = weights(tmp_path / "roomy", "raw"), weights(tmp_path / "tight", "raw")
    assert max((roomy[name] - tight[name]).abs().max() for name in roomy) < 1e-6


def test_trying_leaves_nothing_behind():
    _, learner = fit()
    assert all(parameter.grad is None for parameter in learner.network.parameters())
    assert not any(t.any() for name, t in learner.tensors().items() if name.endswith("/step"))


def test_one_image_too_many_and_an_uneven_share_are_told(monkeypatch):
    with pytest.raises(ValueError, match=r"^train.batch is 16: 3 processes must share it evenly$"):
        fit(world=World(0, 3))
    shortage(monkeypatch, 0)
    with pytest.raises(ValueError, match=r"^out of memory with one image at a time; try [^\n]*$"):
        fit()


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(self, images, *arguments):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(learners.Objective, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit()
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
