import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from vaes import Pictures, make_vae

from legodiff.codec import LatentCodec
from legodiff.data.encode import encode
from legodiff.data.latents import open_latents
from legodiff.vae import open_vae

ONE_LINE = r"^[^\n]*{}[^\n]*$"


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return open_vae(make_vae(tmp_path_factory.mktemp("vae")))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def begin(vae, out, count=10, **options):
    return encode(Pictures(count), vae, out, **{"batch": 2, "shard_size": 3} | options)


def test_the_latents_are_the_posterior_of_each_image(vae, tmp_path):
    data = Pictures(7)
    report = encode(data, vae, tmp_path, batch=2, shard_size=3)
    latents = open_latents(tmp_path)
    assert (len(latents), latents.channels, latents.size) == (7, 4, (4, 6))
    assert latents.class_names == ("a", "b", "c")
    assert latents.identity == vae.spec
    for index in range(7):
        image, label = data.read(index)
        pixels = torch.from_numpy(image)[None].float() / 127.5 - 1
        with torch.no_grad():
            posterior = vae.network.encode(pixels).latent_dist
        mean, std = (latents._moments(index)[part] for part in (0, 1))
        assert np.allclose(mean, posterior.mean[0], atol=2e-3, rtol=1e-3)
        assert np.allclose(std, posterior.std[0], atol=2e-3, rtol=1e-3)
        assert latents.read(index)[1] == label
    assert report.images == 7


def test_one_process_two_processes_and_a_killed_one_write_the_same_bytes(vae, tmp_path):
    report = begin(vae, tmp_path / "one")
    whole = contents(tmp_path / "one")
    assert len(whole) == 5  # 4 shards and the manifest

    first = begin(vae, tmp_path / "two", rank=1, world=2)
    assert (first.images, first.deviation) == (4, None)
    with pytest.raises(ValueError, match=ONE_LINE.format("not finished: 2 of 4 shards; run the")):
        open_latents(tmp_path / "two")
    second = begin(vae, tmp_path / "two", rank=0, world=2)
    assert (second.images, second.deviation) == (6, report.deviation)
    assert contents(tmp_path / "two") == whole

    told = []

    def die(done, total):
        told.append((done, total))
        if done == 5:  # within the second shard
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin(vae, tmp_path / "killed", on_progress=die)
    assert told == [(2, 10), (3, 10), (5, 10)]
    left = contents(tmp_path / "killed")
    assert sorted(left) == ["latents-00000.safetensors", "manifest.json"]
    told.clear()
    again = begin(vae, tmp_path / "killed", on_progress=lambda *now: told.append(now))
    assert (again.images, told[0]) == (7, (5, 10))
    assert contents(tmp_path / "killed") == whole
    assert begin(vae, tmp_path / "killed").images == 0
    assert contents(tmp_path / "killed") == whole


