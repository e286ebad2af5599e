import json
import sys
from dataclasses import replace

import pytest
import torch
from conftest import awaken
from PIL import Image
from test_cost import by_hand
from torch import nn

from legodiff import BrickSpec, LegoPipeline, LegoStack, SkipPlan, StackSpec, preset
from legodiff.config import load_config
from legodiff.evaluate import bench
from legodiff.evaluate.bench import (
    PRODUCT,
    Candidate,
    Row,
    Spread,
    alternate,
    measure,
    peak_memory,
    product,
    ratio,
)
from legodiff.evaluate.contenders import Contender, Setting, candidates, drawings, drawn, of_stack
from legodiff.evaluate.opponents import OPPONENTS, gather
from legodiff.evaluate.uvit import UViT
from legodiff.model import kernels
from legodiff.model.cost import brick_parameters, shared_flops, subset_flops
from legodiff.model.presets import PRESETS
from legodiff.model.spec import ForeignSpec
from legodiff.plans import Curve, Point, write_curves
from legodiff.sampling import Method, Sampling
from legodiff.train.estimate import training_flops

CPU = torch.device("cpu")


class Machine:
    """A clock, and candidates that take as long as they are told; notes who ran."""

    def __init__(self):
        self.now, self.ran = 0.0, []

    def candidate(self, name, seconds, images=1):
        def run():
            self.ran.append(name)
            self.now += seconds(len(self.ran)) if callable(seconds) else seconds

        return Candidate(name, run, images, 0, 0)


def times(machine, entries, rounds):
    return alternate(entries, rounds, device=CPU, clock=lambda: machine.now)


def test_everyone_has_a_turn_in_every_round_in_changing_order():
    machine = Machine()
    entries = [machine.candidate(name, 1.0) for name in "abcd"]
    told = times(machine, entries, rounds=20)
    rounds = ["".join(machine.ran[n : n + 4]) for n in range(0, len(machine.ran), 4)]
    assert len(rounds) == 21  # one warms up
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert {order[0] for order in rounds} == set("abcd")
    assert told == [[1000.0] * 20] * 4
    machine.ran.clear()
    times(machine, entries, rounds=20)
    assert "".join(machine.ran) == "".join(rounds)  # the same ones every time


def test_what_is_told_are_milliseconds_of_an_image_after_the_warm_up():
    machine = Machine()
    seconds = {1: 50.0, 2: 2.0, 3: 4.0, 4: 6.0}
    told = times(machine, [machine.candidate("a", seconds.get, images=4)], rounds=3)
    assert told == [[500.0, 1000.0, 1500.0]]


def test_what_is_over_soon_is_repeated():
    machine = Machine()
    entries = [machine.candidate(name, s) for name, s in (("short", 2**-6), ("long", 2.0))]
    told = times(machine, entries, rounds=3)
    assert told == [[1000 * 2**-6] * 3, [2000.0] * 3]
    assert machine.ran.count("long") == 4
    assert machine.ran.count("short") == 1 + 3 * 4  # 4 x 1/64 s last longer than 50 ms


def test_a_slow_moment_of_the_machine_leaves_the_ratio():
    first, other = [2.0, 40.0, 6.0, 4.0, 10.0], [1.0, 20.0, 3.0, 2.0, 5.0]
    assert ratio(other, first) == (0.5, 0.5, 0.5)
    assert Spread.of(first) == pytest.approx((6.0, 2.8, 28.0))  # ranks 2, 0.4 and 3.6 of 0 to 4
    assert Row("a", 0, 10**9, (1.0, 2.0), None).speed == (1e12, 5e11)


def test_memory_is_that_of_the_tensors_there_are_at_once():
    a, size = torch.randn(64, 64), 4 * 64 * 64

    def chain():
        b = a @ a
        c = b @ a
        del b
        return c @ a

    def holding():
        b = a @ a
        c = b @ a
        return b, c, c @ a

    def in_place():
        return a.mul_(1).add_(0).view(-1)[3:].unsqueeze(0), (a @ a).mul_(2).t()

    for _ in range(2):
        found = [peak_memory(run, CPU) for run in (chain, holding, in_place)]
        assert found == [2 * size, 3 * size, size]


