"""A model whose replies are `{"score": N}`, with a known distribution over N and over what may end a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agentsys.models.chat import AgentChatModel
from agentsys.models.errors import CannotContinue
from agentsys.models.wire import Reply

OPENING = '{"score": '
PROMPT_IDS = [7, 8, 9]


class NumberModel(AgentChatModel):
    """`numbers`: N -> its probability; `endings`: what follows a number -> its probability.

    Tokens are single characters, except those in `merged`. `noise` is the probability, at each place of the number, of
    tokens that no reply of this form has. `calls` are the arguments of all requests after the first.
    """

    numbers: dict[int, float]
    endings: dict[str, float] = {"}": 1.0}  # noqa: RUF012 (pydantic copies it)
    merged: tuple[str, ...] = ()
    noise: dict[str, float] = {}  # noqa: RUF012
    returns_ids: bool = True
    continues: bool = True
    calls: list[dict[str, Any]] = []  # noqa: RUF012

    @property
    def _llm_type(self) -> str:
        return "numbers"

    async def identity(self) -> dict[str, Any]:
        return {"name": "numbers", "revision": None}

    def vocabulary(self) -> list[str]:
        characters = {*OPENING, *"0123456789", *self.endings, *self.noise, "}"}
        return [*sorted(characters), *self.merged]

    async def token_texts(self, ids: Sequence[int]) -> list[str] | None:
        return [self.vocabulary()[token] for token in ids]

    def encode(self, text: str) -> list[int]:
        """The longest tokens first, as a tokenizer with merges does it."""
        vocabulary = sorted(self.vocabulary(), key=len, reverse=True)
        ids: list[int] = []
        while text:
            token = next(token for token in vocabulary if text.startswith(token))
            ids.append(self.vocabulary().index(token))
            text = text[len(token) :]
        return ids

    def next_tokens(self, spelled: str) -> dict[str, float]:
        """The distribution of the token after the digits `spelled`."""
        row: dict[str, float] = {}
        for number, p in self.numbers.items():
            tokens = [self.vocabulary()[token] for token in self.encode(str(number))]
            for i in range(len(tokens) + 1):
                if "".join(tokens[:i]) != spelled:
                    continue
                if i < len(tokens):
                    row[tokens[i]] = row.get(tokens[i], 0.0) + p
                else:
                    for ending, share in self.endings.items():
                        row[ending] = row.get(ending, 0.0) + p * share
        total = sum(row.values())
        real = 1.0 - sum(self.noise.values())
        return {**{token: real * p / total for token, p in row.items()}, **self.noise}

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        prefix = kwargs.get("continue_ids") or []
        count = self.settings(kwargs.get("sampling") or {})["logprobs"]
        if not prefix:
            stated = max(self.numbers, key=lambda number: self.numbers[number])
            return self.state(stated, count)
        self.calls.append(kwargs)
        if not self.continues:
            raise CannotContinue("no")
        begun = "".join(await self.token_texts(prefix) or [])
        row = self.next_tokens(begun.removeprefix(OPENING))
        return self._reply([max(row, key=lambda token: row[token])], begun, prefix, count)

    def state(self, stated: int, count: int) -> Reply:
        """The reply that states a number."""
        tokens = [self.vocabulary()[token] for token in self.encode(f"{OPENING}{stated}}}")]
        return self._reply(tokens, "", [], count)

    def _reply(self, tokens: list[str], begun: str, prefix: list[int], count: int) -> Reply:
        rows = self._rows(tokens, begun)
        top = [sorted(row.items(), key=lambda item: -item[1])[:count] for row in rows]
        ids = [self.vocabulary().index(token) for token in tokens]
        return Reply(
            "".join(tokens),
            "length" if prefix else "stop",
            completion_tokens=len(tokens),
            prompt_ids=[*PROMPT_IDS, *prefix] if self.returns_ids else None,
            ids=ids if self.returns_ids else None,
            logprobs=[math.log(row[token]) for row, token in zip(rows, tokens, strict=True)],
            top_logprobs=[[math.log(p) for _, p in row] for row in top],
            top_ids=[[self.vocabulary().index(token) for token, _ in row] for row in top] if self.returns_ids else None,
            top_tokens=None if self.returns_ids else [[token for token, _ in row] for row in top],
        )

    def _rows(self, tokens: Sequence[str], begun: str) -> list[dict[str, float]]:
        """The distribution at each token after the text `begun`: certain outside of the number."""
        rows = []
        for token in tokens:
            spelled = begun[len(OPENING) :]
            in_number = len(begun) >= len(OPENING) and not spelled.strip("0123456789")
            rows.append(self.next_tokens(spelled) if in_number else {token: 1.0})
            begun += token
        return rows
