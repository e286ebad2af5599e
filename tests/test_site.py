"""The documentation as a site: built without a warning, and it fetches nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return out


def pages(nav):
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages(value)


def test_every_page_is_in_the_menu():
    known = set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert known == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_site_is_whole_and_fetches_nothing(site):
    names = {path.parent.name for path in site.rglob("index.html")}
    assert {"concepts", "differences", "studio", "reference"} <= names
    for page in site.rglob("*.html"):
        text = page.read_text()
        tags = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*>', text)
        fetched = [one for tag in tags for one in re.findall(r'(?:src|href)="([^"]+)', tag)]
        assert not [one for one in fetched if re.match("https?:|//", one)], page


def test_the_reference_has_what_the_docstrings_say(site):
    text = (site / "reference" / "index.html").read_text()
    for name in ("LegoPipeline", "from_pretrained", "SkipPlan", "preset", "windowed", "dpmpp_2m"):
        assert name in text
    assert "Draws one image for each seed" in text


def test_lists_and_tables_stand_apart_from_the_text_before(site):
    """Without an empty line they would be part of it."""
    for page in site.rglob("index.html"):
        for paragraph in re.findall(r"<p>(.*?)</p>", page.read_text(), re.DOTALL):
            assert not re.search(r"\n(?:[-*] |\d+\. |\|)", paragraph), f"{page}: {paragraph[:200]}"
