"""`agentsys new NAME`: write the folder of a new paper, which runs and whose test passes as it is."""

from __future__ import annotations

import ast
import keyword
import re
import shlex
import sys
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from agentsys.display import show

MODULE: Final = "my_paper"
CLASS: Final = "MyPaper"
"""The names in the template's files that stand for the package and its class."""

LONGEST_NAME: Final = 30


class NameRefused(ValueError):
    """A name that the new folder cannot have. The message says why."""


def new(
    name: Annotated[str, typer.Argument(help="folder to write; its last part is the package's name, such as my-paper")],
) -> None:
    """Write a paper folder of your own: two roles, a loop, targets, a command, a test and a docs stub that work."""
    folder = write_paper(name)
    module, files = folder.name, ", ".join(sorted(path.name for path in folder.iterdir()))
    steps = {
        f"python -m pytest {module}": "its test (pip install pytest)",
        f"agentsys collect {module} --model scripted:{module}/replies.jsonl --out runs/try": "a run without a model",
        f"agentsys collect {module} --help": "with a model, on your records",
        f"cd {module} && langgraph dev": "step through it in Studio",
    }
    width = max(map(len, steps))
    if folder.parent != Path():
        steps = {f"cd {shlex.quote(str(folder.parent))}": "", **steps}
    show(f"wrote {folder}: {files}", "next:")
    for step, purpose in steps.items():
        show(f"  {step:{width}}  {'# ' if purpose else ''}{purpose}".rstrip())
    show(f"then replace the example by your method, from {module}/state.py and system.py on (docs/own-system.md)")


def write_paper(name: str | Path) -> Path:
    """Write the folder and return its path. Raises NameRefused for an unusable name, and for a folder that exists."""
    path = Path(name)
    folder = path.parent / path.name.replace("-", "_")
    if path.name and folder.exists():
        raise NameRefused(f"{folder} exists; choose another name or remove it")
    check_name(path.name)
    words = {MODULE: folder.name, CLASS: class_name(folder.name)}
    for template, file in _iter_template():
        target = folder / _replace(template.removesuffix(".txt"), words)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_replace(file.read_text(encoding="utf-8"), words), encoding="utf-8")
    return folder


def check_name(name: str) -> str:
    """The package's name: dashes become underscores. Raises NameRefused if nothing could import or start it."""
    module = name.replace("-", "_")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", module):
        raise NameRefused(f"{name!r}: a package's name is of letters, digits and underscores, such as my_paper")
    if len(module) > LONGEST_NAME:
        raise NameRefused(f"{name!r}: a package's name has at most {LONGEST_NAME} characters")
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        raise NameRefused(f"{name!r} is a word of Python itself; choose another name, such as {module}_paper")
    if module in sys.stdlib_module_names or module in sys.builtin_module_names:
        raise NameRefused(f"{name!r} is a module of Python; choose another name, such as {module}_paper")
    if module in _template_words() or class_name(module) in _template_words():
        raise NameRefused(f"{name!r} is a name inside the folder itself; choose another name, such as {module}_paper")
    if command := _our_command(module):
        raise NameRefused(f"{name!r}: `{command}` is a command of ours; choose another name, such as {module}_paper")
    if _is_installed(module):
        raise NameRefused(f"{name!r} is an installed package; choose another name, such as {module}_paper")
    return module


def class_name(module: str) -> str:
    """my_paper -> MyPaper."""
    return "".join(part[:1].upper() + part[1:] for part in module.split("_"))


def _our_command(module: str) -> str:
    """The command that `agentsys collect NAME` (or evaluate, train) would run instead of a folder's; "" for none."""
    from agentsys.cli import COLLECT, EVALUATE, TRAIN

    for group, commands in (("collect", COLLECT), ("evaluate", EVALUATE), ("train", TRAIN)):
        if module in (key.replace("-", "_") for key in commands):
            return f"agentsys {group} {module.replace('_', '-')}"
    return ""


def _is_installed(module: str) -> bool:
    """Whether Python would import another module by this name. A folder without code in this one does not count."""
    spec = find_spec(module)
    if spec is None or spec.origin is not None:
        return spec is not None
    return any(Path(location).parent != Path.cwd() for location in spec.submodule_search_locations or ())


def _template_words() -> set[str]:
    """The names of the template's modules, and the names in their code."""
    names: set[str] = set()
    for path, file in _iter_template():
        if path.endswith(".py.txt"):
            names.add(path.removesuffix(".py.txt"))
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names |= {str(getattr(node, field)) for field in ("id", "name") if hasattr(node, field)}
    return names - {CLASS}


def _iter_template(folder: Traversable | None = None, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """The template's files with their paths in the new folder. Modules end in .py.txt: they are no code of ours."""
    for entry in (folder or resources.files("agentsys.new") / "template").iterdir():
        if entry.is_dir():
            yield from _iter_template(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry


def _replace(text: str, words: dict[str, str]) -> str:
    return re.sub("|".join(words), lambda match: words[match[0]], text)
