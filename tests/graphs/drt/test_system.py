"""DRT with scripted models: the loop of stage B, the filters and the thought of stage C, mining, and the records."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentsys.collect import RunOptions, collect
from agentsys.graphs.drt import mine as drt_mine
from agentsys.graphs.drt.mine import sentences
from agentsys.graphs.drt.system import DRT, Context, Step, graph
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.traces import Call, Trace, load, read_traces
from tests.support.toys import call_drt, evaluation, one_error, write_lines

TEXT = "The lamp shone like a small moon."
TEXTS = ["第一次的译文", "第二次的译文", "第三次的译文", "第四次的译文", "第五次的译文"]
KEYWORDS = '{"keywords": [{"word": "like", "translation": "像"}, {"word": "sun", "translation": "太阳"}]}'
Rule = dict[str, Any]


def rules(scores: Sequence[int] = (), texts: Sequence[str] = TEXTS, *first: Rule) -> list[Rule]:
    """Replies of a whole run: a score and a text for each round. The rules in `first` come before."""
    rounds: list[Rule] = []
    for k, text in enumerate(texts):
        rounds.append({"role": "draft" if k == 0 else "refiner", "key": f"refine/{k}" if k else "*", "replies": [text]})
        rounds.append({"role": "advisor", "key": f"advise/{k}", "replies": [f"advice {k}"]})
    scored = [
        {"role": "evaluator", "key": f"evaluate/{k}", "replies": [evaluation(score)]} for k, score in enumerate(scores)
    ]
    told = [
        {"role": "narrator", "key": f"narrate{'#' * bool(n)}{n or ''}", "replies": [quoting(n + 2)]} for n in range(3)
    ]
    return [*first, {"role": "keywords", "replies": [KEYWORDS]}, *rounds, *scored, *told]


def quoting(count: int) -> str:
    return "I begin. " + " Then ".join(f"I try [{i}]." for i in range(1, count + 1))


class Runner:
    """Takes one sentence through DRT and gives its trace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0

    def __call__(self, replies: list[Rule], kind: str = "", drt: Any = graph, **knobs: Any) -> Trace:
        """`kind` is a class of this file in place of ScriptedChatModel."""
        self.runs += 1
        script = write_lines(self.folder / f"replies{self.runs}.jsonl", replies)
        spec = f"langchain:test_drt:{kind}?script={script}" if kind else f"scripted:{script}"
        out = self.folder / f"run{self.runs}"
        collect(
            drt, [{"id": "r", "text": TEXT}], out, context=Context(spec, **knobs), options=RunOptions(no_cache=True)
        )
        lines = [line for file in sorted(out.glob("*.jsonl")) for line in file.read_bytes().splitlines()]
        [line] = lines
        return load(line)


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def result(trace: Trace) -> dict[str, Any]:
    assert trace.result is not None, trace.reason
    return trace.result


def called(trace: Trace, key: str) -> Call:
    return next(call for call in trace.calls if call.key == key)


# the rounds of stage B


@pytest.mark.parametrize(
    ("scores", "knobs", "stop", "rounds"),
    [
        ((50, 91), {}, "threshold", 1),
        ((90,), {}, "threshold", 0),
        ((89, 90), {}, "threshold", 1),
        ((50, 60, 70, 80), {}, "max_rounds", 3),
        ((50, 60), {"max_rounds": 1}, "max_rounds", 1),
        ((50,), {"max_rounds": 0}, "max_rounds", 0),
        ((70,), {"threshold": 65}, "threshold", 0),
    ],
)
def test_rounds_end_at_the_threshold_or_the_maximum(
    run: Runner, scores: Sequence[int], knobs: dict[str, Any], stop: str, rounds: int
) -> None:
    trace = run(rules(scores), **knobs)
    found = result(trace)
    assert found["stop"] == stop
    assert [step["score"] for step in found["steps"]] == list(scores)
    assert [step["translation"] for step in found["steps"]] == TEXTS[: rounds + 1]
    assert [step["feedback"] for step in found["steps"]] == [f"advice {k}" for k in range(rounds + 1)]
    roles = [call.role for call in trace.calls]
    assert (roles.count("refiner"), roles.count("advisor"), roles.count("evaluator")) == (
        rounds,
        rounds + 1,
        rounds + 1,
    )


