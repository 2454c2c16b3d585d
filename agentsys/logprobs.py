"""Scores from log-probabilities: the expectation of a number that a model writes, the chances of how a reply begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from agentsys.models.chat import AgentChatModel
from agentsys.roles import Role
from agentsys.systems import model_of
from agentsys.traces import Call

Digit = int | str
"""A token that is one digit: its id, or its text where the server tells no ids."""


async def expected_score(context: Any, role: Role[Any], call: Call, stated: float) -> float:
    """The expectation over the last number of a reply, from the log-probabilities of its digits.

    For a number written with the digits d_1 d_2 (after an optional leading d_0): sum over its places of
    10^place * E[d], where E[d] is the mean over the digits among the recorded alternatives, renormalized. It moves
    where the stated number sticks to the rubric's anchors. Ours, not the paper's. `stated` is returned where the reply
    came without alternatives, or where its tokens do not spell that number digit by digit: with a tokenizer that writes
    "85" as one token there is no second digit to look at.
    """
    if not call.top_logprobs:
        return stated
    digits = await _digit_tokens(context, role, call)
    rows = [_distribution(call, i, digits) for i in range(len(call.top_logprobs))]
    places = _last_number(rows)
    if "".join(str(_chosen(call, i, digits)) for i in places) != str(int(stated)):
        return stated
    if len(places) == 3:  # only 100 has three digits: where it competes with two-digit numbers, "1" means 100
        first = rows[places[0]]
        hundred = first.get(1, 0.0)
        rest = sum(p * (10 * d + 5) for d, p in first.items() if d != 1)
        return (100 * hundred + rest) / sum(first.values())
    return sum(10.0**power * _mean(rows[i]) for power, i in enumerate(reversed(places)))


async def expected_digits(
    context: Any, role: Role[Any], call: Call, stated: Sequence[int], scale: Sequence[int]
) -> list[float]:
    """The expectations over the last numbers of a reply, each one digit of a scale, from the digits' log-probabilities.

    `stated` are those numbers in order. They are returned as they are where the reply came without alternatives, or
    where its last tokens that are digits do not spell them.
    """
    if not call.top_logprobs:
        return [float(score) for score in stated]
    digits = await _digit_tokens(context, role, call)
    rows = [_distribution(call, i, digits) for i in range(len(call.top_logprobs))]
    places = [i for i, row in enumerate(rows) if row][-len(stated) :]
    if [_chosen(call, i, digits) for i in places] != list(stated):
        return [float(score) for score in stated]
    return [_mean({d: p for d, p in rows[i].items() if d in scale}) for i in places]


async def opening_logprobs(context: Any, role: Role[Any], call: Call, openings: Sequence[str]) -> list[float | None]:
    """The log-probability (natural) with which a reply could have begun with each of some texts: of their first tokens.

    None where the reply came without alternatives, or the token is not among them.
    """
    if not call.top_logprobs:
        return [None] * len(openings)
    row = call.top_logprobs[0]
    model = model_of(context, role)
    found: list[float | None] = []
    for opening in openings:
        if call.top_ids is not None and isinstance(model, AgentChatModel):
            ids = await model.token_ids(opening)
            wanted = [token == ids[0] if ids else False for token in call.top_ids[0]]
        else:
            tokens = (call.top_tokens or [[]])[0]
            wanted = [bool(token.strip()) and opening.startswith(token.strip()) for token in tokens]
        found.append(max((p for p, fits in zip(row, wanted, strict=False) if fits), default=None))
    return found


async def _digit_tokens(context: Any, role: Role[Any], call: Call) -> dict[Digit, int]:
    """The tokens that are one digit, by their text and, where the server tells ids, by their id."""
    model = model_of(context, role)
    digits: dict[Digit, int] = {str(d): d for d in range(10)}
    if call.top_ids is not None and isinstance(model, AgentChatModel):
        for d in range(10):
            ids = await model.token_ids(str(d))
            if ids is not None and len(ids) == 1:
                digits[ids[0]] = d
    return digits


def _distribution(call: Call, i: int, digits: dict[Digit, int]) -> dict[int, float]:
    """Digit -> probability at token i; empty if the token that was chosen is no digit."""
    assert call.top_logprobs is not None
    tokens: list[Digit] = list((call.top_ids or call.top_tokens or [])[i])
    if not tokens:
        return {}
    if _chosen(call, i, digits) is None:
        return {}
    row: dict[int, float] = {}
    for token, logprob in zip(tokens, call.top_logprobs[i], strict=True):
        if token in digits:
            row[digits[token]] = row.get(digits[token], 0.0) + math.exp(logprob)
    return row


def _chosen(call: Call, i: int, digits: dict[Digit, int]) -> int | None:
    """The digit that was written at token i; without ids, the alternative that has the written token's probability."""
    assert call.top_logprobs is not None
    if call.ids is not None:
        return digits.get(call.ids[i])
    values = call.top_logprobs[i]
    written = call.logprobs[i] if call.logprobs else max(values)
    return digits.get((call.top_ids or call.top_tokens or [])[i][nearest(values, written)])


def nearest(row: Sequence[float], written: float) -> int:
    """Which of a token's alternatives was written, where no id tells: that with the written token's log-probability."""
    return min(range(len(row)), key=lambda j: abs(row[j] - written))


def _last_number(rows: list[dict[int, float]]) -> list[int]:
    """Indices of the last run of digit tokens."""
    end = next((i for i in range(len(rows) - 1, -1, -1) if rows[i]), None)
    if end is None:
        return []
    start = end
    while start > 0 and rows[start - 1]:
        start -= 1
    return list(range(start, end + 1))


def _mean(row: dict[int, float]) -> float:
    return sum(d * p for d, p in row.items()) / sum(row.values())
