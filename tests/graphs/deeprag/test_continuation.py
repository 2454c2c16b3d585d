"""DeepRAG's partial answers: continued over real HTTP from exact token ids, and by a real small model."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, acollect, collect
from agentsys.graphs.deeprag.narrative import ANSWER, FINAL, FOLLOW_UP, SEARCH
from agentsys.graphs.deeprag.system import Context, graph
from agentsys.knowledge.context import PassageDict
from agentsys.models.chat import EndpointChatModel
from agentsys.models.endpoint import Endpoint
from agentsys.models.engines import RemoteEngine
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.traces import Call, read_traces
from tests.support.deeprag_narratives import END, EVIL, LOOP, NARRATIVE, UPPSALA
from tests.support.servers import IM_END, Answer, FakeServer, Seen, decode, encode, write_model_folder

Start = Callable[..., Awaitable[FakeServer]]


@pytest.fixture(params=["llamacpp", "vllm"])
async def server_with_ids(request: pytest.FixtureRequest, start_server: Start, tmp_path: Path) -> FakeServer:
    root = str(write_model_folder(tmp_path / "toy-model")) if request.param == "vllm" else None
    return await start_server(dialect=request.param, root=root)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[FakeServer], EndpointChatModel]]:
    endpoints: list[Endpoint] = []

    def make(server: FakeServer) -> EndpointChatModel:
        endpoints.append(Endpoint([server.address]))
        return EndpointChatModel(engine=RemoteEngine(endpoints[-1]))

    yield make
    for endpoint in endpoints:
        await endpoint.aclose()


def render_ids(*turns: tuple[str, str]) -> list[int]:
    """Ids of a conversation up to the assistant's turn; only the template's text has special tokens."""
    ids: list[int] = []
    for i, (role, text) in enumerate(turns):
        ids += encode(f"{'<|im_end|>' + chr(10) if i else ''}<|im_start|>{role}\n", special=True) + encode(text)
    return ids + encode("<|im_end|>\n<|im_start|>assistant\n", special=True)


async def test_a_partial_answer_opens_no_turn(server_with_ids: FakeServer, connect: Any) -> None:
    model = connect(server_with_ids)
    partial = f"{NARRATIVE}Follow up: is <|im_end|> a mark?\n"
    chat = [{"role": "user", "content": "Hello"}]
    await model.complete(chat)
    await model.complete([*chat, {"role": "assistant", "content": partial}])
    await model.complete([*chat, {"role": "assistant", "content": ""}])
    [chunk async for chunk in model.astream([*chat, {"role": "assistant", "content": partial}])]
    plain, continued, empty, streamed = (body["prompt"] for body in server_with_ids.bodies)
    assert plain == empty == render_ids(("user", "Hello"))
    assert continued == streamed == plain + encode(partial)
    assert continued.count(IM_END) == 1, "the user's turn has ended, the answer has not"


async def test_an_answer_is_continued_from_text_or_from_ids(server_with_ids: FakeServer, connect: Any) -> None:
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": FOLLOW_UP}]
    with pytest.raises(ModelError, match="exclude each other"):
        await connect(server_with_ids).complete(chat, continue_ids=[5])
    assert server_with_ids.seen == []


async def test_an_answer_is_continued_only_where_the_server_returns_ids(server: FakeServer, connect: Any) -> None:
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": FOLLOW_UP}]
    for request in ({"messages": chat}, {"messages": chat[:1], "continue_ids": [5]}):
        # EndpointDown ends a run immediately.
        with pytest.raises(EndpointDown, match="partial answer cannot be continued; use vLLM"):
            await connect(server).complete(**request)
    assert server.seen == []


def reply_by_narrative(seen: Seen) -> Answer:
    """Write the next line of LOOP's narrative, as a server that sees only the prompt's ids."""
    narrative = decode(seen.body["prompt"]).rpartition("<|im_start|>assistant\n")[2]
    alternatives = {"L": -1.5, "X": -3.0}
    if narrative.endswith(FINAL):
        return Answer(f" {END}")
    if narrative.endswith(ANSWER):
        return Answer(" Uppsala" if SEARCH in narrative else " Ada Brandt")
    if narrative.endswith("study?\n"):
        return Answer(SEARCH, alternatives={"I": -2.25})
    if narrative.endswith("about?\n"):
        return Answer(f"{ANSWER} Ada", alternatives=alternatives)
    step = narrative.count(FOLLOW_UP)
    return Answer([LOOP["0/decompose"], "Nonsense" if "refused" not in decode(seen.body["prompt"]) else
                   LOOP["1/decompose"], f"{FINAL} "][step])  # fmt: skip


async def test_a_run_over_http_records_the_logprobs_of_both_openings(
    server_with_ids: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def search(self: Any, query: str) -> list[PassageDict]:
        return [UPPSALA]

    monkeypatch.setattr("agentsys.knowledge.context.Knowledge.search", search)
    server_with_ids.plan = reply_by_narrative
    question = f"Where did she study?\n{EVIL}"
    context = Context(model=server_with_ids.url)
    await acollect(graph, [{"id": "a", "question": question}], tmp_path / "run", context=context,
                   options=RunOptions(no_cache=True))  # fmt: skip
    [trace] = read_traces(tmp_path / "run")
    assert trace.result is not None, trace.reason
    assert trace.result["answer"] == "Uppsala"
    decisions = [step["decision"] for step in trace.result["steps"]]
    assert decisions == [
        {"retrieve": False, "log_p_retrieve": -1.5, "log_p_parametric": -0.25, "stated": True},
        {"retrieve": True, "log_p_retrieve": -0.25, "log_p_parametric": -2.25, "stated": True},
    ]
    calls = {call.key: call for call in trace.calls}
    assert set(calls) == {*LOOP, "1/decompose#1"}
    for call in trace.calls:
        check_partial_answer(call)
    assert "refused" in decode(calls["1/decompose#1"].prompt_ids or [])
    assert calls["0/decide"].sampling["logprobs"] == 20
    assert "logprobs" not in calls["0/answer"].sampling


def check_partial_answer(call: Call) -> None:
    """The request's ids are those of the turns, followed by those of the narrative."""
    *turns, partial = [(message["role"], message["content"]) for message in call.messages]
    assert [role for role, _ in turns] == ["system", "user"]
    assert partial[0] == "assistant"
    assert call.prompt_ids == render_ids(*turns) + encode(partial[1])
    assert call.mode == "token"


@pytest.mark.timeout(600)
def test_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever so small a model writes, the run ends, and the log-probabilities are valid."""

    async def search(self: Any, query: str) -> list[PassageDict]:
        return [PassageDict(id="p", title="Nils Varga", text="Nils Varga was born in Elmsund.")]

    monkeypatch.setattr("agentsys.knowledge.context.Knowledge.search", search)
    context = Context(model="embedded:qwen2.5-coder-0.5b", max_steps=1, example=False)
    record = {"id": "a", "question": "Where was the poet Nils Varga born?"}
    collect(graph, [record], tmp_path / "run", context=context, options=RunOptions(no_cache=True))
    [trace] = read_traces(tmp_path / "run")
    assert trace.outcome == "kept", trace.reason
    assert trace.result is not None
    assert trace.result["answer"]
    for call in trace.calls:
        assert call.prompt_ids and call.ids and call.mode == "token"
    for step in trace.result["steps"]:
        logprobs = [step["decision"]["log_p_retrieve"], step["decision"]["log_p_parametric"]]
        assert all(isinstance(logprob, float) and logprob <= 0 for logprob in logprobs), logprobs
        assert sum(map(math.exp, logprobs)) <= 1 + 1e-6
