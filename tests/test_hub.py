"""Models that come from the Hub, through the client that users have, from a Hub on this machine."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import awaken
from fake_hub import TOKEN, fake_hub
from huggingface_hub import constants, hf_hub_download
from test_interop import save_diffusers

from legodiff import LegoPipeline, LegoStack, hub, preset, store
from legodiff.codec import PixelCodec
from legodiff.config import load_config
from legodiff.train.finetune import adopt

ONE_LINE = r"^[^\n]*{}[^\n]*$"
NEEDED = ["config.json", "model.safetensors"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    with fake_hub(tmp_path / "cache", monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A folder with the same stack and other weights."""
    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(1)
    stack = awaken(LegoStack(preset("tiny-pr-16", channels=1, classes=10)), seed=1).eval()
    LegoPipeline(stack, PixelCodec((0.0,))).save_pretrained(folder)
    return folder


def drawn(pipe):
    return np.asarray(pipe(labels=1, seeds=3, steps=2).images[0]).astype(int)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_model_comes_with_its_commit_and_hash_and_nothing_else(server, model):
    files = bytes_of(model)
    unsafe = {"raw.bin": b"x", "model.pkl": b"x", "README.md": b"x", "samples.png": b"x"}
    others = {"extra.safetensors": b"x", "notes.json": b"{}", "sub/config.json": b"{}"}
    commit = server.commit("org/name", files | unsafe | others)
    pipe = LegoPipeline.from_pretrained("org/name")
    assert server.fetched() == NEEDED
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert pipe.origin == hub.Origin("org/name", commit, digest)
    local = LegoPipeline.from_pretrained(model)
    assert local.origin is None
    assert pipe.fingerprint == local.fingerprint  # wherever it comes from
    assert np.array_equal(drawn(pipe), drawn(local))


def test_plans_come_along(server, model):
    server.commit("org/name", bytes_of(model) | {"plans.json": b'{"curves": []}'})
    LegoPipeline.from_pretrained("org/name")
    assert server.fetched() == [*NEEDED, "plans.json"]


def test_a_commit_stays_what_it_is_and_needs_no_network_twice(server, model, other):
    first = server.upload("org/name", Path(model))
    before = drawn(LegoPipeline.from_pretrained("org/name", revision=first))
    second = server.upload("org/name", other)
    server.asked.clear()
    for name, revision in (("org/name", first), (f"org/name@{first}", None)):
        pipe = LegoPipeline.from_pretrained(name, revision=revision)
        assert pipe.origin.commit == first
        assert np.array_equal(drawn(pipe), before)
    assert not server.asked
    moved = LegoPipeline.from_pretrained("org/name")  # what main means is asked each time
    assert moved.origin.commit == second
    assert np.abs(drawn(moved) - before).max() > 1


@pytest.mark.parametrize("revision", ["try", "v1.0", "refs/pr/1"])
def test_branches_and_tags(server, model, other, revision):
    server.upload("org/name", Path(model))
    commit = server.upload("org/name", other, branch=revision)
    assert LegoPipeline.from_pretrained(f"org/name@{revision}").origin.commit == commit
    assert LegoPipeline.from_pretrained("org/name", revision=revision).origin.commit == commit


def test_a_bare_stack_from_the_hub(server, model, other):
    first = server.upload("org/name", Path(model))
    server.upload("org/name", other)
    loaded = LegoStack.from_pretrained("org/name", revision=first).state_dict()
    expected = LegoStack.from_pretrained(model).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_without_a_network_the_cache_will_do(server, model, monkeypatch):
    commit = server.upload("org/name", Path(model))
    expected = drawn(LegoPipeline.from_pretrained("org/name"))
    server.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("org/name", "org/name@main", f"org/name@{commit}"):
        assert np.array_equal(drawn(LegoPipeline.from_pretrained(name)), expected)
    assert not server.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.down = True
    assert np.array_equal(drawn(LegoPipeline.from_pretrained("org/name")), expected)


def test_what_was_fetched_in_part_is_completed(server, monkeypatch):
    """Of a commit, where no file is needed and several are wanted."""
    commit = server.commit("some/vae", {"config.json": b"{}", "model.safetensors": b"x"})
    name, wanted = f"some/vae@{commit}", ["config.json", "model*.safetensors"]
    hf_hub_download("some/vae", "config.json", revision=commit)  # leaves no list of what there is
    folder = store.locate(name, needed=(), wanted=wanted)
    assert sorted(path.name for path in folder.iterdir()) == NEEDED
    server.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert store.locate(name, needed=(), wanted=wanted) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.down = True
    assert store.locate(name, needed=(), wanted=wanted) == folder