def test_the_translator_sees_the_dialogue(run: Runner) -> None:
    trace = run(rules((50, 60, 95)))
    system, *turns = called(trace, "refine/2").messages
    assert system["role"] == "system"
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert TEXT in turns[0]["content"]
    assert "like = 像" in turns[0]["content"]
    assert [turn["content"] for turn in turns[1::2]] == TEXTS[:2]
    assert [turn["content"].splitlines()[0] for turn in turns[2::2]] == ["advice 0", "advice 1"]
    assert turns[0] == called(trace, "draft").messages[-1]  # the dialogue goes on from the first draft's prompt


def test_advice_and_score_are_about_the_latest_translation(run: Runner) -> None:
    trace = run(rules((50, 60, 95)))
    advised, scored = (called(trace, key).messages[-1]["content"] for key in ("advise/1", "evaluate/1"))
    assert TEXTS[1] in advised
    assert TEXTS[0] not in advised
    assert TEXTS[1] in scored
    assert "advice 1" in scored
    assert "advice 0" not in scored


def test_key_words_that_are_not_in_the_sentence_are_left_out(run: Runner) -> None:
    assert result(run(rules((95,))))["keywords"] == [{"word": "like", "translation": "像"}]
    nowhere = {"role": "keywords", "replies": ['{"keywords": [{"word": "sun", "translation": "太阳"}]}']}
    trace = run(rules((95,), TEXTS, nowhere))
    assert trace.outcome == "rejected"
    assert "copy the words from the sentence" in str(trace.reason)


@pytest.mark.parametrize("reply", ['{"reason": "far too good", "score": 101}', '{"reason": "bad", "score": -1}', "80"])
def test_a_score_that_is_none_is_asked_for_again(run: Runner, reply: str) -> None:
    wrong = {"role": "evaluator", "key": "evaluate/0", "replies": [reply]}
    right = {"role": "evaluator", "key": "evaluate/0#1", "replies": [evaluation(95)]}
    trace = run(rules((), TEXTS, wrong, right))
    assert [step["score"] for step in result(trace)["steps"]] == [95]
    assert "score" in str(called(trace, "evaluate/0").error) or "JSON" in str(called(trace, "evaluate/0").error)
    always = run(rules((), TEXTS, wrong | {"key": "*"}))
    assert (always.outcome, always.result) == ("rejected", None)
    assert "no usable reply in 3 attempts" in str(always.reason)


def test_a_refinement_that_repeats_is_asked_for_again(run: Runner) -> None:
    again = {"role": "refiner", "key": "refine/1#1", "replies": [TEXTS[1]]}
    trace = run(rules((50, 95), [TEXTS[0], TEXTS[0]], again))
    assert [step["key"] for step in result(trace)["steps"]] == ["draft", "refine/1#1"]
    assert "repeats" in str(called(trace, "refine/1").error)


def test_a_refiner_that_fails_ends_the_rounds(run: Runner) -> None:
    stubborn = {"role": "refiner", "key": "refine/2*", "replies": [TEXTS[0]]}
    trace = run(rules((50, 60), TEXTS, stubborn), min_steps=2)
    assert trace.outcome == "kept"
    assert result(trace)["stop"].startswith("refiner: it repeats")
    assert [step["translation"] for step in result(trace)["steps"]] == TEXTS[:2]
    short = {"role": "refiner", "key": "refine/1*", "replies": ["译"]}
    assert result(run(rules((50,), TEXTS, short)))["stop"].startswith("refiner: it is not the whole sentence")


def test_a_translation_that_was_scored_keeps_its_score(run: Runner) -> None:
    careless: Role[str] = Role("drt/refiner")  # without the check
    trace = run(rules((50, 60), [TEXTS[0], TEXTS[1], TEXTS[0]]), drt=built(DRT(refiner=careless)), max_rounds=2)
    assert [step["score"] for step in result(trace)["steps"]] == [50, 60, 50]
    assert result(trace)["steps"][2]["reason"] == "the same words as before"
    assert not [call for call in trace.calls if call.key.startswith("evaluate/2")]


