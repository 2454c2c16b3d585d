"""The expected score against brute force: models with a known distribution over whole numbers."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from agentsys import logprobs
from agentsys.logprobs import expected_score
from agentsys.models import load_model
from agentsys.models.cache import RequestCache
from agentsys.models.errors import EndpointDown
from agentsys.prompt import Prompt
from agentsys.recorder import Recorder, current
from agentsys.roles import Role
from agentsys.traces import Call
from tests.support.number_models import OPENING, NumberModel
from tests.support.servers import Answer, encode, write_model_folder


class Score(BaseModel):
    score: int


ROLE = Role(
    Prompt.parse("# user\nrate it", "judge"), Score, sampling={"temperature": 0.0, "max_tokens": 20, "logprobs": 20}
)
ENDINGS = {"}": 0.7, " ": 0.15, "\n": 0.1, "}\n": 0.05}


def score_of(
    model: NumberModel, monkeypatch: pytest.MonkeyPatch, recorder: Recorder | None = None, role: Role[Score] = ROLE
) -> tuple[float | None, Call]:
    """The expected score of the model's reply, with the call of the reply."""
    recorder = recorder or Recorder("r")

    async def run() -> tuple[float | None, Call]:
        token = current.set(recorder)
        try:
            answer = await role.answer(model, key="evaluate/0")
            return await expected_score(None, role, answer.call, answer.value.score), answer.call
        finally:
            current.reset(token)

    monkeypatch.setattr(logprobs, "model_of", lambda context, role: model)
    return asyncio.run(run())


def mean_of(numbers: dict[int, float]) -> float:
    """Brute force: the sum over all numbers."""
    return sum(number * p for number, p in numbers.items()) / sum(numbers.values())


def random_numbers(seed: int) -> dict[int, float]:
    """A distribution over all whole numbers from 0 to 100, with a few likely ones, as judges have them."""
    rng = random.Random(seed)
    numbers = {number: rng.random() ** 8 for number in range(101)}
    for number in rng.sample([1, 5, 8, 10, 50, 70, 85, 88, 90, 92, 95, 100], 4):
        numbers[number] += rng.random() * 30
    total = sum(numbers.values())
    return {number: p / total for number, p in numbers.items()}


@pytest.mark.parametrize("seed", range(40))
def test_digit_by_digit_it_is_the_mean_over_all_numbers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = random_numbers(seed)
    value, call = score_of(NumberModel(numbers=numbers, endings=ENDINGS, calls=[]), monkeypatch)
    assert value == pytest.approx(mean_of(numbers), abs=0.1)
    assert call.measured["expected_within"] <= 0.1
    assert abs(value - mean_of(numbers)) <= call.measured["expected_within"] + 0.0005


