import io
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from legodiff.data import Unreadable, open_data
from legodiff.data.detect import open_source

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

IMAGES = np.random.default_rng(4).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LEGODIFF_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(number):
    out = io.BytesIO()
    Image.fromarray(IMAGES[number]).save(out, "PNG")
    return out.getvalue()


def holds(path, numbers, labels, names):
    data = open_data(str(path), 4)
    assert data.class_names == names
    assert len(data) == len(numbers)
    for i, (number, label) in enumerate(zip(numbers, labels, strict=True)):
        image, found = data.read(i)
        assert np.array_equal(image, IMAGES[number].transpose(2, 0, 1))
        assert found == label


def table(path, column, values, **columns):
    parquet.write_table(pa.table({column: values, **columns}), path)
    return path


def structs(*numbers):
    return [{"bytes": png(number), "path": None} for number in numbers]


def test_structs_and_numbers(tmp_path):
    path = table(tmp_path / "x.parquet", "image", structs(2, 0, 1), label=[1, 0, 3])
    holds(path, [2, 0, 1], [1, 0, 3], ("0", "1", "2", "3"))


def test_raw_bytes_in_an_odd_column_and_no_labels(tmp_path):
    path = table(tmp_path / "x.parquet", "content", [png(1), png(0)], caption=["a", "b"])
    holds(path, [1, 0], [0, 0], ())


def test_the_column_called_image_comes_first(tmp_path):
    path = table(tmp_path / "x.parquet", "depth", [b"-"], img=[png(3)], labels=["cat"])
    holds(path, [3], [0], ("cat",))


def test_folders_and_patterns_of_shards(tmp_path):
    (tmp_path / "data").mkdir()
    table(tmp_path / "data/train-00000-of-00002.parquet", "image", structs(0, 1), label=["b", "a"])
    table(tmp_path / "data/train-00001-of-00002.parquet", "image", structs(2), label=["b"])
    table(tmp_path / "data/test-00000-of-00001.parquet", "image", structs(3), label=["c"])
    holds(tmp_path, [0, 1, 2], [1, 0, 1], ("a", "b"))
    holds(f"{tmp_path}/data/test-*.parquet", [3], [0], ("c",))
    holds(
        f"{tmp_path}/data/train-{{00001,00000}}-of-00002.parquet", [2, 0, 1], [1, 1, 0], ("a", "b")
    )


def features():
    return datasets.Features(
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["x", "y", "z"])}
    )


def dataset(numbers, kinds):
    images = [Image.fromarray(IMAGES[number]) for number in numbers]
    return datasets.Dataset.from_dict({"photo": images, "kind": kinds}, features())


def test_saved_datasets(tmp_path, capfd):
    dataset([0, 1, 2], [2, 0, 0]).save_to_disk(tmp_path / "one")
    capfd.readouterr()
    holds(tmp_path / "one", [0, 1, 2], [2, 0, 0], ("x", "y", "z"))
    assert capfd.readouterr() == ("", "")
    splits = {"train": dataset([3], [1]), "test": dataset([4], [0])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "many")
    holds(tmp_path / "many", [3], [1], ("x", "y", "z"))
    holds(tmp_path / "many/test", [4], [0], ("x", "y", "z"))
    del splits["train"]
    splits["more"] = dataset([5], [0])
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "others")
    with pytest.raises(ValueError, match=r"others has the splits test, more; add one: "):
        open_data(str(tmp_path / "others"), 4)


def test_class_names_of_parquet_by_datasets(tmp_path, capfd):
    dataset([0, 5], [1, 2]).to_parquet(tmp_path / "x.parquet")
    capfd.readouterr()
    holds(tmp_path / "x.parquet", [0, 5], [1, 2], ("x", "y", "z"))
    assert capfd.readouterr() == ("", "")


def test_hidden_labels_mean_none(tmp_path):
    path = table(tmp_path / "x.parquet", "image", structs(0, 1), label=[-1, -1])
    holds(path, [0, 1], [0, 0], ())


def test_images_given_by_path(tmp_path):
    (tmp_path / "a.png").write_bytes(png(2))
    rows = [{"bytes": None, "path": str(tmp_path / "a.png")}, {"bytes": None, "path": "gone.png"}]
    path = table(tmp_path / "x.parquet", "image", rows)
    data = open_data(str(path), 4)
    assert np.array_equal(data.read(0)[0], IMAGES[2].transpose(2, 0, 1))
    with pytest.raises(Unreadable, match=r"x\.parquet row 1: "):
        data.read(1)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": ["a"]}, "1 rows and no column of images among: text"),
        ({"image": structs(0, 1), "label": [[1], [2]]}, r"column label holds \[1\]"),
        ({"image": structs(0, 1), "label": [0.5, 1.0]}, "column label holds 0.5"),
        ({"image": structs(0, 1), "label": [0, None]}, "item 1 has no label"),
    ],
)
def test_wrong_columns_are_one_line(tmp_path, columns, reason):
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"^[^\n]*x\.parquet[^\n]*{reason}[^\n]*$"):
        open_data(str(tmp_path / "x.parquet"), 4)


def test_broken_parquet_is_one_line(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"^[^\n]*x\.parquet cannot be opened: [^\n]+$"):
        open_data(str(tmp_path / "x.parquet"), 4)


@pytest.mark.parametrize(
    ("path", "name", "split"),
    [
        ("hf:mnist", "mnist", None),
        ("hf:mnist/test", "mnist", "test"),
        ("hf:owner/name", "owner/name", None),
        ("hf:owner/name/odd", "owner/name", "odd"),
    ],
)
def test_hub(monkeypatch, path, name, split):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        rows = dataset([1, 0], [2, 1])
        return rows if options["split"] else datasets.DatasetDict(train=rows, test=rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    holds(path, [1, 0], [2, 1], ("x", "y", "z"))
    assert asked == [((name,), {"split": split})]


def test_hub_mistakes_are_one_line(monkeypatch):
    for wrong in ("hf:", "hf:a/b/c/d"):
        with pytest.raises(
            ValueError, match=r"write hf:NAME, hf:OWNER/NAME or hf:OWNER/NAME/SPLIT$"
        ):
            open_data(wrong, 4)

    def offline(*_, **__):
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"^hf:a/b cannot be opened: no network$"):
        open_data("hf:a/b", 4)


def test_missing_package_is_one_line(tmp_path, monkeypatch):
    path = table(tmp_path / "x.parquet", "image", structs(0))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"^[^\n]*run: pip install 'legodiff\[data\]'$"):
        open_data(str(path), 4)


def test_nothing_is_fetched_for_local_files(tmp_path, monkeypatch):
    path = table(tmp_path / "x.parquet", "image", structs(0))

    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert open_source(str(path)).fetch(0) == png(0)
