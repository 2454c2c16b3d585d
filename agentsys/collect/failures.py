"""Why a record failed: the reason of an exception, and where a bug of a graph is."""

from __future__ import annotations

import sysconfig
from contextlib import suppress
from pathlib import Path
from traceback import TracebackException, walk_tb
from typing import Final

from agentsys.models import ModelError, SpecError
from agentsys.prompt import PromptError
from agentsys.records import InputError

FRAMES: Final = 20
"""Frames of a traceback that a failed trace has, the innermost ones."""
MAX_TRACEBACK: Final = 20_000
"""Characters of a traceback that a failed trace has, the last ones."""

_EXPECTED: Final = (ModelError, SpecError, PromptError, InputError)
"""Errors of models, prompts and records. Any other is a bug of the graph, and its place is part of the reason."""
_PACKAGE: Final = Path(__file__).absolute().parents[1]
_PYTHON: Final = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


class Failures:
    """The failures of one run: the first of each kind (exception and place) gets its traceback."""

    def __init__(self) -> None:
        self._kinds: set[tuple[str, str]] = set()

    def describe(self, err: Exception) -> tuple[str, str]:
        """The reason in one line, and the traceback; "" for an expected error and for a kind that has occurred."""
        reason = f"{type(err).__name__}: {err}".replace("\n", " ")
        if isinstance(err, _EXPECTED):
            return reason, ""
        place = find_place(err) or _explain_route(err)
        kind = (type(err).__qualname__, place)
        is_new = kind not in self._kinds
        self._kinds.add(kind)
        return f"{reason} ({place})" if place else reason, format_traceback(err) if is_new else ""


def find_place(err: Exception) -> str:
    """File and line of the innermost frame in a graph's code: "my/graph.py:12"; "" if there is none.

    Frames of installed packages, of Python and of agentsys itself are passed over, those of agentsys.graphs are not.
    """
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in walk_tb(err.__traceback__)]
    with suppress(OSError):  # the working folder has been removed
        for path, line in reversed(frames):
            if _is_graph_code(path):
                return f"{_shorten(path)}:{line}"
    return ""


def _explain_route(err: Exception) -> str:
    """What a KeyError of LangGraph's branches means; "" for any other error."""
    files = [frame.f_code.co_filename for frame, _ in walk_tb(err.__traceback__)]
    if isinstance(err, KeyError) and files and files[-1].endswith("branch.py"):
        return "a route returned this name, and add_conditional_edges does not list it"
    return ""


def _is_graph_code(path: Path) -> bool:
    name = str(path)
    if name.startswith("<"):  # generated code; a notebook's cells have a file or such a name
        return name.startswith("<ipython")
    path = path.absolute()
    if path.is_relative_to(_PACKAGE):
        return path.is_relative_to(_PACKAGE / "graphs")
    is_installed = bool({"site-packages", "dist-packages"}.intersection(path.parts))
    return not is_installed and not any(path.is_relative_to(folder) for folder in _PYTHON)


def _shorten(path: Path) -> str:
    """The path from the working folder, or else only the file with its folder."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else Path(*path.parts[-2:]))


def format_traceback(err: Exception) -> str:
    """The traceback without variables, at most FRAMES frames of it, as text that JSON can hold."""
    lines = TracebackException.from_exception(err, limit=-FRAMES).format()
    return "".join(lines).encode(errors="backslashreplace").decode()[-MAX_TRACEBACK:]
