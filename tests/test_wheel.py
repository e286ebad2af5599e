"""The wheel holds all that is needed: installed beside nothing of ours, it works."""

import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import legodiff

ROOT = Path(__file__).parents[1]


def run(*words, cwd):
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=ROOT)
    (found,) = out.glob("*.whl")
    return found


def test_it_holds_the_package_and_nothing_else(wheel):
    assert wheel.name == f"legodiff-{legodiff.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {path for path in (ROOT / "src").rglob("*") if path.is_file()}
    expected = {
        path.relative_to(ROOT / "src").as_posix()
        for path in ours
        if "__pycache__" not in path.parts
    }
    packed = {name for name in names if not name.startswith(f"legodiff-{legodiff.__version__}")}
    assert packed == expected
    assert any(name.endswith("recipes/digits.yaml") for name in packed)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_works_in_an_environment_of_its_own(wheel, tmp_path):
    """What it depends on is borrowed from here; of ours there is only the wheel."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    home = Path(run(python, "-c", script, cwd=tmp_path).strip())
    zipfile.ZipFile(wheel).extractall(home)
    (home / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    out = run(python, "-c", "import legodiff; print(legodiff.__file__)", cwd=tmp_path)
    assert Path(out.strip()).is_relative_to(home)
    assert run(python, "-m", "legodiff", "--version", cwd=tmp_path).strip() == legodiff.__version__
    words = ("--set", "train.images=64", "--set", "model.preset=tiny-pr-16")
    run(python, "-m", "legodiff", "train", "digits", "--run", "run", *words, cwd=tmp_path)
    run(python, "-m", "legodiff", "sample", "run", "--steps", 2, "--out", "drawn", cwd=tmp_path)
    assert len(list((tmp_path / "drawn").glob("0*.png"))) == 10


def test_every_extra_is_in_the_table():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "README.md").read_text(), re.M)
    table = re.findall(r"`(\w+)`", "\n".join(rows))
    assert set(extras) <= set(table)


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {legodiff.__version__}\n" in citation
    assert f"\n## {legodiff.__version__}" in (ROOT / "CHANGELOG.md").read_text()