# pairwise evaluation


def pairwise(*verdicts: tuple[str, str]) -> list[Rule]:
    """For each round, what is answered to (old, new) and to (new, old)."""
    return [
        {"role": "comparer", "key": f"compare/{k}/{order}", "replies": [json.dumps({"reason": "so", "better": better})]}
        for k, verdict in enumerate(verdicts, 1)
        for order, better in enumerate(verdict)
    ]


def test_pairwise_asks_in_both_orders(run: Runner) -> None:
    verdicts = pairwise(("second", "first"), ("first", "second"), ("first", "first"))
    trace = run(rules((), TEXTS, *verdicts), evaluator="pairwise")
    assert [step["score"] for step in result(trace)["steps"]] == [0, 1, 0, 0]  # won both, lost both, one each
    forth, back = (called(trace, f"compare/2/{order}").messages[-1]["content"] for order in (0, 1))
    assert forth.index(TEXTS[1]) < forth.index(TEXTS[2])
    assert back.index(TEXTS[2]) < back.index(TEXTS[1])
    assert result(trace)["kept"] == [0, 1, 2]
    assert result(trace)["trans"] == TEXTS[1]
    assert result(trace)["stop"] == "max_rounds"
    assert "evaluator" not in {call.role for call in trace.calls}


class FromFile(ScriptedChatModel):
    """A scripted model that a spec can name."""

    def __init__(self, script: str, **settings: Any) -> None:
        plain = ScriptedChatModel.from_file(script, {})
        super().__init__(respond=plain.respond, revision=plain.revision, **settings)


class Meeting(FromFile):
    """A comparison is answered once another one has been asked for too."""

    waiting: list[asyncio.Event] = []  # noqa: RUF012 (pydantic copies it)

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        if kwargs["role"] == "comparer":
            if self.waiting:
                self.waiting.pop().set()
            else:
                self.waiting.append(event := asyncio.Event())
                await asyncio.wait_for(event.wait(), 20)
        return await super().complete(messages, **kwargs)


def test_both_orders_are_asked_at_once(run: Runner) -> None:
    trace = run(rules((), TEXTS, *pairwise(("second", "first"))), "Meeting", evaluator="pairwise", max_rounds=1)
    assert trace.outcome == "dropped"  # a rejection would say that the wait took too long
    assert [step["score"] for step in result(trace)["steps"]] == [0, 1]


# the score


class Unsure(FromFile):
    """It reports each character as a token; at the first digit of a score, 7 was half as likely as what it wrote."""

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        at = reply.text.find('"score": ') + len('"score": ')
        digit = {at} if kwargs["role"] == "evaluator" else set()
        reply.top_tokens = [[c, "7"] if i in digit else [c] for i, c in enumerate(reply.text)]
        odds = [math.log(2 / 3), math.log(1 / 3)]
        reply.top_logprobs = [odds if i in digit else [0.0] for i in range(len(reply.text))]
        return reply


def test_the_expected_score_weighs_the_alternatives(run: Runner) -> None:
    stated = run(rules((94,)), "Unsure", score="stated")
    assert [step["score"] for step in result(stated)["steps"]] == [94]
    expected = run(rules((94, 94)), "Unsure", score="expected", max_rounds=1)
    assert [step["score"] for step in result(expected)["steps"]] == [87.3, 87.3]  # 2/3 * 90 + 1/3 * 70 + 4
    assert result(expected)["stop"] == "max_rounds"


def test_without_alternatives_the_stated_score_stands(run: Runner) -> None:
    assert [step["score"] for step in result(run(rules((94,)), score="expected"))["steps"]] == [94]


