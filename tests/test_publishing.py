"""Models that go to the Hub: what is uploaded, what is not, and that it comes back the same."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import awaken
from fake_hub import TOKEN, fake_hub
from huggingface_hub import constants
from PIL import Image

from legodiff import LegoPipeline, LegoStack, SkipPlan, preset, publishing, store
from legodiff.codec import LatentCodec, PixelCodec
from legodiff.config import load_config
from legodiff.plans import Curve, Point
from legodiff.publishing import without_paths
from legodiff.sampling import Method
from legodiff.vae import VaeSpec

ONE_LINE = r"^[^\n]*{}[^\n]*$"
FULL = Method(SkipPlan.full(3), 4)
HALF = replace(FULL, steps=2)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with fake_hub(tmp_path / "cache", monkeypatch) as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def run_of(**data):
    config = load_config("digits").model_dump(mode="json") | {"dataset_images": 1500}
    return config | {"data": config["data"] | data}


def pipeline(run=None, codec=None, channels=1):
    torch.manual_seed(0)
    stack = awaken(LegoStack(preset("tiny-pr-16", channels=channels, classes=3))).eval()
    names = ("ant", "bee", "/m/0cow")
    return LegoPipeline(stack, codec or PixelCodec((0.0,)), names, label_dropout=0.1, run=run)


def with_plans(pipe, model=None):
    """The pipeline with a made-up trade-off of two points."""
    points = tuple(
        Point(method, method.flops(pipe.sampling, pipe.stack.spec, (16, 16)), error)
        for method, error in ((HALF, 0.5), (FULL, 0.0))
    )
    curve = Curve(model or pipe.fingerprint, points[1], 8, "x86_64 cpu", points)
    pipe.curves = (*pipe.curves, curve)
    return pipe


def few(pipe):
    return pipe(labels=[0, 1], seeds=[0, 1], steps=1)


def opened(folder, pipe):
    pipe.save_pretrained(folder)
    return LegoPipeline.from_pretrained(folder)


def written(pipe, folder, **how):
    publishing.write_folder(pipe, folder, "org/name", **how)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_pushed_comes_back_and_draws_the_same(server):
    pipe = with_plans(pipeline(run_of()))
    pushed = pipe.push_to_hub("org/name", commit_message="The first one", samples=few(pipe))
    assert server.repos["org/name"]["private"]
    assert server.repos["org/name"]["message"] == "The first one"
    assert [path for _, path in server.asked if "/commit/" in path] == [
        "/api/models/org/name/commit/main"
    ]
    assert sorted(server.files("org/name")) == [
        *(".gitattributes", "README.md", "config.json", "model.safetensors"),
        *("plans-1.png", "plans.json", "samples.png"),
    ]
    assert pushed.url.endswith(f"/org/name/commit/{pushed.commit}")
    back = LegoPipeline.from_pretrained("org/name", revision=pushed.commit)
    assert server.fetched() == ["config.json", "model.safetensors", "plans.json"]
    assert back.origin.commit == pushed.commit
    assert back.to_dict() == pipe.to_dict() | {"origin": back.to_dict()["origin"]}
    for how in ({"steps": 3}, {"steps": 4, "budget": 0.6}):
        images = [p(labels="bee", seeds=5, **how).images[0] for p in (pipe, back)]
        assert images[0].tobytes() == images[1].tobytes()
    assert back(labels=0, steps=4, budget=0.6).method == HALF  # the plans are for it


def test_a_second_push_replaces_ours_and_leaves_the_users_files(server):
    pipe = with_plans(pipeline())
    pipe.push_to_hub("org/name", private=False, samples=few(pipe))
    assert not server.repos["org/name"]["private"]
    own = {"notes.txt": b"mine", "plans.txt": b"mine"}
    server.commit("org/name", server.files("org/name") | own)
    pipe.curves = ()
    pipe.push_to_hub("org/name", samples=few(pipe))
    assert sorted(server.files("org/name")) == [
        *(".gitattributes", "README.md", "config.json", "model.safetensors"),
        *("notes.txt", "plans.txt", "samples.png"),
    ]


def test_a_branch_is_made_and_main_stays(server):
    pipe = pipeline()
    pipe.push_to_hub("org/name", samples=few(pipe))
    before = server.repos["org/name"]["refs"]["main"]
    pipe.class_names = ("x", "y", "z")
    pushed = pipe.push_to_hub("org/name", revision="try", samples=few(pipe))
    assert server.repos["org/name"]["refs"] == {"main": before, "try": pushed.commit}
    assert LegoPipeline.from_pretrained("org/name@try").class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"revision": "0" * 40}, "0000 is a commit; name a branch"),
        ({"license": "Apache 2\nx: y"}, "name it as the Hub does, such as apache-2.0"),
        ({"hub_id": "name"}, "name is no name to upload to; write owner/name"),
        ({"hub_id": "org/name@main", "revision": "main"}, "names a revision already"),
    ],
)
def test_what_cannot_be_pushed_is_one_line_before_anything_is_drawn(
    server, monkeypatch, how, message
):
    monkeypatch.setattr(publishing, "examples", None)
    with pytest.raises(ValueError, match=ONE_LINE.format(message)):
        pipeline().push_to_hub(**{"hub_id": "org/name"} | how)
    assert not server.asked


def test_without_a_token_or_a_network_one_line_says_what_to_do(server, monkeypatch, model, call):
    monkeypatch.setattr(publishing, "examples", None)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=ONE_LINE.format("hf auth login, or set HF_TOKEN")):
        pipeline().push_to_hub("org/name")
    code, _, err = call("push", model, "org/name")
    assert (code, err.count("\n")) == (2, 1)
    assert "hf auth login" in err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=ONE_LINE.format("HF_HUB_OFFLINE is set")):
        pipeline().push_to_hub("org/name")
    assert not server.asked


def test_a_hub_that_refuses_is_one_line(server, monkeypatch):
    pipe = pipeline()
    samples = few(pipe)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(ValueError, match=ONE_LINE.format("org/name was not uploaded: .*401")):
        pipe.push_to_hub("org/name", samples=samples)
    assert not server.repos


def test_nothing_of_this_machine_leaves_it(tmp_path):
    """Not the folders of data, VAE and base, nor what lies beside the model or in its metadata."""
    home = tmp_path / "secret-home" / "me"
    secret = str(home / "private-project")
    run = run_of(path=f"{secret}/my photos", vae=f"{secret}\\vae")
    run["train"]["init"] = f"{secret}/base-run"
    run["model"]["note"] = f"made of {secret}/crops.zip, quickly"
    codec = LatentCodec(VaeSpec(3, 4, name=f"{secret}/my-vae", sha256="ab" * 32), (0.0,) * 3, 1.0)
    pipe = pipeline(run, codec, channels=3)
    folder = home / "runs" / "mine"
    pipe.save_pretrained(folder)
    about = {"images": "640", "weights": "ema", "from": secret}
    store.write_weights(folder / "model.safetensors", pipe.stack.state_dict(), about)
    record = {"name": "FD", "value": 1.5, "spread": None, "images": {"path": f"{secret}/x.npz"}}
    record |= {"reference": f"of {secret}/ref.npz (file://{secret}/y)", "paths": [f"~/{secret}/z"]}
    (folder / "metrics.json").write_text(json.dumps([record]))
    for name in ("log.jsonl", "raw.safetensors", "checkpoints/1/x.safetensors", "samples/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(secret)
    files = written(with_plans(LegoPipeline.from_pretrained(folder)), tmp_path / "out")
    assert sorted(files) == [
        *("README.md", "config.json", "model.safetensors", "plans-1.png", "plans.json"),
    ]
    for name, data in files.items():
        for part in ("secret-home", "private-project", str(tmp_path), "/me/"):
            assert part.encode() not in data, (name, part)
    config = json.loads(files["config.json"])
    assert (config["run"]["data"]["path"], config["run"]["data"]["vae"]) == ("my photos", "vae")
    assert config["run"]["train"]["init"] == "base-run"
    assert config["run"]["model"]["note"] == "made of crops.zip, quickly"
    assert config["codec"]["vae"]["name"] == "my-vae"
    assert config["class_names"] == ["ant", "bee", "/m/0cow"]
    assert store.read_about(tmp_path / "out" / "model.safetensors") == {
        **{"format": "pt", "images": "640", "weights": "ema"},
    }


@pytest.mark.parametrize(
    ("key", "text", "kept"),
    [
        ("path", "/home/me/photos", "photos"),
        ("path", "/home/me/photos/", "photos"),
        ("path", "C:\\Users\\me\\photos", "photos"),
        ("path", "\\\\server\\share\\photos.zip", "photos.zip"),
        ("path", "../home/photos", "photos"),
        ("path", "~/photos", "photos"),
        ("path", "~me/photos", "photos"),
        ("path", "work/photos", "photos"),
        ("path", "work/" + 5000 * "a", 5000 * "a"),
        ("path", "hf:owner/name/train", "hf:owner/name/train"),
        ("path", "hf:/home/me/set", "set"),
        ("path", "digits", "digits"),
        ("init", "owner/name@main", "owner/name@main"),
        ("init", "work/runs/base", "base"),
        ("name", "stabilityai/sd-vae-ft-ema", "stabilityai/sd-vae-ft-ema"),
        ("note", "half and/or 3/4 of https://x.org/a/b, 1 / 2", None),
        ("note", "see /home/me/a.npz and ~/b.npz; (D:/c)", "see a.npz and b.npz; (c)"),
        ("note", "path=/home/me/a of ~me/b", "path=a of b"),
        ("note", "~50 images/s", None),
    ],
)
def test_of_a_place_the_last_part_is_kept(key, text, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert without_paths({key: text, "number": 1}) == {key: kept or text, "number": 1}
    assert without_paths({"in": [{key: text}]}) == {"in": [{key: kept or text}]}
    assert without_paths({"class_names": [text]}) == {"class_names": [text]}


def test_a_folder_that_looks_like_a_name_on_the_hub_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert without_paths({"init": "work/base"}) == {"init": "work/base"}
    (tmp_path / "work" / "base").mkdir(parents=True)
    assert without_paths({"init": "work/base"}) == {"init": "base"}


def test_plans_go_along_if_they_are_of_these_weights(tmp_path):
    stranger = with_plans(pipeline(), model="another one")
    assert stranger.predicted(HALF) is None
    with pytest.raises(ValueError, match=ONE_LINE.format("plans are for the model another one")):
        stranger.curve(FULL)
    pipe = with_plans(pipeline(run_of(path="/home/me/digits")))
    assert pipe.predicted(HALF).error == 0.5
    written(with_plans(pipe, model="another one"), tmp_path / "out")
    back = LegoPipeline.from_pretrained(tmp_path / "out")
    assert back.fingerprint != pipe.fingerprint  # its data lie elsewhere
    assert len(back.curves) == 1
    assert replace(back.curve(FULL), model="") == replace(pipe.curve(FULL), model="")


def record_of(model, **more):
    about = {"kind": "model", "model": model, "steps": 18}
    return {"name": "FD-digits-2k(all)", "value": 1.23456, "spread": 0.1, "images": about, **more}


def test_metrics_are_shown_if_they_are_of_these_weights(tmp_path):
    pipe = opened(tmp_path / "model", pipeline())
    others = record_of("0123456789ab", name="FD-of-others")
    found = record_of(None, name="FD-found", images={"made": {"model": "0123456789ab"}})
    nameless = {"name": "recall", "value": 0.5}
    records = [record_of(pipe.fingerprint), others, found, nameless]
    (tmp_path / "model" / "metrics.json").write_text(json.dumps(records))
    card = written(pipe, tmp_path / "out")["README.md"].decode()
    assert "| FD-digits-2k(all) | 1.2346 | 0.1 |  |" in card
    assert "FD-digits-2k(all): images: kind model, steps 18." in card
    assert "| recall | 0.5 |  |  |" in card
    assert "FD-of-others" not in card
    assert "FD-found" not in card
    next(pipe.stack.parameters()).data += 1  # it is another model now
    card = written(pipe, tmp_path / "changed")["README.md"].decode()
    assert "Nothing was measured" in card
    assert "recall" not in card
    (tmp_path / "model" / "metrics.json").write_text('{"FID": 2}')
    with pytest.raises(ValueError, match=ONE_LINE.format(r"metrics\.json holds no metrics")):
        written(opened(tmp_path / "model", pipeline()), tmp_path / "broken")


def test_the_images_seen_are_those_of_these_weights(tmp_path):
    pipe = pipeline(run_of())
    pipe.save_pretrained(tmp_path / "run")
    about = {"weights": "raw", "images": "640"}
    other = {name: 2 * tensor for name, tensor in pipe.stack.state_dict().items()}
    store.write_weights(tmp_path / "run" / "raw.safetensors", other, about)
    seen = {"weights": "ema", "images": "320"}
    store.write_weights(tmp_path / "run" / "model.safetensors", pipe.stack.state_dict(), seen)
    average = LegoPipeline.from_pretrained(tmp_path / "run")
    assert "| images seen | 320 |" in written(average, tmp_path / "a")["README.md"].decode()
    raw = LegoPipeline.from_pretrained(tmp_path / "run", weights="raw")
    card = written(raw, tmp_path / "b")["README.md"].decode()
    assert "| images seen |" not in card
    assert "How many images were seen is not recorded." in card


def test_the_picture_shows_what_the_card_says(tmp_path):
    pipe = pipeline()
    samples = few(pipe)
    written(pipe, tmp_path / "out", samples=samples)
    picture = Image.open(tmp_path / "out" / "samples.png")
    first = np.asarray(picture)[:48:3, :48:3]
    assert np.array_equal(first[..., 0], np.asarray(samples.images[0]))
    assert json.loads(picture.text["seeds"]) == [0, 1]
    back = LegoPipeline.from_pretrained(tmp_path / "out")
    assert picture.text["model"] == back.fingerprint
    with pytest.raises(ValueError, match=ONE_LINE.format("is not an empty folder")):
        written(pipe, tmp_path / "out")


def test_latents_without_their_vae_have_no_picture(tmp_path):
    vae = VaeSpec(3, 4, name="some/vae", sha256="ab" * 32)
    pipe = pipeline(codec=LatentCodec(vae, (0.0,) * 3, 1.0), channels=3)
    assert publishing.examples(pipe) is None
    card = written(pipe, tmp_path / "out")["README.md"].decode()
    assert "samples.png" not in card
    assert f"some/vae, sha256 `{'ab' * 32}`" in card
    assert "64x64 pixels, as latents of 16x16x3" in card


def test_the_card_says_how_to_use_the_model(server, tmp_path, monkeypatch, call):
    """Its Python runs, and its command."""
    pipe = pipeline()
    pipe.push_to_hub("org/name", samples=few(pipe))
    card = server.files("org/name")["README.md"].decode()
    monkeypatch.chdir(tmp_path)
    (python,) = re.findall(r"```python\n(.*?)```", card, re.S)
    exec(compile(python, "<card>", "exec"), {})
    image = pipe(labels=[0], seeds=[0]).images[0]
    assert np.array_equal(np.asarray(Image.open("image.png")), np.asarray(image))
    (command,) = re.findall(r"```sh\nlegodiff (.*?)\n```", card, re.S)
    assert call(*command.replace("0-15", "0-1").split(), "--steps", 1)[0] == 0
    assert len(list(Path("samples").glob("0*.png"))) == 2


def test_push_from_the_command_line(server, model, call, tmp_path, monkeypatch):
    words = ("push", model, "org/name", "--license", "cc-by-4.0", "--steps", 1, "--guidance", 1.5)
    code, out, _ = call(*words, "--dry-run", tmp_path / "card")
    assert code == 0
    assert not server.asked
    names = ["README.md", "config.json", "model.safetensors", "samples.png"]
    assert sorted(path.name for path in (tmp_path / "card").iterdir()) == names
    assert all(f"{tmp_path / 'card' / name}: " in out for name in names)
    card = (tmp_path / "card" / "README.md").read_text()
    assert "1 steps, guidance 1.5" in card
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    code, out, _ = call(*words, "--public", "--revision", "try", "--message", "Hello")
    assert code == 0
    assert not server.repos["org/name"]["private"]
    assert server.repos["org/name"]["message"] == "Hello"
    commit = server.repos["org/name"]["refs"]["try"]
    assert f"legodiff sample org/name@{commit} " in out
    there = server.files("org/name", "try")
    dry = {path.name: path.read_bytes() for path in (tmp_path / "card").iterdir()}
    assert {name: there[name] for name in names} == dry
    assert call(*words, "--dry-run", tmp_path / "card")[0] == 2
    monkeypatch.setattr(publishing, "examples", None)
    assert call("push", model, "name", "--dry-run", tmp_path / "other")[0] == 2