def test_what_the_cache_lacks_is_named_at_once(server, model, monkeypatch):
    server.upload("org/name", Path(model))
    store.locate("org/name", needed=["config.json"])
    server.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = r"org/name, .* HF_HUB_OFFLINE is set \(not in the cache: model\.safetensors\)"
    with pytest.raises(ValueError, match=ONE_LINE.format(line)):
        LegoPipeline.from_pretrained("org/name")
    line = r"a/b, .* HF_HUB_OFFLINE is set \(not in the cache: config\.json, model\.safetensors\)"
    with pytest.raises(ValueError, match=ONE_LINE.format(line)):
        LegoPipeline.from_pretrained("a/b")
    assert not server.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.down = True
    with pytest.raises(ValueError, match=ONE_LINE.format("the Hub did not give it: .*503")):
        LegoPipeline.from_pretrained("a/b")
    assert len(server.asked) == 1  # no retries, which take half a minute


@pytest.mark.parametrize("missing", NEEDED)
def test_a_missing_file_is_named_and_nothing_is_fetched(server, model, missing):
    files = bytes_of(model)
    del files[missing]
    commit = server.commit("org/name", files)
    line = f"org/name at commit {commit} holds no {missing}"
    with pytest.raises(ValueError, match=ONE_LINE.format(line)):
        LegoPipeline.from_pretrained("org/name")
    assert not server.fetched()


def test_repositories_and_revisions_that_are_not_there(server, model, monkeypatch):
    server.upload("org/name", Path(model), private=False)
    server.upload("org/secret", Path(model), private=True)
    for name, reason in {
        "org/absent": "there is none, or it is private and needs hf auth login",
        "org/secret": "there is none, or it is private and needs hf auth login",
        "org/name@absent": "no folder org/name@absent, .* no such branch, tag or commit",
        f"org/name@{'0' * 40}": "no such branch, tag or commit",
    }.items():
        with pytest.raises(ValueError, match=ONE_LINE.format(reason)):
            LegoPipeline.from_pretrained(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    LegoPipeline.from_pretrained("org/secret")


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("../model", None, "neither a folder nor a Hub id"),
        ("org/name@", None, "neither a folder nor a Hub id"),
        ("org/name@../../x", None, "neither a folder nor a Hub id"),
        ("org/name", "../../x", "'../../x' is no branch, tag or commit"),
        ("org/name", "a/../../x", "'a/../../x' is no branch, tag or commit"),
        ("org/name@a/../x", None, "'a/../x' is no branch, tag or commit"),
        ("org/name@main", "main", "org/name@main names a revision already"),
    ],
)
def test_names_that_are_none_reach_no_network(server, name, revision, message):
    with pytest.raises(ValueError, match=ONE_LINE.format(message)):
        LegoPipeline.from_pretrained(name, revision=revision)
    assert not server.asked


def test_a_folder_has_no_revision(model):
    with pytest.raises(ValueError, match=ONE_LINE.format("is a folder; a revision is for Hub ids")):
        LegoPipeline.from_pretrained(model, revision="main")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", r"config\.json is not JSON"),
        ("config.json", b"[" * 100_000, r"config\.json is not JSON"),
        ("config.json", b"\xff\xfe", r"config\.json is not JSON"),
        ("config.json", b'{"format": "legodiff-1", "stack": {"width": 1e99}}', "stack"),
        ("model.safetensors", b"\x80\x04cos\nsystem\n", "not a whole safetensors file"),
        ("model.safetensors", (2**60).to_bytes(8, "little") + b"{}", "not a whole safetensors"),
        ("model.safetensors", b"", "not a whole safetensors file"),
        ("plans.json", b"[]", r"plans\.json cannot be read"),
    ],
)
def test_hostile_files_are_one_line(server, model, file, content, message):
    server.commit("org/name", bytes_of(model) | {file: content})
    with pytest.raises(ValueError, match=ONE_LINE.format(message)):
        LegoPipeline.from_pretrained("org/name")


def test_a_huge_configuration_is_not_fetched(server, model):
    server.upload("org/name", Path(model))
    server.sizes["config.json"] = hub.LARGEST_JSON + 1
    with pytest.raises(ValueError, match=ONE_LINE.format(r"config\.json is too large to be meant")):
        LegoPipeline.from_pretrained("org/name")
    assert not server.fetched()


