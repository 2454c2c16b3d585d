"""System: the base of a paper's method. Its fields are the roles, its methods the graph's nodes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, get_type_hints

from langchain_core.language_models import BaseChatModel
from pydantic import TypeAdapter, ValidationError

from agentsys.knobs import check_required, knob, studio_bound
from agentsys.models import SpecError, load_model
from agentsys.models.spec import served_to_browsers
from agentsys.prompt import Prompt
from agentsys.roles import Answer, Role
from agentsys.text.languages import language_name

if TYPE_CHECKING:
    from langgraph.graph import StateGraph

__all__ = ["BaseContext", "LanguagePair", "System", "ask", "knob", "model_of", "role_options", "sequence_graph"]

DEFAULT_STUDIO_BOUND: Final = 1000
"""The highest number that Studio accepts for a knob without a numeric default and without a bound of its own."""

T = TypeVar("T")
C = TypeVar("C")


@dataclass(frozen=True)
class System:
    """Roles by name. `DRT(advisor=Role("my_advisor.md"))` replaces one of them."""

    def __post_init__(self) -> None:
        """Name each role after its field, whatever its prompt file is called."""
        for item in fields(self):
            role = getattr(self, item.name)
            if isinstance(role, Role):
                object.__setattr__(self, item.name, replace(role, name=item.name))


@dataclass(frozen=True)
class BaseContext:
    """Base of a graph's context: a model, knobs, and with `role_options` a model and a prompt for each role.

    Raises ValueError for a value of the wrong type, a required text that is blank and a number that JSON cannot hold,
    whether the context is made in Python, by a command or in Studio.
    """

    model: str = knob("embedded", "model spec of every role without its own", required=True)

    role_fields: ClassVar[Mapping[str, str]] = {}
    """The name of the field with each role's model spec, set by `role_options`; empty: one model for all roles."""

    def __post_init__(self) -> None:
        """Raises ValueError, which names the field and what is allowed."""
        hints = get_type_hints(type(self))
        for item in fields(self):
            name = item.name
            hint, value = hints[name], getattr(self, name)
            try:
                _validator(hint).validate_python(value, strict=True)
            except ValidationError as err:
                raise ValueError(f"{name}: {value!r}: {err.errors()[0]['msg'].lower()}") from None
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: {value} is not a finite number")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name}: {value} is out of range")
            if isinstance(value, int | float) and not isinstance(value, bool):
                _check_highest(item, value)
        check_required(self)
        if isinstance(self, LanguagePair):
            self.check_languages()

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


def _check_highest(item: Field[Any], value: float) -> None:
    """Raises ValueError for a number above the bound of its knob; in Studio also above what a browser may ask for."""
    highest = item.metadata.get("highest")
    if highest is not None and value > highest:
        raise ValueError(f"{item.name}: {value} is above {highest}")
    if not served_to_browsers():
        return
    bound = studio_bound(item)
    bound = DEFAULT_STUDIO_BOUND if bound is None else bound
    if abs(value) > bound:
        raise ValueError(
            f"{item.name}: {value} is above {bound:g}, the most that Studio accepts; a command or Python has no such "
            "limit"
        )


class LanguagePair:
    """Mixin for the context of a translation system: its two languages, as prompt variables."""

    source_language: str
    target_language: str

    @property
    def languages(self) -> dict[str, str]:
        """{"source_language", "target_language"}, codes as names ("Chinese" for "zh")."""
        return {
            "source_language": language_name(self.source_language),
            "target_language": language_name(self.target_language),
        }

    def check_languages(self) -> None:
        """Raises ValueError, which names the field, for what looks like a language code and is none."""
        for name in ("source_language", "target_language"):
            try:
                language_name(getattr(self, name))
            except ValueError as err:
                raise ValueError(f"{name}: {err}") from None


