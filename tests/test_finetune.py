import pytest
import torch
from small_runs import config

from legodiff import LegoPipeline, LegoStack, preset
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
    network = build_network(preset("lite-pr-16", channels=3), 1)
    with pytest.raises(ValueError, match=r"^no tensor of [^\n]* fits this model; give it the same"):
        adopt(network, [], base[0])
