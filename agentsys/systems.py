"""System: the base of a paper's method as a graph. Its fields are its roles, its methods are the nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

from langchain_core.language_models import BaseChatModel
from pydantic import TypeAdapter, ValidationError

from agentsys.knobs import knob
from agentsys.models import load_model
from agentsys.roles import Answer, Role

__all__ = ["BaseContext", "LanguagePair", "System", "ask", "knob", "model_of"]

T = TypeVar("T")


@dataclass(frozen=True)
class System:
    """Roles by name. `DRT(advisor=Role("my_advisor.md"))` puts another role in the place of one."""

    def __post_init__(self) -> None:
        """A role is called by the name of its place, whatever its prompt file is called."""
        for place in fields(self):
            role = getattr(self, place.name)
            if isinstance(role, Role):
                object.__setattr__(self, place.name, replace(role, name=place.name))


@dataclass(frozen=True)
class BaseContext:
    """Base of a graph's context: its fields are `<role>_model`, `<role>_prompt` and knobs, each made with `knob`.

    A value of the wrong type is refused when the context is made, from Python, a command line or Studio alike, and so
    is a number that JSON cannot hold.
    """

    def __post_init__(self) -> None:
        """Raises ValueError that names the field and what is allowed."""
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            try:
                _validator(hint).validate_python(value, strict=True)
            except ValidationError as err:
                raise ValueError(f"{name}: {value!r}: {err.errors()[0]['msg'].lower()}") from None
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: {value} is no number")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name}: {value} is out of range")

    def at_least(self, **bounds: float) -> None:
        """Raises ValueError for the first of these knobs that is below its bound."""
        for name, bound in bounds.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}: {getattr(self, name)} is below {bound}")

    def at_most(self, **bounds: float) -> None:
        """Raises ValueError for the first of these knobs that is above its bound."""
        for name, bound in bounds.items():
            if getattr(self, name) > bound:
                raise ValueError(f"{name}: {getattr(self, name)} is above {bound}")


class LanguagePair:
    """For the context of a system that translates: its two languages as the variables that every prompt gets."""

    source_language: str
    target_language: str

    @property
    def languages(self) -> dict[str, str]:
        """{"source_language", "target_language"}."""
        return {"source_language": self.source_language, "target_language": self.target_language}


@lru_cache(maxsize=64)
def _validator(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def model_of(context: Any, role: Role[Any]) -> BaseChatModel:
    """The model that a context gives a role: its `<role>_model`, or where that is empty `model`. Raises SpecError."""
    return load_model(getattr(context, f"{role.name}_model", ""), default=getattr(context, "model", "") or "embedded")


async def ask(context: Any, role: Role[T], *, key: str, **inputs: Any) -> Answer[T]:
    """Ask a role with the model and the prompt that a context gives it.

    The context's field `<role>_model` is its model spec (empty: `model`), `<role>_prompt` a prompt text that takes the
    place of its own (empty: its own); roles that share a prompt file can share a field, `<file>_prompt`. Raises
    RoleError, ModelError, SpecError or PromptError.
    """
    model = model_of(context, role)
    text = getattr(context, f"{role.name}_prompt", "") or getattr(context, f"{role.text.name}_prompt", "")
    return await (_with_prompt(role, text) if text else role).answer(model, key=key, **inputs)


@lru_cache(maxsize=64)
def _parse(name: str, text: str) -> Any:
    from agentsys.prompt import Prompt

    return Prompt.parse(text, name)


def _with_prompt(role: Role[T], text: str) -> Role[T]:
    return replace(role, prompt=_parse(role.name, text))
