"""Pictures in prompts and roles: blocks in order, what is recorded, what each kind of model gets."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import orjson
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import BaseMessage
from pydantic import Field

from agentsys.models import load_model
from agentsys.models.cache import RequestCache
from agentsys.models.errors import EndpointDown, Refused
from agentsys.pictures import PictureError, load_picture
from agentsys.prompt import Prompt, PromptError
from agentsys.roles import Role
from tests.support.images import data_url, png, received
from tests.support.roles import recording, scripted
from tests.support.servers import Answer, FakeServer, Status, write_model_folder

CAPTION = Prompt.parse("# user\nLook.\n# image image\nThe caption: {{ caption }}", "caption")
DESCRIBER: Role[str] = Role(CAPTION)


def reference(number: int = 0) -> dict[str, Any]:
    return asyncio.run(load_picture(png(number))).reference


# Prompts


def test_blocks_stand_in_the_order_of_the_prompt() -> None:
    prompt = Prompt.parse("# user\n# image a\nfirst {{ x }}\n# image b\nlast\n# image a\n", "p")
    a, b = reference(1), reference(2)
    assert prompt.render({"a": a, "b": b, "x": "1"}) == [
        {
            "role": "user",
            "content": [a, {"type": "text", "text": "first 1"}, b, {"type": "text", "text": "last"}, a],
        }
    ]
    assert prompt.pictures == [("", "a"), ("", "b")]
    assert prompt.parts[0].template == "# image a\nfirst {{ x }}\n# image b\nlast\n# image a"


def test_a_withheld_picture_leaves_plain_text() -> None:
    """So that its prompt can be compared with the text alone."""
    assert CAPTION.render({"image": None, "caption": "c"}) == [{"role": "user", "content": "Look.\nThe caption: c"}]


def test_several_pictures_in_a_variable_and_in_repeated_messages() -> None:
    turns = "# each pair in pairs\n# user\n# image pair.image\n{{ pair.text }}\n# assistant\nyes\n# end\n"
    prompt = Prompt.parse(f"{turns}# user\n# image many", "p")
    a, b, c = (reference(n) for n in range(3))
    assert prompt.pictures == [("pairs", "image"), ("", "many")]
    messages = prompt.render({"pairs": [{"image": a, "text": "t"}, {"image": None, "text": "u"}], "many": [b, c]})
    assert [message["content"] for message in messages] == [
        [a, {"type": "text", "text": "t"}], "yes", "u", "yes", [b, c],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "inputs", "message"),
    [
        ("# user\n# image\n", {}, "prompt p: '# image': write '# image NAME' with the name of one variable"),
        (
            "# user\n# image a b\n", {}, "prompt p: '# image a b': write '# image NAME' with the name of one variable",
        ),
        ("# user\n# image a\n", {}, "prompt p: 'a' is undefined"),
        ("# user\n# image a\n", {"a": "cat.png"}, "prompt p: '# image a': a picture is needed, not str"),
    ],
)  # fmt: skip
def test_bad_image_lines(text: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError) as caught:
        Prompt.parse(text, "p").render(inputs)
    assert str(caught.value) == message


def test_a_condition_cannot_hold_a_picture() -> None:
    with pytest.raises(PromptError, match="prompt p: "):
        Prompt.parse("# user\n{% if x %}\n# image a\n{% endif %}", "p")


def test_data_cannot_show_a_picture() -> None:
    assert Prompt.parse("# user\n{{ text }}", "p").render({"text": "# image secret"})[0]["content"] == "# image secret"


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("an <|image_pad|> here", "an < |image_pad|> here"),
        ("<|im_end|>\n<|im_start|>system", "< |im_end|>\n< |im_start|>system"),
        ("<__media__> <image> </image> [IMG] [/INST]", "< __media__> < image> < /image> [ IMG] [ /INST]"),
        ("a < b, <b>bold</b>, [1], x<y|z>w", "a < b, <b>bold</b>, [1], x<y|z>w"),
        ("שלום ⟨לא⟩", "שלום ⟨לא⟩"),
    ],
)
def test_texts_beside_a_picture_cannot_be_tokens(text: str, sent: str) -> None:
    """The server's chat route tokenizes them together with the template."""
    prompt = Prompt.parse("# system\n{{ caption }}\n# user\n# image image\n{{ caption }}", "p")
    system, user = prompt.render({"image": reference(), "caption": text})
    assert (system["content"], user["content"][1]) == (sent, {"type": "text", "text": sent})
    system, user = prompt.render({"image": None, "caption": text})
    assert (system["content"], user["content"]) == (text, text)


# Roles


async def test_a_call_records_the_reference_alone() -> None:
    model, script = scripted("two colors")
    with recording() as recorder:
        assert await DESCRIBER(model, key="k", image=data_url(png()), caption="c") == "two colors"
        await DESCRIBER(model, key="l", image=png(1), caption="c")
    picture = (await load_picture(png())).reference
    blocks = [{"type": "text", "text": "Look."}, picture, {"type": "text", "text": "The caption: c"}]
    assert recorder.calls[0].messages == [{"role": "user", "content": blocks}]
    assert script.requests[0] == [("user", blocks)]
    assert b"base64" not in orjson.dumps(recorder.calls)
    assert recorder.calls[0].seed != recorder.calls[1].seed


async def test_the_digest_is_part_of_the_calls_identity(tmp_path: Path) -> None:
    model, script = scripted("fine")
    cache = RequestCache(tmp_path / "cache.sqlite")
    for number in (0, 0, 1):
        with recording(cache=cache):
            await DESCRIBER(model, key="k", image=png(number), caption="c")
    cache.close()
    assert len(script.requests) == 2


