"""Servers that a spec starts: `vllm:` and `transformers:`, as processes of their own. In CI, on the CPU.

They run if AGENTSYS_VLLM_PYTHON names the Python of an environment with vLLM and transformers' server, and
AGENTSYS_VLLM_MODEL a model folder. `transformers serve` supports neither ids nor log-probabilities nor schemas.

vLLM's test is here and not in test_engines.py, whose vLLM server is then not up: two that wait compute all the time, on
one core.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agentsys.models import load_model
from agentsys.models.chat import EndpointChatModel, reply_from_message
from agentsys.models.errors import ModelError
from agentsys.models.wire import Reply, Request, build_payload
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.traces import read_finished
from tests.support.toys import run_drt, write_lines

FOLDER = os.environ.get("AGENTSYS_VLLM_MODEL", "")
VLLM = pytest.mark.skipif(
    not (FOLDER and os.environ.get("AGENTSYS_VLLM_PYTHON")), reason="no vLLM environment is named"
)
pytestmark = pytest.mark.timeout(900)


@VLLM
def test_the_command_starts_vllm_and_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's `--model vllm:...`: the child is started, called with token ids, and stopped at the end."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    before = serving_processes()
    records = write_lines(tmp_path / "records.jsonl", [{"text": "The moon hung over the bay like a coin."}])
    model = f"vllm:{FOLDER}?context=4096&enforce-eager=&max_tokens=60"
    limits = ["--max-rounds", 1, "--min-steps", 1, "--in-flight", 256]
    files = ["--input", records, "--out", tmp_path / "out"]
    code, output, err = run_drt(tmp_path / "cache", "--model", model, *files, *limits, timeout=600)
    assert code in (0, 3), err  # this small model may write replies that make the record fail
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert sum(manifest["counts"].values()) == 1 and "completion" in output
    calls = [call for trace in read_finished(tmp_path / "out") for call in trace.calls]
    assert calls and all(call.ids and call.model == Path(FOLDER).name for call in calls)
    assert serving_processes() <= before, "the child must be stopped"


def serving_processes() -> set[str]:
    """Return the ids of processes that have the model folder in their command line."""
    process_ids = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has just ended
            if FOLDER.encode() in path.read_bytes().split(b"\0"):
                process_ids.add(path.parent.name)
    return process_ids


class Capital(BaseModel):
    """Output of the role below."""

    country: str
    city: str


CAPITAL = Prompt.parse(
    "# user\n"
    'The capital of {{ country }}? Reply with JSON of the form {"country": "...", "city": "..."} and nothing else.\n',
    "capital",
)


@pytest.fixture(scope="module")
def transformers() -> Iterator[str]:
    """The spec of `transformers serve`; the first test starts it, and it stops after the last."""
    spec = f"transformers:{FOLDER}"
    model = load_model(spec)
    assert isinstance(model, EndpointChatModel)
    yield spec
    process = model.engine._process
    asyncio.run(model.aclose())
    assert process is not None and process.poll() is not None, "the child must be stopped"


async def ask_child(spec: str, messages: list[dict[str, str]], **extra: Any) -> Reply:
    """The reply of a child that stays up: closing a model stops the server that it started."""
    model = load_model(spec)
    assert isinstance(model, EndpointChatModel)
    return reply_from_message(await model.ainvoke(messages, **extra))


@VLLM
async def test_transformers_replies_in_chat_mode(transformers: str) -> None:
    # eleven tokens end with a comma: the server strips a whole reply, so a trailing space is in its stream alone
    messages = [{"role": "user", "content": "Count from one to ten."}]
    reply = await ask_child(f"{transformers}?temperature=0&max_tokens=11", messages)
    assert reply.text and reply.finish == "length" and reply.completion_tokens == 11 and reply.prompt_tokens > 10
    assert reply.prompt_ids is None and reply.ids is None and reply.logprobs is None
    model = load_model(f"{transformers}?temperature=0&max_tokens=11")
    assert isinstance(model, EndpointChatModel)
    assert (await model.identity())["name"] == Path(FOLDER).name and (await model.identity())["revision"]
    chunks = [chunk async for chunk in model.astream(messages)]
    assert "".join(str(chunk.content) for chunk in chunks) == reply.text
    [streamed] = [chunk.response_metadata["reply"] for chunk in chunks if "reply" in chunk.response_metadata]
    assert (streamed.finish, streamed.completion_tokens) == ("length", 11)


@VLLM
async def test_transformers_samples_as_requested(transformers: str) -> None:
    """A folder with an empty generation_config is served greedily unless the request switches sampling on."""
    messages = [{"role": "user", "content": "Write the first line of a poem about a harbour."}]
    hot = f"{transformers}?temperature=1.5&max_tokens=12"
    first, again, other = [(await ask_child(hot, messages, seed=seed)).text for seed in (1, 1, 2)]
    assert first == again != other
    narrow = (await ask_child(f"{hot}&top_k=1", messages, seed=1)).text
    assert narrow == (await ask_child(f"{transformers}?temperature=0&max_tokens=12", messages)).text != first


@VLLM
async def test_transformers_fills_a_schema_by_its_prompt(transformers: str) -> None:
    """Without constrained decoding, the reply is parsed from the text, and requested again if that fails."""
    role = Role(CAPITAL, Capital, name="capital", sampling={"temperature": 0.0, "max_tokens": 60})
    answer = await role.answer(load_model(transformers), key="capital", country="France")
    assert answer.value.city == "Paris" and answer.call.mode == "chat" and answer.call.ids is None


@VLLM
async def test_transformers_has_few_requests_in_flight(transformers: str) -> None:
    model = load_model(transformers)
    assert isinstance(model, EndpointChatModel)
    model.set_in_flight(64)
    assert model.engine.capacity == 2


def test_sampling_for_transformers_is_a_whole_generation_config() -> None:
    """Its server accepts a temperature without sampling, and refuses unknown settings."""
    sampling = {"temperature": 0.7, "top_p": 0.9, "min_p": 0.1, "max_tokens": 5, "seed": 3, "logprobs": 2}
    route, body = build_payload(Request(sampling, [], schema={}), "transformers", "folder", stream=False)
    config = json.loads(body.pop("generation_config"))
    assert route == "/v1/chat/completions"
    assert body == {"model": "folder", "messages": [], "max_tokens": 5, "seed": 3, "stream": False}
    off = {"top_k": 0, "repetition_penalty": 1.0}
    assert config == {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "min_p": 0.1, **off}
    _, body = build_payload(Request({"temperature": 0.0, "top_p": 0.9}, []), "transformers", "folder", stream=False)
    assert json.loads(body["generation_config"]) == {"do_sample": False, "top_p": 1.0, **off}
    with pytest.raises(ModelError, match="does not support presence_penalty"):
        build_payload(Request({"presence_penalty": 0.5}, []), "transformers", "folder", stream=False)
