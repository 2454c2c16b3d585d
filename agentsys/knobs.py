"""Settings that document themselves."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def listed(setting: str) -> list[str]:
    """The names in a setting that separates them with commas."""
    return [name.strip() for name in setting.split(",") if name.strip()]


def knob(default: Any, description: str, *, hidden: bool = False, old_name: str = "") -> Any:
    """A documented field of a dataclass: an option of a command and a field of Studio's form.

    A hidden one is left out of the command's help. `old_name` is a former name of the field, which the command still
    accepts without listing it.
    """
    return field(default=default, metadata={"description": description, "hidden": hidden, "old_name": old_name})
