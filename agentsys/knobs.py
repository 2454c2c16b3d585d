"""Settings that document themselves."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def knob(default: Any, description: str) -> Any:
    """A documented field of a dataclass; the text reaches Studio's form and the command's help."""
    return field(default=default, metadata={"description": description})
