"""Documented fields of options and contexts."""

from __future__ import annotations

from dataclasses import Field, field, fields
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
    highest: float | None = None,
    highest_in_studio: float | None = None,
) -> Any:
    """A dataclass field with a description: an option of a command and a field in Studio's form.

    A hidden one is not in the command's help. `old_name` is a former name of the field, which the command still
    accepts as a hidden option. A required text must not be blank, see `check_required`. What holds for one start of a
    command only, such as --resume, is meant `once`: run.yaml does not have it. A context refuses a number above
    `highest`, and in Studio, where any web page could ask for it, above `highest_in_studio` (see `studio_bound`).
    """
    flags: dict[str, Any] = {"hidden": hidden, "required": required, "once": once}
    flags |= {"highest": highest, "highest_in_studio": highest_in_studio}
    return field(default=default, metadata={"description": description, "old_name": old_name, **flags})


def studio_bound(item: Field[Any]) -> float | None:
    """The highest number that a field may have in Studio: its own bound, or else ten times the default, 1000 at least.

    None if the default is no number and there is no bound of its own.
    """
    bounds = [item.metadata[name] for name in ("highest", "highest_in_studio") if item.metadata.get(name) is not None]
    if bounds:
        return float(min(bounds))
    default = item.default
    return max(1000.0, 10.0 * abs(default)) if isinstance(default, int | float) else None


def check_required(options: Any) -> None:
    """Raises ValueError, which names the field, for the first required text of a dataclass that is blank."""
    for item in fields(options):
        value = getattr(options, item.name)
        if item.metadata.get("required") and isinstance(value, str) and not value.strip():
            raise ValueError(f"{item.name}: it is empty; give the {item.metadata['description']}")
