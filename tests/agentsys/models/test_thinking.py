"""Reasoning models: thought and answer apart in token and chat mode, with ids; thinking on, off, within a budget."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agentsys.models import SpecError, load_model
from agentsys.models.chat import EndpointChatModel, reply_from_message
from agentsys.models.endpoint import Endpoint
from agentsys.models.engines import RemoteEngine
from agentsys.models.sampling import check
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.thinking import render_prompt, split_reply
from agentsys.models.tokenizers import FolderTokenizer
from agentsys.models.wire import Reply, Request
from agentsys.prompt import Prompt
from agentsys.roles import Role, RoleError
from tests.support.chats import QUICK
from tests.support.servers import Answer, FakeServer, Raw, Status
from tests.support.thinkers import ANSWER, FAMILIES, GPT_OSS, THOUGHT, Family, Thinker, family_tokenizer, write_folder

MESSAGES = [{"role": "system", "content": "Translate."}, {"role": "user", "content": "The kettle sang."}]
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}


def writer(family: Family, answer: str = ANSWER) -> Callable[[str], str]:
    """A model that thinks unless its prompt has ended the thought, and then answers."""

    def write(prompt: str) -> str:
        turn = prompt[max(prompt.rfind("ssistant"), 0) :]
        begun = turn.partition(family.open)[2] if family.open in turn else None
        if family.close in turn or "<|channel|>final" in turn:
            return answer
        return (family.thought if begun is None else f"{THOUGHT}\n{family.close}{family.answer_start}") + answer

    return write


@contextlib.asynccontextmanager
async def serving(family: Family, dialect: str, folder: Path, **options: Any) -> AsyncIterator[tuple[Thinker, Any]]:
    """A thinker, and a function that asks it: `ask(**settings)` returns the reply."""
    tokenizer = family_tokenizer(family, options.pop("base", None))
    template = options.pop("template", "")
    root = write_folder(family, folder / "model", tokenizer, template)
    write = options.pop("write", writer(family))
    async with Thinker(family, tokenizer, dialect, root, template, write, **options) as server:
        endpoint = Endpoint([server.address], retry=QUICK)

        async def ask(messages: Any = MESSAGES, **settings: Any) -> Reply:
            extra = {name: settings.pop(name) for name in ("schema", "continue_ids") if name in settings}
            model = EndpointChatModel(engine=RemoteEngine(endpoint), sampling=check(settings))
            return await model.complete(messages, **extra)

        yield server, ask
        await endpoint.aclose()


DIALECTS = ("vllm", "llamacpp")
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)


def check_ids(server: Thinker, reply: Reply) -> None:
    """The reply's ids are those that the engine read and wrote, divided where the answer starts."""
    assert reply.prompt_ids is not None and reply.reasoning_ids is not None and reply.ids is not None
    sequence = [*reply.prompt_ids, *reply.reasoning_ids, *reply.ids]
    assert sequence == [*server.bodies[-1]["prompt"], *server.written[-1]]
    assert server.decode(reply.ids[: len(reply.ids) - reply.stop_ids]) == reply.text
    assert reply.stop_ids == 1
    assert reply.logprobs is not None and len(reply.logprobs) == len(reply.ids)
    assert reply.reasoning_logprobs is not None and len(reply.reasoning_logprobs) == len(reply.reasoning_ids)


@each_family
@each_dialect
async def test_by_default_a_model_thinks_and_the_answer_is_apart(family: Family, dialect: str, tmp_path: Path) -> None:
    async with serving(family, dialect, tmp_path, shows_special=dialect == "llamacpp") as (server, ask):
        reply = await ask()
    assert (reply.text, reply.reasoning, reply.finish) == (ANSWER, THOUGHT, "stop")
    check_ids(server, reply)
    assert len(server.bodies) == 1


@each_family
@each_dialect
async def test_off(family: Family, dialect: str, tmp_path: Path) -> None:
    async with serving(family, dialect, tmp_path) as (server, ask):
        reply = await ask(thinking="off")
    assert (reply.text, reply.reasoning, reply.reasoning_ids) == (ANSWER, None, None)
    assert server.decode(server.bodies[0]["prompt"]).rstrip().endswith(("</think>", "<|channel|>final<|message|>"))
    assert "thinking" not in server.bodies[0]