# stage C


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((50, 60, 60, 55, 70), [0, 1, 3, 4]),
        ((60, 50, 60), [0, 1, 2]),
        ((50, 50, 50), [0]),
        ((50, 60, 60, 60), [0, 1]),
        ((80, 70, 60), [0, 1, 2]),
        ((50, 60, 60, 50), [0, 1, 3]),
    ],
)
def test_a_step_with_the_score_of_the_step_before_is_dropped(
    run: Runner, scores: Sequence[int], kept: list[int]
) -> None:
    assert result(run(rules(scores), max_rounds=len(scores) - 1))["kept"] == kept


@pytest.mark.parametrize(
    ("scores", "min_steps", "count_draft", "dropped"),
    [
        ((50, 60, 70), 3, True, None),
        ((50, 60, 70), 3, False, "2 of 3 steps left"),
        ((50, 60, 70, 80), 3, False, None),
        ((50, 60, 60), 3, True, "2 of 3 steps left"),
        ((50, 60, 60), 2, True, None),
        ((50, 50), 1, False, "0 of 1 steps left"),
    ],
)
def test_both_readings_of_n(
    run: Runner, scores: Sequence[int], min_steps: int, count_draft: bool, dropped: str | None
) -> None:
    knobs = {"max_rounds": len(scores) - 1, "min_steps": min_steps, "count_draft": count_draft}
    trace = run(rules(scores), **knobs)
    assert (trace.outcome, trace.reason) == ("dropped" if dropped else "kept", dropped)
    assert ("narrator" in {call.role for call in trace.calls}) == (dropped is None)
    assert bool(trace.targets) == (dropped is None)


@pytest.mark.parametrize(
    ("scores", "best"), [((50, 80, 60), 1), ((80, 70, 60), 0), ((50, 60, 70), 2), ((80, 60, 80), 0)]
)
def test_the_answer_is_the_best_scored_draft(run: Runner, scores: Sequence[int], best: int) -> None:
    trace = run(rules(scores), max_rounds=2)
    assert result(trace)["trans"] == TEXTS[best]
    notes = called(trace, "narrate").messages[-1]["content"]
    assert f"decided on: [{best + 1}]" in notes
    assert all(text in notes for text in TEXTS[:3])


def test_quotes_in_the_thought_become_the_attempts(run: Runner) -> None:
    told = {"role": "narrator", "replies": ['“[1]” is stiff. Then [2], better than [1]. "[3]" it is.']}
    trace = run(rules((50, 60, 70), TEXTS, told), max_rounds=2)
    first, second, third = (f'"{text}"' for text in TEXTS[:3])
    assert result(trace)["thought"] == f"{first} is stiff. Then {second}, better than {first}. {third} it is."


def test_a_thought_quotes_kept_steps_only(run: Runner) -> None:
    trace = run(rules((50, 60, 60, 70)), max_rounds=3)
    assert result(trace)["kept"] == [0, 1, 3]
    assert TEXTS[3] in result(trace)["thought"]
    assert TEXTS[2] not in result(trace)["thought"]


@pytest.mark.parametrize(
    "wrong",
    [
        "Only [1] and [3].",
        "[1], [2], [3] and [4].",
        "No quote at all.",
        "[1], [3], and I decide on [2].",
        "[1], [2]\n[3] = copied from the notes\ndecided on: [3]",
    ],
)
def test_a_thought_with_wrong_quotes_is_asked_for_again_and_then_dropped(run: Runner, wrong: str) -> None:
    once = {"role": "narrator", "key": "narrate", "replies": [wrong]}
    trace = run(rules((50, 60, 70), TEXTS, once), max_rounds=2)
    assert trace.outcome == "kept"
    assert called(trace, "narrate").error
    asked_again = called(trace, "narrate#1").messages
    assert "An earlier reply was refused" in asked_again[-1]["content"]
    assert wrong not in str(asked_again), "a small model would copy it"
    trace = run(rules((50, 60, 70), TEXTS, once | {"key": "*"}), max_rounds=2)
    assert trace.outcome == "dropped"
    assert str(trace.reason).startswith("no usable thought: ")
    assert "thought" not in result(trace)
    assert trace.targets == []


