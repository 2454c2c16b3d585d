"""What can go wrong between a role and a model. Every message is one line that names the fix."""

from __future__ import annotations


class ModelError(RuntimeError):  # of the errors that end a run, Studio's server shows only built-in kinds in words
    """A request failed for good. It ends the record that asked, not the run.

    `tokens` were written all the same.
    """

    tokens: int = 0


class SpecError(ValueError):
    """A model spec that cannot be used: unknown form, unknown option, or not allowed in this place."""


class EndpointDown(ModelError):
    """Nobody answers at an address, an engine cannot start, or it cannot do what the system needs.

    It ends the run: no other record can do better.
    """