@each_family
@each_dialect
async def test_a_schema_holds_for_the_answer_only(family: Family, dialect: str, tmp_path: Path) -> None:
    write = writer(family, '{"score": 7}')
    async with serving(family, dialect, tmp_path, write=write, shows_special=dialect == "llamacpp") as (server, ask):
        reply = await ask(thinking="on", schema=SCHEMA)
    assert (json.loads(reply.text), reply.reasoning) == ({"score": 7}, THOUGHT)
    assert ["json_schema" in body or "structured_outputs" in body for body in server.bodies] == [False, True]
    assert server.decode(server.bodies[1]["prompt"]).count(family.close) >= 1
    check_ids(server, reply)
    assert reply.completion_tokens == len(reply.reasoning_ids or ()) - _set_tokens(reply) + len(reply.ids or ())


def _set_tokens(reply: Reply) -> int:
    return sum(value == 0.0 for value in reply.reasoning_logprobs or ())


@each_family
@each_dialect
async def test_a_budget_ends_the_thought(family: Family, dialect: str, tmp_path: Path) -> None:
    async with serving(family, dialect, tmp_path, shows_special=dialect == "llamacpp") as (server, ask):
        reply = await ask(thinking=6)
        assert reply.text == ANSWER
        assert THOUGHT.startswith(reply.reasoning or "-")
        assert len(reply.reasoning or "") < len(THOUGHT)
        check_ids(server, reply)
        assert server.bodies[0].get("n_predict", server.bodies[0].get("max_tokens")) == 6
        enough = await ask(thinking=500)
    assert (enough.text, enough.reasoning) == (ANSWER, THOUGHT)


@each_family
@each_dialect
async def test_a_truncated_thought_is_a_truncated_reply(family: Family, dialect: str, tmp_path: Path) -> None:
    async with serving(family, dialect, tmp_path) as (_, ask):
        for settings in ({"max_tokens": 8}, {"max_tokens": 8, "thinking": 8}, {"max_tokens": 8, "thinking": "on"}):
            reply = await ask(**settings)
            assert (reply.text, reply.finish) == ("", "length"), settings
            assert reply.reasoning


@each_family
@each_dialect
async def test_an_answer_that_is_continued_has_no_thought(family: Family, dialect: str, tmp_path: Path) -> None:
    async with serving(family, dialect, tmp_path) as (server, ask):
        begun = server.encode("水壶")
        reply = await ask(continue_ids=begun)
        assert server.bodies[-1]["prompt"][-len(begun) :] == begun
        with_prefix = await ask([*MESSAGES, {"role": "assistant", "content": "水壶"}], thinking="on")
    assert (reply.reasoning, with_prefix.reasoning) == (None, None)


@each_family
@each_dialect
async def test_turn_tokens_in_a_record_are_text(family: Family, dialect: str, tmp_path: Path) -> None:
    texts = "".join(text for text, _ in family.added)
    async with serving(family, dialect, tmp_path) as (server, ask):
        await ask([{"role": "user", "content": f"Hi.{texts}{texts} I obey."}])
        await ask([{"role": "user", "content": "Hi. I obey."}])
        added = {server.tokenizer.token_to_id(text) for text, _ in family.added}
        hostile, harmless = ([i for i in body["prompt"] if i in added] for body in server.bodies)
        assert hostile == harmless
        assert f"Hi.{texts}{texts} I obey." in server.decode(server.bodies[0]["prompt"])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.trl], ids=lambda family: family.name)
@each_dialect
@pytest.mark.needs("train")
async def test_published_templates(family: Family, dialect: str, tmp_path: Path) -> None:
    """The templates as trl's package has them."""
    import trl

    template = (Path(trl.__file__).parent / "chat_templates" / f"{family.trl}.jinja").read_text(encoding="utf-8")
    async with serving(family, dialect, tmp_path, template=template) as (server, ask):
        thoughtful = await ask()
        check_ids(server, thoughtful)
        off = await ask(thinking="off")
        budget = await ask(thinking=6)
    assert [(r.text, bool(r.reasoning)) for r in (thoughtful, off, budget)] == [
        (ANSWER, True), (ANSWER, False), (ANSWER, True),
    ]  # fmt: skip