@lru_cache(maxsize=64)
def _validator(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def role_options(
    *systems: type[System], shared_models: Mapping[str, str] | None = None, old_names: Mapping[str, str] | None = None
) -> Callable[[type[C]], type[C]]:
    """Adds `<role>_model` and `<role>_prompt` of each role of the systems to a context's fields.

        @dataclass(frozen=True)
        @role_options(DRT)
        class Context(BaseContext): ...

    A field that the class itself defines is kept. Roles that share a prompt file share the field `<file>_prompt`.
    `shared_models` maps a role to the role whose model it uses, or to "" for `model`. `old_names` maps a role to its
    former name, whose options commands still accept. Raises TypeError for a role that does not exist, and for a field
    `*_model` or `*_prompt` of the class that belongs to no role.
    """
    shared, old = shared_models or {}, old_names or {}
    roles = [role for system in systems for role in _roles_in(system())]
    owners = {role.name: shared.get(role.name, role.name) for role in roles}
    if unknown := sorted({*shared, *old, *filter(None, shared.values())} - {*owners}):
        raise TypeError(f"role_options: {', '.join(unknown)}: no such role; the roles are {', '.join(owners)}")

    def decorate(cls: type[C]) -> type[C]:
        models: dict[str, Any] = {}
        prompts: dict[str, Any] = {}
        for role in roles:
            former, file = old.get(role.name, ""), role.text.name
            if owners[role.name] == role.name:
                text = f"model spec of the role {role.name}; empty: `model`"
                models[f"{role.name}_model"] = knob("", text, old_name=f"{former}_model" if former else "")
            text = f"prompt text in place of the prompt `{file}`"
            prompts[f"{file}_prompt"] = knob("", text, old_name=f"{former}_prompt" if former else "")
        _add_fields(cls, models, prompts)
        role_fields = {name: f"{owner}_model" if owner else "model" for name, owner in owners.items()}
        cls.role_fields = role_fields  # type: ignore[attr-defined]
        return cls

    return decorate


def _roles_in(value: Any) -> Iterator[Role[Any]]:
    """The roles of a system and of its parts."""
    for item in fields(value):
        part = getattr(value, item.name)
        if isinstance(part, Role):
            yield part
        elif is_dataclass(part):
            yield from _roles_in(part)


def _add_fields(cls: type, models: Mapping[str, Any], prompts: Mapping[str, Any]) -> None:
    """Add the models before a class's own annotated fields, and the prompts after them."""
    own = dict(inspect.get_annotations(cls))
    inherited = {name for base in cls.__mro__[1:] for name in inspect.get_annotations(base)}
    unknown = [n for n in own if n.endswith(("_model", "_prompt")) and n not in {*models, *prompts}]
    if unknown:
        options = ", ".join({**models, **prompts})
        raise TypeError(f"{cls.__qualname__}.{unknown[0]}: no role has this option; the options are {options}")
    added = {name: value for name, value in {**models, **prompts}.items() if name not in {*own, *inherited}}
    for name, value in added.items():
        setattr(cls, name, value)
    before, after = [n for n in added if n in models], [n for n in added if n in prompts]
    cls.__annotations__ = {**dict.fromkeys(before, "str"), **own, **dict.fromkeys(after, "str")}


def model_of(context: Any, role: Role[Any]) -> BaseChatModel:
    """The model of a role in a context: `<role>_model`, or `model` where that is empty.

    Raises SpecError for an invalid spec, and for a role without an option if other roles have one.
    """
    kind: Any = type(context)
    model_fields = _model_fields(kind)
    name = model_fields.get(role.name, "")
    if model_fields and not name:
        raise SpecError(
            f"{kind.__qualname__} has no option {role.name}_model; make its role options from the system that "
            f"has the role {role.name}: @role_options(...)"
        )
    return load_model(getattr(context, name, ""), default=getattr(context, "model", "") or "embedded")


@lru_cache(maxsize=64)
def _model_fields(kind: Any) -> Mapping[str, str]:
    """The field of each role's model in a class of contexts: `<role>_model`, or what `role_options` says."""
    names = [item.name for item in fields(kind)] if is_dataclass(kind) else []
    own = {name.removesuffix("_model"): name for name in names if name.endswith("_model")}
    return {**own, **getattr(kind, "role_fields", {})}


async def ask(context: Any, role: Role[T], *, key: str, **inputs: Any) -> Answer[T]:
    """Ask a role with its model and prompt from a context; `key` names the call within its record.

    The context's field `<role>_model` is the model spec (empty: `model`) and `<role>_prompt` a prompt text that
    replaces the role's own (empty: its own); roles that share a prompt file can share the field `<file>_prompt`.
    Raises RoleError, ModelError, SpecError or PromptError.
    """
    model = model_of(context, role)
    prompt = prompt_of(context, role)
    return await (role if prompt is role.prompt else replace(role, prompt=prompt)).answer(model, key=key, **inputs)


def prompt_of(context: Any, role: Role[Any]) -> Prompt:
    """The prompt of a role in a context, see `ask`. Raises PromptError for a malformed one."""
    text = getattr(context, f"{role.name}_prompt", "") or getattr(context, f"{role.text.name}_prompt", "")
    return _parse(role.name, text) if text else role.text


def sequence_graph(
    *nodes: Callable[..., Any], state: type[Any], context: type[Any], input: type[Any], output: type[Any]
) -> StateGraph[Any, Any, Any, Any]:
    """A builder of a graph whose nodes run one after the other, each named after its function.

    A search is a graph of one node: it awaits many calls at once, which do not wait for each other as nodes would.
    """
    from langgraph.graph import END, START, StateGraph

    builder = StateGraph(state, context_schema=context, input_schema=input, output_schema=output)
    builder.add_sequence(nodes)
    builder.add_edge(START, nodes[0].__name__)
    builder.add_edge(nodes[-1].__name__, END)
    return builder


@lru_cache(maxsize=64)
def _parse(name: str, text: str) -> Prompt:
    return Prompt.parse(text, name)
