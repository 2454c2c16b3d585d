"""A graph node that asks one role for a greeting, and the options of a run without a request cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langgraph.runtime import Runtime

from agentsys.collect import RunOptions
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.systems import ask

GREETER: Role[str] = Role(Prompt.parse("# system\nBe kind.\n# user\nGreet {{ text }}", "greeter"))
UNCACHED = RunOptions(no_cache=True)


@dataclass(frozen=True)
class Context:
    """The model of the greeter."""

    model: str


async def greet(state: Any, runtime: Runtime[Context]) -> dict[str, Any]:
    return {"reply": (await ask(runtime.context, GREETER, key="greet", text=state["text"])).value}
