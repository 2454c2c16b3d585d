"""A run's fingerprint: everything that must be equal for two records to belong to one run (docs/decisions/012)."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from agentsys.display import plain
from agentsys.models import load_model
from agentsys.models.chat import AgentChatModel
from agentsys.records import InputError
from agentsys.roles import Role

printable = plain
"""See agentsys.display."""


def context_models(context: Any) -> dict[str, AgentChatModel]:
    """The models of agentsys in a context's fields `model` and `*_model`, by field. Raises SpecError."""
    if not is_dataclass(context):
        return {}
    names = [f.name for f in fields(context) if f.name == "model" or f.name.endswith("_model")]
    default = getattr(context, "model", "") or "embedded"
    models = {name: load_model(getattr(context, name), default=default) for name in names}
    return {name: model for name, model in models.items() if isinstance(model, AgentChatModel)}


def make_context(graph: Any) -> Any:
    """The context of a graph with its defaults; None for a graph without one. Raises InputError if it has none."""
    if not hasattr(graph, "builder"):
        raise InputError(f"collect takes a compiled graph, not {type(graph).__name__}: give builder.compile(name=...)")
    kind: Any = graph.builder.context_schema
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return None
    try:
        return kind()
    except TypeError as err:
        raise InputError(f"the graph needs a context: give context={kind.__name__}(...) ({err})") from None


def find_roles(graph: Any) -> dict[str, Role[Any]]:
    """The roles that a compiled graph's nodes can reach, by name.

    Searched are the fields of the object whose methods the nodes are (and of dataclasses in them), and the variables
    that a node's function, or a function of its module that it calls, refers to; subgraphs are searched in the same
    way. Where two roles have one name, the second is listed as "name (prompt name)".
    """
    seen: dict[int, Any] = {}
    roles: dict[str, Role[Any]] = {}
    for function in _functions(graph):
        for role in _reachable(function, seen):
            roles[role.name if role.name not in roles else f"{role.name} ({role.text.name})"] = role
    return roles


def _functions(graph: Any) -> list[Any]:
    """The functions, methods, callable objects and subgraphs that a graph's nodes run."""
    nodes = [node.runnable for node in graph.builder.nodes.values()]
    return [getattr(node, "func", None) or getattr(node, "afunc", None) or node for node in nodes]


def _reachable(value: Any, seen: dict[int, Any]) -> Iterator[Role[Any]]:
    if id(value) in seen:
        return
    seen[id(value)] = value  # keeps it alive, so that its id stays its own
    if isinstance(value, Role):
        yield value
        return
    for part in _parts(value):
        yield from _reachable(part, seen)


def _parts(value: Any) -> Iterable[Any]:
    """Values that may hold a role: items, a partial's arguments, an object's fields, variables, a subgraph's nodes."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if is_dataclass(value) and not isinstance(value, type) and not callable(value):
        return [getattr(value, item.name) for item in fields(value)]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if inspect.ismethod(value):
        return [value.__func__, *getattr(value.__self__, "__dict__", {}).values()]
    if inspect.isfunction(value):
        return _variables(value)
    if _is_graph(value):
        return _functions(value)
    if callable(value) and inspect.isfunction(type(value).__call__):
        return [type(value).__call__, *getattr(value, "__dict__", {}).values()]
    return ()


def _is_graph(value: Any) -> bool:
    return hasattr(getattr(value, "builder", None), "nodes")


def _variables(function: Any) -> Iterator[Any]:
    """Values of a function's variables; of global functions only those of its own module."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a variable without a value
            yield cell.cell_contents
    codes = [function.__code__]
    for code in codes:  # the functions, lambdas and comprehensions inside it as well
        codes += [const for const in code.co_consts if inspect.iscode(const)]
        for value in (function.__globals__[name] for name in code.co_names if name in function.__globals__):
            same_module = inspect.isfunction(value) and value.__module__ == function.__module__
            if same_module or isinstance(value, Role | Mapping | list | tuple | set | partial) or _is_graph(value):
                yield value


async def fingerprint(graph: Any, context: Any) -> dict[str, Any]:
    """Prompts, schemas, models, sampling, knobs and topology of a run. Starts the models' engines.

    Raises SpecError, ModelError and EndpointDown.
    """
    models = {}
    for name, model in context_models(context).items():
        models[name] = {**await model.identity(), "sampling": model.sampling}
    knobs = {f.name: getattr(context, f.name) for f in fields(context)} if is_dataclass(context) else context
    roles = {
        name: {"prompt": role.text.sha256, "schema": role.schema_sha256, "sampling": dict(role.sampling)}
        for name, role in sorted(find_roles(graph).items())
    }
    return {
        "system": graph.name,
        "models": models,
        "knobs": {k: v for k, v in (knobs or {}).items() if k not in models},
        "roles": roles,
        "topology": topology(graph),
    }


def topology(graph: Any) -> dict[str, Any]:
    """A graph's nodes and edges, those that depend on the state included, and the same of the graphs that are nodes.

    `branches` are the conditional edges: source -> name -> what the condition returns -> node; None if it may name any
    node. `waiting_edges` end with the node that waits for the others. `destinations` are the nodes that a node's
    commands go to.
    """
    builder = graph.builder
    branches = {source: {name: _ends(branch) for name, branch in of.items()} for source, of in builder.branches.items()}
    return {
        "nodes": sorted(builder.nodes),
        "edges": sorted(map(list, builder.edges)),
        "waiting_edges": sorted([*sorted(sources), target] for sources, target in builder.waiting_edges),
        "branches": {source: of for source, of in branches.items() if of},
        "destinations": {name: sorted(node.ends) for name, node in builder.nodes.items() if node.ends},
        "subgraphs": {
            name: topology(node.runnable) for name, node in builder.nodes.items() if _is_graph(node.runnable)
        },
    }


def _ends(branch: Any) -> dict[str, str] | None:
    if branch.ends is None:
        return None
    return {key if isinstance(key, str) else repr(key): node for key, node in branch.ends.items()}


def digest(value: Any) -> str:
    """The 16 hex digits that identify a fingerprint; every trace has them as `run`."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def changed_settings(
    old: Mapping[str, Any], new: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """The path of each setting that differs, with the old and the new value."""
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changed_settings(before, after, (*path, name))
        elif before != after:
            yield (*path, name), before, after


def describe_change(path: Iterable[str], before: Any, after: Any) -> str:
    """A differing setting in one line: 'knobs.threshold: 90 -> 95'."""
    return f"{printable('.'.join(path))}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = printable(" ".join(str(value)[:1000].split()))
    return text if len(text) <= 60 else text[:57] + "..."


def source_digest(graph: Any) -> str:
    """16 hex digits of the SHA-256 of the first node's source file; "" if it has none. Recorded, never compared."""
    function: Any = next(iter(_functions(graph)), None)
    while isinstance(function, partial) or _is_graph(function):
        function = function.func if isinstance(function, partial) else next(iter(_functions(function)), None)
    function = getattr(function, "__func__", function)
    try:
        path = inspect.getsourcefile(inspect.unwrap(function if inspect.isroutine(function) else type(function)))
    except (TypeError, OSError):  # a built-in, or defined in an interactive session
        return ""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path and Path(path).exists() else ""