@pytest.mark.parametrize("seed", range(5))
def test_tokens_that_no_such_reply_has_do_not_count(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar would leave them out; the request for one more token has none."""
    numbers = random_numbers(seed)
    noise = {".": 0.05, "x": 0.1, "8x": 0.05, '"': 0.1}
    value, _ = score_of(NumberModel(numbers=numbers, endings=ENDINGS, noise=noise, calls=[]), monkeypatch)
    assert value == pytest.approx(mean_of(numbers), abs=0.1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("returns_ids", [True, False])
def test_one_token_numbers_need_no_request(seed: int, returns_ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over the alternatives of that token, with or without ids."""
    likely = dict(sorted(random_numbers(seed).items(), key=lambda item: -item[1])[:15])
    merged = tuple(str(number) for number in range(10, 101))
    model = NumberModel(numbers=likely, endings=ENDINGS, merged=merged, returns_ids=returns_ids, calls=[])
    value, _ = score_of(model, monkeypatch)
    assert value == pytest.approx(mean_of(likely), abs=1e-9)
    assert model.calls == []


def test_order_around_tens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stated 88 that may be in the nineties is below a stated 92 that may be in the eighties."""
    low, _ = score_of(NumberModel(numbers={88: 0.75, 90: 0.25}, calls=[]), monkeypatch)
    high, _ = score_of(NumberModel(numbers={92: 0.75, 88: 0.25}, calls=[]), monkeypatch)
    assert (low, high) == (pytest.approx(88.5), pytest.approx(91.0))
    almost, _ = score_of(NumberModel(numbers={90: 0.6, 85: 0.4}, calls=[]), monkeypatch)
    assert almost == pytest.approx(88.0)


@pytest.mark.parametrize("numbers", [{90: 1.0}, {100: 1.0}, {10: 1.0}, {0: 1.0}, {7: 1.0}])
def test_certainty_is_the_stated_number(numbers: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    model = NumberModel(numbers=numbers, calls=[])
    assert score_of(model, monkeypatch)[0] == pytest.approx(next(iter(numbers)))
    assert model.calls == [], "the reply itself has all that is needed"


def test_one_ten_and_a_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {1: 0.2, 10: 0.3, 100: 0.4, 15: 0.1}
    assert score_of(NumberModel(numbers=numbers, calls=[]), monkeypatch)[0] == pytest.approx(mean_of(numbers))


def test_unlikely_digits_are_not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {90: 0.9, 70: 0.0995, 50: 0.0005}
    model = NumberModel(numbers=numbers, calls=[])
    value, call = score_of(model, monkeypatch)
    assert [one["key"] for one in model.calls] == ["evaluate/0/after-7"]
    assert value == pytest.approx(mean_of(numbers), abs=call.measured["expected_within"])
    assert call.measured["expected_within"] == pytest.approx(0.0005 * 27, abs=0.001)


def test_requests_are_recorded_and_come_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "cache.sqlite")
    numbers = {90: 0.5, 70: 0.3, 50: 0.2}
    runs = []
    for _ in range(2):
        model = NumberModel(numbers=numbers, calls=[], sampling={"max_tokens": 64, "logprobs": 20})
        recorder = Recorder("r", cache)
        value, _ = score_of(model, monkeypatch, recorder)
        runs.append((value, [call.key for call in recorder.calls], len(model.calls)))
    keys = ["evaluate/0", "evaluate/0/after-7", "evaluate/0/after-5"]
    assert [(value, sorted(found)) for value, found, _ in runs] == [(pytest.approx(76.0), sorted(keys))] * 2
    assert [sent for _, _, sent in runs] == [2, 0]
    assert {call.role for call in recorder.calls} == {"judge"}
    assert recorder.calls[1].schema_sha256 is None
    assert recorder.calls[1].sampling["max_tokens"] == 1, "whatever the model's spec says"
    cache.close()


def test_more_alternatives_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply with too few alternatives is asked again for the first digit."""
    role = Role(ROLE.prompt, Score, sampling={"temperature": 0.0, "max_tokens": 20, "logprobs": 2})
    numbers = {30: 0.3, 50: 0.25, 70: 0.25, 90: 0.2}
    model = NumberModel(numbers=numbers, calls=[])
    assert score_of(model, monkeypatch, role=role)[0] == pytest.approx(mean_of(numbers), abs=0.1)
    assert model.calls[0]["key"] == "evaluate/0/number"


@pytest.mark.parametrize("changes", [{"returns_ids": False}, {"continues": False}])
def test_digits_that_cannot_be_continued_have_no_expectation(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, call = score_of(NumberModel(numbers={90: 0.6, 70: 0.4}, calls=[], **changes), monkeypatch)
    assert value is None
    assert "expected_within" not in call.measured


def test_a_model_that_reads_another_prompt_has_no_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    class Renders(NumberModel):
        async def complete(self, messages: Any, **kwargs: Any) -> Any:
            reply = await super().complete(messages, **kwargs)
            reply.prompt_ids = [0, *(reply.prompt_ids or [])] if kwargs.get("continue_ids") else reply.prompt_ids
            return reply

    assert score_of(Renders(numbers={90: 0.6, 70: 0.4}, calls=[]), monkeypatch)[0] is None


def test_a_server_that_is_down_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Down(NumberModel):
        async def complete(self, messages: Any, **kwargs: Any) -> Any:
            if kwargs.get("continue_ids"):
                raise EndpointDown("gone")
            return await super().complete(messages, **kwargs)

    with pytest.raises(EndpointDown):
        score_of(Down(numbers={90: 0.6, 70: 0.4}, calls=[]), monkeypatch)


@pytest.mark.parametrize(
    "changes", [{"top_logprobs": None}, {"top_logprobs": []}, {"reasoning": "I think"}, {"text": f"{OPENING}31}}"}]
)
def test_no_expectation(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without alternatives, after a thought, and if the tokens do not spell the stated number."""
    model = NumberModel(numbers={90: 0.6, 70: 0.4}, calls=[])
    complete = model.complete

    async def changed(messages: Any, **kwargs: Any) -> Any:
        reply = await complete(messages, **kwargs)
        for name, value in changes.items():
            setattr(reply, name, value)
        return reply

    monkeypatch.setattr(NumberModel, "complete", lambda self, messages, **kwargs: changed(messages, **kwargs))
    assert score_of(model, monkeypatch)[0] is None
    assert model.calls == []


def test_a_reply_that_ends_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token after the number, what may follow it is asked for."""

    class Cut(NumberModel):
        async def complete(self, messages: Any, **kwargs: Any) -> Any:
            reply = await super().complete(messages, **kwargs)
            if not kwargs.get("continue_ids"):
                for name in ("ids", "top_ids", "logprobs", "top_logprobs"):
                    setattr(reply, name, getattr(reply, name)[:-1])
            return reply

    numbers = {9: 0.6, 95: 0.4}
    model = Cut(numbers=numbers, calls=[])
    assert score_of(model, monkeypatch)[0] == pytest.approx(mean_of(numbers))
    assert [call["key"] for call in model.calls] == ["evaluate/0/after-9"]


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_counts_what_is_not_among_the_alternatives(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """101 one-token numbers, of which 20 are returned."""
    numbers = random_numbers(seed)
    merged = tuple(str(number) for number in range(10, 101))
    value, call = score_of(NumberModel(numbers=numbers, merged=merged, calls=[]), monkeypatch)
    assert value is not None
    assert 0 < abs(value - mean_of(numbers)) <= call.measured["expected_within"] < 15


@pytest.mark.parametrize("dialect", ["llamacpp", "vllm"])
async def test_what_a_server_is_asked(dialect: str, start_server: Any, tmp_path: Path) -> None:
    """One token after the same ids, without the schema, with no more alternatives than vLLM allows."""
    chosen = math.exp(-0.25)  # what this server says of each token that it writes
    server = await start_server(
        dialect=dialect,
        root=str(write_model_folder(tmp_path / "model")),
        plan=lambda seen: Answer(f"{OPENING}95}}", alternatives={"7": math.log(1 - chosen)}),
    )
    context = SimpleNamespace(judge_model="", model=f"{server.url}?max_tokens=50")
    model = load_model(context.model)
    answer = await ROLE.answer(model, key="k")
    value = await expected_score(context, ROLE, answer.call, 95)
    await model.aclose()
    assert value == pytest.approx(chosen * (chosen * 95 + (1 - chosen) * 97) + (1 - chosen) * 77)
    first, second = server.bodies
    assert second["prompt"] == [*first["prompt"], *encode(f"{OPENING}7")]
    assert "json_schema" not in second and "structured_outputs" not in second
    assert second["n_predict" if dialect == "llamacpp" else "max_tokens"] == 1
    assert second["n_probs" if dialect == "llamacpp" else "logprobs"] == 20
