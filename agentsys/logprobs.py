"""Scores from log-probabilities: the expected value of a number in a reply, how probable a reply's beginnings are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from agentsys.models.chat import AgentChatModel
from agentsys.roles import Role
from agentsys.systems import model_of
from agentsys.traces import Call

Digit = int | str
"""A token that is one digit: its id, or its text if the server returns no ids."""


async def expected_score(context: Any, role: Role[Any], call: Call, stated: float) -> float:
    """The expected value of the last number (0 to 100) of a reply, from the log-probabilities of its digits.

    For a number with the digits d_1 d_2 (after an optional leading d_0): the sum over its places of 10^place * E[d],
    where E[d] is the mean over the digits among the recorded alternatives, renormalized. It varies where the stated
    number stays at the rubric's anchors. This is ours, not the paper's. Returns `stated` if the reply has no
    alternatives or its tokens do not spell that number digit by digit, as with a tokenizer that has "85" as one token.
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
    """The expected values of a reply's last numbers, each one digit of `scale`, from the digits' log-probabilities.

    `stated` are those numbers in order. They are returned unchanged if the reply has no alternatives or its last digit
    tokens do not spell them.
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
    """The natural log-probability of each opening as the beginning of the reply: that of its first token.

    None if the reply has no alternatives, or the token is not among them.
    """
    if not call.top_logprobs:
        return [None] * len(openings)
    row = call.top_logprobs[0]
    model = model_of(context, role)
    logprobs: list[float | None] = []
    for opening in openings:
        if call.top_ids is not None and isinstance(model, AgentChatModel):
            ids = await model.token_ids(opening)
            matches = [token == ids[0] if ids else False for token in call.top_ids[0]]
        else:
            tokens = (call.top_tokens or [[]])[0]
            matches = [bool(token.strip()) and opening.startswith(token.strip()) for token in tokens]
        logprobs.append(max((p for p, match in zip(row, matches, strict=False) if match), default=None))
    return logprobs


async def _digit_tokens(context: Any, role: Role[Any], call: Call) -> dict[Digit, int]:
    """The one-digit tokens, by text and, if the server returns ids, by id."""
    model = model_of(context, role)
    digits: dict[Digit, int] = {str(d): d for d in range(10)}
    if call.top_ids is not None and isinstance(model, AgentChatModel):
        for d in range(10):
            ids = await model.token_ids(str(d))
            if ids is not None and len(ids) == 1:
                digits[ids[0]] = d
    return digits


def _distribution(call: Call, i: int, digits: dict[Digit, int]) -> dict[int, float]:
    """Digit -> probability at token i; empty if the chosen token is not a digit."""
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
    """The digit chosen at token i; without ids, the alternative with the chosen token's log-probability."""
    assert call.top_logprobs is not None
    if call.ids is not None:
        return digits.get(call.ids[i])
    values = call.top_logprobs[i]
    chosen = call.logprobs[i] if call.logprobs else max(values)
    return digits.get((call.top_ids or call.top_tokens or [])[i][nearest(values, chosen)])


def nearest(row: Sequence[float], chosen: float) -> int:
    """The index of the chosen token among its alternatives: that of the value nearest to its log-probability."""
    return min(range(len(row)), key=lambda j: abs(row[j] - chosen))


def _last_number(rows: list[dict[int, float]]) -> list[int]:
    """Indices of the last run of digit tokens; [] if there is none."""
    end = next((i for i in range(len(rows) - 1, -1, -1) if rows[i]), None)
    if end is None:
        return []
    start = end
    while start > 0 and rows[start - 1]:
        start -= 1
    return list(range(start, end + 1))


def _mean(row: dict[int, float]) -> float:
    return sum(d * p for d, p in row.items()) / sum(row.values())