@pytest.mark.parametrize("train", [False, True])
def test_memory_is_what_torchs_profiler_saw_allocated(train, tmp_path, monkeypatch):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    setting = Setting((16, 16), 4, CPU, train=train)
    entry = candidates(of_stack("a", preset("lite-pr-16")), setting)[0]
    activities = [torch.profiler.ProfilerActivity.CPU]
    entry.run()
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        entry.run()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    seen = max(e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]")
    assert peak_memory(entry.run, CPU) == pytest.approx(seen, rel=0.01)
    assert seen > (4 * entry.parameters if train else 10**5)


def test_gradients_do_not_stay():
    spec = preset("tiny-pr-16")
    contender = of_stack("a", spec, awaken(LegoStack(spec)))
    entry = candidates(contender, Setting((16, 16), 2, CPU, train=True))[0]
    assert len({peak_memory(entry.run, CPU) for _ in range(3)}) == 1
    assert all(parameter.grad is None for parameter in contender.network.parameters())


@pytest.mark.parametrize("size", [(16, 16), (16, 32)])
def test_flops_are_those_of_the_formulas_attention_included(size):
    spec = StackSpec((16, 16), 3, 32, 2, (BrickSpec("image", 2, 3),))
    [entry] = candidates(of_stack("a", spec), Setting(size, 5, CPU))
    assert entry.flops == by_hand(spec, 0, size) + 2 * (256 * 32 + 32**2)
    tokens = size[0] * size[1] // 4
    attention = 2 * 3 * 2 * tokens**2 * 32
    assert entry.flops > attention > 0.1 * entry.flops


def test_parts_are_the_bricks_that_run_and_what_they_share():
    spec = preset("tiny-pr-16", classes=4)
    stack, ran = awaken(LegoStack(spec)), []
    for number, brick in enumerate(stack.bricks):
        brick.register_forward_hook(lambda *_, n=number: ran.append(n))
    contender = of_stack("a", spec, stack, also=[(0, 2), (0, 1, 2)])
    whole, *parts = candidates(contender, Setting((16, 16), 3, CPU))
    assert [one.name for one in (whole, *parts)] == [
        *("a", "a: brick 0", "a: brick 1", "a: brick 2", "a: bricks 0+2"),
    ]
    *own, shared = brick_parameters(spec)
    assert whole.parameters == sum(own) + shared
    for part, bricks in zip(parts, [(0,), (1,), (2,), (0, 2)], strict=True):
        ran.clear()
        part.run()
        assert tuple(ran) == bricks
        assert part.images == 3
        assert part.parameters == sum(own[brick] for brick in bricks) + shared
        assert part.flops == subset_flops(spec, bricks, (16, 16))
    assert whole.flops == sum(part.flops for part in parts[:3]) - 2 * shared_flops(spec)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_training_is_counted_as_a_run_counts_it(share):
    config = load_config("digits", ["model.preset=lite-pr-16", f"train.patch_ratio={share}"])
    spec = config.model.spec(3, 0)
    setting = Setting((16, 16), 2, CPU, train=True, patches=share)
    assert candidates(of_stack("a", spec), setting)[0].flops == training_flops(spec, config.train)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_products_have_the_precision_asked_for(precision):
    spec, seen = preset("tiny-pr-16"), []
    stack = LegoStack(spec)
    layer = stack.bricks[0].blocks[0].mlp[0]
    layer.register_forward_hook(lambda *found: seen.append(found[2].dtype))
    candidates(of_stack("a", spec, stack), Setting((16, 16), 1, CPU, precision))[0].run()
    assert seen == [precision]


class Wide(nn.Module):
    """A network of others, of which nearly all is one layer."""

    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.image_size[1], 10_000)

    def forward(self, noisy, sigma, labels=None):
        return noisy + self.layer(noisy).mean()


