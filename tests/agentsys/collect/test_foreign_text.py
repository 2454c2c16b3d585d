"""Text that is not ours, in what a run prints and in its data card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from agentsys.collect.card import data_card
from agentsys.display import plain
from tests.support.raw_server import RawReply, raw_server
from tests.support.toys import call_drt

HOSTILE = {
    "closing tag": "unexpected token [/INST] in prompt",
    "tags": "[link=http://evil.example]click[/link] [bold]x[/bold]",
    "escape codes": "\x1b]0;owned\x07\x1b[2J\x1b[31mRED",
    "C1 codes": "\x9b2J\x9d0;owned\x9c",
    "bidi": "\u202egnp.exe\u2066",
}
CODES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_servers_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """A refusal of a record is shown as it is, in the table and in the line."""
    (tmp_path / "in.jsonl").write_text('{"text": "like a moon"}\n')
    with raw_server(lambda body: RawReply(400, text.encode())) as url:
        options = ("--model", url, "--input", tmp_path / "in.jsonl", "--out", tmp_path / "run", "--no-cache")
        code, out, err = call_drt(capsys, *options)
    assert code == 3, err
    assert not CODES.search(out + err)
    assert plain(text)[:10] in re.sub(r"[│\s]+", " ", out)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_paths_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    folder = tmp_path / text.replace("/", "_").replace("_INST]", "INST]")
    folder.mkdir()
    (folder / "in.jsonl").write_text('{"text": "like a moon"}\n')
    with raw_server(
        lambda body: RawReply(400, b"no"), lambda: RawReply(body=json.dumps({"data": [{"id": text}]}).encode())
    ) as url:
        code, out, err = call_drt(
            capsys, "--model", url, "--input", folder / "in.jsonl", "--out", folder / "run", "--no-cache"
        )
    assert code == 3, err
    assert not CODES.search(out + err)
    assert "failed.jsonl" in out


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("option", ["--model", "--input", "--config", "--nonsense"])
def test_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, text: str) -> None:
    code, out, err = call_drt(capsys, option, f"{tmp_path}/{text}", "--out", tmp_path / "run")
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not CODES.search(out + err)


# The data card

BREAKERS = [
    "name\n\n# Heading\n\n| a | b |\n|---|---|\n",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "---\nlicense: mit\n---",
    "x\n---\n",
    "x\n===\n",
    "```\ncode\n```",
    "`a` ``b`` <b>",
    "[text](http://evil.example) ![x](http://evil.example/x.png)",
    "http://evil.example/`|`",
    "- item\n1. item\n> quote",
    "&lt;b&gt; &#60;",
    "\\| \\` \\",
    "$x$ {{ a }} {% b %}",
    "\x1b[2J\u202e",
]


def manifest_with(text: str) -> dict[str, Any]:
    """A manifest whose every name and value is the text."""
    model = {"name": text, "revision": text, "sampling": {text: text}}
    role = {"prompt": text, "schema": text, "sampling": {text: text}}
    fingerprint = {"system": text, "models": {text: model}, "roles": {text: role}, "knobs": {text: text, "b": [text]}}
    totals = {"calls": 1, "prompt_tokens": 2, "completion_tokens": 3}
    return {"run": "1f", "fingerprint": fingerprint, "counts": {"kept": 1, "dropped": 0, "failed": 0}, "totals": totals}


def outline(card: str) -> list[str]:
    """The blocks of a Markdown text, and the inline elements that are neither text nor code."""
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card)
    names = [block.type for block in blocks]
    inline = {child.type for block in blocks for child in block.children or ()}
    return [*names, *sorted(inline - {"text", "code_inline", "softbreak"})]


@pytest.mark.parametrize("text", BREAKERS)
def test_a_name_breaks_nothing_in_the_card(text: str) -> None:
    head, tail = "---\nconfigs:\n", "\ntags: [agentsys, synthetic]\n---\n"
    card, simple = data_card(manifest_with(text)), data_card(manifest_with("simple"))
    assert card.startswith(head)
    assert card[: card.index(tail)] == simple[: simple.index(tail)]
    body, simple_body = (text_of.partition(tail)[2] for text_of in (card, simple))
    assert outline(body) == outline(simple_body)
    assert not CODES.search(card)
    assert card.count("\n") == simple.count("\n")


def test_what_is_shown_is_the_text() -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(data_card(manifest_with("a | <b> `c`")))
    cells = [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]
    assert cells.count("a | <b> `c`") >= 5
