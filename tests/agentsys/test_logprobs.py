"""Expected scores from the log-probabilities of hand-reply calls."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import pytest

from agentsys.logprobs import expected_digits, expected_score
from agentsys.models import load_model
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.traces import Call
from tests.support.calls import make_call
from tests.support.servers import FakeServer, decode, encode

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


def stated_number(reply: Call) -> float:
    """The last number of a reply from `call_with_texts` or `call_with_ids`, as its JSON would state it."""
    tokens = [row[0] if row else "" for row in reply.top_tokens or [[decode(ids[:1])] for ids in reply.top_ids or []]]
    return float(re.findall(r"\d+", "".join(tokens))[-1])


@pytest.fixture
async def score(start_server: Any):
    """`score(call)` with a model that has a tokenizer."""
    server: FakeServer = await start_server(dialect="llamacpp")
    model = load_model(server.url)

    async def ask(reply: Call, stated: float | None = None) -> float:
        stated = stated_number(reply) if stated is None else stated
        return await expected_score(SimpleNamespace(judge_model="", model=server.url), ROLE, reply, stated)

    yield ask
    await model.aclose()


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


CLOSE = {"{": 1.0}


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


@both
async def test_two_digits(score: Any, make: Any) -> None:
    reply = make({":": 1.0}, row(d7=0.5, d8=0.5), row(d0=0.75, d5=0.25), {"}": 1.0})
    assert await score(reply) == pytest.approx(10 * 7.5 + 1.25)


@both
async def test_one_digit(score: Any, make: Any) -> None:
    reply = make({":": 1.0}, row(d7=0.6, d9=0.2, d1=0.2), {"}": 1.0})
    assert await score(reply) == pytest.approx(0.6 * 7 + 0.2 * 9 + 0.2 * 1)


@both
async def test_certainty_is_the_stated_number(score: Any, make: Any) -> None:
    assert await score(make({" ": 1.0}, row(d9=1.0), row(d0=1.0), {"}": 1.0})) == pytest.approx(90)
    assert await score(make(row(d1=1.0), row(d0=1.0), row(d0=1.0))) == pytest.approx(100)
    assert await score(make(row(d0=1.0))) == 0


@both
async def test_a_hundred_competes_with_numbers_of_two_digits(score: Any, make: Any) -> None:
    reply = make({":": 1.0}, row(d1=0.5, d9=0.25, d8=0.25), row(d0=1.0), row(d0=1.0), {"}": 1.0})
    assert await score(reply) == pytest.approx(0.5 * 100 + 0.25 * 95 + 0.25 * 85)


@both
async def test_tokens_that_are_not_digits_do_not_count(score: Any, make: Any) -> None:
    reply = make(row(d7=0.4) | {"x": 0.5} | row(d8=0.1), row(d0=0.9) | {'"': 0.1})
    assert await score(reply) == pytest.approx(10 * (0.8 * 7 + 0.2 * 8))


@both
async def test_the_last_number_counts(score: Any, make: Any) -> None:
    reply = make(row(d1=1.0), row(d2=1.0), {",": 1.0}, row(d3=0.5, d4=0.5), {"}": 1.0}, {"\n": 1.0})
    assert await score(reply) == pytest.approx(3.5)


@both
async def test_a_digit_among_the_alternatives_only_is_no_number(score: Any, make: Any) -> None:
    reply = make(row(d5=1.0), {"x": 0.6, "9": 0.4})
    assert await score(reply) == pytest.approx(5)


@both
async def test_a_number_not_spelled_digit_by_digit_is_the_stated_score(score: Any, make: Any) -> None:
    assert await score(make({"a": 0.6, "7": 0.4}, {"b": 1.0}), stated=70.0) == 70.0
    assert await score(make(row(d1=1.0), {" image": 1.0}, row(d5=1.0)), stated=85.0) == 85.0


async def test_a_number_that_is_one_token_is_the_stated_score(score: Any) -> None:
    reply = call_with_texts(row(d1=1.0), {" image, ": 1.0}, {"85": 0.7, "80": 0.3})
    assert await score(reply, stated=85.0) == 85.0


async def test_without_ids_the_chosen_token_is_found_by_its_probability(score: Any) -> None:
    reply = call_with_texts({"x": 0.8, "7": 0.2}, row(d5=1.0))
    assert reply.logprobs is not None
    reply.logprobs[0] = math.log(0.2)  # sampled: the chosen token is not the most probable one
    assert await score(reply, stated=75.0) == pytest.approx(75)


@pytest.mark.parametrize("nothing", [None, []])
async def test_without_alternatives_it_is_the_stated_score(score: Any, nothing: Any) -> None:
    assert await score(make_call("judge", logprobs=[-0.5], top_logprobs=nothing), stated=77.0) == 77.0


async def test_a_row_without_alternatives_is_no_digit(score: Any) -> None:
    reply = call_with_texts(row(d7=1.0), {"}": 1.0})
    reply.top_tokens.append([])
    reply.top_logprobs.append([])
    assert await score(reply) == pytest.approx(7)
