"""Models as graphs: what others run is what we run, and what stands beside it is enough to draw."""

import functools
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import awaken, noisy_batch
from test_foreign import UNET

from legodiff import BrickSpec, LegoPipeline, LegoStack, SkipPlan, StackSpec
from legodiff.codec import LatentCodec, PixelCodec
from legodiff.interop import formats, graph_folder, graphs
from legodiff.interop.graphs import Graph, Subset
from legodiff.interop.script import script
from legodiff.model.spec import ForeignSpec
from legodiff.sampling import Method, Sampling
from legodiff.vae import VaeSpec

BRICKS = (BrickSpec("image", 4, 1), BrickSpec(4, 2, 1))
SPEC = StackSpec((8, 8), 1, 16, 2, BRICKS, classes=3, class_std=1.0)
INNER = replace(SPEC, bricks=BRICKS[:1], objective="ddpm")
ON_INNER = replace(SPEC, bricks=(ForeignSpec("LegoStack", INNER.to_dict()), BRICKS[1]))
UNET1 = {
    **UNET,
    **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "num_class_embeds": 4},
    **{"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]},
    "block_out_channels": [8],
}
ON_UNET = replace(SPEC, bricks=(ForeignSpec("UNet2DModel", UNET1, "epsilon", classes=3), BRICKS[1]))
PLAN = SkipPlan(((0.0, (1,)), (1.0, (0,))))
FULL = SkipPlan.full(2)
# Tracing takes seconds: a brick on a stack of DDPM's kind in one graph, one on a UNet in two.
EXPORTED = {
    "onnx": (ON_INNER, Method(FULL, 4, guidance=1.5, interval=(0.1, 5.0), self_guidance=1.4)),
    "torch-export": (ON_UNET, Method(PLAN, 4, guidance=1.5, interval=(0.1, 5.0))),
}


def silent(*_):
    pass


def pipeline(spec=SPEC):
    torch.manual_seed(0)
    stack = awaken(LegoStack(spec)).eval()
    names = ("a", "b", "c")[: spec.classes]
    return LegoPipeline(stack, PixelCodec((0.1,), 1.5), names, label_dropout=0.1)


