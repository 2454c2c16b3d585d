"""LongDPO's layers with a scripted model: choices, memory, critiques, pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from agentsys.graphs.longdpo import search as longdpo_search
from agentsys.graphs.longdpo import system as longdpo
from agentsys.graphs.longdpo.judge import PRINCIPLES, Judgement, fault
from agentsys.graphs.longdpo.memory import Fact, cut_evenly, suspicions
from agentsys.graphs.longdpo.system import Context, LongDPO, graph
from agentsys.graphs.longdpo.targets import near_equal
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply

REQUEST = "Write a long letter about a lighthouse."


class Words:
    """Vectors that count the words of a small vocabulary."""

    name = "words"
    known = ("keeper", "anna", "bruno", "lamp", "red", "green", "sea")

    async def embed(self, texts: Sequence[str]) -> Any:
        return np.array([[text.lower().count(word) for word in self.known] for text in texts], dtype=float)


@dataclass
class Script:
    """Replies by role; `judgements` gives each text its score on all principles, or a list of seven."""

    steps: Mapping[str, str]
    judgements: Mapping[str, float | Sequence[float]]
    facts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    contradictions: Sequence[tuple[str, str]] = ()
    suggestion: str = "Say what the keeper sees."
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def __call__(self, messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        role, key, last = call["role"], call["key"], str(messages[-1]["content"])
        self.asked.append((role, key, last))
        return str(getattr(self, role)(key, last))

    def writer(self, key: str, request: str) -> str:
        return self.steps[key]

    def judge(self, key: str, request: str) -> str:
        text = request.rpartition("The part to judge:\n")[2].partition("\n\n(An earlier")[0]
        scores = self.judgements[text]
        rows = [scores] * 7 if isinstance(scores, int | float) else scores
        return json.dumps({"analysis": "x"} | {n: weights(s) for n, s in zip(PRINCIPLES, rows, strict=True)})

    def grader(self, key: str, request: str) -> str:
        score = self.judgements[request.rpartition("The part to judge:\n")[2]]
        return json.dumps(dict.fromkeys(PRINCIPLES, score))

    def extractor(self, key: str, request: str) -> str:
        text = request.rpartition("The newest part:\n")[2]
        found = [{"statement": fact, "validity": "unsure", "evidence": text} for fact in self.facts.get(text, ())]
        wrong = {"statement": "The sea is green.", "validity": "false", "evidence": text}
        return json.dumps({"facts": [*found, wrong]})

    def contradiction(self, key: str, request: str) -> str:
        return json.dumps(
            {"reason": "x", "contradicts": any(f in request and c in request for f, c in self.contradictions)}
        )

    def critic(self, key: str, request: str) -> str:
        return json.dumps({"analysis": "x", "suggestion": self.suggestion, "confidence": 4, "words": ""})


def weights(score: float) -> list[float]:
    """Soft weights whose expectation is the score; none at all for 0."""
    low = min(int(score), 4)
    return [0.0] * 5 if score == 0 else [{low: low + 1 - score, low + 1: score - low}.get(i, 0.0) for i in range(1, 6)]


STATED = Context(width=3, depth=2, eta=1.0, weights="stated")
Runner = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Runner:
    async def start(script: Script, final: Sequence[str] = (), tells_ids: bool = True, **knobs: Any) -> dict[str, Any]:
        class Writing(ScriptedChatModel):
            """Steps end at the token limit unless they are final; a letter is a token."""

            tells_ids: bool = True

            async def complete(self, messages: Any, **kwargs: Any) -> Reply:
                reply = await super().complete(messages, **kwargs)
                going_on = kwargs["role"] == "writer" and kwargs["key"] not in final
                ids = [*map(ord, reply.text)] if self.tells_ids else None
                return replace(reply, finish="length" if going_on else "stop", ids=ids)

        model = Writing(respond=script, tells_ids=tells_ids)
        monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **about: model)
        monkeypatch.setattr(longdpo, "_embedder", lambda spec: Words())
        context = replace(STATED, **knobs)
        return dict(await graph.ainvoke({"prompt": REQUEST, "length": 300}, context=context))

    return start


STEPS = {"0/0": "one", "0/1": "two", "0/2": "three", "1/0": "four", "1/1": "five", "1/2": "six"}
VALUES = {"one": 2.0, "two": 4.5, "three": 3.0, "four": 3.25, "five": 2.5, "six": 4.0}


async def test_the_best_step_goes_on_and_each_layer_gives_a_pair(run: Runner) -> None:
    script = Script(STEPS, VALUES)
    result = await run(script, rejected="worst")
    assert result["response"] == "twosix" and result["stop"] == "depth"
    assert [step["value"] for step in result["layers"][0]["candidates"]] == pytest.approx([2.0, 4.5, 3.0])
    first, second = result["targets"]
    assert [s["prompt"] or s["call"] for s in first["segments"]] == ["0/0", "0/1"]
    assert [s["prompt"] or s["call"] for s in first["rejected"]] == ["0/0", "0/0"]
    assert second["scores"] == pytest.approx(
        {"chosen": 4.0, "rejected": 2.5, "margin": 1.5, "depth": 1.0, "suggestions": 0.0}
    )
    before = [request for role, key, request in script.asked if key == "1/0/judge"]
    assert "What came before:\ntwo\n" in before[0]
    assert not any(role in ("extractor", "contradiction", "critic") for role, _, _ in script.asked)


async def test_what_an_engine_without_token_ids_wrote_is_not_begun_anew(run: Runner) -> None:
    script = Script(STEPS, VALUES)
    result = await run(script, tells_ids=False)
    assert result["response"] == "two" and len(result["targets"]) == 1, "the first layer is sound"
    assert result["stop"].endswith("has no token ids; use embedded, llama.cpp or vLLM")
    assert not any(key.startswith("1/") for _, key, _ in script.asked)


async def test_a_random_sibling_is_rejected_and_the_seed_decides_which(run: Runner) -> None:
    found = {
        (await run(Script(STEPS, VALUES), depth=1, choice_seed=seed))["layers"][0]["rejected"] for seed in range(12)
    }
    assert found == {0, 2}
    again = [(await run(Script(STEPS, VALUES), depth=1, choice_seed=5))["layers"][0]["rejected"] for _ in range(2)]
    assert again[0] == again[1]


async def test_the_end_of_the_response_ends_the_layers(run: Runner) -> None:
    result = await run(Script(STEPS, VALUES), final=["0/1"], depth=4)
    assert (result["stop"], len(result["layers"]), result["response"]) == ("end", 1, "two")


async def test_a_thread_begins_anew(run: Runner) -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    await run(Script(STEPS, VALUES), depth=1)  # sets the model
    kept = LongDPO().builder().compile(checkpointer=InMemorySaver())
    for _ in range(2):
        given = {"configurable": {"thread_id": "one"}}
        result = await kept.ainvoke({"prompt": REQUEST}, given, context=replace(STATED, depth=1))
        assert (result["response"], len(result["layers"])) == ("two", 1)


STORY = {
    "0/0": "The keeper Anna lights the red lamp.", "0/1": "dull", "0/2": "duller",
    "1/0": "The keeper Bruno dims the green lamp.", "1/1": "Anna, the keeper, sleeps by her red lamp.", "1/2": "dull",
}  # fmt: skip
FACT = "The keeper is Anna and the lamp is red."
MEMORY = {
    "judgements": {STORY["0/0"]: 5, STORY["1/0"]: 4.9, STORY["1/1"]: 4, "dull": 2, "duller": 1},
    "facts": {STORY["0/0"]: [FACT]},
    "contradictions": [(FACT, "Bruno")],
}  # fmt: skip


async def test_a_step_that_contradicts_the_memory_is_passed_over(run: Runner) -> None:
    script = Script(STORY, **MEMORY)
    result = await run(script, embedding="words", similarity=0.4)
    assert result["response"] == STORY["0/0"] + STORY["1/1"]
    layer = result["layers"][1]
    assert [layer["candidates"][i].get("contradicts") for i in (0, 1)] == [FACT, None]
    assert "contradicts" not in layer["candidates"][2], "what is worse than the choice is not asked about"
    assert result["targets"][1]["segments"][1]["call"] == "1/1", "the pair holds the step that goes on"
    assert [fact["statement"] for fact in result["layers"][0]["facts"]] == [FACT], "false statements are not kept"
    assert result["layers"][0]["facts"][0]["node"] == "0/0"
    unlike = await run(Script(STORY, **MEMORY), embedding="words", similarity=0.999)
    assert unlike["response"] == STORY["0/0"] + STORY["1/0"], "only what is similar is judged"


async def test_when_everything_contradicts_the_layers_end(run: Runner) -> None:
    steps = {**STORY, "1/1": "Bruno, the keeper, sleeps by the red lamp.", "1/2": "Bruno keeper red lamp"}
    values = {**MEMORY["judgements"], steps["1/1"]: 4, steps["1/2"]: 3}
    result = await run(Script(steps, **{**MEMORY, "judgements": values}), embedding="words", similarity=0.1)
    assert result["stop"] == "every candidate contradicts the memory"
    assert len(result["targets"]) == 1


async def test_a_choice_whose_facts_cannot_be_had_is_the_last_layer(run: Runner) -> None:
    class Refusing(Script):
        def extractor(self, key: str, request: str) -> str:
            raise ModelError("HTTP 400: too long")

    result = await run(Refusing(STORY, **MEMORY), embedding="words", similarity=0.4)
    assert (result["response"], result["stop"]) == (STORY["0/0"], "HTTP 400: too long")
    assert [target["segments"][1]["call"] for target in result["targets"]] == ["0/0"]
    assert result["layers"][0]["facts"] == [] and result["dropped"] is None


async def test_a_server_that_is_down_is_no_end_of_the_layers(run: Runner) -> None:
    class Down(Script):
        def extractor(self, key: str, request: str) -> str:
            raise EndpointDown("nobody answers")

    with pytest.raises(EndpointDown):
        await run(Down(STORY, **MEMORY), embedding="words", similarity=0.4)


ROWS = {"one": [3, 1, 1, 1, 1, 1, 1], "two": [1, 3, 1, 1, 1, 1, 1], "three": [1] * 7, "better": 4.0, "worse": 1.0}


async def test_a_weak_choice_is_rewritten_with_critiques(run: Runner) -> None:
    script = Script({**STEPS, "0/0/rewrite": "better"}, ROWS)
    result = await run(script, depth=1, eta=2.5)
    assert result["response"] == "better"
    critics = [key for role, key, _ in script.asked if role == "critic"]
    assert critics == ["0/0/critic/purpose"], "only where a sibling is better"
    request = next(r for role, key, r in script.asked if key == "0/0/rewrite")
    assert script.suggestion in request and request.startswith(REQUEST)
    (pair,) = result["targets"]
    assert pair["segments"][1]["call"] == "0/0/rewrite"
    assert pair["segments"][0]["prompt"] in ("0/1", "0/2"), "the training prompt carries no critique"
    assert pair["scores"]["suggestions"] == 1.0


async def test_one_to_three_suggestions_the_most_confident_first(run: Runner) -> None:
    """Of the four that a better sibling gives rise to; how many is drawn for each choice."""
    sure = {"purpose": 2, "safety": 5, "logic": 3, "variety": 4}

    class Graded(Script):
        def critic(self, key: str, request: str) -> str:
            principle = key.rpartition("/")[2]
            told = {"suggestion": f"advice on {principle}", "confidence": sure[principle]}
            return json.dumps({"analysis": "x", "words": "", **told})

    rows = {**ROWS, "one": [5, 1, 1, 1, 1, 1, 1], "two": [1, 2, 2, 2, 2, 1, 1]}
    counts = set()
    for seed in range(12):
        script = Graded({**STEPS, "0/0/rewrite": "better"}, rows)
        result = await run(script, depth=1, eta=2.5, choice_seed=seed)
        request = next(r for role, key, r in script.asked if key == "0/0/rewrite")
        given = [name for name in ("safety", "variety", "logic", "purpose") if f"advice on {name}" in request]
        assert given == ["safety", "variety", "logic"][: len(given)]
        assert [request.index(f"advice on {name}") for name in given] == sorted(
            request.index(f"advice on {name}") for name in given
        )
        assert result["targets"][0]["scores"]["suggestions"] == len(given)
        counts.add(len(given))
    assert counts == {1, 2, 3}


async def test_a_rewriting_that_is_not_better_is_left(run: Runner) -> None:
    result = await run(Script({**STEPS, "0/0/rewrite": "worse"}, ROWS), depth=1, eta=2.5)
    assert result["response"] == "one"
    strong = Script(STEPS, VALUES)
    await run(strong, depth=1, eta=2.5)
    assert not any(role == "critic" for role, _, _ in strong.asked), "a choice above eta needs no critique"


async def test_a_judgement_without_weights_is_asked_again_and_then_out(run: Runner) -> None:
    script = Script(STEPS, {**VALUES, "two": 0})
    result = await run(script, depth=1)
    assert [key for _, key, _ in script.asked if key.startswith("0/1/judge")] == [
        "0/1/judge", "0/1/judge#1", "0/1/judge#2",
    ]  # fmt: skip
    assert [step["text"] for step in result["layers"][0]["candidates"]] == ["one", "three"]
    assert result["response"] == "three"
    none = await run(Script(STEPS, dict.fromkeys(VALUES, 0)), depth=1)
    assert none["stop"].startswith("no judgement") and none["dropped"]


async def test_equal_and_nearly_equal_texts_give_no_pair(run: Runner) -> None:
    result = await run(Script({**STEPS, "0/1": "one", "0/2": "one"}, VALUES), depth=1)
    assert len(result["layers"][0]["candidates"]) == 1
    assert result["targets"] == [] and result["dropped"] == "no pair (depth)"
    long = " ".join(f"word{i}" for i in range(100))
    assert near_equal(long, long + " more") and not near_equal(long, long.replace("word5", "other"))
    chinese = "".join(chr(0x4E00 + i) for i in range(200))
    assert near_equal(chinese, chinese + "了。") and not near_equal(chinese, chinese[::-1])


def test_a_steps_tokens_follow_the_required_length() -> None:
    assert [Context().tokens(length) for length in (0, 499, 500, 3000, 9000)] == [512, 512, 2048, 3000, 8192]
    assert Context(step_tokens=64).tokens(9000) == 64
    with pytest.raises(ValueError, match="width: 0 is below 1"):
        Context(width=0)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"eta": float("nan")}, "eta: nan is no number"),
        ({"eta": -1.0}, "eta: -1.0 is below 0"),
        ({"eta": 30.0}, "eta: 30.0 is above 5"),
        ({"similarity": float("inf")}, "similarity: inf is no number"),
        ({"similarity": 7.0}, "similarity: 7.0 is above 1"),
        ({"alpha": -3.0}, "alpha: -3.0 is below 0"),
        ({"choice_seed": 2**63}, f"choice_seed: {2**63} is out of range"),
        ({"width": 10**20}, f"width: {10**20} is out of range"),
    ],
)
def test_a_number_out_of_range_is_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        longdpo_search.SearchContext(**knobs)


async def test_the_writer_goes_on_from_the_very_ids(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[int]] = []

    class Engine(ScriptedChatModel):
        async def complete(self, messages: Any, **kwargs: Any) -> Reply:
            reply = await super().complete(messages, **kwargs)
            if kwargs["role"] == "writer":
                sent.append(list(kwargs.get("continue_ids") or []))
                reply = replace(reply, ids=[7, len(sent), 2], stop_ids=1, prompt_ids=[1], finish="length")
            return reply

    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **about: Engine(respond=Script(STEPS, VALUES)))
    result = await LongDPO().builder().compile().ainvoke({"prompt": REQUEST}, context=STATED)
    chosen = result["layers"][0]["candidates"][1]
    assert chosen["ids"] == [7, 2] and sent == [[], [], [], *[chosen["ids"]] * 3]


async def test_memory_pairs_what_is_alike() -> None:
    facts = [Fact("Anna is the keeper", "unsure", "", "0/0"), Fact("the sea", "true", "", "0/0")]
    found = await suspicions(facts, ["The keeper Anna sang.", "Bruno left."], Words(), 0.8)
    assert [(pair.fact.statement, pair.chunk) for pair in found] == [("Anna is the keeper", "The keeper Anna sang.")]
    assert await suspicions([], ["x"], Words(), 0.8) == []
    text = " ".join(f"w{i}" for i in range(300))
    pieces = cut_evenly(text, 300, 128)
    assert len(pieces) == 3 and " ".join(pieces) == text


def test_in_studio_an_embedding_model_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec may be a folder or an address, which no web page is to choose."""
    monkeypatch.setattr(longdpo, "served_to_browsers", lambda: True)
    monkeypatch.setattr(longdpo, "make_embedder", lambda spec: Words())
    monkeypatch.setenv("AGENTSYS_EMBEDDINGS", "one, two")
    with pytest.raises(ValueError, match="start the server with AGENTSYS_EMBEDDINGS=http://elsewhere/v1#m"):
        longdpo._embedder("http://elsewhere/v1#m")
    assert isinstance(longdpo._embedder("two"), Words)
    longdpo._embedder.cache_clear()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([0, 0, 0, 0.5, 0.5], None),
        ([0, 0, 0, 0.5, 0.4], None),
        ([0, 0, 0, 0, 0], "accuracy: its five weights make 0, not 1"),
        ([5, 5, 5, 5, 5], "accuracy: its five weights make 25, not 1"),
        ([0.2, 0.2, 0.2, 0.2, 0.2], "accuracy: five equal weights prefer no score"),
    ],
)
def test_weights_that_are_no_judgement(row: list[float], said: str | None) -> None:
    rows = {name: [0.0, 0.0, 1.0, 0.0, 0.0] for name in PRINCIPLES} | {"accuracy": row}
    found = fault(Judgement(analysis="", **rows), {})
    assert found is None if said is None else (found or "").startswith(said)


async def test_one_score_a_principle(run: Runner) -> None:
    """Without log-probabilities, as here, the stated scores."""
    script = Script(STEPS, {"one": 2, "two": 5, "three": 3})
    result = await run(script, depth=1, weights="probabilities")
    assert result["response"] == "two"
    assert [step["value"] for step in result["layers"][0]["candidates"]] == [2, 5, 3]
    assert {role for role, _, _ in script.asked} == {"writer", "grader"}


def test_a_judge_that_would_not_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="with weights probabilities the judge is grader; name its grader_model"):
        Context(judge_model="http://judge")
    with pytest.raises(ValueError, match="with weights stated the judge is judge; name its judge_model"):
        Context(weights="stated", grader_model="http://judge")
