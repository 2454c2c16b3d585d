"""Settings that document themselves."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def listed(setting: str) -> list[str]:
    """The names in a setting that separates them with commas."""
    return [name.strip() for name in setting.split(",") if name.strip()]


def knob(default: Any, description: str, *, hidden: bool = False) -> Any:
    """A documented field of a dataclass: the text reaches Studio's form and, unless hidden, the command's help."""
    return field(default=default, metadata={"description": description, "hidden": hidden})