def test_networks_of_others_do_not_pay_for_rounding():
    """In bf16 they are rounded once, and copies of their weights are no activations."""
    spec = preset("tiny-pr-16", channels=1)
    network, found = Wide(spec), {}
    for precision in (torch.float32, torch.bfloat16):
        (entry,) = candidates(
            Contender("wide", Wide, spec, network), Setting((16, 16), 1, CPU, precision)
        )
        found[precision] = peak_memory(entry.run, CPU)
    weights = 2 * 16 * 10_000  # bytes in bf16
    assert found[torch.bfloat16] < found[torch.float32] < found[torch.bfloat16] + weights * 2
    assert network.layer.weight.dtype == torch.float32


def opponents(name, size=(64, 64), against=tuple(OPPONENTS)):
    return gather([of_stack(name, PRESETS[name])], against, size)[1:]


def test_opponents_are_those_of_the_papers_tables():
    found = {
        name: [other.name for other in opponents(f"lego-{name}")]
        for name in ("s-pg-64", "s-u-64", "l-pr-64", "xl-pg-64")
    }
    small = ["dit-s-2-64", "U-ViT-S/4", "diffusers dit-s-2-64"]
    assert found["s-pg-64"] == found["s-u-64"] == small
    assert found["l-pr-64"] == ["dit-l-2-64", "U-ViT-L/4", "diffusers dit-l-2-64"]
    assert found["xl-pg-64"] == ["dit-xl-2-64", "diffusers dit-xl-2-64"]
    assert [one.name for one in opponents("dit-s-2-64")] == ["U-ViT-S/4", "diffusers dit-s-2-64"]
    found = [one.name for one in opponents("lego-s-pg-32", (32, 32))]
    assert found == ["dit-s-2-32", "diffusers dit-s-2-32"]
    anew = replace(PRESETS["lego-s-pg-64"], refine=False)
    assert gather([of_stack("mine", anew)], ["dit"], (64, 64))[1].name == "dit-s-2-64"
    assert opponents("lego-s-pg-64", against=["uvit"])[0].spec.depth == 13
    assert opponents("lego-s-pg-64", against=[]) == []


def test_other_stacks_meet_a_dit_of_their_width_and_depth():
    found = [one.name for one in opponents("lite-pr-16", (16, 16), ["dit", "uvit"])]
    assert found == ["lite-dit-16"]
    spec = replace(
        PRESETS["tiny-pr-16"], classes=7, bricks=(BrickSpec(8, 4, 3), BrickSpec(4, 2, 2))
    )
    [other] = gather([of_stack("mine", spec)], ["dit"], (16, 16))[1:]
    assert other.name == "DiT of mine"
    assert other.spec == replace(spec, bricks=(BrickSpec("image", 2, 5),))
    foreign = replace(spec, bricks=(ForeignSpec("callable"), BrickSpec(4, 2, 2)))
    assert gather([of_stack("mine", foreign)], tuple(OPPONENTS), (64, 64))[1:] == []


def test_each_opponent_comes_once():
    stacks = [of_stack(name, PRESETS[name]) for name in ("dit-s-2-64", "lego-s-pg-64")]
    found = [one.name for one in gather([*stacks, stacks[1]], ["dit", "uvit"], (64, 64))]
    assert found == ["dit-s-2-64", "lego-s-pg-64", "lego-s-pg-64", "U-ViT-S/4"]
    with pytest.raises(
        ValueError, match="no opponent 'unet'; choose from dit, uvit, diffusers, or none"
    ):
        gather(stacks, ["unet"], (64, 64))


@pytest.mark.parametrize("train", [False, True])
def test_a_network_of_another_kind_is_measured_alike(train):
    """All that a new opponent takes: a name, what builds it, and what that is given."""

    class Linear(torch.nn.Module):
        def __init__(self, spec):
            super().__init__()
            self.spec, self.weight = spec, torch.nn.Parameter(torch.eye(16))

        def forward(self, noisy, sigma, labels=None):
            return noisy @ self.weight

    other = Contender("linear", Linear, preset("tiny-pr-16", channels=2))
    setting = Setting((16, 16), 3, CPU, train=train)
    [row] = measure(candidates(other, setting), 2, CPU)
    product_flops = 2 * 2 * 16 * 16 * 16
    assert row.flops == (2 if train else 1) * product_flops  # no gradient of the image
    assert row.parameters == 256
    assert len(row.milliseconds) == 2
    image = 4 * 3 * 2 * 16 * 16
    assert row.memory >= image
    assert train or row.memory == image


