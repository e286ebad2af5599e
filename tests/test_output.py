import json
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import ended, free_port
from test_pipeline import pipeline

from legodiff import SkipPlan, output
from legodiff.diffusion.samplers import heun
from legodiff.output import Order, follow, join_parts, read_images, write_folder, write_parts
from legodiff.sampling import Method
from legodiff.train.distributed import World, joined

METHOD = Method(SkipPlan.full(3), 2)


def order(count=7, batch=3, **changes):
    seeds, labels = (
        list(range(10, 10 + count)),
        [n % 4 if n % 4 < 3 else None for n in range(count)],
    )
    made = Order(pipeline(), METHOD, seeds, labels, (16, 16), batch)
    return replace(made, **changes)


def expected(made):
    samples = made.pipe.render(made.method, made.labels, made.seeds, made.size, len(made.seeds))
    return np.stack([np.asarray(image) for image in samples.images]).astype(int)


def written(out, made):
    return np.stack([np.asarray(image) for image in read_images(out, made, 99)]).astype(int)


def silent(*_):
    pass


def test_a_folder_has_an_image_for_each_seed_and_how_it_was_made(tmp_path):
    made, told = order(), []
    count, seconds = write_folder(made, tmp_path, False, World(), lambda *to: told.append(to))
    assert count == 7
    assert seconds > 0
    assert told[-1] == (7, 7)
    assert np.abs(written(tmp_path, made) - expected(made)).max() <= 1
    with Image.open(tmp_path / "000013.png") as image:
        about = image.text
    assert (about["seed"], about["label"], about["class"]) == ("13", "null", "null")
    assert about["sampler"] == "heun"
    assert json.loads(about["plan"]) == METHOD.plan.to_dict()
    assert json.loads(about["size"]) == [16, 16]


def test_a_range_of_churn_without_end_is_null_beside_an_image(tmp_path):
    """JSON has no infinity."""
    method = replace(METHOD, options={"churn": 1.0, "s_max": float("inf")})
    write_folder(order(count=1, method=method), tmp_path, False, World(), silent)
    with Image.open(tmp_path / "000010.png") as image:
        assert json.loads(image.text["options"]) == {"churn": 1.0, "s_max": None}


def test_a_stopped_call_goes_on(tmp_path, monkeypatch):
    made, drawn = order(), []
    write_folder(order(4), tmp_path, False, World(), silent)
    (tmp_path / "000011.png").unlink()
    draw = Order.draw
    monkeypatch.setattr(
        Order, "draw", lambda self, at, show: drawn.extend(at) or draw(self, at, show)
    )
    assert write_folder(made, tmp_path, False, World(), silent)[0] == 4
    assert drawn == [1, 4, 5, 6]
    assert np.abs(written(tmp_path, made) - expected(made)).max() <= 1
    assert write_folder(made, tmp_path, False, World(), silent) == (0, 0.0)


def test_images_made_in_another_way_are_not_touched_unasked(tmp_path):
    write_folder(order(), tmp_path, False, World(), silent)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = order(9, method=replace(METHOD, steps=3))
    with pytest.raises(ValueError, match=r"000010\.png exists already, and was made in another"):
        write_folder(other, tmp_path, False, World(), silent)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "000018.png").write_bytes(b"no image")
    write_folder(other, tmp_path, True, World(), silent)
    assert np.abs(written(tmp_path, other) - expected(other)).max() <= 1


def test_an_npz_is_what_adm_reads(tmp_path):
    made, out = order(), tmp_path / "deep" / "all.npz"
    write_parts(made, out, False, World(), silent)
    join_parts(made, out)
    with np.load(out, allow_pickle=False) as data:
        assert data["arr_0"].dtype == np.uint8
        assert data["arr_0"].shape == (7, 16, 16, 3)
        assert data["arr_1"].tolist() == [0, 1, 2, -1, 0, 1, 2]
        grey = expected(made)[..., None].repeat(3, axis=-1)
        assert np.abs(data["arr_0"].astype(int) - grey).max() <= 1
        assert np.array_equal(written(out, made), data["arr_0"])
    assert [path.name for path in out.parent.iterdir()] == ["all.npz"]
    with pytest.raises(ValueError, match=r"all\.npz exists already; add --overwrite"):
        write_parts(made, out, False, World(), silent)
    write_parts(made, out, True, World(), silent)
    join_parts(made, out)


