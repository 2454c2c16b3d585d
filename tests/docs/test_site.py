"""The pages make a site in strict mode, and each page has its sections in one order, results last."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAPERS = [
    "drt",
    "crat",
    "ragtrans",
    "deeprag",
    "longdpo",
    "maths",
    "miniplm",
    "warmup_distill",
    "extralonger",
    "punchbench",
]
ORDER = ["Usage", "Method", "Settings", "Departures from the paper", "Results"]
"""The sections of a paper's page; Method may be missing where the departures say it all."""
WITH_RESULTS = [page for page in sorted(DOCS.rglob("*.md")) if "\n## Results\n" in page.read_text(encoding="utf-8")]
FOREIGN = re.compile(r"""<(?:script|link|img|iframe)[^>]+?(?:src|href)=["']?(?:https?:)?//[^"'> ]+""")
SOURCE_LINK = re.compile(r"""href="(?!https?:)[^"]+\.(?:md|ipynb)["#]""")
"""A link to the source of a page, where its HTML is meant."""


def sections(page: Path) -> list[str]:
    """The headings of a page's second level."""
    return re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_has_its_sections_in_order(paper: str) -> None:
    names = sections(DOCS / f"{paper}.md")
    assert names in (ORDER, [name for name in ORDER if name != "Method"])


@pytest.mark.parametrize("page", WITH_RESULTS, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_results_are_the_last_section(page: Path) -> None:
    names = sections(page)
    assert names[-1] == "Results" and names.count("Results") == 1
    assert [name for name in names if name in ORDER] == [name for name in ORDER if name in names]


def test_every_page_with_usage_says_it_first() -> None:
    late = [page.name for page in DOCS.glob("*.md") if "Usage" in sections(page) and sections(page)[0] != "Usage"]
    assert not late


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="the extra docs is not installed")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # the notebooks too
    texts = [page.read_text(encoding="utf-8") for page in pages]
    assert not {hit for text in texts for hit in FOREIGN.findall(text)}
    assert not {hit for text in texts for hit in SOURCE_LINK.findall(text)}
    api = (tmp_path / "site" / "api" / "core.html").read_text(encoding="utf-8")
    assert all(f'id="agentsys.{name}"' in api for name in ("roles.Role", "systems.System", "traces.read_traces"))
