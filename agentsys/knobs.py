"""Documented fields of options and contexts."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any


def split_names(setting: str) -> list[str]:
    """The names in a comma-separated setting."""
    return [name.strip() for name in setting.split(",") if name.strip()]


def knob(
    default: Any,
    description: str,
    *,
    hidden: bool = False,
    old_name: str = "",
    required: bool = False,
    once: bool = False,
) -> Any:
    """A dataclass field with a description: an option of a command and a field in Studio's form.

    A hidden one is not in the command's help. `old_name` is a former name of the field, which the command still
    accepts as a hidden option. A required text must not be blank, see `check_required`. What holds for one start of a
    command only, such as --resume, is meant `once`: run.yaml does not have it.
    """
    flags = {"hidden": hidden, "required": required, "once": once}
    return field(default=default, metadata={"description": description, "old_name": old_name, **flags})


def check_required(options: Any) -> None:
    """Raises ValueError, which names the field, for the first required text of a dataclass that is blank."""
    for item in fields(options):
        value = getattr(options, item.name)
        if item.metadata.get("required") and isinstance(value, str) and not value.strip():
            raise ValueError(f"{item.name}: it is empty; give the {item.metadata['description']}")
