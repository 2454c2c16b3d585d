"""LangChain's callbacks (LangSmith, MLflow, a user's handler): whether one listens, and the run of a role for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.config import var_child_runnable_config

T = TypeVar("T")


def has_callbacks() -> bool:
    """Whether a LangChain callback would see a call made now: Studio's stream, a tracer, a user's handler."""
    config = var_child_runnable_config.get()
    callbacks = config.get("callbacks") if config else None
    if config is None:
        return True  # outside a graph, only LangChain knows
    return bool(callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks)


async def as_run(
    name: str, inputs: Mapping[str, Any], work: Callable[[], Awaitable[T]], output: Callable[[T], Any]
) -> T:
    """Await `work` as a run of LangChain that has its calls below it; directly where no callback listens.

    The run has the inputs and what `output` makes of the result.
    """
    if not has_callbacks():
        return await work()
    results: list[T] = []

    async def run(_: Any) -> Any:
        results.append(await work())
        return output(results[0])

    await RunnableLambda(run, name=name).ainvoke(dict(inputs))
    return results[0]