def test_the_paper_says_what_a_u_vit_is_and_it_runs():
    [other] = opponents("lego-s-pg-64", against=["uvit"])
    assert other.kind is UViT
    small = replace(other, spec=replace(other.spec, image_size=(16, 16), width=32, depth=3))
    for train in (False, True):
        [row] = measure(candidates(small, Setting((16, 16), 2, CPU, train=train)), 1, CPU)
        assert row.flops > 0
        assert row.memory > 0


def test_the_dit_of_diffusers_is_as_large_as_ours():
    pytest.importorskip("diffusers")
    own = StackSpec((16, 16), 3, 32, 2, (BrickSpec("image", 2, 3),))
    ours, theirs = gather([of_stack("mine", own)], ["diffusers"], (16, 16))
    assert theirs.name == "diffusers mine"
    for train in (False, True):
        setting = Setting((16, 16), 2, CPU, train=train)
        mine, other = (candidates(one, setting)[0] for one in (ours, theirs))
        # it learns a variance too, and embeds the noise level in every block
        assert mine.flops < other.flops < 1.05 * mine.flops
        [row] = measure([other], 1, CPU)
        assert row.memory > 0
    assert gather([of_stack("mine", own)], ["diffusers"], (16, 32))[1:] == []


def test_a_way_to_draw_costs_its_evaluations():
    spec, sampling = preset("tiny-pr-16", classes=3), Sampling()
    stack = of_stack("a", spec, also=[(0, 1)])
    full, half = drawings(spec, sampling, (), skip=0.5)
    assert full.calls == {(0, 1, 2): 35}
    assert half.calls.total() == 35
    assert set(half.calls) == {(0, 1), (0, 1, 2)}
    rows = [
        Row(one.name, one.parameters, one.flops, (2.0**n, 3.0**n), 100 + n)
        for n, one in enumerate(candidates(stack, Setting((16, 16), 1, CPU)))
    ]
    row = drawn(stack, half, rows)
    above, below = half.calls[0, 1, 2], half.calls[0, 1]
    assert row.name == "a: no top brick in 50% of the steps"
    assert row.milliseconds == (above + below * 2.0**4, above + below * 3.0**4)
    assert row.flops == half.method.flops(sampling, spec, (16, 16))
    assert row.memory == 104
    assert drawn(stack, full, rows).milliseconds == (35.0, 35.0)
    assert [way.name for way in drawings(spec, sampling, (), skip=0)] == ["all bricks"]
    assert [way.name for way in drawings(PRESETS["dit-s-2-64"], sampling, (), 0.5)] == [
        "all bricks"
    ]


def curve(spec):
    """A plan without guidance beside a guided full method."""
    count, sampling = len(spec.bricks), Sampling()
    full = Method(SkipPlan.full(count), steps=3, guidance=2.0)
    plan = Method(SkipPlan(((0.0, (0, 1, 2)), (1.0, (0, 2)))), steps=3)
    points = [
        Point(method, method.flops(sampling, spec, spec.image_size), error, milliseconds=1.0)
        for method, error in ((plan, 0.1), (full, 0.0))
    ]
    return Curve("x", points[1], 1, "here", tuple(points))


def test_the_plans_kept_with_a_model_are_ways_to_draw():
    spec = preset("tiny-pr-16", classes=3)
    full, half, plan = drawings(spec, Sampling(), [curve(spec)], skip=0.5)
    assert full.calls == {(0, 1, 2): 10}
    assert half.calls.total() == 10
    assert plan.calls.total() == 5
    assert set(plan.calls) == {(0, 2), (0, 1, 2)}
    assert plan.name.startswith("plan of ")


def test_the_product_counts_its_own():
    entry = product(CPU, torch.bfloat16)
    assert entry.flops == 2 * PRODUCT["cpu"] ** 3
    assert entry.run().shape == (PRODUCT["cpu"],) * 2