def test_reading_processes_change_nothing(vae, tmp_path):
    for workers in (0, 2):
        encode(Pictures(broken={1}), vae, tmp_path / str(workers), batch=2, workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_a_broken_shard_is_encoded_again(vae, tmp_path):
    begin(vae, tmp_path)
    whole = contents(tmp_path)
    for name, wrong in {
        "latents-00001.safetensors": whole["latents-00001.safetensors"][:-1],
        "latents-00002.safetensors": whole["latents-00003.safetensors"],  # of fewer latents
    }.items():
        (tmp_path / name).write_bytes(wrong)
    with pytest.raises(ValueError, match="not finished: 2 of 4 shards"):
        open_latents(tmp_path)
    assert begin(vae, tmp_path).images == 6
    assert contents(tmp_path) == whole


def test_an_image_that_cannot_be_read_is_replaced_told_and_listed(vae, tmp_path):
    told = []
    data = Pictures(7, broken={2, 3, 6})
    report = encode(
        data, vae, tmp_path, shard_size=4, on_unreadable=lambda name, why: told.append((name, why))
    )
    broken = [(f"{n}.png", "cut short") for n in (2, 3, 6)]
    assert told == report.unreadable == broken
    latents = open_latents(tmp_path)
    stands_in = {2: 4, 3: 4, 6: 0}
    for index in range(7):
        latent, label = latents.read(index)
        assert label == stands_in.get(index, index) % 3
        assert np.allclose(latent, latents.read(stands_in.get(index, index))[0], atol=2e-3)
    listed = []
    for number in (0, 1):
        with safe_open(tmp_path / f"latents-0000{number}.safetensors", "numpy") as file:
            listed += json.loads(file.metadata()["unreadable"])
    assert [tuple(item) for item in listed] == broken


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_stops_at_the_first_unreadable_image(vae, tmp_path, workers):
    data = Pictures(broken={5})
    with pytest.raises(ValueError, match=r"^5\.png: cut short$"):
        encode(data, vae, tmp_path, batch=2, shard_size=3, strict=True, workers=workers)
    assert len(contents(tmp_path)) == 2  # the shard before it, and the manifest


def test_no_readable_image_is_an_error(vae, tmp_path):
    with pytest.raises(ValueError, match=r"not one image can be read; the first is 0\.png: cut"):
        encode(Pictures(3, broken={0, 1, 2}), vae, tmp_path)


def test_grey_images_are_repeated(vae, tmp_path):
    grey = Pictures(2, channels=1)
    colour = Pictures(2)
    colour.images = grey.images.repeat(3, axis=1)
    for name, data in {"grey": grey, "colour": colour}.items():
        encode(data, vae, tmp_path / name)
    assert contents(tmp_path / "grey") == contents(tmp_path / "colour")


def test_statistics_bring_the_data_to_sigma_data(vae, tmp_path):
    report = begin(vae, tmp_path)
    latents = open_latents(tmp_path)
    mean, std = latents.statistics()
    recorded = json.loads((tmp_path / "manifest.json").read_text())
    assert (recorded["mean"], recorded["std"]) == (list(mean), list(std))

    rng = np.random.default_rng(0)
    drawn = np.stack([latents.read(n, rng)[0] for _ in range(60) for n in range(10)])
    assert drawn.mean(axis=(0, 2, 3)) == pytest.approx(mean, abs=0.03)
    assert drawn.std(axis=(0, 2, 3)) == pytest.approx(std, rel=0.03)
    assert report.deviation == pytest.approx([0.5 * value for value in std])

    codec = LatentCodec.fit(latents.vae, mean, std, 0.4)
    model = codec.encode(torch.from_numpy(drawn))
    assert model.mean(dim=(0, 2, 3)).abs().max() < 0.02
    assert model.std().item() == pytest.approx(0.4, rel=0.02)


def test_it_warns_of_latents_that_are_not_about_one(vae, tmp_path):
    report = begin(vae, tmp_path / "a")
    scale = 1 / max(report.deviation) * vae.spec.scale
    fits = replace(vae, spec=replace(vae.spec, scale=scale))
    channels = [n for n, value in enumerate(report.deviation) if not 0.7 <= value <= 1.4]
    assert channels  # of a random VAE
    assert f"in channel {channels[0]}" in report.warning
    assert "0.5 the scaling factor of the VAE" in report.warning
    report = begin(fits, tmp_path / "b")
    assert max(report.deviation) == pytest.approx(1, rel=1e-4)
    assert (report.warning is None) == (min(report.deviation) >= 0.7)


def test_bfloat16_is_close(vae, tmp_path):
    for precision in ("fp32", "bf16"):
        begin(vae, tmp_path / precision, precision=precision)
    exact, rough = (open_latents(tmp_path / name) for name in ("fp32", "bf16"))
    difference = np.abs(exact.read(0)[0] - rough.read(0)[0]).max()
    assert 0 < difference < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 11}, "begun with number of images 10, and this is 11"),
        ({"shard_size": 4}, "begun with shard size 3, and this is 4"),
        ({"crop": "squeeze"}, "begun with crop centre, and this is squeeze"),
    ],
)
def test_a_folder_begun_otherwise_is_left_alone(vae, tmp_path, options, message):
    begin(vae, tmp_path, rank=0, world=2)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=ONE_LINE.format(message)):
        begin(vae, tmp_path, **options)
    assert contents(tmp_path) == before


def test_other_sizes_and_classes_and_stray_shards_are_refused(vae, tmp_path):
    begin(vae, tmp_path, rank=0, world=2)
    with pytest.raises(ValueError, match="image size 16x24, and this is 16x16"):
        encode(Pictures(size=(16, 16)), vae, tmp_path, shard_size=3)
    with pytest.raises(ValueError, match=r"classes 3 \(a, b, c\), and this is 0 \(\)"):
        encode(Pictures(classes=0), vae, tmp_path, shard_size=3)
    (tmp_path / "manifest.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"shards without a manifest\.json; choose another"):
        begin(vae, tmp_path)
    assert contents(tmp_path) == before


def test_another_vae_is_refused_and_a_moved_one_is_not(vae, tmp_path):
    begin(vae, tmp_path / "out", rank=0, world=2)
    before = contents(tmp_path / "out")
    other = open_vae(make_vae(tmp_path / "other", seed=1))
    names = f"{vae.spec.sha256[:12]}.*{tmp_path / 'other'} .{other.spec.sha256[:12]}"
    with pytest.raises(ValueError, match=ONE_LINE.format(names)):
        begin(other, tmp_path / "out")
    rescaled = replace(vae, spec=replace(vae.spec, scale=0.6))
    with pytest.raises(ValueError, match=r"of scale 0\.5 .*of scale 0\.6"):
        begin(rescaled, tmp_path / "out")
    assert contents(tmp_path / "out") == before

    shutil.copytree(vae.spec.name, tmp_path / "moved")
    begin(open_vae(tmp_path / "moved"), tmp_path / "out")
    assert open_latents(tmp_path / "out").identity.name == vae.spec.name


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (Pictures(size=(16, 18)), {}, "16x18 pixels .* both sides must be divisible by 4"),
        (Pictures(0), {}, "no images"),
        (Pictures(channels=4), {}, r"images of 4 channels, and the VAE .* takes 3"),
        (Pictures(), {"batch": 0}, "batch is 0"),
        (Pictures(), {"shard_size": 0}, "shard_size cannot be 0"),
        (Pictures(), {"rank": 2, "world": 2}, "rank is 2 of 2; it must be from 0 to 1"),
        (Pictures(), {"precision": "float16"}, "'float16'; choose from fp32, bf16"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(vae, tmp_path, data, options, message):
    with pytest.raises(ValueError, match=ONE_LINE.format(message)):
        encode(data, vae, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_vae_that_gives_nonsense_is_found_out(vae, tmp_path):
    broken = open_vae(vae.spec.name)
    next(broken.network.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite; is it whole"):
        begin(broken, tmp_path)
