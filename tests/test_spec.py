import json
from dataclasses import replace

import pytest

from legodiff import BrickSpec, StackSpec, preset
from legodiff.model.presets import PRESETS

GOOD = preset("tiny-pr-16")


def test_patches_are_counted_and_shared_out():
    spec = preset("tiny-pg-16")
    assert spec.patch_counts((16, 16)) == (16, 4, 1)
    assert spec.patch_counts((16, 32)) == (32, 8, 1)
    assert spec.patch_ratios(0.5) == (0.5, 0.5, 1.0)  # an image-brick runs whole
    assert spec.patch_ratios([1.0, 0.25, 0.5]) == (1.0, 0.25, 1.0)
    for wrong in (0.0, 1.5, [0.5], [0.5, 0.5, 0.0]):
        with pytest.raises(ValueError, match="patch ratio"):
            spec.patch_ratios(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 5, 2), "local field of 5 does not divide"),
        ((0, 1, 1), "size is 0"),
        (("picture", 2, 2), "size is 'picture'"),
        ((16, 0, 2), "local is 0"),
        ((16, 4, 0), "depth is 0"),
        ((16, 4, 1.5), "depth is 1.5"),
        ((16, True, 2), "local is True"),
        ((16, 4, 2, 16), "phase is 16; it must be a whole number from 0 to 15"),
        (("image", 4, 2, 1), "whole image: phase is 1"),
    ],
)
def test_bricks_refuse_nonsense_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        BrickSpec(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bricks": ()}, "at least one brick"),
        ({"bricks": None}, "at least one brick"),
        ({"bricks": ("image",)}, "brick 0 is 'image'"),
        ({"width": 4 * 10**9}, "width is 4000000000; .* to 16384"),
        ({"heads": 3}, "width 32 must be divisible"),
        ({"width": 0}, "width is 0"),
        ({"channels": -1}, "channels is -1"),
        ({"classes": -1}, "classes is -1"),
        ({"classes": 2.5}, "classes is 2.5"),
        ({"image_size": (16,)}, "image_size is"),
        ({"image_size": 16}, "image_size is 16"),
        ({"image_size": (16, 0)}, "a side of image_size is 0"),
        ({"image_size": (20, 16)}, "brick 1 needs sides divisible by 8"),
        ({"objective": "flow"}, "choose from edm, ddpm"),
        ({"hand_over": "raw"}, "needs refine=False"),
        ({"hand_over": "thoughts", "refine": False}, "choose from estimate, raw"),
        ({"sigma_data": 0.0}, "sigma_data is 0.0"),
        ({"mlp_ratio": "4"}, "mlp_ratio is '4'"),
        ({"class_std": float("nan")}, "class_std is nan"),
        ({"refine": "yes"}, "refine is 'yes'"),
    ],
)
def test_stacks_refuse_nonsense_in_one_line(changes, message):
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v | {"widht": 3}, "unknown key 'widht'; did you mean width"),
        (lambda v: v | {"zzz": 3}, "unknown key 'zzz'; known: image_size"),
        (lambda v: v | {"bricks": [{"size": 4, "local": 2}]}, "missing .* 'depth'"),
        (
            lambda v: v | {"bricks": [{"size": 4, "local": 2, "deep": 1}]},
            "brick: unknown key 'deep'",
        ),
        (lambda v: v | {"bricks": "many"}, "must be a list"),
        (lambda v: v | {"bricks": [4]}, "4 is not a set of named values"),
        (lambda v: {k: x for k, x in v.items() if k != "width"}, "missing .* 'width'"),
    ],
)
def test_data_with_unknown_or_missing_keys_is_refused(change, message):
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        StackSpec.from_dict(change(GOOD.to_dict()))


@pytest.mark.parametrize("name", PRESETS)
def test_a_spec_survives_json(name):
    spec = PRESETS[name]
    assert StackSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_canvas_that_does_not_fit_names_the_nearest():
    GOOD.check_canvas((24, 40))
    with pytest.raises(ValueError, match=r"20x42 does not fit .* 8 must divide .* is 16x40|24x40"):
        GOOD.check_canvas((20, 42))
    with pytest.raises(ValueError, match="nearest that fits is 8x8"):
        GOOD.check_canvas((1, 3))


def test_a_phase_of_none_leaves_configurations_what_they_were():
    """Fingerprints of models, plans and runs are made from them."""
    spec = preset("tiny-pr-16")
    assert all(set(brick) == {"size", "local", "depth"} for brick in spec.to_dict()["bricks"])
    bricks = (BrickSpec("image", 4, 1), BrickSpec(8, 4, 1, phase=3))
    laid = preset("tiny-pr-16", bricks=bricks)
    assert laid.to_dict()["bricks"][1]["phase"] == 3
    assert StackSpec.from_dict(laid.to_dict()) == laid
    assert StackSpec.from_dict(spec.to_dict()) == spec
