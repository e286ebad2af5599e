"""The model card: its figures are the model's, and what is not recorded is not claimed."""

import re
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import awaken

from legodiff import LegoPipeline, LegoStack, SkipPlan, preset
from legodiff.card import Facts, model_card
from legodiff.codec import PixelCodec
from legodiff.config import load_config
from legodiff.model.cost import brick_flops, brick_parameters, shared_flops
from legodiff.plans import Curve, Point
from legodiff.sampling import Method

FULL = Method(SkipPlan.full(3), 4)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    stack = awaken(LegoStack(preset("tiny-pr-16", channels=1, classes=3))).eval()
    run = load_config("digits", ["train.seed=20240101"]).model_dump(mode="json")
    run |= {"dataset_images": 1500}
    return LegoPipeline(stack, PixelCodec((0.25,), 1.5), ("ant", "bee", "cow"), run=run)


def facts(pipe, **more):
    return Facts("org/name", pipe.to_dict(), "ab" * 32, **{"about": {}} | more)


def rows(card, section):
    """The cells of the table in a section, without its headings."""
    lines = card.split(f"## {section}\n")[1].split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in line[2:-2].split(" | ")] for line in table[2:]]


def test_the_front_matter_is_what_the_hub_reads(pipe):
    _, front, _ = model_card(facts(pipe, license="apache-2.0")).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "apache-2.0",
        "library_name": "legodiff",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["legodiff", "diffusion", "image-generation"],
    }
    card = model_card(facts(pipe))
    assert "license" not in yaml.safe_load(card.split("---\n", 2)[1])
    assert "No licence was given." in card


def test_the_bricks_cost_what_was_counted(pipe):
    *bricks, shared, whole = rows(model_card(facts(pipe)), "Bricks")
    spec = pipe.stack.spec
    assert [row[:4] for row in bricks] == [
        ["0", "image", "4x4", "2"],
        ["1", "8x8", "4x4", "1"],
        ["2", "4x4", "2x2", "1"],
    ]
    parameters = [float(row[-2].split()[0]) * 1e6 for row in (*bricks, shared, whole)]
    flops = [float(row[-1]) * 1e9 for row in (*bricks, shared, whole)]
    counted = brick_parameters(spec)
    assert parameters == pytest.approx([*counted, sum(counted)], abs=501)
    expected = [*brick_flops(spec), shared_flops(spec)]
    assert flops == pytest.approx([*expected, sum(expected)], rel=1e-3)
    assert sum(counted) == sum(p.numel() for p in pipe.stack.parameters())


def test_data_and_training_are_those_of_the_run(pipe):
    card = model_card(facts(pipe, about={"images": "640", "weights": "ema"}))
    assert dict(rows(card, "Data")) == {
        "data": "digits",
        "half of the images mirrored": "no",
        "behind transparent pixels": "white",
        "images": "1500",
        "size": "16x16 pixels, 1 channel",
        "classes": "3",
        "their names": "ant, bee, cow",
        "mean taken off": "0.25",
        "scale after that": "1.5",
    }
    training = dict(rows(card, "Training"))
    settings = pipe.run["train"]
    assert training["images seen"] == "640"
    assert training["images planned"] == str(settings["images"])
    assert training["images a step"] == str(settings["batch"])
    assert float(training["learning rate"]) == settings["learning_rate"]
    assert training["seed"] == "20240101"
    assert training["weights"] == "their average over training"
    assert "not recorded" not in card


def test_what_is_not_recorded_is_not_claimed(pipe):
    bare = LegoPipeline(LegoStack(preset("tiny-pr-16", channels=1)), PixelCodec((0.0,)))
    card = model_card(facts(bare))
    for text in (
        "What it was trained on is not recorded.",
        "How it was trained is not recorded.",
        "Nothing was measured: no metrics of these weights lay beside them.",
    ):
        assert text in card
    assert "How many images were seen is not recorded." in model_card(facts(pipe))
    for word in ("## Any budget", "Samples", "images seen |", "downloaded", "| metric", "seed |"):
        assert word not in card


def test_the_plans_are_the_curve(pipe):
    half = replace(FULL, plan=SkipPlan(((0.0, (0, 1, 2)), (1.0, (0, 1)))))
    points = (Point(half, 600, 0.125, milliseconds=1.5), Point(FULL, 1000, 0.0))
    curve = Curve("model", points[1], 64, "x86_64 cpu, 2 threads", points)
    card = model_card(facts(pipe, curves=[curve], plans_pictures=["plans-1.png"]))
    assert rows(card, "Any budget") == [
        ["60%", "1.5", "0.12", "heun", "4", "0+1 0+1+2"],
        ["100%", "", "0", "heun", "4", "0+1+2"],
    ]
    assert "![Error over cost](plans-1.png)" in card
    assert "Measured on 64 images" in card
    assert "x86_64 cpu, 2 threads" in card
    assert "plans-" not in model_card(facts(pipe, curves=[curve]))


def test_metrics_stand_with_their_protocol(pipe):
    protocol = {"images": {"seeds": "0-9", "steps": 18}, "features": {"sha256": "cd" * 32}}
    metrics = [
        {"name": "FID-50k(train)", "value": 2.123456, "spread": None, "better": "lower"} | protocol,
        {"name": "KID-50k(train)", "value": 3, "spread": 0.5, "better": "lower"} | protocol,
        {"name": "precision", "value": 0.5, "spread": None, "software": "legodiff 0.1"},
        {"name": "alone", "value": 1.0},
    ]
    card = model_card(facts(pipe, metrics=metrics))
    assert rows(card, "Metrics") == [
        ["FID-50k(train)", "2.1235", "", "lower"],
        ["KID-50k(train)", "3", "0.5", "lower"],
        ["precision", "0.5", "", ""],
        ["alone", "1", "", ""],
    ]
    shared = f"images: seeds 0-9, steps 18; features: sha256 {'cd' * 32}."
    assert f"\nFID-50k(train), KID-50k(train): {shared}\n" in card
    assert "\nprecision: software: legodiff 0.1.\n" in card
    assert "\nalone: the protocol is not recorded.\n" in card


def test_the_samples_say_how_they_were_drawn(pipe):
    samples = pipe(labels=["bee", None, 0], seeds=[4, 5, 6], steps=2)
    card = model_card(facts(pipe, samples=samples, samples_picture="samples.png"))
    assert "![Samples](samples.png)" in card
    assert (
        "seeds 4 to 6; classes, row by row: bee, none, ant; heun, 2 steps, guidance 1: "
        f"3 evaluations and {samples.flops / 1e9:.3g} GFLOPs an image." in card
    )


def test_words_of_others_stay_in_their_place(pipe):
    """Names and records cannot break a table, begin a heading, or make a link."""
    names = ("a | b", "c\n## d", "[e](http://x) <img> `f` *g*")
    other = LegoPipeline(pipe.stack, pipe.codec, names, run={"data": 3, "train": {"seed": "x\ny"}})
    card = model_card(facts(other, metrics=[{"name": "n | \n# m", "value": [1, {"a": "|"}]}]))
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == [
        *("# org/name", "## Use", "## Bricks", "## Data", "## Training", "## Metrics", "## Files")
    ]
    plain = model_card(facts(pipe))
    for section, bars in (("Data", 3), ("Training", 3), ("Metrics", 5)):
        for row in card.split(f"## {section}\n")[1].split("\n\n")[0].splitlines():
            assert row.replace("\\|", "").count("|") == bars, row
    assert not re.search(r"(?<!\\)\]\(http", card)
    assert plain.count("<") == card.replace("\\<", "").count("<")
