"""Agents as graphs of roles, and the training data that they write.

from agentsys import Role, System, Prompt, ask, knob, collect, load_model, read_traces

The names load where they are used: `import agentsys` alone takes no time. docs/own-system.md shows them at work.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentsys.collect import CallableModule, acollect
    from agentsys.knobs import knob
    from agentsys.models import load_model
    from agentsys.prompt import Prompt
    from agentsys.roles import Role
    from agentsys.systems import System, ask
    from agentsys.traces import Target, Trace, read_traces

    __version__: str
    collect: CallableModule

__all__ = [
    "Prompt",
    "Role",
    "System",
    "Target",
    "Trace",
    "__version__",
    "acollect",
    "ask",
    "collect",
    "knob",
    "load_model",
    "read_traces",
]

_MODULES = {
    "Prompt": "prompt",
    "Role": "roles",
    "System": "systems",
    "Target": "traces",
    "Trace": "traces",
    "acollect": "collect",
    "ask": "systems",
    "knob": "knobs",
    "load_model": "models",
    "read_traces": "traces",
}
"""The module of each name. `collect` is a package that can be called."""


if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            value: Any = _version()
        elif name == "collect":
            return import_module("agentsys.collect")  # which sets the attribute
        elif name in _MODULES:
            value = getattr(import_module(f"agentsys.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def _end_quietly(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A command that is interrupted while it loads prints one line."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("error: stopped before it began\n")
        sys.stderr.flush()
        os._exit(130)
    sys.__excepthook__(kind, error, traceback)


def _is_command() -> bool:
    """Whether this process is one of our commands, rather than a program of the user's."""
    script = sys.argv[0] if sys.argv else ""
    if script == "-m":
        return any(argument == __name__ or argument.startswith(f"{__name__}.") for argument in sys.orig_argv)
    folder, name = os.path.split(os.path.realpath(script))
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return name in ("agentsys", "agentsys.exe") or folder in (
        os.path.join(root, "graphs"),
        os.path.join(root, "trainers"),
    )


if sys.excepthook is sys.__excepthook__ and _is_command():
    sys.excepthook = _end_quietly


def __dir__() -> list[str]:
    return [*__all__]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError

    from agentsys.installation import version

    try:
        return version()
    except PackageNotFoundError:  # copied, not installed
        return "unknown"