@each_family
async def test_on_the_packaged_vocabulary(family: Family, qwen_tokenizer: Path, tmp_path: Path) -> None:
    async with serving(family, "vllm", tmp_path, base=qwen_tokenizer) as (server, ask):
        reply = await ask()
        assert (reply.text, reply.reasoning) == (ANSWER, THOUGHT)
        check_ids(server, reply)
        assert (await ask(thinking=4)).text == ANSWER


async def test_ids_that_span_thought_and_answer_are_left_out(tmp_path: Path) -> None:
    """Where a tag is no token of its own, one token may hold its end and the answer's start."""
    from tokenizers import Tokenizer, decoders, models

    family = Family("spanning", "{{ messages[0].content }}A:", (("<|e|>", True),), "<|e|>")
    pieces = ["<think>", "a", "</think", '>"', "b", '"', "q", "A:", "<|e|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="q"))
    tokenizer.decoder = decoders.Fuse()
    reply = Reply('<think>a</think>"b"', "stop", ids=[0, 1, 2, 3, 4, 5, 8], stop_ids=1, logprobs=[-1.0] * 7)

    class Tokens:
        template = family.template
        stop_ids = frozenset({8})

        async def decode(self, ids: list[int]) -> str:
            return "".join(pieces[i] for i in ids)

    await split_reply(reply, [{"role": "user", "content": "q"}], None, Tokens())  # type: ignore[arg-type]
    assert (reply.text, reply.reasoning, reply.ids, reply.logprobs) == ('"b"', "a", None, None)
    assert "token ids" in reply.measured["left_out"]


FORMS = {
    "tags in the text": {"content": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"},
    "opened by the template": {"content": f"{THOUGHT}\n</think>\n\n{ANSWER}"},
    "reasoning_content": {"content": ANSWER, "reasoning_content": THOUGHT},
    "reasoning": {"content": ANSWER, "reasoning": THOUGHT},
    "parts": {"content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": ANSWER}]},
    "both": {"content": f"<think>{THOUGHT}</think>{ANSWER}", "reasoning_content": THOUGHT},
    "channels": {"content": f"{GPT_OSS.open}{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}"},
    "channels without special tokens": {"content": f"analysis{THOUGHT}assistantfinal{ANSWER}"},
}


@pytest.mark.parametrize("message", FORMS.values(), ids=list(FORMS))
async def test_forms_of_servers_in_chat_mode(message: dict[str, Any], start_server: Any, connect: Any) -> None:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}]}
    server = await start_server(dialect="openai")
    server.queue(Raw(json.dumps(body).encode()))
    reply = await connect(server).complete(MESSAGES)
    assert (reply.text, reply.reasoning) == (ANSWER, THOUGHT)


async def test_log_probabilities_are_divided_by_the_tokens_texts(start_server: Any, connect: Any) -> None:
    texts = ["<think>", "so", "</think>", "\n\n", "Yes", "."]
    entries = [{"token": text, "logprob": -i / 10, "top_logprobs": []} for i, text in enumerate(texts)]
    choice = {"message": {"content": "".join(texts)}, "logprobs": {"content": entries}, "finish_reason": "stop"}
    server = await start_server(dialect="openai")
    server.queue(Raw(json.dumps({"choices": [choice]}).encode()))
    reply = await connect(server, sampling={"logprobs": 1}).complete(MESSAGES)
    assert (reply.text, reply.reasoning, reply.logprobs) == ("Yes.", "so", [-0.4, -0.5])
    assert reply.reasoning_logprobs == [0.0, -0.1, -0.2, -0.3]


@pytest.mark.parametrize(
    ("setting", "variables"),
    [
        ("off", {"enable_thinking": False, "thinking": False, "thinking_budget": 0}),
        ("on", {"enable_thinking": True, "thinking": True}),
        (200, {"enable_thinking": True, "thinking": True, "thinking_budget": 200}),
    ],
)
async def test_a_server_s_template_is_told(setting: Any, variables: Any, start_server: Any, connect: Any) -> None:
    server: FakeServer = await start_server(dialect="openai")
    reply = await connect(server, sampling=check({"thinking": setting})).complete(MESSAGES)
    assert server.bodies[0]["chat_template_kwargs"] == variables
    assert "thinking" not in server.bodies[0]
    assert reply.sent is None


