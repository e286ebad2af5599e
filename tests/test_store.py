import ast
import json
import os
from pathlib import Path

import pytest
import torch

from legodiff import LegoPipeline, LegoStack, hub, preset, store
from legodiff.store import locate, read_config, read_weights, write_atomically, write_weights


def test_weights_survive(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(2, dtype=torch.int64)}
    write_weights(tmp_path / "new" / "w.safetensors", tensors)
    read = read_weights(tmp_path / "new" / "w.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_follow_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04cos\nsystem\n", b"\xff" * 100])
def test_other_files_are_not_weights(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*not a whole safetensors file[^\n]*$"):
        read_weights(path)


def test_cut_off_weights_are_refused(tmp_path):
    LegoStack(preset("tiny-pr-16")).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        LegoStack.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has format None"),
        ('{"format": "other"}', "has format 'other'; this version reads"),
        ('{"format": "legodiff-1"}', "has format"),
        ('{"format": "legodiff-1", "stack": {}}', "missing"),
        ('{"format": "legodiff-1", "stack": 3}', "."),
    ],
)
def test_other_files_are_not_configurations(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    for load in (LegoStack.from_pretrained, LegoPipeline.from_pretrained):
        with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
            load(tmp_path)


def test_an_absurd_size_is_refused_before_anything_is_allocated(tmp_path):
    stack = LegoStack(preset("tiny-pr-16"))
    stack.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["stack"] |= {"width": 2**14, "heads": 2**6}  # 200 GB of weights
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit"):
        LegoStack.from_pretrained(tmp_path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        read_config(tmp_path)
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        read_weights(tmp_path / "model.safetensors")
    for name in (str(tmp_path / "absent"), "absent", "a/b/c"):
        with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
            locate(name)


def test_a_hub_that_does_not_answer_is_one_line():
    with pytest.raises(
        ValueError, match=r"^no folder owner/absent, and the Hub did not give it: [^\n]+$"
    ):
        locate("owner/absent")


def test_json_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    LegoStack(preset("tiny-pr-16")).save_pretrained(tmp_path)
    read_config(tmp_path)
    monkeypatch.setattr(hub, "LARGEST_JSON", (tmp_path / "config.json").stat().st_size - 1)
    with pytest.raises(ValueError, match=r"^[^\n]*config\.json is too large to be meant[^\n]*$"):
        read_config(tmp_path)


def test_nothing_in_the_package_reads_pickles():
    """Not by import, not by torch.load, not by np.load without saying so; and nothing is run."""
    for path in Path(store.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                unsafe = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib"}
                assert not {name.split(".")[0] for name in names} & unsafe, path
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in ("torch.load", "eval", "exec"), path
                if call in ("np.load", "numpy.load"):
                    assert "allow_pickle=False" in ast.unparse(node), path


def test_a_file_in_the_way_of_a_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("nothing")
    for name in ("mine", "link"):
        line = rf"^[^\n]*{name} cannot be a folder: a file is in the way; choose another name$"
        with pytest.raises(ValueError, match=line), store.whole_folder(tmp_path / name):
            pytest.fail("nothing is to be written")
    assert (tmp_path / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "above" / "out"

    def write(name, then=None):
        with store.whole_folder(path) as new:
            (new / name).write_text(name)
            assert not (path / name).exists()
            if then is not None:
                raise then

    write("a")
    assert [file.name for file in path.iterdir()] == ["a"]
    with pytest.raises(OSError, match="disk full"):
        write("b", OSError("disk full"))
    assert [file.name for file in path.iterdir()] == ["a"]
    write("b")
    assert [file.name for file in path.iterdir()] == ["b"]
    assert [file.name for file in path.parent.iterdir()] == ["out"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o777 & ~umask
