"""A graph run on one record, and its path: the nodes in order, the calls of each, and what each wrote to the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from agentsys.traces import Step, sort_key

MAX_BYTES: Final = 20_000
"""Size as JSON above which a step does not hold a value."""


@dataclass
class GraphRun:
    """One record on its way through a graph. After an error, the path ends with the node that raised it."""

    _nodes: dict[str, str] = field(default_factory=dict)
    """The node of each task, by the task's id, in the order in which they started."""
    _updates: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    async def run(self, graph: Any, record: Mapping[str, Any], context: Any) -> dict[str, Any]:
        """Run a compiled graph on a record and return its output, as `ainvoke` does."""
        state: dict[str, Any] = {}
        config = {"recursion_limit": 10_000}
        async for mode, event in graph.astream(record, config, context=context, stream_mode=["tasks", "values"]):
            if mode == "values":
                state = event
            elif "result" in event:
                self._updates[event["id"]] = event["result"] or {}
            else:
                self._nodes[event["id"]] = event["name"]
        names = graph.output_channels
        return {name: state[name] for name in names if name in state} if isinstance(names, list | tuple) else state

    def path(self, tasks: Mapping[str, str], output: Mapping[str, Any]) -> list[Step]:
        """The steps until now. `tasks` has the task of each call, by the call's key; `output` is the graph's."""
        calls: dict[str, list[str]] = {}
        for key, task in tasks.items():
            calls.setdefault(task, []).append(key)
        steps = []
        for task, node in self._nodes.items():
            step = Step(node, sorted(calls.get(task, []), key=sort_key))
            for name, value in self._updates.get(task, {}).items():
                _add_value(step, name, value, output)
            steps.append(step)
        return steps


def _add_value(step: Step, name: str, value: Any, output: Mapping[str, Any]) -> None:
    """Add what a node wrote, or its name alone: of what the output has too, of large values, and of what is no JSON."""
    content = None if name in output and output[name] is value else _to_json(value)
    if name in output and (output[name] is value or (content is not None and content == _to_json(output[name]))):
        step.in_result.append(name)
    elif content is None or len(content) > MAX_BYTES:
        step.omitted.append(name)
    else:
        step.update[name] = value


def _to_json(value: Any) -> bytes | None:
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # a graph's state may hold any object
        return None
