"""Scores from log-probabilities: the expected value of a number in a reply, how probable a reply's beginnings are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentsys.models.chat import AgentChatModel
from agentsys.models.errors import CannotContinue
from agentsys.roles import Role
from agentsys.systems import model_of
from agentsys.traces import Call

Token = int | str
"""A token: its id, or its text if the server returns no ids."""

HIGHEST: Final = 100
ALTERNATIVES: Final = 20
"""Alternatives of a token that is asked for: the most that vLLM returns unless it is started with more."""
UNFOLLOWED: Final = (0.04, 0.01)
"""How far beginnings that are not continued may move the expectation: of one digit, of two digits."""
UNLISTED: Final = 0.01
"""How far the probability outside of a reply's alternatives may move the expectation before more are asked for."""


async def expected_score(context: Any, role: Role[Any], call: Call, stated: float) -> float | None:
    """The expected value of the whole number, 0 to 100, at the end of a JSON reply, over the model's probabilities.

    It varies where the stated number stays at the rubric's anchors. This is ours, not the paper's. The sum runs over
    the whole numbers, as if the reply were sampled at temperature 1 under its schema. Where numbers are spelled digit
    by digit, each likely first digit is continued by a request for one token, a call of its own with the key
    `<key>/after-<digit>`. If numbers are single tokens, the sum runs over the alternatives of that token. The call's
    `measured` gets `expected_within`, a bound of the error by what is left out: 0.1 or less if the alternatives have
    nearly all of the probability.

    None if there is no such value: no alternatives were returned, the tokens do not spell `stated`, a thought precedes
    the reply, or numbers have several tokens and the server cannot continue a reply. Raises ModelError.
    """
    if not call.top_logprobs or call.reasoning:
        return None
    model = model_of(context, role)
    tree = _NumberTree(role, model if isinstance(model, AgentChatModel) else None, call)
    try:
        if not await tree.locate(stated):
            return None
        value, error = await tree.expect("", [], 1.0)
    except CannotContinue:
        return None
    call.measured["expected_within"] = round(error, 3)
    return value


@dataclass(frozen=True, slots=True)
class _Row:
    """The alternatives of one token, with their texts and probabilities."""

    tokens: list[Token]
    texts: list[str]
    probabilities: list[float]

    @property
    def unlisted(self) -> float:
        """The probability of all other tokens."""
        return max(0.0, 1.0 - sum(self.probabilities))


@dataclass(frozen=True, slots=True)
class _Branch:
    """Numbers with the same first digits: the tokens that spell these, their probability, whether they are all."""

    digits: str
    tokens: list[Token]
    probability: float
    complete: bool

    @property
    def middle(self) -> float:
        """The middle of the numbers."""
        return sum(_span(self.digits)) / 2 if not self.complete else float(self.digits)

    @property
    def radius(self) -> float:
        """The largest distance of the numbers from their middle."""
        low, high = _span(self.digits)
        return 0.0 if self.complete else (high - low) / 2