def test_targets_point_at_calls(run: Runner) -> None:
    again = {"role": "refiner", "key": "refine/1#1", "replies": [TEXTS[1]]}
    told = {"role": "narrator", "replies": ["First [1], later [3], and after all [2]"]}
    trace = run(rules((50, 80, 60), [TEXTS[0], TEXTS[0], TEXTS[2]], again, told), max_rounds=2)
    texts = {call.key: call.text for call in trace.calls}
    sft, role, step = trace.targets
    assert (sft.kind, role.kind, step.kind) == ("sft", "role", "step")
    learned = "".join(segment.text or texts[str(segment.call)] for segment in sft.segments if segment.learned)
    found = result(trace)
    assert learned == f"<thought>\n{found['thought']}\n</thought>\n<output>\n{found['trans']}\n</output>"
    asked = [segment for segment in sft.segments if not segment.learned]
    assert [segment.role for segment in asked] == ["system", "user"]
    assert TEXT in str(asked[1].text)
    assert [segment.prompt or segment.call for segment in role.segments] == ["refine/1#1", "refine/1#1"]
    assert step.rejected is not None
    pair = [[segment.prompt or segment.call for segment in side] for side in (step.segments, step.rejected)]
    assert pair == [["draft", "refine/1#1"], ["draft", "draft"]], "after the same prompt, the better draft"
    assert dict(step.scores) == {"chosen": 80, "rejected": 50, "margin": 30}
    assert (sft.scores["score"], sft.scores["steps"], sft.scores["gain"]) == (80, 3, 30)


# another role, another node, another model, another language


def built(system: DRT) -> Any:
    return system.builder().compile(name="drt")


def test_a_role_is_replaced_by_name(run: Runner) -> None:
    mine: Role[str] = Role(Prompt.parse("# user\nBe brief about {{ translation }}", "brief"))
    trace = run(rules((95,)), drt=built(DRT(advisor=mine)))
    assert called(trace, "advise/0").messages == [{"role": "user", "content": f"Be brief about {TEXTS[0]}"}]
    assert called(trace, "advise/0").role == "advisor"
    assert called(trace, "advise/0").prompt_sha256 == mine.text.sha256


def test_a_node_is_added(run: Runner) -> None:
    shouter: Role[str] = Role(Prompt.parse("# user\nShout {{ trans }}", "shouter"))

    async def shout(state: Any, runtime: Any) -> dict[str, Any]:
        from agentsys.systems import ask

        return {"trans": (await ask(runtime.context, shouter, key="shout", trans=state["trans"])).value}

    builder = DRT().builder()
    builder.add_node("shout", shout)
    builder.add_edge("narrate", "shout")
    loud = {"role": "shouter", "replies": ["译文！"]}
    trace = run(rules((50, 95), TEXTS, loud), drt=builder.compile(name="loud"), min_steps=2)
    assert (trace.system, result(trace)["trans"]) == ("loud", "译文！")
    assert called(trace, "shout").messages[-1]["content"] == f"Shout {TEXTS[1]}"


ROLES = [place.name for place in fields(DRT)]


def test_the_context_has_a_model_and_a_prompt_for_each_role() -> None:
    names = {field.name for field in fields(Context)}
    assert {f"{role}_{what}" for role in ROLES for what in ("model", "prompt")} < names
    assert all(field.metadata["description"] for field in fields(Context))
    assert len(ROLES) == 7


@pytest.mark.parametrize("role", ROLES)
def test_each_role_takes_its_own_model_and_prompt(run: Runner, tmp_path: Path, role: str) -> None:
    replies = rules((50, 95), TEXTS, *pairwise(("second", "first")))
    other = write_lines(tmp_path / "other.jsonl", [*replies, {"role": "nobody", "replies": ["nothing"]}])
    knobs = {f"{role}_model": f"scripted:{other}?temperature=0.33", f"{role}_prompt": "# user\nMARK {{ text }}"}
    how = "pairwise" if role == "comparer" else "score"
    trace = run(replies, evaluator=how, max_rounds=1, min_steps=2, **knobs)
    assert trace.outcome == "kept"
    marked = {call.role for call in trace.calls if call.messages[0]["content"] == f"MARK {TEXT}"}
    elsewhere = {call.role for call in trace.calls if call.sampling["temperature"] == 0.33}
    usual = next(call.revision for call in trace.calls if call.role != role)
    assert marked == elsewhere == {call.role for call in trace.calls if call.revision != usual} == {role}


