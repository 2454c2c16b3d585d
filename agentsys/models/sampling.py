"""Sampling settings, with the same meaning on every engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentsys.models.errors import SpecError

DEFAULTS: Final[Mapping[str, Any]] = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 1024}
"""What holds where neither the role nor the model spec says otherwise. Everything else is off."""

SETTINGS: Final[Mapping[str, tuple[type, float, float]]] = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "top_k": (int, 0, 1_000_000),
    "min_p": (float, 0, 1),
    "max_tokens": (int, 1, 1_000_000),
    "repetition_penalty": (float, 0.1, 2),
    "presence_penalty": (float, -2, 2),
    "frequency_penalty": (float, -2, 2),
    "logprobs": (int, 0, 1_000),
    "seed": (int, 0, 2**31 - 1),
}
"""Name -> type, least and greatest value. `logprobs` is the number of alternatives recorded for each token."""


def check(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with their types; text such as "0.2" is converted. Raises SpecError for an unknown or bad one."""
    checked: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "stop":
            checked[name] = [value] if isinstance(value, str) else list(value)
            continue
        if name not in SETTINGS:
            raise SpecError(f"no sampling setting '{name}'; there are {', '.join(SETTINGS)}, stop")
        kind, least, greatest = SETTINGS[name]
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            raise SpecError(f"{name}={value}: a number is needed") from None
        if not least <= number <= greatest:
            raise SpecError(f"{name}={value}: must be from {least:g} to {greatest:g}")
        checked[name] = number
    return checked
