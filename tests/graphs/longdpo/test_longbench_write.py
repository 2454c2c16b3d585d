"""graphs/longdpo/longbench_write.py and measures.py: the graph in a thread, and the scale of the scores."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from agentsys.graphs.longdpo import longbench_write
from agentsys.graphs.longdpo.longbench_write import DIMENSIONS, LongBenchWriteContext, percent, quality_score
from agentsys.graphs.longdpo.measures import by_bucket
from agentsys.metrics.lengths import count_words
from tests.support.long_responses import REQUESTS, Author


async def test_a_thread_writes_a_new_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Studio a thread keeps its state: the response to one request must not answer the next."""
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: Author())
    thread = longbench_write.builder.compile(checkpointer=InMemorySaver())
    states = []
    for row in (REQUESTS[0], REQUESTS[3], REQUESTS[2]):
        config: Any = {"configurable": {"thread_id": "one"}}
        states.append(await thread.ainvoke({"prompt": row["prompt"]}, config, context=LongBenchWriteContext()))
    assert [count_words(state["response"]) for state in states] == [100, 2500, 2000]
    assert [state["truncated"] for state in states] == [False, False, True]
    assert [bool(state["grades"]) for state in states] == [True, False, True]
    assert states[1]["unjudged"] and states[2]["unjudged"] is None
    judged = await longbench_write.graph.ainvoke(
        {"prompt": REQUESTS[0]["prompt"], "existing_response": "Tea."}, context=LongBenchWriteContext()
    )
    assert judged["response"] == "Tea." and judged["truncated"] is None and judged["grades"]


def test_an_average_is_over_buckets_not_responses() -> None:
    """The paper's: 80.80, 89.10, 74.50 and 88.10 give 83.125, whatever the number of responses in each."""
    buckets = ["[0, 500)", "[500, 2k)", "[2k, 4k)", "[4k, 20k)"]
    values = [*zip(buckets, (88.10, 74.50, 89.10, 80.80), strict=True)]
    result = by_bucket([*values, values[0], values[0]])
    assert result["average"] == {"value": pytest.approx(83.125), "buckets": 4} and result["all"]["n"] == 6
    assert by_bucket([]) == {"buckets": dict.fromkeys(buckets), "average": None, "all": None}


def test_the_scale_of_quality() -> None:
    """93.75 in table 6 is nine grades of 5 and three of 4, over twelve responses."""
    assert quality_score(dict.fromkeys(DIMENSIONS, 1)) == 0 and quality_score(dict.fromkeys(DIMENSIONS, 5)) == 100
    assert quality_score(dict(zip(DIMENSIONS, (5, 5, 5, 5, 5, 2), strict=True))) == pytest.approx(87.5)
    assert percent((9 * 5 + 3 * 4) / 12) == 93.75
