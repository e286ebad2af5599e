import json
from functools import partial

import pytest
from small_runs import CODEC, Bars, config, quiet

from legodiff import store
from legodiff.config import FREE
from legodiff.model.compiled import compile_blocks
from legodiff.train.checkpoint import list_checkpoints
from legodiff.train.loop import train


def start(folder, *changes, data=None, **options):
    said = []
    train(config(*changes), data or Bars(), CODEC, folder, say=said.append, **options)
    return said


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FREELY = {
    **{"train.micro_batch": 4, "train.recompute": "true", "train.parallel": "fsdp"},
    **{"train.workers": 1, "train.checkpoint_images": 16, "train.keep": 1},
    **{"train.picture_images": 96, "train.log": "[]", "train.images": 64},
    **{"train.compile": "true", "train.most_bad_steps": 3},
    **{"data.path": "x", "data.strict": "true", "data.vae": "null"},
    **{"train.learning_rate": 1e-4, "train.clip": 0.5, "train.precision": "bf16"},
}


def test_what_does_not_change_the_steps_may_differ(tmp_path, monkeypatch):
    quick = partial(compile_blocks, backend="aot_eager")  # the real one takes a minute
    monkeypatch.setattr("legodiff.train.learner.compile_blocks", quick)
    assert FREELY.keys() == set(FREE)
    start(tmp_path, "train.images=32", "train.decay_to=1")
    changes = [f"{name}={value}" for name, value in FREELY.items()]
    said = start(tmp_path, "train.decay_to=1", *changes, resume=True)
    (line,) = [line for line in said if line.startswith("going on with another")]
    assert "train.images" in line
    assert "train.workers" in line
    for name in ("learning_rate", "clip", "precision"):
        assert f"train.{name}" in line
    assert store.read_config(tmp_path)["run"]["train"]["images"] == 64
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [64]


@pytest.mark.parametrize(
    "change",
    ["train.batch=8", "train.seed=1", "model.width=64", "train.fill=zero", "data.flip=true"],
)
def test_what_changes_the_steps_may_not(tmp_path, change):
    start(tmp_path)
    before = files(tmp_path)
    name = change.split("=")[0].split(".")[1]
    with pytest.raises(ValueError, match=rf"^[^\n]* was begun with another [^\n]*{name}"):
        start(tmp_path, change, resume=True)
    assert files(tmp_path) == before


def test_other_data_may_not_either(tmp_path):
    class More(Bars):
        def __len__(self):
            return 41

    start(tmp_path)
    with pytest.raises(ValueError, match=r"begun with another run\.dataset_images$"):
        start(tmp_path, data=More(), resume=True)


def test_resuming_says_where(tmp_path):
    start(tmp_path, "train.images=64", "train.decay_to=1")
    said = start(tmp_path, "train.images=96", "train.decay_to=1", resume=True)
    assert f"resumed {tmp_path} after 64 images, in epoch 1" in said


def test_a_run_broken_off_before_its_first_checkpoint_is_begun_anew(tmp_path):
    store.write_config(tmp_path, {"stack": {}})
    (tmp_path / "log.jsonl").write_text('{"images": 16, "loss": 9}\n')
    start(tmp_path)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["images"] == 16
    assert json.loads(lines[0])["loss"] != 9


def test_a_model_without_checkpoints_and_a_foreign_config_are_left_alone(tmp_path):
    start(tmp_path / "run")
    for folder in (tmp_path / "model", tmp_path / "foreign"):
        folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_bytes((tmp_path / "run" / name).read_bytes())
    (tmp_path / "foreign" / "config.json").write_text('{"my": "project"}')
    before = files(tmp_path / "model") | files(tmp_path / "foreign")
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds a model and no checkpoint"):
            start(tmp_path / "model", resume=resume)
        with pytest.raises(ValueError, match=r"config\.json has format None"):
            start(tmp_path / "foreign", resume=resume)
    assert files(tmp_path / "model") | files(tmp_path / "foreign") == before


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^[^\n]*cannot be a folder: a file is in the way$"):
        train(config(), Bars(), CODEC, tmp_path / "file" / "run", say=quiet)
