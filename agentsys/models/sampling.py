"""Sampling settings, with the same meaning on every engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentsys.models.errors import SpecError

DEFAULTS: Final[Mapping[str, Any]] = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 1024}
"""Settings that apply unless the role or the model spec sets them. All other settings are off."""

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
"""Name -> type, minimum and maximum. `logprobs` is the number of alternatives recorded per token."""


def check(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with their types ("0.2" becomes 0.2). Raises SpecError for an unknown or invalid one."""
    checked: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "stop":
            checked[name] = [value] if isinstance(value, str) else list(value)
            continue
        if name == "thinking":
            checked[name] = _check_thinking(value)
            continue
        if name not in SETTINGS:
            raise SpecError(f"unknown sampling setting '{name}'; use one of {', '.join(SETTINGS)}, thinking, stop")
        number_type, minimum, maximum = SETTINGS[name]
        try:
            number = number_type(value)
        except (TypeError, ValueError, OverflowError):
            raise SpecError(f"{name}={value}: must be a number") from None
        if not minimum <= number <= maximum:
            raise SpecError(f"{name}={value}: must be from {minimum:g} to {maximum:g}")
        checked[name] = number
    return checked


def _check_thinking(value: Any) -> str | int:
    """Return "on", "off", or the most tokens of a thought. Raises SpecError."""
    word = str(value).lower()
    if word in ("on", "true", "off", "false", "0"):
        return "on" if word in ("on", "true") else "off"
    if word.isdecimal() and int(word) <= SETTINGS["max_tokens"][2]:
        return int(word)
    raise SpecError(f"thinking={value}: must be on, off, or the most tokens of a thought")