@pytest.mark.parametrize("name", ["../../../evil.json", "/evil.json", "sub/../../evil.json"])
def test_names_that_lead_out_are_not_fetched(server, model, name, tmp_path):
    server.commit("org/name", bytes_of(model) | {name: b"{}"})
    with pytest.raises(ValueError, match=ONE_LINE.format("lies outside of it")):
        store.locate("org/name", needed=(), wanted=["*.json"])
    assert not server.fetched()
    assert not list(tmp_path.rglob("evil.json"))
    LegoPipeline.from_pretrained("org/name")  # which asks for its own files by name


def test_the_origin_is_kept_and_old_folders_have_none(server, model, tmp_path):
    commit = server.upload("org/name", Path(model))
    pipe = LegoPipeline.from_pretrained("org/name")
    pipe.save_pretrained(tmp_path / "kept")
    again = LegoPipeline.from_pretrained(tmp_path / "kept")
    assert again.origin == pipe.origin
    assert again.fingerprint == pipe.fingerprint
    assert "origin" not in json.loads((Path(model) / "config.json").read_text())
    config = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert config["origin"]["commit"] == commit
    for broken in ({"commit": "main"}, {"repo": "../x"}, {"sha256": "\x1b[2J"}, {"more": 1}):
        text = json.dumps(config | {"origin": config["origin"] | broken})
        (tmp_path / "kept" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=ONE_LINE.format("origin")):
            LegoPipeline.from_pretrained(tmp_path / "kept")


def test_info_fetches_no_weights_and_says_where_a_model_is_from(server, model, call, tmp_path):
    commit = server.upload("org/name", Path(model))
    code, out, _ = call("info", "org/name")
    assert code == 0
    assert server.fetched() == ["config.json"]
    assert out.count(commit) == 3  # what it is, and two ways to pin it
    assert f'from_pretrained("org/name", revision="{commit}")' in out
    pinned = call("info", f"org/name@{commit}")[1]
    assert pinned == out.split("\n", 1)[1]
    pipe = LegoPipeline.from_pretrained("org/name")
    pipe.save_pretrained(tmp_path / "kept")
    out = call("info", tmp_path / "kept")[1]
    assert f"downloaded from org/name@{commit}, sha256 {pipe.origin.sha256}" in out


def test_commands_take_a_revision_and_tell_the_commit_once(server, model, call, tmp_path):
    commit = server.upload("org/name", Path(model))
    words = ("--seeds", "0", "--labels", "zero", "--steps", 1, "--out")
    for name, told in (("org/name", 1), ("org/name@main", 1), (f"org/name@{commit}", 0)):
        code, out, _ = call("sample", name, *words, tmp_path / "drawn")
        assert code == 0
        assert out.count("is at commit") == told
    pixels = (tmp_path / "drawn" / "000000.png").read_bytes()
    assert call("sample", model, *words, tmp_path / "local")[0] == 0
    assert (tmp_path / "local" / "000000.png").read_bytes() == pixels
    wide = ("canvas", f"org/name@{commit}", "--size", "16x32", "--labels", "1", "--steps", 1)
    assert call(*wide, "--out", tmp_path / "wide.png")[0] == 0


def test_a_base_from_the_hub(server, model):
    commit = server.upload("org/name", Path(model))
    base = f"org/name@{commit}"
    bricks = "model.bricks=[{size: 4, local: 2, depth: 1}]"
    config = load_config("digits", [f"model.base={base}", bricks])
    assert server.fetched() == ["config.json"]  # the weights when they are needed
    assert config.train.init == base
    network = LegoStack(config.model.spec(channels=1, classes=10))
    names = LegoPipeline.from_pretrained(model).class_names
    taken = adopt(network, names, Path(config.train.init))
    assert not taken.unused
    theirs = LegoStack.from_pretrained(model).state_dict()
    ours = network.state_dict()
    assert all(torch.equal(ours[f"bricks.0.network.{k}"], v) for k, v in theirs.items())


def test_a_model_of_diffusers_comes_without_what_could_be_run(server, call, tmp_path):
    save_diffusers(tmp_path / "theirs")
    for name in ("unet/model.py", "unet/diffusion_pytorch_model.bin"):
        (tmp_path / "theirs" / name).write_bytes(b"unsafe")
    commit = server.upload("google/ddpm-v1.5", tmp_path / "theirs", branch="v2")
    code, out, err = call("import", "google/ddpm-v1.5@v2", tmp_path / "ours")
    assert (code, f"is at commit {commit};" in out) == (0, True), err
    assert all(name.endswith((".safetensors", ".json")) for name in server.fetched())
    assert call("import", tmp_path / "theirs", tmp_path / "local")[0] == 0
    weights = [store.sha256(tmp_path / at / "model.safetensors") for at in ("ours", "local")]
    assert weights[0] == weights[1]
    assert "is not a file" in call("import", "runs/absent.pkl", tmp_path / "x")[2]
