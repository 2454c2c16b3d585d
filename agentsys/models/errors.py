"""Errors of models. Every message is one line that names the fix."""

from __future__ import annotations

from typing import Final


class ModelError(RuntimeError):  # Studio's server shows the message only of subclasses of built-in errors
    """A request failed for good. It fails the record, not the run.

    `tokens` counts completion tokens that were generated nevertheless.
    """

    tokens: int = 0


class CannotContinue(ModelError):
    """A partial answer cannot be continued, because the prompt cannot be rendered into token ids."""


class SpecError(ValueError):
    """A model spec that cannot be used: unknown form, unknown option, or not allowed in Studio.

    The message is one line, in which long words and long quotations of a spec are shortened.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_shorten(" ".join(_shorten(word, LONGEST_WORD) for word in message.split()), LONGEST_LINE))


LONGEST_WORD: Final = 200
LONGEST_LINE: Final = 800


def _shorten(text: str, length: int) -> str:
    """The text with "..." in place of its middle if it is longer than `length` characters."""
    head = length // 2
    return text if len(text) <= length else f"{text[:head]}...{text[len(text) - (length - head - 3) :]}"


class EndpointDown(ModelError):
    """No server is reachable, an engine cannot start, or it lacks a feature that the system needs.

    It ends the run, because every other record would fail too.
    """


class Refused(EndpointDown):
    """A server refuses every request alike: its key, its quota, its route or its model. It ends the run."""
