"""Text of others on a terminal, in tables and in Markdown; and that everything that prints goes through it."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table

from agentsys.console import Console
from agentsys.display import markdown, plain, say, show
from tests.support.paths import ROOT

HOSTILE = [
    "unexpected token [/INST] in prompt",
    "[link=http://evil.example]click[/link] [bold]x[/bold] [red]y",
    "plain [INST] text [/] [",
    "\\[b] \\\\[/b]",
    ":smile: :bomb:",
    "\x1b]0;owned\x07\x1b[2J\x1b[31mRED",
    "\x9b31m \x90q\x9c C1",
    "a\rb\nc\u2028d\x85e",
    "\u202egnp.exe\u202c \u2066x\u2069 \u200f",
    "\x00\x08\x7f",
    "\ud800 lone surrogate",
    "\U000e0041 tag, \ufeff mark, \xad hyphen",
]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 中文, فارسی, é", "plain text, 中文, فارسی, é"),
        ("می\u200cخواهم 👩\u200d💻", "می\u200cخواهم 👩\u200d💻"),
        ("wide\u3000space\xa0and", "wide\u3000space\xa0and"),
        ("a\tb\r\nc\rd", "a b c d"),
        ("\u2028\u2029\x85\x0b\x0c", "     "),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("\x00\x07\x7f", "\\x00\\x07\\x7f"),
        ("a\u202eb\u2066c\u200f", "a\\u202eb\\u2066c\\u200f"),
        ("\ufeffx\xady\u2060", "\\ufeffx\\xady\\u2060"),
        ("\udce9", "\\udce9"),
        ("\U000e0041", "\\U000e0041"),
        (Path("a/b"), "a/b"),
        ("  indented", "  indented"),
        ("", ""),
    ],
)
def test_plain(text: object, shown: str) -> None:
    assert plain(text) == shown
    assert plain(shown) == shown


@pytest.mark.parametrize("text", HOSTILE)
def test_lines(capsys: pytest.CaptureFixture[str], text: str) -> None:
    show(text, "second")
    say(text)
    out, err = capsys.readouterr()
    assert (out, err) == (f"{plain(text)}\nsecond\n", f"{plain(text)}\n")
    out.encode()


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("text", HOSTILE)
def test_tables(text: str, is_terminal: bool) -> None:
    """Cells, headers, titles and lines show what `plain` shows, on a terminal too."""
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=is_terminal, color_system=None, legacy_windows=False)
    table = Table(text, title=text)
    table.add_row(text)
    console.print(table)
    console.print(text)
    shown = [plain(part) for part in text.split("\n")]
    for part in shown:
        assert file.getvalue().count(part.strip()) >= 4
    printed = file.getvalue().replace("\x1b[1m", "").replace("\x1b[3m", "").replace("\x1b[0m", "")
    assert not set(printed) & set(map(chr, [*range(10), *range(11, 32), *range(0x7F, 0xA0), 0x202E, 0x2066]))


def test_line_breaks_of_ours_are_kept() -> None:
    file = io.StringIO()
    Console(file=file, width=80).print("one\ntwo", "three")
    assert file.getvalue() == "one\ntwo three\n"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("qwen2.5-coder_1.5b (default)", "qwen2.5-coder_1.5b (default)"),
        ("90.0", "90.0"),
        ("中文", "中文"),
        ("", ""),
        ("a | b", "`a \\| b`"),
        ("# heading", "`# heading`"),
        ("x\n# heading\n\n| a |", "`x # heading  \\| a \\|`"),
        ("<script>alert(1)</script>", "`<script>alert(1)</script>`"),
        ("[a](http://evil.example)", "`[a](http://evil.example)`"),
        ("http://evil.example/v1", "`http://evil.example/v1`"),
        ("`code` <b>", "`` `code` <b> ``"),
        ("a``b`<i>", "```a``b`<i>```"),
        ("*bold* _x_ ~~y~~", "`*bold* _x_ ~~y~~`"),
        ("&lt;", "`&lt;`"),
        ("{{ template }}", "`{{ template }}`"),
        ("\x1b[2J", "`\\x1b[2J`"),
    ],
)
def test_markdown(text: str, written: str) -> None:
    assert markdown(text) == written
    assert "\n" not in markdown(text)


# Nothing is printed without it


def sources() -> Iterator[tuple[str, ast.AST]]:
    for folder in ("agentsys", "graphs", "trainers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents) and "template" not in path.parts:
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in names:
                yield node


def test_everything_printed_is_made_plain() -> None:
    """`print` prints JSON only, tables are printed by our Console, and nothing reads markup."""
    raw: list[str] = []
    for name, tree in sources():
        if name in ("agentsys/display.py", "agentsys/console.py", "trainers/idfree/device.py"):
            continue  # the device runs alone, without this package
        for call in calls(tree, "print", "echo", "secho"):
            is_method = isinstance(call.func, ast.Attribute) and call.func.attr == "print"  # a console's
            if not is_method and not ast.unparse(call).startswith("print(json.dumps("):
                raw.append(f"{name}:{call.lineno}: {ast.unparse(call)[:60]}")
        for node in ast.walk(tree):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            raw += [f"{name}: {module}" for module in modules if module in ("rich", "rich.console", "rich.markup")]
        for call in calls(tree, "from_markup", "TextColumn", "Text", "assemble"):
            text = ast.unparse(call)
            own = ("TextColumn(label", "Text(f'{finding.status")
            is_plain = "plain(" in text or "markup=False" in text or text.startswith(own)
            is_constant = all(isinstance(arg, ast.Constant) for arg in call.args)
            if not is_plain and not is_constant:
                raw.append(f"{name}:{call.lineno}: {text[:60]}")
    assert raw == []
    assert sum(1 for _ in sources()) > 150
