"""Agents as graphs of roles, and the training data that they write.

from agentsys import Role, System, Prompt, ask, knob, collect, load_model, read_traces

The names load where they are used: `import agentsys` alone takes no time. docs/own-system.md shows them at work.
"""

from __future__ import annotations

from importlib import import_module
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


def __dir__() -> list[str]:
    return [*__all__]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError

    from agentsys.installation import version

    try:
        return version()
    except PackageNotFoundError:  # copied, not installed
        return "unknown"