def test_languages_are_variables(run: Runner) -> None:
    replies = rules((50, 60, 95), TEXTS, *pairwise(("second", "first"), ("second", "first")))
    for how in ("score", "pairwise"):
        trace = run(replies, evaluator=how, target_language="German", source_language="French", max_rounds=2)
        assert trace.outcome == "kept"
        for call in trace.calls:
            system = call.messages[0]["content"]
            assert "German" in system
            assert "French" in system
            assert "Chinese" not in system
            assert "English" not in system.replace("in English", "")  # some roles write their own words in English
        assert "from French to German" in str(trace.targets[0].segments[1].text)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"threshold": 400}, "threshold: 400 is not from 0 to 100"),
        ({"threshold": float("nan")}, "threshold: nan is no number"),
        ({"max_rounds": -1}, "max_rounds: -1 is below 0"),
        ({"min_steps": 0}, "min_steps: 0 is below 1"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Context(**knobs)


def test_a_step_has_what_the_docs_say() -> None:
    assert set(Step.__annotations__) == {"translation", "feedback", "score", "reason", "key"}


# stage A


def judgement(figurative: bool, suitable: bool) -> str:
    return json.dumps({"figurative": figurative, "literal": "直译", "suitable": suitable, "reason": "because"})


def words(count: int, first: str = "Word") -> str:
    return " ".join([first, *["word"] * (count - 1)]) + "."


def test_sentences_of_a_book(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    paragraphs = [
        "Mr. Smith met Dr. Brown at 5.30 p.m.\nand they walked home together slowly. Short one.",
        f"{words(9)} {words(10, 'Ten')} {words(100, 'Hundred')} {words(101, 'More')}",
    ]
    book.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(paragraphs).encode())
    found = list(sentences([book], "English"))
    assert [(s["text"].split()[0], len(s["text"].split()), s["source"]) for s in found] == [
        ("Mr.", 14, "book.txt, paragraph 1"),
        ("Ten", 10, "book.txt, paragraph 2"),
        ("Hundred", 100, "book.txt, paragraph 2"),
    ]


def test_mining_keeps_what_is_figurative_and_unsuitable(tmp_path: Path) -> None:
    for name, (figurative, suitable), outcome in [
        ("a", (True, False), ("kept", None)),
        ("b", (True, True), ("dropped", "literal is suitable")),
        ("c", (False, True), ("dropped", "no figure of speech")),
        ("d", (False, False), ("dropped", "no figure of speech")),
    ]:
        script = write_lines(
            tmp_path / f"{name}.jsonl", [{"role": "miner", "replies": [judgement(figurative, suitable)]}]
        )
        context = drt_mine.MiningContext(f"scripted:{script}", target_language="German")
        collect(drt_mine.graph, [TEXT], tmp_path / name, context=context, options=RunOptions(no_cache=True))
        [trace] = read_traces(tmp_path / name)
        assert (trace.outcome, trace.reason) == outcome
        assert "German" in trace.calls[0].messages[0]["content"]


def test_a_book_goes_through_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.txt"
    like = "Her laughter ran down the stairs like a child let out of school."
    book.write_text(f"{like} He ran to the door and opened it for all of his friends.\n\n{like} Too short.")
    script = write_lines(tmp_path / "replies.jsonl", rules((50, 95), TEXTS))
    out = tmp_path / "run"
    prompt = tmp_path / "miner.md"
    prompt.write_text("# user\nMARKED {{ text }}")
    miner = write_lines(tmp_path / "miner.jsonl", [{"role": "miner", "replies": [judgement(True, False)]}])
    of_miner = ["--miner-model", f"scripted:{miner}", "--miner-prompt", prompt]
    where = ["--out", out, "--cache", tmp_path / "c"]
    given = ["--model", f"scripted:{script}", *of_miner, "--book", book, *where, "--min-steps", 2]
    code, said, err = call_drt(capsys, *given)
    assert code == 3, err  # the sentence without "like" is rejected by the key words' check
    mined = [orjson.loads(line) for line in (out / "mined" / "mined.jsonl").read_bytes().splitlines()]
    assert sorted(line["text"][:3] for line in mined) == ["He ", "Her"]  # the repeated sentence stands there once
    assert {line["reason"] for line in mined} == {"because"}
    assert {line["source"] for line in mined} == {"book.txt, paragraph 1"}
    assert "mined: 2 sentences kept, 0 dropped, 0 rejected" in said
    asked = [trace.calls[0].messages[-1]["content"] for trace in read_traces(out / "mined")]
    assert all(text.startswith("MARKED ") for text in asked)
    records = [orjson.loads(line) for line in (out / "records.jsonl").read_bytes().splitlines()]
    assert [sorted(record) for record in records] == [["text", "thought", "trans"]]
    assert records[0]["text"] == like
    assert records[0]["trans"] == TEXTS[1]
    assert f'"{TEXTS[0]}"' in records[0]["thought"]
    [trace] = read_traces(out)
    assert trace.input["source"] == "book.txt, paragraph 1"
    assert call_drt(capsys, *given)[0] == 3  # a second time: everything is there already
    assert len(list(read_traces(out))) == 1


@pytest.mark.parametrize(
    ("book", "language", "said"),
    [
        ("missing.txt", "English", "--book missing.txt: No such file or directory"),
        (".", "English", "--book .: Is a directory"),
        ("latin.txt", "English", "--book latin.txt: not UTF-8 text"),
        (
            "good.txt",
            "Klingon tongue",
            "--book: give the language of the book as a code such as 'pt', not 'Klingon tongue'",
        ),
    ],
)
def test_a_book_that_cannot_be_read_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    book: str,
    language: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text(words(12))
    Path("latin.txt").write_bytes(words(12).encode() + b" caf\xe9")
    script = write_lines(Path("replies.jsonl"), rules((95,)))
    given = ["--model", f"scripted:{script}", "--out", "run", "--no-cache", "--source-language", language]
    code, _, err = call_drt(capsys, *given, "--book", "good.txt", "--book", book)
    assert code == 2
    assert said in one_error(err)
    assert not Path("run").exists()  # nothing is written, nothing is asked


# the command


def test_records_have_the_published_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = write_lines(tmp_path / "replies.jsonl", rules((50, 60, 95)))
    texts = [{"id": "a", "text": TEXT}, {"id": "b", "text": "No such word here."}]
    records = write_lines(tmp_path / "in.jsonl", texts)
    given = ["--model", f"scripted:{script}", "--input", records, "--out", tmp_path / "run", "--no-cache"]
    code, said, _ = call_drt(capsys, *given)
    assert code == 3
    lines = (tmp_path / "run" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert [list(json.loads(line)) for line in lines] == [["text", "trans", "thought"]]
    assert TEXTS[2] in lines[0]  # not as \u escapes
    for row in ("kept", "dropped", "rejected", "mean score of the first draft", "mean score after round 2", "seconds"):
        assert row in said
    assert str(tmp_path / "run" / "records.jsonl") in said.replace("\n", "")


def test_shipped_sentences_are_taken_without_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    anything = {"role": "keywords", "replies": ['{"keywords": [{"word": "e", "translation": "某"}]}']}
    script = write_lines(tmp_path / "replies.jsonl", rules((50, 60, 95), TEXTS, anything))
    given = ["--model", f"scripted:{script}", "--out", tmp_path / "run", "--no-cache"]
    assert call_drt(capsys, *given)[0] == 0
    assert len(list(read_traces(tmp_path / "run"))) == 6
    assert call_drt(capsys, *given, "--limit", 8)[0] == 0
    assert len(list(read_traces(tmp_path / "run"))) == 8
