from dataclasses import asdict

import pytest
import torch
from small_runs import config

from legodiff import LegoPipeline, LegoStack, StackSpec, preset
from legodiff.model.spec import ForeignSpec
from legodiff.train.finetune import adopt
from legodiff.train.learner import build_network


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    stack = LegoStack(preset("tiny-pr-16", channels=1, classes=3))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.normal_()
    LegoPipeline(stack, class_names=["cat", "dog", "owl"]).save_pretrained(tmp_path)
    return tmp_path, stack.state_dict()


def test_the_same_model_is_loaded_whole(base):
    folder, old = base
    network = build_network(preset("tiny-pr-16", channels=1, classes=3), 1)
    found = adopt(network, ["cat", "dog", "owl"], folder)
    assert all(torch.equal(value, old[name]) for name, value in network.state_dict().items())
    assert (found.fresh, found.unused, len(found.loaded)) == ([], [], len(old))
    assert "re-initialised: none" in str(found)


def test_classes_are_taken_over_by_name(base):
    folder, old = base
    network = build_network(preset("tiny-pr-16", channels=1, classes=4), 1)
    fresh = network.class_embedding.weight.detach().clone()
    found = adopt(network, ["dog", "emu", "cat", "fox"], folder)
    mine, theirs = network.class_embedding.weight, old["class_embedding.weight"]
    assert torch.equal(mine[0], theirs[1])
    assert torch.equal(mine[2], theirs[0])
    assert torch.equal(mine[4], theirs[3])  # no class
    assert torch.equal(mine[[1, 3]], fresh[[1, 3]])
    assert found.classes == ["dog", "cat"]
    assert "2 rows of class_embedding.weight" in str(found)


def test_another_size_loads_and_another_stack_says_what_does_not(base):
    folder, old = base
    wide = build_network(preset("tiny-pr-16", channels=1, image_size=(32, 16)), 1)
    found = adopt(wide, [], folder)
    assert found.fresh == []
    assert found.unused == ["class_embedding.weight"]
    bricks = config().model.spec(1, 0, [0, 1])
    lower = build_network(bricks, 1)
    found = adopt(lower, [], folder)
    assert {name.split(".")[1] for name in found.unused if name.startswith("bricks")} == {"2"}
    assert torch.equal(lower.bricks[1].embed.weight, old["bricks.1.embed.weight"])


def test_nothing_that_fits_is_an_error(base):
    tiny = preset("tiny-pr-16", channels=1, classes=3)
    wider = StackSpec.from_dict(tiny.to_dict() | {"width": 2 * tiny.width})
    for spec in (preset("lite-pr-16", channels=3), wider):
        with pytest.raises(ValueError, match=r"^no tensor of [^\n]* fits this model; give it the"):
            adopt(build_network(spec, 1), ["cat", "dog", "owl"], base[0])


def test_what_gives_weights_another_meaning_is_told(base):
    tiny = preset("tiny-pr-16", channels=1, classes=3).to_dict()
    changed = StackSpec.from_dict(tiny | {"objective": "ddpm", "refine": False})
    found = adopt(build_network(changed, 1), ["cat", "dog", "owl"], base[0])
    assert str(found).splitlines()[-1] == (
        "trained otherwise than this model: objective=edm, refine=True"
    )


def on_top(tiny, classes=3):
    first = ForeignSpec("LegoStack", tiny.to_dict(), classes=3, step=tiny.step)
    bricks = [asdict(first), {"size": 4, "local": 2, "depth": 1}]
    return StackSpec.from_dict(tiny.to_dict() | {"bricks": bricks, "classes": classes})


def test_a_model_goes_into_the_first_brick_and_one_that_has_it_there_stays(base, tmp_path):
    folder, old = base
    names, spec = ["cat", "dog", "owl"], on_top(preset("tiny-pr-16", channels=1, classes=3))
    network = build_network(spec, 1)
    found = adopt(network, names, folder)
    assert all(torch.equal(t, old[n]) for n, t in network.bricks[0].network.state_dict().items())
    assert found.unused == found.otherwise == []
    LegoPipeline(network, class_names=names).save_pretrained(tmp_path / "stacked")
    again = build_network(spec, 2)
    found = adopt(again, names, tmp_path / "stacked")
    assert all(torch.equal(t, network.state_dict()[n]) for n, t in again.state_dict().items())
    assert found.fresh == []


def test_a_base_is_told_its_own_classes(base):
    spec = on_top(preset("tiny-pr-16", channels=1, classes=3))
    with pytest.raises(ValueError, match=r"as cat, dog, owl, and the data has dog, cat, owl; give"):
        adopt(build_network(spec, 1), ["dog", "cat", "owl"], base[0])
