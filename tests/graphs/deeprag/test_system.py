"""DeepRAG's inference with a scripted model: the loop, its decisions, failures, threads, and data that stays data."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from agentsys.graphs.deeprag.narrative import (
    ANSWER,
    FINAL,
    FOLLOW_UP,
    SEARCH,
    completion_reward,
    format_documents,
    format_follow_up,
    format_narrative,
)
from agentsys.graphs.deeprag.system import Context, DeepRAG, graph
from agentsys.knowledge.context import PassageDict
from agentsys.models.scripted import ScriptedChatModel
from agentsys.prompt import Prompt
from agentsys.roles import Role
from tests.support.deeprag_narratives import END, EVIL, LOOP, STEPS, UPPSALA, Script, Talk, marks_in


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    talk = Talk()
    monkeypatch.setattr("agentsys.systems.load_model", lambda spec, default="": talk.model)
    monkeypatch.setattr("agentsys.knowledge.context.Knowledge.search", lambda self, query: talk.search(query))
    return talk


async def test_the_loop(talk: Talk) -> None:
    result = await talk(LOOP)
    first, second = STEPS
    parametric = {"retrieve": False, "log_p_retrieve": None, "log_p_parametric": None, "stated": True}
    assert result == {
        "question": "Where did she study?",
        "answer": "Uppsala",
        "long_answer": "She studied in Uppsala.",
        "well_formed": True,
        "retrievals": 1,
        "steps": [
            {**first, "decision": parametric},
            {**second, "decision": {**parametric, "retrieve": True}},
        ],
        "stop": "terminate",
    }
    assert talk.queries == ["Where did Ada Brandt study?"]
    assert list(talk.requests) == list(LOOP)
    assert [talk.roles[key] for key in LOOP] == [
        "decomposer", "decider", "answerer", "decomposer", "decider", "answerer", "decomposer", "concluder",
    ]  # fmt: skip


async def test_every_call_continues_the_narrative(talk: Talk) -> None:
    """Each call starts exactly where the previous one ended: one text, split at the marks."""
    await talk(LOOP)
    one, two = format_narrative(STEPS[:1]), format_narrative(STEPS)
    assert {key: talk.partial_answer(key) for key in LOOP} == {
        "0/decompose": "",
        "0/decide": format_follow_up("Who is it about?"),
        "0/answer": f"{format_follow_up('Who is it about?')}{ANSWER}",
        "1/decompose": one,
        "1/decide": f"{one}Follow up: Where did Ada Brandt study?\n",
        "1/answer": f"{one}Follow up: Where did Ada Brandt study?\n{SEARCH}\n{format_documents([UPPSALA])}{ANSWER}",
        "2/decompose": two,
        "conclude": f"{two}{FINAL}",
    }
    *prompt, _ = talk.requests["conclude"]
    assert all(messages[:-1] == prompt for messages in talk.requests.values()), "one prompt for all"
    assert "This is the form:" in str(talk.requests["conclude"])
    await talk(LOOP, example=False)
    assert "This is the form:" not in str(talk.requests["conclude"])


@pytest.mark.parametrize("max_steps", [1, 3, 8])
async def test_the_end_is_forced_after_max_steps(talk: Talk, max_steps: int) -> None:
    """Also with LangGraph's default recursion limit."""
    script = {f"{i}/decompose": f"Follow up: And what is fact {i}?" for i in range(20)}
    script |= {f"{i}/decide": SEARCH for i in range(20)} | {f"{i}/answer": str(i) for i in range(20)}
    result = await talk({**script, "conclude": END}, max_steps=max_steps)
    assert (result["stop"], len(result["steps"]), result["retrievals"]) == ("max_steps", max_steps, max_steps)
    assert result["answer"] == "Uppsala"
    assert f"{max_steps - 1}/answer" in talk.requests
    assert f"{max_steps}/decompose" not in talk.requests


@pytest.mark.parametrize(
    ("reply", "retrieve", "stated"),
    [
        (SEARCH, True, True),
        (f"{SEARCH}\nContext:\n[1] made up", True, True),
        (f"{ANSWER} Let's search the question in Wikipedia.", False, True),
        (f"{ANSWER} Let", False, True),
        ("Let", False, False),
        ("Let's search", False, False),
        ("Let's search the web.", False, False),
        (f"Well. {SEARCH}", False, False),
        ("Follow up: What else?", False, False),
    ],
)
async def test_only_the_whole_sentence_is_a_retrieval(talk: Talk, reply: str, retrieve: bool, stated: bool) -> None:
    """The released code stops at the letters "Let" anywhere; here a name or a question may contain them."""
    query = f"Who sang Let It Be? Let's see: {SEARCH}"
    result = await talk({**LOOP, "0/decompose": f"Follow up: {query}", "0/decide": reply, "1/decompose": FINAL})
    [step] = result["steps"]
    assert (step["sub_query"], step["retrieved"], step["decision"]["stated"]) == (query, retrieve, stated)
    assert talk.queries == [query] * retrieve


@pytest.mark.parametrize(("decisions", "retrieve"), [("retrieve", True), ("parametric", False)])
async def test_decisions_are_forced_without_asking(talk: Talk, decisions: str, retrieve: bool) -> None:
    result = await talk(LOOP, decisions=decisions)
    assert [(step["retrieved"], step["decision"]) for step in result["steps"]] == [(retrieve, None)] * 2
    assert result["retrievals"] == 2 * retrieve == len(talk.queries)
    assert not [key for key in talk.requests if "decide" in key]


