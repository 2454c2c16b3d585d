"""Expected digits from the log-probabilities of calls built by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from agentsys.logprobs import expected_digits
from agentsys.models import load_model
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.traces import Call
from tests.support.calls import make_call
from tests.support.servers import FakeServer, encode

ROLE: Role[str] = Role(Prompt.parse("# user\nx", "judge"))

Row = dict[str, float]
"""Token text -> probability; the first one is the token that was chosen."""


def call_with_texts(*rows: Row) -> Call:
    """A call of a server that returns the texts of tokens only."""
    return make_call(
        "judge",
        logprobs=[math.log(next(iter(row.values()))) for row in rows],
        top_tokens=[list(row) for row in rows],
        top_logprobs=[[math.log(p) for p in row.values()] for row in rows],
    )


def call_with_ids(*rows: Row) -> Call:
    """The same call of an engine that returns token ids."""
    reply = call_with_texts(*rows)
    reply.top_ids = [[encode(token)[0] for token in row] for row in rows]
    reply.ids = [row[0] for row in reply.top_ids]
    reply.top_tokens = None
    return reply


both = pytest.mark.parametrize("make", [call_with_texts, call_with_ids])


@pytest.fixture
async def digits(start_server: Any):
    """`digits(call, stated)` on a scale from 1 to 5, with a model that has a tokenizer."""
    server: FakeServer = await start_server(dialect="llamacpp")
    model = load_model(server.url)

    async def ask(reply: Call, stated: list[int]) -> list[float]:
        return await expected_digits(
            SimpleNamespace(judge_model="", model=server.url), ROLE, reply, stated, range(1, 6)
        )

    yield ask
    await model.aclose()


def row(**digits: float) -> Row:
    """row(d7=0.5, d8=0.5)."""
    return {name[1:]: p for name, p in digits.items()}


@both
async def test_several_digits_of_a_scale(digits: Any, make: Any) -> None:
    """The last digits count; digits off the scale have no weight."""
    reply = make(row(d1=1.0), {":": 1.0}, row(d4=0.75, d2=0.25), {",": 1.0}, row(d3=0.5, d5=0.25, d9=0.25), {"}": 1.0})
    assert await digits(reply, [4, 3]) == pytest.approx([3.5, (0.5 * 3 + 0.25 * 5) / 0.75])
    assert await digits(reply, [4, 5]) == [4, 5], "other numbers than the stated ones"
    reply.top_logprobs = None
    assert await digits(reply, [4, 3]) == [4, 3]