def test_a_stopped_npz_goes_on_and_other_settings_do_not_mix(tmp_path, monkeypatch):
    made, out, drawn = order(), tmp_path / "all.npz", []
    draw = Order.draw

    def stop(self, at, show):
        if drawn:
            raise KeyboardInterrupt
        drawn.extend(at)
        return draw(self, at, show)

    monkeypatch.setattr(Order, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        write_parts(made, out, False, World(), silent)
    assert not out.exists()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="holds a part of other images"):
        write_parts(order(8), out, False, World(), silent)
    assert write_parts(made, out, False, World(), silent)[0] == 4
    join_parts(made, out)
    grey = expected(made)[..., None].repeat(3, axis=-1)
    assert np.abs(written(out, made) - grey).max() <= 1


def test_no_space_leaves_no_half_npz(tmp_path, monkeypatch):
    made, out = order(), tmp_path / "all.npz"
    write_parts(made, out, False, World(), silent)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.npy, "write_array", full)
    with pytest.raises(OSError, match="No space left"):
        join_parts(made, out)
    assert [path.name for path in tmp_path.iterdir()] == ["all.npz.parts"]
    monkeypatch.undo()
    join_parts(made, out)
    assert [path.name for path in tmp_path.iterdir()] == ["all.npz"]


def one_of_two(rank, port, write, out):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined(torch.device("cpu")) as world:
        made = order()
        count, _ = write(made, out, False, world, silent)
        assert sum(world.gather(count)) == 7
        assert 0 < count < 7
        if world.leads and out.suffix == ".npz":
            join_parts(made, out)


@pytest.mark.parametrize(("write", "name"), [(write_folder, "all"), (write_parts, "all.npz")])
def test_two_processes_share_the_seeds(tmp_path, write, name):
    fork, port = multiprocessing.get_context("fork"), free_port()
    children = [
        fork.Process(target=one_of_two, args=(rank, port, write, tmp_path / name))
        for rank in range(2)
    ]
    for child in children:
        child.start()
    assert ended(children) == [0, 0]
    made = order()
    drawn = written(tmp_path / name, made)
    grey = expected(made) if name == "all" else expected(made)[..., None].repeat(3, axis=-1)
    assert np.abs(drawn - grey).max() <= 1


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_following_shows_the_estimates_of_the_bricks_that_ran(guidance):
    plan = SkipPlan(((0.0, (0, 1, 2)), (1.0, (0, 2))))
    made = order(labels=[1] * 7, method=replace(METHOD, steps=4, plan=plan, guidance=guidance))
    rows, frames = follow(made, silent, images=3)
    assert list(rows) == ["0: image brick", "1: 8x8 brick", "2: 4x4 brick"]
    levels = list(dict.fromkeys(made.method.levels(made.pipe.sampling)))
    assert list(rows["2: 4x4 brick"]) == levels
    assert [image is None for image in rows["1: 8x8 brick"].values()] == [s >= 1 for s in levels]
    assert len(frames) == len(levels)
    assert all(len(frame) == 3 for frame in frames)
    # At the first level the state is the noise, so the estimate can be had directly.
    noise = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(10))[None]
    first = levels[0]
    with torch.no_grad():
        both = made.pipe.stack.estimates(
            noise * first, torch.tensor([first]), torch.tensor([1]), (0, 2)
        )
    for name, estimate in zip(("0: image brick", "2: 4x4 brick"), both, strict=True):
        pixels = made.pipe.codec.decode(estimate)[0, 0].numpy().astype(int)
        assert np.abs(np.asarray(rows[name][first]).astype(int) - pixels).max() <= 1


def test_fresh_noise_belongs_to_the_seed_too():
    pipe = pipeline()
    method = replace(METHOD, steps=6, options={"churn": 6.0})
    whole = pipe.render(method, 1, [3, 4, 5], batch=3)
    alone = pipe.render(method, 1, [4], batch=1)
    gap = np.asarray(alone.images[0]).astype(int) - np.asarray(whole.images[1])
    assert np.abs(gap).max() <= 1
    calm = pipe.render(replace(METHOD, steps=6), 1, [4])
    assert np.abs(np.asarray(calm.images[0]).astype(int) - np.asarray(alone.images[0])).max() > 1
    generator = torch.Generator().manual_seed(4)
    draws = [torch.randn(1, 16, 16, generator=generator)[None] for _ in range(7)]
    noise = draws.pop(0)
    with torch.no_grad():
        drawn = heun(
            pipe.denoise,
            noise,
            pipe.sampling.sigmas(6),
            torch.tensor([1]),
            churn=6.0,
            draw=lambda: draws.pop(0),
        )
    pixels = pipe.codec.decode(drawn)[0, 0].numpy().astype(int)
    assert np.abs(pixels - np.asarray(alone.images[0])).max() <= 1
