"""Errors of models. Every message is one line that names the fix."""

from __future__ import annotations


class ModelError(RuntimeError):  # Studio's server shows the message only of subclasses of built-in errors
    """A request failed for good. It fails the record, not the run.

    `tokens` counts completion tokens that were generated nevertheless.
    """

    tokens: int = 0


class SpecError(ValueError):
    """A model spec that cannot be used: unknown form, unknown option, or not allowed in Studio."""


class EndpointDown(ModelError):
    """No server is reachable, an engine cannot start, or it lacks a feature that the system needs.

    It ends the run, because every other record would fail too.
    """


class Refused(EndpointDown):
    """A server refuses every request alike: its key, its quota, its route or its model. It ends the run."""