def export(pipe, method, kind, folder, size=(8, 8)):
    return graph_folder.write_graphs(pipe, method, size, kind, folder, silent)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> the folder of what ``EXPORTED`` says; made when it is first asked for."""

    @functools.cache
    def folder(kind):
        made = tmp_path_factory.mktemp(kind)
        spec, method = EXPORTED[kind]
        export(pipeline(spec), method, kind, made)
        return made

    return folder


def script_in(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]


def noise_of(seeds, shape=(1, 8, 8)):
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).numpy()


def same_pictures(pixels, images):
    ours = np.stack([np.asarray(image) for image in images])
    return np.abs(pixels[:, 0].astype(int) - ours.astype(int)).max() <= 1


@pytest.mark.parametrize("kind", EXPORTED)
def test_the_script_beside_the_graphs_draws_our_images(kind, folders, monkeypatch):
    spec, method = EXPORTED[kind]
    pipe = pipeline(spec)
    text = script_in(folders(kind))
    assert "legodiff" not in text
    monkeypatch.chdir(folders(kind))
    space = {"__name__": "drawing"}
    exec(compile(text, "<README>", "exec"), space)
    pixels = space["decode"](space["draw"](noise_of([0, 1, 2]), [2, 0, 1]))
    assert same_pictures(pixels, pipe.render(method, [2, 0, 1], [0, 1, 2]).images)
    for other in (replace(method, guidance=1.0), replace(method, plan=SkipPlan(((0.0, (1,)),)))):
        assert not same_pictures(pixels, pipe.render(other, [2, 0, 1], [0, 1, 2]).images)


@pytest.mark.parametrize("kind", EXPORTED)
def test_graphs_take_any_number_of_images(kind, folders):
    spec, method = EXPORTED[kind]
    stack = pipeline(spec).stack
    for bricks in graphs.subsets(method, Sampling()):
        path = folders(kind) / graphs.file_name(bricks, kind)
        if kind == "onnx":
            session = pytest.importorskip("onnxruntime").InferenceSession(path)
            assert [given.name for given in session.get_inputs()] == ["noisy", "sigma", "labels"]
            assert [given.name for given in session.get_outputs()] == ["estimate", "lowest"]
        else:
            run = torch.export.load(path).module()
        for batch in (1, 2, 5):
            noisy, sigma, labels = noisy_batch(batch, size=(8, 8))
            inputs = (noisy, sigma, labels % 4)  # 3 is no class
            with torch.no_grad():
                expected = stack.estimates(*inputs, bricks)
                if kind == "onnx":
                    names = ("noisy", "sigma", "labels")
                    given = {n: t.numpy() for n, t in zip(names, inputs, strict=True)}
                    found = [torch.from_numpy(array) for array in session.run(None, given)]
                    assert torch.allclose(found[1], expected[0], atol=1e-4)
                else:
                    found = run(*inputs)
            assert torch.allclose(found[0], expected[-1], atol=1e-4)


@pytest.mark.parametrize("kind", EXPORTED)
def test_the_files_say_what_they_are_of(kind, folders):
    spec, method = EXPORTED[kind]
    folder = folders(kind)
    about = json.loads((folder / "sampling.json").read_text())
    chosen = graphs.subsets(method, Sampling())
    files = {graphs.file_name(bricks, kind): list(bricks) for bricks in chosen}
    assert {path.name for path in folder.iterdir()} == {*files, "sampling.json", "README.md"}
    assert {file: graph["bricks"] for file, graph in about["graphs"].items()} == files
    assert all(graph["parity"] <= 1e-4 for graph in about["graphs"].values())
    assert about["model"] == pipeline(spec).fingerprint
    assert about["software"]["torch"] == torch.__version__
    assert ("onnxruntime" in about["software"]) == (kind == "onnx")
    assert about["sigmas"] == Sampling().sigmas(4).tolist()
    assert [call["sigma"] for call in about["calls"]] == method.levels(Sampling())
    for call in about["calls"]:
        assert tuple(files[call["file"]]) == method.plan.bricks(call["sigma"])
        assert (call["guidance"] != 1) == (0.1 <= call["sigma"] <= 5)
    for path in folder.glob("bricks*"):  # nothing of our source, nor a path of this machine
        assert b"pkg.torch.onnx.fx_node" not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()
        assert b"model/stack.py" not in path.read_bytes()


METHODS = {
    "euler": Method(FULL, 5, "euler"),
    "heun": Method(FULL, 5, guidance=2.0, interval=(0.5, 10.0)),
    "churn": Method(FULL, 5, options={"churn": 3.0, "s_min": 0.05, "s_noise": 1.1}),
    "without end": Method(FULL, 5, options={"churn": 3.0, "s_max": float("inf")}),
    "dpmpp_2m": Method(FULL, 5, "dpmpp_2m", self_guidance=1.5),
    "ddim": Method(FULL, 5, "ddim"),
    "eta": Method(FULL, 5, "ddim", options={"eta": 0.5}),
    "ddpm": Method(FULL, 5, "ddpm", guidance=1.5),
}


@functools.cache
def whole(bricks=(0, 1)):
    """A stack in the place of an open graph."""
    subset = Subset(pipeline().stack, bricks, lowest=True)
    return type("Program", (), {"module": lambda _: subset})()


@pytest.mark.parametrize("name", METHODS)
def test_the_script_of_every_sampler_is_the_sampler(name, tmp_path, monkeypatch):
    pipe, method = pipeline(), METHODS[name]
    made = [Graph("bricks-0-1.pt2", (0, 1), 0.0)]
    about = graph_folder.sampling_data(pipe, method, (8, 8), "torch-export", made)
    (tmp_path / "sampling.json").write_text(json.dumps(about, allow_nan=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.export, "load", lambda _: whole())
    space = {"__name__": "drawing"}
    exec(compile(script("torch-export", method, latents=False), "<README>", "exec"), space)
    generator = torch.Generator().manual_seed(7)

    class Replay:
        """Fresh noise as the pipeline draws it."""

        def standard_normal(self, shape):
            return torch.randn(shape, generator=generator).numpy()

    space["rng"] = rng = Replay()
    drawn = space["draw"](rng.standard_normal((1, 1, 8, 8)), [2])
    with torch.no_grad():
        ours = pipe.draw(method.denoiser(pipe.stack, 3), [2], [7], method, (8, 8))
    assert np.abs(drawn - ours.numpy()).max() <= 1e-4
    assert same_pictures(space["decode"](drawn), pipe.render(method, [2], [7]).images)


def test_the_script_of_a_model_of_latents_gives_those_of_the_vae(tmp_path, monkeypatch):
    vae = VaeSpec(channels=1, downsampling=8, scale=0.2, shift=0.3)
    pipe = pipeline()
    pipe.codec = LatentCodec(vae, (0.4,), 0.7)
    about = graph_folder.sampling_data(
        pipe, METHODS["euler"], (8, 8), "onnx", [Graph("", (0, 1), 0)]
    )
    about["graphs"] = {}
    (tmp_path / "sampling.json").write_text(json.dumps(about))
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "drawing"}
    exec(compile(script("onnx", METHODS["euler"], latents=True), "<README>", "exec"), space)
    drawn = torch.randn(2, 1, 8, 8)
    assert np.allclose(space["decode"](drawn.numpy()), pipe.codec.latents(drawn), atol=1e-5)


def test_a_function_does_not_leave(tmp_path):
    spec = StackSpec((8, 8), 3, 16, 2, (ForeignSpec("callable"), BrickSpec(4, 2, 1)))
    with pytest.raises(ValueError, match="a function cannot be saved"):
        export(LegoPipeline(LegoStack(spec)), Method(FULL, 2), "torch-export", tmp_path)


@pytest.mark.parametrize("objective", ["edm", "ddpm"])
def test_parity_is_the_largest_difference_there_is(objective):
    stack = awaken(LegoStack(StackSpec((8, 8), 1, 16, 2, BRICKS, objective=objective))).eval()
    subset = Subset(stack, (0, 1), lowest=False)
    unit = 80 if objective == "ddpm" else 1  # there the estimate is noise times sigma

    def off(by, at, batch):
        def run(noisy, sigma, *labels):
            (own,) = subset(noisy, sigma, *labels)
            own[-1, 0, 3, 3] += by if len(noisy) == batch and sigma[-1] > at else 0
            return (own,)

        with torch.no_grad():
            return graphs._parity(subset, run, (8, 8), Sampling())

    assert off(0, 0, 1) == 0
    for batch in (1, 3):
        assert off(3e-3, 70, batch) == pytest.approx(3e-3 / unit, rel=1e-2)
        assert np.isnan(off(torch.nan, 70, batch))


@pytest.mark.parametrize(("by", "said"), [(2e-4, "2.0e-04"), (torch.nan, "nan")])
def test_a_graph_that_differs_is_refused_and_nothing_is_left(
    by, said, model, call, tmp_path, monkeypatch
):
    def off(program, subset, path):
        path.write_bytes(b"a graph")
        return lambda *inputs: [estimate + by for estimate in subset(*inputs)]

    monkeypatch.setattr(graphs, "_traced", lambda *_: None)
    monkeypatch.setattr(graphs, "_to_pt2", off)
    code, _, err = call("export", model, "--to", "torch-export", "--out", tmp_path / "out")
    assert code == 2
    assert err == (f"error: bricks-0-1-2.pt2 differs from the model by {said}; 0.0001 is allowed\n")
    assert list(tmp_path.iterdir()) == []


def test_what_torch_cannot_trace_is_one_line(model, call, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("\nthe first reason\nand much more")

    monkeypatch.setattr(torch.export, "export", fail)
    code, _, err = call("export", model, "--to", "onnx", "--out", tmp_path / "out")
    assert (code, err) == (
        2,
        "error: bricks-0-1-2.onnx: torch cannot export these bricks: the first reason\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_what_a_plan_runs(model, call, tmp_path, monkeypatch):
    made = []

    def fake(pipe, method, canvas, kind, folder, show):
        assert {tensor.dtype for tensor in pipe.stack.state_dict().values()} == {torch.float32}
        made.append((method, canvas, kind))
        (folder / "sampling.json").write_text("{}")
        chosen = graphs.subsets(method, pipe.sampling)
        return [Graph(graphs.file_name(bricks, kind), bricks, 1e-7) for bricks in chosen]

    monkeypatch.setattr(graph_folder, "write_graphs", fake)
    words = ("export", model, "--to", "onnx", "--out", tmp_path / "out", "--steps", 6)
    code, out, err = call(*words, "--skip", 0.5, "--guidance", 1.5, "--size", "24x16")
    assert (code, err) == (0, "")
    assert "bricks-0-1.onnx: largest difference from the model 1.0e-07" in out
    method, canvas, kind = made[0]
    pipe = LegoPipeline.from_pretrained(model)
    assert method == Method(pipe.paper_plan(0.5, 6), 6, guidance=1.5)
    assert (canvas, kind) == ((24, 16), "onnx")
    assert call(*words, "--budget", 0.7, "--overwrite")[0] == 0
    assert made[1][0] == pipe.within(Method(SkipPlan.full(3), 6), 0.7)
    pipe.stack.bfloat16()
    pipe.save_pretrained(tmp_path / "halves")
    words = ("export", tmp_path / "halves", "--to", "torch-export", "--out", tmp_path / "from")
    assert call(*words)[0] == 0


def test_mistakes_are_one_line(model, call, tmp_path, monkeypatch):
    def fails(*words, out="out", to="onnx"):
        code, shown, err = call("export", model, "--to", to, "--out", tmp_path / out, *words)
        assert (code, err.count("\n")) == (2, 1), shown
        assert not (tmp_path / "out").exists()
        return err

    assert "--to pickle: choose from torch-export, onnx, " in fails(to="pickle")
    assert "--layout is for --to state-dict, not onnx" in fails("--layout", "dit")
    wrong = fails("--guidance-interval", "1,2", to="diffusers")
    assert "--guidance-interval is for --to torch-export and onnx, not diffusers" in wrong
    assert "8 must divide both sides" in fails("--size", "20x20")
    assert "give --skip or --budget, not both" in fails("--skip", 0.5, "--budget", 0.5)
    assert "unknown sampler" in fails("--sampler", "none")
    assert "holds no raw.safetensors" in fails("--weights", "raw")
    monkeypatch.setattr(graphs, "MOST", 1)
    assert "runs 2 sets of bricks, and each becomes a graph; at most 1" in fails("--skip", 0.5)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    assert "is a file; it must be a folder" in fails(out="file")
    (tmp_path / "x.png").write_text("mine")
    for to in ("state-dict", "diffusers", "torch-export"):
        assert "a file is in the way" in fails(out="x.png", to=to)
    assert (tmp_path / "x.png").read_text() == "mine"
    monkeypatch.setattr(sys.modules["legodiff.cli.export"], "_bytes", lambda _: 10**18)
    assert "MB are to be written" in fails()


@pytest.mark.parametrize(
    ("to", "package", "extra"), [("onnx", "onnxscript", "export"), ("diffusers",) * 2 + ("latent",)]
)
def test_a_missing_package_names_its_extra(to, package, extra, model, call, tmp_path, monkeypatch):
    find = formats.import_module

    def missing(name):
        if name == package:
            raise ImportError(name)
        return find(name)

    monkeypatch.setattr(formats, "import_module", missing)
    code, _, err = call("export", model, "--to", to, "--out", tmp_path / "out")
    assert code == 2
    assert f"needs {package}, which is not installed; run: pip install 'legodiff[{extra}]'" in err
    assert not (tmp_path / "out").exists()