def test_the_product_is_by_what_is_fastest_here(quick, monkeypatch):
    monkeypatch.setattr(kernels, "prefers_one_dnn", lambda: True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        product(CPU, torch.float32).run()
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bench, "PRODUCT", {"cpu": 64})
    monkeypatch.setattr(bench, "TURN", 1e-9)


def test_the_command_tells_and_keeps_what_it_measured(call, quick, tmp_path):
    spec = preset("tiny-pr-16", classes=3)
    LegoPipeline(awaken(LegoStack(spec)), label_dropout=0.1).save_pretrained(tmp_path / "run")
    write_curves(tmp_path / "run", [curve(spec)])
    out = tmp_path / "new" / "bench.json"
    words = ("--rounds", 3, "--batch", 2, "--threads", 1, "--out", out)
    code, text, _ = call("bench", tmp_path / "run", "tiny-pg-16", *words)
    assert code == 0
    for told in ("bricks 0+2", "tiny-pg-16", "DiT of", "2 x multiply-accumulates", "GFLOP/s"):
        assert told in text, told
    kept = json.loads(out.read_text())
    assert kept["about"]["command"].startswith("legodiff bench ")
    assert (kept["about"]["batch"], kept["about"]["threads"]) == (2, 1)
    rows = {row["name"]: row for row in kept["evaluations"]}
    assert all(len(row["milliseconds"]) == 3 for row in rows.values())
    run = str(tmp_path / "run")
    assert rows[run]["flops"] == subset_flops(spec, (0, 1, 2), (16, 16))
    assert rows[f"{run}: bricks 0+2"]["flops"] == subset_flops(spec, (0, 2), (16, 16))
    drawn = {row["name"]: row for row in kept["drawings"]}
    assert drawn[f"{run}: all bricks"]["nfe"] == 10
    assert drawn["tiny-pg-16: all bricks"]["nfe"] == 35
    assert len(drawn) == 3 + 2
    table = out.with_suffix(".md").read_text().splitlines()
    assert table[0].count("|") == table[1].count("|") == table[2].count("|") == 10
    assert Image.open(out.with_suffix(".png")).width > 600


def test_without_matplotlib_all_but_the_picture_is_kept(call, quick, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / "bench.json"
    words = ("--rounds", 1, "--batch", 1, "--against", "none", "--out", out)
    code, text, err = call("bench", "tiny-pr-16", *words)
    assert (code, err) == (0, "")
    assert f"In {out}, and beside it the tables (.md). No picture: matplotlib is not" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md"]


def test_the_command_measures_training_and_other_canvases(call, quick):
    words = ("--train", "--patches", 0.5, "--rounds", 1, "--against", "none")
    code, text, _ = call("bench", "tiny-pr-16", *words, "--precision", "bf16", "--batch", 1)
    assert code == 0
    assert "loss and gradient" in text
    assert "drawn" not in text
    code, text, _ = call("bench", "tiny-pr-16", "--rounds", 1, "--size", "16x32", "--batch", 1)
    assert code == 0
    assert "16x32" in text
    assert "drawn" not in text  # larger ones are drawn in windows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lego-s-pq-64"], "did you mean lego-s-pr-64"),
        (["nowhere"], "neither a folder nor a Hub id"),
        (["tiny-pr-16", "--size", "12x16"], "the nearest that fits"),
        (["tiny-pr-16", "--size", "big"], "write HEIGHTxWIDTH"),
        (["--rounds", 0], "--rounds"),
        (["--batch", 0], "--batch"),
        (["--threads", 0], "--threads"),
        (["--skip", 1.5], "--skip"),
        (["--precision", "fp8"], "choose from fp32, bf16"),
        (["--patches", 0.5], "together with --train"),
        (["--patches", 0, "--train"], "a share in (0, 1]"),
        (["--against", "dit,unet"], "no opponent 'unet'"),
        (["--out", "bench.txt"], "a .json file"),
        (["--device", "abacus"], "cannot be used here"),
    ],
)
def test_a_mistake_is_one_line(call, words, message):
    code, _, err = call("bench", *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
