"""A user's own term source, named on a command line: `python:MODULE:CLASS`."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from agentsys.knowledge.passages import KnowledgeError

_TARGET: Final = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
_METHOD: Final = "async def look_up(self, terms, sentence)"


@lru_cache(maxsize=64)
def load_custom(target: str) -> Any:
    """The source that a class makes, one object per process. The class is called without arguments.

    Its module is an installed one, or a file or folder of the current folder. Raises KnowledgeError for a wrong module,
    class or signature; inside the LangGraph server always, because web pages must not import code.
    """
    from agentsys.models.spec import served_to_browsers

    spec = f"python:{target}"
    if served_to_browsers():
        raise KnowledgeError(f"in Studio, {spec} is not allowed, because it imports code; use it with the command")
    parts = _TARGET.fullmatch(target)
    if parts is None:
        raise KnowledgeError(f"{spec}: write python:MODULE:CLASS, such as python:my_sources:Glossary")
    module = import_module(spec, parts["module"])
    kind = getattr(module, parts["name"], None)
    if not inspect.isclass(kind):
        names = ", ".join(name for name, value in vars(module).items() if _is_own_class(value, module))
        hint = f"its classes are {names}" if names else "it has no class"
        raise KnowledgeError(f"{spec}: no class {parts['name']} in {_place(module)}; {hint}")
    try:
        inspect.signature(kind).bind()
    except TypeError as err:
        raise KnowledgeError(f"{spec}: {parts['name']}() is called without arguments ({err}); give defaults") from None
    try:
        source = kind()
    except Exception as err:  # whatever the user's class raises
        raise KnowledgeError(f"{spec}: {parts['name']}() fails: {_describe(err)}; correct it") from None
    _check(spec, source)
    return source


def import_module(spec: str, name: str) -> ModuleType:
    """Import a module, also from the current folder, whose names come last: they do not hide installed ones."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as err:  # whatever the user's module raises
        if isinstance(err, ModuleNotFoundError) and err.name and f"{name}.".startswith(f"{err.name}."):
            raise KnowledgeError(
                f"{spec}: no module {err.name} in {Path.cwd()} or installed; run the command in the folder that has it"
            ) from None
        raise KnowledgeError(f"{spec}: {name} cannot be imported: {_describe(err)}; correct it") from None


def custom_file(target: str) -> Path | None:
    """The file of a loaded source's class, None if there is none."""
    file = getattr(sys.modules.get(target.partition(":")[0]), "__file__", None)
    return Path(file) if file else None


def _check(spec: str, source: Any) -> None:
    """Raises KnowledgeError unless an object is a TermSource."""
    kind = type(source).__name__
    if not isinstance(getattr(source, "name", None), str):
        raise KnowledgeError(f'{spec}: {kind} has no name; add the line name = "{kind.lower()}" to the class')
    look_up = getattr(source, "look_up", None)
    if not callable(look_up):
        raise KnowledgeError(f"{spec}: {kind} has no look_up; add {_METHOD}, which returns a list of items per term")
    if not inspect.iscoroutinefunction(look_up):
        raise KnowledgeError(f"{spec}: {kind}.look_up is not async; write {_METHOD}")
    signature = inspect.signature(look_up)
    try:
        signature.bind(["term"], "sentence")
    except TypeError:
        raise KnowledgeError(f"{spec}: {kind}.look_up takes {signature}; write {_METHOD}") from None


def _is_own_class(value: Any, module: ModuleType) -> bool:
    return inspect.isclass(value) and value.__module__ == module.__name__


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__


def _describe(err: Exception) -> str:
    """An error in a user's code in one line: its type and text, and the file and line that raised it."""
    if isinstance(err, SyntaxError):
        return f"{err.msg} ({err.filename}:{err.lineno})"
    frames = [frame for frame in traceback.extract_tb(err.__traceback__) if not frame.filename.startswith("<frozen")]
    place = f"{frames[-1].filename}:{frames[-1].lineno}"
    return f"{type(err).__name__}: {' '.join(str(err).split())} ({place})"
