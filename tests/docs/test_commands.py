"""The commands of the pages exist, with the options that they are given; the quoted messages are the code's."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from agentsys import cli
from tests.support.paths import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.ipynb"))]
GROUPS = ("collect", "evaluate", "train")


def text_of(page: Path) -> str:
    """The text of a page; of a notebook its Markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def shell_lines(page: Path) -> Iterator[list[str]]:
    """The words of each call of agentsys in the shell blocks of a page, without redirections and comments."""
    for block in re.findall(r"^```sh\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;", line):
                words = shlex.split(part, comments=True)
                if "agentsys" in words and words[0] != "pip":
                    yield words[words.index("agentsys") + 1 :]


@cache
def resolve(words: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """The command that the words name, and the words after it."""
    command: Any = get_command(cli.app)
    while hasattr(command, "resolve_command") and words and not words[0].startswith("-"):
        context = command.context_class(command, info_name="agentsys")
        _, command, rest = command.resolve_command(context, list(words))
        words = tuple(rest)
    return command, words


def options_of(command: Any) -> set[str]:
    return {"--help"}.union(*(({*item.opts, *item.secondary_opts}) for item in command.params))


def shell_calls(page: Path) -> Iterator[tuple[Path, list[str]]]:
    """The calls on a page, except those of a user's folder: one that the page makes with `new`, or an example."""
    calls = list(shell_lines(page))
    own_folders = {"my-paper", "taboo", *(words[1] for words in calls if words[:1] == ["new"])}
    yield from ((page, words) for words in calls if not (words[0] in GROUPS and words[1].strip("/") in own_folders))


CALLS = [call for page in PAGES for call in shell_calls(page)]


@pytest.mark.parametrize(
    ("page", "words"), CALLS, ids=[f"{page.name}: {' '.join(words)[:60]}" for page, words in CALLS]
)
def test_a_command_and_its_options_exist(page: Path, words: list[str]) -> None:
    name = tuple(words[: next((i for i, word in enumerate(words) if word.startswith("-")), len(words))])
    command, arguments = resolve(name)
    assert not hasattr(command, "resolve_command") or not name, f"{' '.join(name)}: which of its commands?"
    if words[0] == "rerun":  # takes the options of the command that it runs
        return
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= options_of(command)
    assert not arguments or any(item.param_type_name == "argument" for item in command.params)


TABLE = re.findall(
    r"^\| `agentsys ([^`]+)` \| .* \|(.*)\|$",
    (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("usage", "options"), TABLE, ids=[usage for usage, _ in TABLE])
def test_the_options_of_the_command_table_exist(usage: str, options: str) -> None:
    words = [word for word in usage.split() if word.islower() and word != "..."]
    if words[0] == "rerun" or ("FOLDER" in usage and words == ["collect"]):
        return
    commands = [resolve(tuple(words))[0]]
    if hasattr(commands[0], "list_commands"):  # `train miniplm STEP`: all its steps together
        commands = list(commands[0].commands.values())
    assert set(re.findall(r"`(--[\w-]+)`", options)) <= set().union(*map(options_of, commands))


def test_the_command_table_is_complete() -> None:
    listed = {tuple(word for word in usage.split()[:2] if word.islower()) for usage, _ in TABLE}
    tables = {"collect": cli.COLLECT, "evaluate": cli.EVALUATE, "train": cli.TRAIN}
    assert {(group, name) for group, names in tables.items() for name in names} <= listed
    root: Any = get_command(cli.app)
    names = root.list_commands(root.context_class(root, info_name="agentsys"))
    assert set(names) == {usage.split()[0] for usage, _ in TABLE}


@cache
def texts_of_the_code() -> str:
    """All strings of the code, with a zero byte for each value that is inserted."""
    texts = []
    for folder in ("agentsys", "graphs", "trainers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


MESSAGES = [
    message
    for row in (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    if row.startswith("| ") and not row.startswith("| message")
    for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_in_the_code(message: str) -> None:
    """Exceptions of Python itself are not."""
    pieces = [piece.strip(" :;,()") for piece in message.split("...")]
    if not message.startswith("AttributeError"):
        assert not [piece for piece in pieces if piece and piece not in texts_of_the_code()]