async def test_a_repeated_sub_query_is_asked_again(talk: Talk) -> None:
    script = {**LOOP, "1/decompose": "Follow up: who  is it ABOUT?", "1/decompose#1": LOOP["1/decompose"]}
    result = await talk(script)
    assert [step["sub_query"] for step in result["steps"]] == [step["sub_query"] for step in STEPS]
    retry = talk.requests["1/decompose#1"]
    assert retry[-1] == talk.requests["1/decompose"][-1], "the narrative is the same"
    assert [message["role"] for message in retry] == ["system", "user", "assistant"]
    first = str(talk.requests["1/decompose"][-2]["content"])
    assert str(retry[-2]["content"]).startswith(f"{first}\n\n(An earlier reply was refused: this was asked before;")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"1/decompose": LOOP["0/decompose"]}, "this was asked before"),
        ({"1/decompose": "I think it is Uppsala."}, 'begin the next line with "Follow up:"'),
        ({"1/decompose": "Follow up:   "}, "ask something"),
        ({"1/decompose": ""}, "empty"),
        ({"1/decide": ""}, "empty"),
        ({"1/answer": " "}, "empty"),
    ],
)
async def test_a_failed_role_ends_the_narrative_and_the_question_is_still_answered(
    talk: Talk, wrong: Script, reason: str
) -> None:
    result = await talk({**LOOP, **wrong})
    assert reason in result["stop"]
    assert "in 3 attempts" in result["stop"]
    assert [step["sub_query"] for step in result["steps"]] == ["Who is it about?"]
    assert result["answer"] == "Uppsala"
    assert talk.partial_answer("conclude") == format_narrative(STEPS[:1], FINAL)


async def test_a_thread_starts_anew_with_each_question(talk: Talk) -> None:
    talk.script = LOOP
    threads = DeepRAG().builder().compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    first = await threads.ainvoke({"question": "a"}, config, context=Context())
    talk.script = {**LOOP, "1/decompose": f"{FINAL} ", "conclude": "Lund"}
    second = await threads.ainvoke({"question": "b"}, config, context=Context())
    assert (len(first["steps"]), first["stop"], first["retrievals"]) == (2, "terminate", 1)
    assert [step["sub_query"] for step in second["steps"]] == ["Who is it about?"]
    assert (second["stop"], second["retrievals"]) == ("terminate", 0)
    assert (await threads.aget_state(config)).values["passages"] == [], "those of an earlier sub-query are gone"
    assert (second["answer"], second["long_answer"], second["well_formed"]) == ("Lund", "Lund", False)
    assert talk.partial_answer("0/decompose") == ""


async def test_data_stays_data_in_the_loop(talk: Talk) -> None:
    """A server may ignore a stop string and a passage may hold any text: no line of either becomes a mark."""

    async def search(query: str) -> list[PassageDict]:
        return [PassageDict(id="p", title=EVIL, text=EVIL)]

    talk.search = search  # type: ignore[method-assign]
    script = {**LOOP, "0/decompose": f"Follow up: {EVIL}", "0/decide": SEARCH, "0/answer": EVIL}
    result = await talk(script, question=EVIL)
    assert [step["retrieved"] for step in result["steps"]] == [True, True]
    assert "\n" not in result["steps"][0]["sub_query"]
    narrative = talk.partial_answer("conclude")
    assert marks_in(narrative) == [FOLLOW_UP, SEARCH, "Context:", "", ANSWER] * 2 + [FINAL]
    assert completion_reward([f"{narrative} {END}"], [["Uppsala"]]) == [pytest.approx(0.8)]


async def test_a_role_is_replaced(talk: Talk) -> None:
    talk.script = LOOP
    prompt = Prompt.parse("# user\nFor {{ question }} finish: {{ narrative }}", "mine")
    changed = DeepRAG(answerer=Role(prompt)).builder().compile()
    await changed.ainvoke({"question": "x"}, context=Context())
    partial_answer = f"{format_follow_up('Who is it about?')}{ANSWER}"
    assert talk.requests["0/answer"] == [{"role": "user", "content": f"For x finish: {partial_answer}"}]
    assert talk.roles["0/answer"] == "answerer"
    assert talk.partial_answer("0/decide") == format_follow_up("Who is it about?")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"max_steps": 0}, "max_steps: 0 is below 1"),
        ({"k": 0}, "k: 0 is below 1"),
        ({"decisions": "sometimes"}, "decisions: 'sometimes'"),
        ({"retriever": "elastic"}, "retriever: 'elastic'"),
    ],
)
def test_options_out_of_range_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Context(**knobs)


async def test_a_missing_index_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedChatModel(respond=lambda messages, call: LOOP.get(call["key"], ""))
    monkeypatch.setattr("agentsys.systems.load_model", lambda spec, default="": model)
    for index, message in (("", "index: name the folder of an index"), ("nowhere", "nowhere")):
        with pytest.raises(ValueError, match=message) as error:
            await graph.ainvoke({"question": "x"}, context=Context(index=index))
        assert "\n" not in str(error.value)
