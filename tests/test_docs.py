"""The pages build as a site, without a network and without a warning."""

import json
import pathlib
import re

import pytest

pytest.importorskip("mkdocs", reason="needs the extra 'docs'")

from mkdocs.commands.build import build
from mkdocs.config import load_config

import lsgd_jax

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))  # strict: a warning is an error
    return folder


def test_every_page_is_there_and_nothing_is_loaded_from_elsewhere(site: pathlib.Path) -> None:
    pages = [path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")]
    assert all((site / page).exists() for page in [*pages, "index.html", "results/index.html"])
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="(https?:[^"]+)"', page.read_text())
        assert not loaded, page.name


def test_the_reference_has_all_public_names_and_search_finds_them(site: pathlib.Path) -> None:
    page = (site / "reference.html").read_text()
    names = set(lsgd_jax.__all__) | set(lsgd_jax.OF_TRAINER)
    headings = set(re.findall(r'<h\d id="lsgd_jax[\w.]*\.(\w+)"', page))
    assert names - headings == {"GROUP", "WORKER"}
    assert not re.search(r"::(<|$)", re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL), re.MULTILINE), "fenced"
    found = json.loads((site / "search/search_index.json").read_text())
    assert any("periodic" in entry["title"] for entry in found["docs"])
