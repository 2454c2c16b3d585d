"""A run's fingerprint: what has to stay the same for its records to belong together (design.md decision 12)."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import orjson

from agentsys.models import load_model
from agentsys.models.chat import AgentChatModel
from agentsys.roles import Role


def context_models(context: Any) -> dict[str, AgentChatModel]:
    """The models that a context names: its fields `model` and `*_model`. Raises SpecError."""
    if not is_dataclass(context):
        return {}
    names = [f.name for f in fields(context) if f.name == "model" or f.name.endswith("_model")]
    default = getattr(context, "model", "") or "embedded"
    models = {name: load_model(getattr(context, name), default=default) for name in names}
    return {name: model for name, model in models.items() if isinstance(model, AgentChatModel)}


def roles_of(graph: Any) -> dict[str, Role[Any]]:
    """The roles of a compiled graph, by name.

    They are found where nodes can reach them: fields of the object whose methods the nodes are, and variables that a
    node's function (or a function of its module that it calls) refers to.
    """
    found: dict[str, Role[Any]] = {}
    seen: set[int] = set()
    for node in graph.builder.nodes.values():
        function = getattr(node.runnable, "afunc", None) or getattr(node.runnable, "func", None)
        for value in _reachable(function, seen):
            found[value.name] = value
    return found


def _reachable(function: Any, seen: set[int]) -> Iterator[Role[Any]]:
    function = getattr(function, "func", function)  # a partial
    owner = getattr(function, "__self__", None)
    plain = inspect.unwrap(getattr(function, "__func__", function))
    if not inspect.isfunction(plain) or id(plain) in seen:
        return
    seen.add(id(plain))
    if is_dataclass(owner):
        yield from (v for f in fields(owner) if isinstance(v := getattr(owner, f.name), Role))
    variables = inspect.getclosurevars(plain)
    for value in [*variables.globals.values(), *variables.nonlocals.values()]:
        if isinstance(value, Role):
            yield value
        elif inspect.isfunction(value) and value.__module__ == plain.__module__:
            yield from _reachable(value, seen)


async def fingerprint(graph: Any, context: Any) -> dict[str, Any]:
    """Prompts, schemas, models, sampling, knobs and topology of a run. Brings the models' engines up."""
    models = {}
    for name, model in context_models(context).items():
        models[name] = {**await model.identity(), "sampling": model.sampling}
    knobs = {f.name: getattr(context, f.name) for f in fields(context)} if is_dataclass(context) else context
    roles = {
        name: {"prompt": role.text.sha256, "schema": role.schema_sha256, "sampling": dict(role.sampling)}
        for name, role in sorted(roles_of(graph).items())
    }
    return {
        "system": graph.name,
        "models": models,
        "knobs": {k: v for k, v in (knobs or {}).items() if k not in models},
        "roles": roles,
        "topology": {"nodes": sorted(graph.builder.nodes), "edges": sorted(map(list, graph.builder.edges))},
    }


def digest(value: Any) -> str:
    """16 hex digits that stand for a fingerprint; every trace carries them as `run`."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs, one line each: 'knobs.threshold: 90 -> 95'."""
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{path}{name}.")
        elif before != after:
            lines.append(f"{path}{name}: {_short(before)} -> {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def source_digest(graph: Any) -> str:
    """A digest of the graph's source file: recorded in the manifest, not compared."""
    node = next(iter(graph.builder.nodes.values()))
    function: Any = getattr(node.runnable, "afunc", None) or getattr(node.runnable, "func", None)
    path = inspect.getsourcefile(inspect.unwrap(getattr(function, "__func__", function)))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ""
