import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import fake_hub

from legodiff.evaluate import assets
from legodiff.evaluate.assets import ALEX_HEADS, ASSETS, INCEPTION, VGG_HEADS, Asset, find

ONE_LINE = r"^[^\n]*{}[^\n]*$"
CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KNOWN = Asset("a network", "net.pth", SHA256, "https://example.org/net.pth", also=("other.pth",))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home, and no folder named elsewhere."""
    for name in ("LEGODIFF_ASSETS", "LEGODIFF_CACHE", "TORCH_HOME", "TORCH_HUB", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def write(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_folders_are_looked_through_in_their_order(home, tmp_path, monkeypatch):
    """Each is found, until there is one before it."""
    hub = write(home / ".cache/torch/hub/checkpoints/net.pth")
    assert find(KNOWN) == assets.Found(hub, SHA256, True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(ValueError, match="a network is missing"):
        find(KNOWN)
    hub = write(tmp_path / "torch/hub/checkpoints/other.pth")
    assert find(KNOWN).path == hub
    cache = write(home / ".cache/legodiff/net.pth")
    assert find(KNOWN).path == cache
    monkeypatch.setenv("LEGODIFF_CACHE", str(tmp_path / "cache"))
    assert find(KNOWN).path == hub
    cache = write(tmp_path / "cache/net.pth")
    assert find(KNOWN).path == cache
    monkeypatch.setenv("LEGODIFF_ASSETS", str(tmp_path / "assets"))
    assert find(KNOWN).path == cache
    chosen = write(tmp_path / "assets/other.pth")
    assert find(KNOWN).path == chosen


def test_what_is_missing_is_one_line_that_says_what_to_do(home, tmp_path, monkeypatch):
    line = (
        f"a network is missing: put {KNOWN.url} .sha256 {SHA256}. at {home}/.cache/legodiff/net.pth"
    )
    with pytest.raises(ValueError, match=ONE_LINE.format(line)):
        find(KNOWN)
    monkeypatch.setenv("LEGODIFF_ASSETS", str(tmp_path / "assets"))
    with pytest.raises(ValueError, match=ONE_LINE.format(f"at {tmp_path}/assets/net.pth, or name")):
        find(KNOWN)


def test_what_was_found_is_the_known_file_or_refused(home):
    path = write(home / ".cache/legodiff/net.pth", CONTENT[:-1])
    with pytest.raises(
        ValueError, match=ONE_LINE.format(f"{path} is not a network: its sha256 is")
    ):
        find(KNOWN)
    given = find(KNOWN, path)
    assert (given.path, given.genuine) == (path, False)
    assert given.sha256 == hashlib.sha256(CONTENT[:-1]).hexdigest()


def test_a_file_that_is_given_wins(home, tmp_path):
    write(home / ".cache/legodiff/net.pth")
    given = write(tmp_path / "mine.pth")
    for path in (given, str(given), "mine.pth"):
        assert find(KNOWN, path) == assets.Found(Path(path), SHA256, True)


@pytest.mark.parametrize(
    "name", ["missing.pth", "a/missing.pth", "a/b/missing.pth", "home", "a/b.safetensors"]
)
def test_what_is_no_file_is_one_line(name, home):
    home.mkdir()
    with pytest.raises(
        ValueError, match=ONE_LINE.format(f"^{name} is neither a file nor one of the")
    ):
        find(KNOWN, name)


def test_a_file_of_the_hub_may_be_named(tmp_path, monkeypatch):
    with fake_hub(tmp_path, monkeypatch) as server:
        content = b"other weights"
        commit = server.commit("a/far", {"in/net.safetensors": content, "more.json": b"{}"})
        found = find(KNOWN, "a/far/in/net.safetensors")
        assert found.path.read_bytes() == content
        assert (found.sha256, found.genuine) == (hashlib.sha256(content).hexdigest(), False)
        assert server.fetched() == ["in/net.safetensors"]
        assert find(KNOWN, f"a/far@{commit}/in/net.safetensors") == found
        with pytest.raises(ValueError, match=r"a/far at commit .* holds no other\.safetensors"):
            find(KNOWN, "a/far/other.safetensors")


def test_a_hub_that_does_not_answer_is_one_line():
    line = "^no folder owner/absent, and the Hub did not give it: [^\n]+$"
    with pytest.raises(ValueError, match=line):
        find(KNOWN, "owner/absent/x.safetensors")


def test_packages_that_bring_a_file_are_not_imported(tmp_path, monkeypatch):
    brought = write(tmp_path / "site/bringer/in/net.pth")
    write(tmp_path / "site/bringer/__init__.py", b"raise SystemExit('this must not run')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    asset = replace(KNOWN, inside=(("absent", "net.pth"), ("bringer", "in/net.pth")))
    assert find(asset) == assets.Found(brought, SHA256, True)
    assert "bringer" not in sys.modules


@pytest.mark.parametrize("heads", [ALEX_HEADS, VGG_HEADS])
def test_torchmetrics_brings_the_heads_of_lpips(heads):
    pytest.importorskip("torchmetrics")
    assert find(heads).genuine


def test_the_table():
    assert len({asset.sha256 for asset in ASSETS}) == len({asset.file for asset in ASSETS}) == 5
    for asset in ASSETS:
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.url.startswith("https://")
        assert asset.url.endswith(f"/{asset.file}")
        start = asset.file.removesuffix(".pth").rpartition("-")[2]  # the hub puts it into names
        assert asset.sha256.startswith(start) or asset in (ALEX_HEADS, VGG_HEADS)
    assert INCEPTION.also == ("weights-inception-2015-12-05-6726825d.pth",)
