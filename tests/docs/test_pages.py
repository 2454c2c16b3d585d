"""The code in README and docs runs as it stands, but for the model: a script takes the place of the embedded one."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
RULES = [
    {"role": "keywords", "replies": ['{"keywords": [{"word": "a", "translation": "一"}]}']},
    {"role": "evaluator", "key": "evaluate/0", "replies": ['{"reason": "stiff", "score": 50}']},
    {"role": "evaluator", "replies": ['{"reason": "better", "score": 60}']},
    {"role": "narrator", "replies": ["I begin.\n\nFirst ⟦1⟧.\n\nIt is stiff.\n\nThen ⟦2⟧"]},
    {"role": "draft", "replies": ["一个译文"]},
    {"role": "refiner", "replies": ["另一个译文"]},
    {"role": "candidate", "replies": ["另一个译文"]},
    {"replies": ["some words"]},
]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated_cache: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "replies.jsonl"
    script.write_text("\n".join(json.dumps(rule) for rule in RULES))
    spec = f"scripted:{script}"
    scope: dict[str, Any] = {}
    for block in page.read_text(encoding="utf-8").split("```python\n")[1:]:
        code = block.split("```")[0].replace('"embedded"', repr(spec)).replace("Context(max", f"Context({spec!r}, max")
        running = eval(compile(code, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True), scope)
        if running is not None:
            asyncio.run(running)
    if "collect(" in page.read_text(encoding="utf-8"):
        summary = scope["summary"]
        assert summary.kept + summary.dropped == 1 and summary.failed == 0
    if page.name == "README.md":
        assert scope["result"]["stop"] == "2 drafts" and scope["result"]["thought"]


def test_the_readme_opens_with_the_two_commands() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").split("```sh\n")[1].split("```")[0]
    assert first.splitlines() == [
        "pip install -e '.[local,weights]' && python graphs/drt_collect.py",
        "pip install -e '.[test]' && pytest",
    ]


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
        assert not anchor or anchor in anchors_of(page.parent / link), f"{link}#{anchor}"
    for named in re.findall(r"`((?:agentsys|graphs|prompts|tests|docs|benchmarks|trainers)/[\w./]+)`", text):
        assert (ROOT / named).exists(), named
