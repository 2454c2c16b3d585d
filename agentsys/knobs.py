"""Documented fields of options and contexts."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def split_names(setting: str) -> list[str]:
    """The names in a comma-separated setting."""
    return [name.strip() for name in setting.split(",") if name.strip()]


def knob(default: Any, description: str, *, hidden: bool = False, old_name: str = "") -> Any:
    """A dataclass field with a description: an option of a command and a field in Studio's form.

    A hidden one is not in the command's help. `old_name` is a former name of the field, which the command still
    accepts as a hidden option.
    """
    return field(default=default, metadata={"description": description, "hidden": hidden, "old_name": old_name})