@dataclass
class _NumberTree:
    """The number at the end of a reply, and the numbers that could be there, by their first digits."""

    role: Role[Any]
    model: AgentChatModel | None
    call: Call
    start: int = 0
    """Index of the number's first token in the reply."""
    chosen: list[Token] = field(default_factory=list)
    """The number's tokens in the reply."""

    async def locate(self, stated: float) -> bool:
        """Find the last number of the reply, and whether it is `stated`. Raises CannotContinue."""
        spelled = ""
        for i in range(len(self.call.top_logprobs or ()) - 1, -1, -1):
            token, text = await self._chosen_at(i)
            if re.search("[0-9]", text):
                self.start, spelled = i, text + spelled
                self.chosen.insert(0, token)
            elif spelled:
                break
        number = re.match(r"\s*([0-9]+)(?![0-9.])", spelled)
        return number is not None and number[1] == str(int(stated))

    async def expect(self, digits: str, tokens: list[Token], weight: float) -> tuple[float, float]:
        """The mean of the numbers that begin with `digits`, and a bound of its error.

        `tokens` spell these digits and `weight` is their probability. Raises CannotContinue.
        """
        row = await self._row(digits, tokens, weight)
        branches = self._branches(digits, tokens, row)
        total = sum(branch.probability for branch in branches)
        if not total:
            raise CannotContinue(f"no number follows {digits!r}")
        followed = _choose_followed(branches, UNFOLLOWED[bool(digits)] * total / weight)
        mean = error = 0.0
        for branch in branches:  # one after the other: llama.cpp reads each from the slot that holds the reply
            share = branch.probability / total
            value, radius = branch.middle, branch.radius
            if branch in followed:
                value, radius = await self.expect(branch.digits, branch.tokens, weight * share)
            mean += share * value
            error += share * radius
        low, high = _span(digits)
        unlisted = row.unlisted / (total + row.unlisted)
        return mean, error + unlisted * max(high - mean, mean - low)

    async def _row(self, digits: str, tokens: list[Token], weight: float) -> _Row:
        """The alternatives after a beginning: the reply's, or those of a request for one more token."""
        recorded = None
        i = self.start + len(tokens)
        if tokens == self.chosen[: len(tokens)] and i < len(self.call.top_logprobs or ()):
            recorded = await self._read_row(self.call, i)
            low, high = _span(digits)
            if recorded.unlisted * weight * (high - low) <= UNLISTED:
                return recorded
        ids = [token for token in tokens if isinstance(token, int)]
        if self.model is None or self.call.ids is None or self.call.top_ids is None or len(ids) < len(tokens):
            if recorded is None:
                raise CannotContinue("the server returns no token ids")
            return recorded
        ids = self.call.ids[: self.start] + ids
        key = f"{self.call.key}/after-{digits}" if digits else f"{self.call.key}/number"
        sampling = {"temperature": 0.0, "max_tokens": 1, "logprobs": ALTERNATIVES}
        call = await self.role.continue_call(self.model, self.call, ids, key=key, sampling=sampling)
        if call.prompt_ids != [*(self.call.prompt_ids or ()), *ids] or not call.top_ids:
            raise CannotContinue("the server reads other token ids")
        return await self._read_row(call, 0)

    def _branches(self, digits: str, tokens: list[Token], row: _Row) -> list[_Branch]:
        """The beginnings that are one token longer; a number that ends is one."""
        branches: dict[tuple[str, bool], _Branch] = {}
        ordered = sorted(zip(row.tokens, row.texts, row.probabilities, strict=True), key=lambda item: -item[2])
        read = [(token, _read_token(digits, text), p) for token, text, p in ordered]
        # A tokenizer that has "85" as one token writes 85 so: its token "8" is the number 8.
        one_token = len(self.chosen) == 1 and not digits and any(number and len(number[0]) > 1 for _, number, _ in read)
        for token, number, p in read:
            if number is None:
                continue
            key = number[0], number[1] or one_token
            same = branches.get(key)  # spelled in two ways: continued after the more probable one
            branches[key] = _Branch(
                number[0], same.tokens if same else [*tokens, token], p + (same.probability if same else 0.0), key[1]
            )
        return list(branches.values())

    async def _read_row(self, call: Call, i: int) -> _Row:
        """The alternatives of a call's token i. Raises CannotContinue if their texts are unknown."""
        assert call.top_logprobs is not None
        probabilities = [math.exp(value) for value in call.top_logprobs[i]]
        if call.top_ids is None:
            tokens = (call.top_tokens or [[]])[i]
            return _Row([*tokens], tokens, probabilities)
        texts = await self.model.token_texts(call.top_ids[i]) if self.model else None
        if texts is None:
            raise CannotContinue("the texts of the tokens are unknown")
        return _Row([*call.top_ids[i]], texts, probabilities)

    async def _chosen_at(self, i: int) -> tuple[Token, str]:
        """The reply's token i and its text; without ids, the alternative with the token's log-probability."""
        call = self.call
        if call.ids is not None and call.top_ids is not None:
            texts = await self.model.token_texts([call.ids[i]]) if self.model else None
            if texts is None:
                raise CannotContinue("the texts of the tokens are unknown")
            return call.ids[i], texts[0]
        assert call.top_logprobs is not None
        values = call.top_logprobs[i]
        if not values:
            return "", ""
        j = nearest(values, call.logprobs[i] if call.logprobs else max(values))
        row = await self._read_row(call, i)
        return row.tokens[j], row.texts[j]


def _span(digits: str) -> tuple[int, int]:
    """The lowest and the highest number that begins with these digits."""
    if digits in ("", "1", "10"):
        return int(digits or 0), HIGHEST
    return int(digits), int(digits) * 10 + 9 if digits != "0" and len(digits) == 1 else int(digits)


def _read_token(digits: str, text: str) -> tuple[str, bool] | None:
    """The digits after one more token, and whether the number is complete; None if it is no whole number to 100."""
    text = text if digits else text.lstrip()
    more = text[: len(text) - len(text.lstrip("0123456789"))]
    number, rest = digits + more, text[len(more) :]
    if not text or not number or int(number) > HIGHEST or (number[0] == "0" and len(number) > 1):
        return None
    if rest and rest[0] not in " \t\r\n,}]":  # what JSON allows after a number
        return None
    low, high = _span(number)
    return number, bool(rest) or low == high


def _choose_followed(branches: Sequence[_Branch], budget: float) -> list[_Branch]:
    """The branches to continue: all but those whose numbers, taken together, move a mean by at most `budget`."""
    open_branches = sorted((b for b in branches if not b.complete), key=lambda b: b.probability * b.radius)
    while open_branches and (moved := open_branches[0].probability * open_branches[0].radius) <= budget:
        budget -= moved
        open_branches = open_branches[1:]
    return open_branches


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


async def _digit_tokens(context: Any, role: Role[Any], call: Call) -> dict[Token, int]:
    """The one-digit tokens, by text and, if the server returns ids, by id."""
    model = model_of(context, role)
    digits: dict[Token, int] = {str(d): d for d in range(10)}
    if call.top_ids is not None and isinstance(model, AgentChatModel):
        for d in range(10):
            ids = await model.token_ids(str(d))
            if ids is not None and len(ids) == 1:
                digits[ids[0]] = d
    return digits


def _distribution(call: Call, i: int, digits: dict[Token, int]) -> dict[int, float]:
    """Digit -> probability at token i; empty if the chosen token is not a digit."""
    assert call.top_logprobs is not None
    tokens: list[Token] = list((call.top_ids or call.top_tokens or [])[i])
    if not tokens:
        return {}
    if _chosen(call, i, digits) is None:
        return {}
    row: dict[int, float] = {}
    for token, logprob in zip(tokens, call.top_logprobs[i], strict=True):
        if token in digits:
            row[digits[token]] = row.get(digits[token], 0.0) + math.exp(logprob)
    return row


def _chosen(call: Call, i: int, digits: dict[Token, int]) -> int | None:
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


def _mean(row: dict[int, float]) -> float:
    return sum(d * p for d, p in row.items()) / sum(row.values())