async def test_what_was_refused_is_said_beside_the_picture() -> None:
    model, script = scripted("wrong", "right")
    role = Role(CAPTION, check=lambda value, inputs: None if value == "right" else "not that")
    assert await role(model, key="k", image=png(), caption="c") == "right"
    [(speaker, content)] = script.requests[1]
    assert (speaker, content[1]["type"]) == ("user", "image")
    assert content[-1] == {"type": "text", "text": "(An earlier reply was refused: not that.)"}


@pytest.mark.parametrize(("image", "message"), [("none.png", "no such file"), (b"", "0 bytes"), ([7], "of type int")])
async def test_a_picture_that_cannot_be_read(image: Any, message: str, tmp_path: Path) -> None:
    model, script = scripted("fine")
    with pytest.raises(PictureError, match=message):
        await DESCRIBER(model, key="k", image=image, caption="c")
    assert script.requests == []


async def test_a_missing_picture_is_an_undefined_variable() -> None:
    model, _ = scripted("fine")
    with pytest.raises(PromptError, match="'image' is undefined"):
        await DESCRIBER(model, key="k", caption="c")


# Models


async def test_any_openai_server_gets_image_urls() -> None:
    async with FakeServer() as server:
        await DESCRIBER(load_model(server.url), key="k", image=png(), caption="c")
        [body] = server.bodies
        assert received(body) == [(await load_picture(png())).sha256]
        assert body["messages"][0]["content"][1]["image_url"]["url"] == data_url(png())


async def test_a_stream_gets_the_same_blocks() -> None:
    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict, total=False):
        text: str

    async with FakeServer() as server:
        model = load_model(server.url)

        async def node(state: State) -> State:
            return {"text": await DESCRIBER(model, key="k", image=png(), caption="c")}

        graph = StateGraph(State).add_node("node", node).add_edge(START, "node").compile()
        events = [event async for event in graph.astream({"text": ""}, stream_mode="messages")]
        assert events and "base64" not in repr(events)
        assert len(received(server.bodies[0])) == 1 and server.bodies[0]["stream"]


async def test_vllm_gets_pictures_on_the_chat_route_and_text_as_ids(tmp_path: Path) -> None:
    """Its config.json has a vision part; a prompt whose picture is withheld is in token mode."""
    root = write_model_folder(tmp_path / "model")
    (root / "config.json").write_text('{"model_type": "qwen2_vl", "vision_config": {}}')
    async with FakeServer("vllm", root=str(root)) as server:
        model = load_model(server.url)
        await DESCRIBER(model, key="k", image=png(), caption="c")
        await DESCRIBER(model, key="l", image=None, caption="c")
        assert [seen.route for seen in server.seen] == ["/v1/chat/completions", "/v1/completions"]
        assert len(received(server.bodies[0])) == 1


async def test_a_langchain_model_gets_standard_blocks() -> None:
    class Seeing(FakeListChatModel):
        seen: Any = Field(default_factory=list)

        def _call(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> str:
            self.seen.append(messages)
            return "fine"

    model = Seeing(responses=["fine"])
    await DESCRIBER(model, key="k", image=png(), caption="c")
    content: Any = model.seen[0][0].content
    assert content[1] == {"type": "image", "base64": base64.b64encode(png()).decode(), "mime_type": "image/png"}


async def test_a_text_only_model_is_refused_before_any_request(tmp_path: Path) -> None:
    message = "takes text only, and the prompt shows a picture: name a vision model \\(docs/pictures.md\\)"
    root = write_model_folder(tmp_path / "model")
    (root / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 8}')
    async with FakeServer("vllm", root=str(root)) as server:
        with pytest.raises(Refused, match=f"toy-model {message}"):
            await DESCRIBER(load_model(server.url), key="k", image=png(), caption="c")
        assert server.seen == []

    class Blind(FakeListChatModel):
        profile: Any = Field(default_factory=lambda: {"image_inputs": False})

    with pytest.raises(EndpointDown, match=message):
        await DESCRIBER(Blind(responses=["fine"]), key="k", image=png(), caption="c")


@pytest.mark.parametrize(
    "text",
    [
        "Invalid content type. image_url is only supported by certain models.",
        "At most 0 image(s) may be provided in one prompt.",
        "toy is not a multimodal model",
        "Failed to deserialize: messages[0]: unknown variant `image_url`, expected `text`",
        "This model does not support image inputs",
        "image input is not supported - hint: you may need to provide the mmproj",
    ],
)
async def test_a_server_that_says_so_ends_the_run(text: str) -> None:
    async with FakeServer(plan=lambda seen: Status(400, text=text)) as server:
        with pytest.raises(Refused, match="toy-model takes text only"):
            await DESCRIBER(load_model(server.url), key="k", image=png(), caption="c")


async def test_another_refusal_is_the_requests() -> None:
    async with FakeServer(plan=lambda seen: Status(400, text="cannot identify image file")) as server:
        with pytest.raises(Exception, match="cannot identify image file") as caught:
            await DESCRIBER(load_model(server.url), key="k", image=png(), caption="c")
        assert not isinstance(caught.value, EndpointDown)


async def test_a_system_role_that_is_refused_is_merged_and_no_bytes_are_recorded() -> None:
    def plan(seen: Any) -> Any:
        has_system = any(message["role"] == "system" for message in seen.body["messages"])
        return Status(400, text="system role is not supported") if has_system else Answer("fine")

    role: Role[str] = Role(Prompt.parse("# system\nBe brief.\n# user\n# image image\nGo.", "p"))
    async with FakeServer(plan=plan) as server:
        with recording() as recorder:
            await role(load_model(server.url), key="k", image=png())
        assert [block["type"] for block in recorder.calls[0].messages[0]["content"]] == ["text", "image", "text"]
        assert b"base64" not in orjson.dumps(recorder.calls)
        assert len(received(server.bodies[-1])) == 1
