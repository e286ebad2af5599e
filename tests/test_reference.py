import numpy as np
import pytest
import torch
from toy_features import toy

from legodiff.evaluate.extract import extract
from legodiff.evaluate.images import Images, open_images
from legodiff.evaluate.reference import open_reference, read_statistics, write_statistics
from legodiff.train.distributed import World

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 8, 8, 3), np.uint8)


def images(count=30):
    pixels = torch.from_numpy(PIXELS).movedim(-1, 1)
    return Images(count, 3, (8, 8), lambda at: pixels[list(at)], {"path": "real", "images": 30})


def extracted(images, network=None):
    network = network or toy(spatial=True)
    return extract(images, network, World(), 8, lambda done, total: None)


@pytest.fixture
def file(tmp_path):
    about = {"name": "train", **images().about}
    write_statistics(tmp_path / "real.npz", extracted(images()), toy(), about, keep=11)
    return tmp_path / "real.npz"


def test_what_is_written_is_read(file):
    found, whole = read_statistics(file, toy()), extracted(images())
    assert found.name == "train"
    assert found.about["path"] == "real"
    for name in ("pool", "spatial"):
        assert torch.equal(getattr(found, name).mean, getattr(whole, name).mean)
        assert torch.equal(getattr(found, name).covariance, getattr(whole, name).covariance)
    assert torch.equal(found.features[[0, -1]], whole.features[[0, -1]])
    assert len(found.features) == 11


def test_it_is_a_file_that_others_read(file):
    """As pytorch-fid does: float64, mu (D,) and sigma (D, D), nothing pickled."""
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["mu"].dtype == arrays["sigma"].dtype == np.float64
        features = extracted(images()).features.double().numpy()
        assert np.allclose(arrays["mu"], features.mean(0))
        assert np.allclose(arrays["sigma"], np.cov(features, rowvar=False))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_others_are_known_by_what_is_in_them(save, tmp_path):
    mean, covariance = np.zeros(16), np.eye(16)
    save(tmp_path / "edm.npz", mu=mean, sigma=covariance)
    save(tmp_path / "adm.npz", mu=mean, sigma=covariance, mu_s=np.zeros(2), sigma_s=np.eye(2))
    plain = read_statistics(tmp_path / "edm.npz", toy(standard=True))
    assert (plain.name, plain.spatial, plain.features) == ("edm", None, None)
    assert plain.about["kind"] == "statistics as of EDM and pytorch-fid"
    adm = read_statistics(tmp_path / "adm.npz", toy(standard=True))
    assert torch.equal(adm.spatial.covariance, torch.eye(2).double())
    assert adm.about["kind"] == "ADM's statistics"
    with pytest.raises(ValueError, match=r"edm\.npz is of FID's Inception .* not of toy"):
        read_statistics(tmp_path / "edm.npz", toy())


def test_adms_file_with_images_gives_features_as_well(tmp_path):
    statistics = {"mu": np.full(16, 7.0), "sigma": np.eye(16), "mu_s": np.ones(2)}
    np.savez(tmp_path / "adm.npz", **statistics, sigma_s=np.eye(2), arr_0=PIXELS)
    found = open_reference(str(tmp_path / "adm.npz"), images(), toy(standard=True), extracted)
    assert torch.equal(found.pool.mean, torch.full((16,), 7.0).double())  # its own, not ours
    assert torch.equal(found.features, extracted(images()).features)
    assert torch.equal(found.images.read([4]), images().read([4]))


def test_data_are_fitted_to_the_images_that_they_are_compared_with():
    small = Images(4, 1, (5, 5), lambda at: torch.zeros(len(at), 1, 5, 5, dtype=torch.uint8), {})
    found = open_reference("digits:held-out", small, toy(), extracted)
    assert found.name == "held-out"
    assert found.about["size"] == [5, 5]
    assert torch.equal(found.features, extracted(open_images("digits:held-out", (5, 5))).features)
    assert open_reference("digits", small, toy(), extracted, "mine").name == "mine"


def test_what_does_not_fit_is_one_line(file, tmp_path):
    other = toy(name="other")
    object.__setattr__(other, "sha256", "7" * 64)
    with pytest.raises(ValueError, match=r"real\.npz is of toy \(5{12}\), not of other \(7{12}\)"):
        read_statistics(file, other)
    standard = toy(standard=True)
    broken = {
        "mu": {"mu": np.zeros((3, 1)), "sigma": np.eye(3)},
        "sigma": {"mu": np.zeros(3), "sigma": np.eye(4)},
        "lone": {"mu": np.zeros(3)},
        "infinite": {"mu": np.full(3, np.inf), "sigma": np.eye(3)},
        "about": {"mu": np.zeros(3), "sigma": np.eye(3), "about": np.zeros(9, np.uint8)},
        "listed": {"mu": np.zeros(3), "sigma": np.eye(3), "about": np.frombuffer(b"[1]", np.uint8)},
    }
    for name, arrays in broken.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=rf"^\S*{name}\.npz[^\n]*$"):
            read_statistics(tmp_path / f"{name}.npz", standard)