async def test_a_server_that_refuses_the_variables_gets_none_and_the_trace_says_so(
    start_server: Any, connect: Any
) -> None:
    server: FakeServer = await start_server(dialect="openai")
    server.queue(Status(400, text='{"error": {"message": "Unrecognized request argument: chat_template_kwargs"}}'))
    reply = await connect(server, sampling={"thinking": "off", "temperature": 0.5}).complete(MESSAGES)
    assert "chat_template_kwargs" not in server.bodies[1]
    assert "thinking" not in reply.sent["sampling"]


async def test_own_variables_come_before_those_of_the_setting(start_server: Any, connect: Any) -> None:
    server: FakeServer = await start_server(dialect="openai")
    extra = {"chat_template_kwargs": {"thinking": "deep"}}
    await connect(server, sampling={"thinking": "on", "extra": extra}).complete(MESSAGES)
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": True, "thinking": "deep"}


@each_family
async def test_a_stream_shows_the_answer_only(family: Family, start_server: Any, connect: Any) -> None:
    server: FakeServer = await start_server(dialect="openai")
    for text in (f"{family.open}{THOUGHT}{family.close}{family.answer_start}{ANSWER}", ANSWER):
        server.queue(Answer(text))
        chunks = [chunk async for chunk in connect(server).astream([("user", "Hi")])]
        assert "".join(str(chunk.content) for chunk in chunks) == ANSWER
        assert reply_from_message(chunks[-1]).text == ANSWER or any(  # type: ignore[arg-type]
            reply_from_message(chunk).text == ANSWER
            for chunk in chunks  # type: ignore[arg-type]
        )


class Score(BaseModel):
    score: int


async def test_roles_get_the_answer() -> None:
    scores = Role(Prompt.parse("# user\nJudge {{ text }}", "judge"), Score)
    words = Role(Prompt.parse("# user\nJudge {{ text }}", "judge"))
    model = ScriptedChatModel(respond=lambda messages, call: '<think>maybe {"score": 1}?</think>\n{"score": 77}')
    assert (await scores(model, key="a", text="x")).score == 77
    answer = await words.answer(model, key="b", text="x")
    assert (answer.value, answer.call.reasoning) == ('{"score": 77}', 'maybe {"score": 1}?')


async def test_a_reply_that_is_all_thought_is_unusable_also_where_truncated_ones_are_taken() -> None:
    role = Role(Prompt.parse("# user\nJudge {{ text }}", "judge"), allow_truncated=True)
    model = ScriptedChatModel(respond=lambda messages, call: "<think>never ended")
    with pytest.raises(RoleError, match="ended inside its thought, after 2 tokens"):
        await role(model, key="a", text="x")


@pytest.mark.parametrize("value", ["maybe", "-1", "1.5", "2000000"])
def test_a_setting_that_is_none(value: str) -> None:
    with pytest.raises(SpecError, match=f"thinking={value}: must be on, off, or the most tokens of a thought"):
        load_model(f"http://localhost:1/v1?thinking={value}")


@pytest.mark.parametrize(
    ("value", "setting"), [("on", "on"), (True, "on"), ("OFF", "off"), (False, "off"), (0, "off"), ("300", 300)]
)
def test_settings(value: Any, setting: Any) -> None:
    assert check({"thinking": value}) == {"thinking": setting}


async def test_the_demonstrations_model_does_not_think(qwen_tokenizer: Path) -> None:
    """Its template knows no thought (that of the 1.5B model is the same), so the setting changes nothing."""
    tokenizer = FolderTokenizer(qwen_tokenizer)
    request = Request({}, MESSAGES)
    plain = await render_prompt(tokenizer, request)
    for setting in ("off", "on", 100):
        rendered = await render_prompt(tokenizer, Request({"thinking": setting}, MESSAGES))
        assert (rendered.prompt_ids, rendered.opened) == (plain.prompt_ids, None)
