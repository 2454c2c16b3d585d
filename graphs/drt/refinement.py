"""DRT as a translator, for evaluations: stage B without the thought of stage C.

The systems `drt-best` and `drt-last` of graphs/translate/systems.py are its two answers. A record with too few steps
for training data (C2) has them as well.
"""

from __future__ import annotations

from typing import NotRequired

from langgraph.graph import END, StateGraph
from typing_extensions import TypedDict

from agentsys.graphs.drt.replay import in_order_of_writing
from agentsys.graphs.drt.state import Input, RefinementStep, State
from agentsys.graphs.drt.system import DRT, Context


class TranslationState(State):
    """P(s) and the draft that was written last."""

    last: NotRequired[str]


class TranslationOutput(TypedDict):
    """Graph output: the best-scored draft, the one that was written last, and all steps."""

    text: str
    trans: NotRequired[str]
    last: NotRequired[str]
    steps: NotRequired[list[RefinementStep]]
    stop: NotRequired[str]
    dropped: NotRequired[str | None]


async def choose_last(state: TranslationState) -> dict[str, str | None]:
    """The draft that was written last."""
    return {"last": in_order_of_writing(state["steps"])[-1]["translation"], "dropped": None}


def builder(system: DRT | None = None) -> StateGraph[TranslationState, Context, Input, TranslationOutput]:
    """Return the state machine of stage B."""
    builder = StateGraph(TranslationState, context_schema=Context, input_schema=Input, output_schema=TranslationOutput)
    (system or DRT()).add_refinement(builder)
    builder.add_node("choose_last", choose_last)
    builder.add_edge("select", "choose_last")
    builder.add_edge("choose_last", END)
    return builder


graph = builder().compile(name="drt_refinement")
