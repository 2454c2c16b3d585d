"""A small HTTP server with the API of vLLM, llama.cpp or another OpenAI-compatible server, which can misbehave."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import tokenizers
from aiohttp import web
from tokenizers import decoders, models, pre_tokenizers

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
IM_END = 2
"""Id of "<|im_end|>", which ends a turn."""


@cache
def toy_tokenizer(special: bool) -> tokenizers.Tokenizer:
    """One token for each byte, and three special ones with ids 0 to 2, which text encodes to only if `special`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    toy = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    toy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    toy.decoder = decoders.ByteLevel()
    toy.add_special_tokens(list(SPECIAL))
    toy.encode_special_tokens = not special
    return toy


def encode(text: str, *, special: bool = False) -> list[int]:
    """Ids of a text."""
    return toy_tokenizer(special).encode(text, add_special_tokens=False).ids


def decode(ids: list[int]) -> str:
    """Text of ids, special tokens included."""
    return toy_tokenizer(True).decode(ids, skip_special_tokens=False)


def write_model_folder(folder: Path, template: str = CHATML) -> Path:
    """Write a model folder with the toy tokenizer, as agentsys reads it for a vLLM server, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    toy_tokenizer(True).save(str(folder / "tokenizer.json"))
    config = {"chat_template": template, "eos_token": "<|im_end|>", "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [IM_END, 0]}))
    return folder


@dataclass(frozen=True)
class Answer:
    """A well-formed reply."""

    text: str = "fine"
    finish: str = "stop"
    delay: float = 0.0
    reasoning: str = ""
    cached: int = 0
    alternatives: Mapping[str, float] = field(default_factory=dict)
    """Alternative tokens (one character each) and their log-probabilities, reported at every position."""


@dataclass(frozen=True)
class Status:
    """An error status."""

    code: int
    retry_after: str | None = None
    text: str = "told to fail"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """The connection closes before the reply, or in the middle of its body (with this status)."""

    midway: bool = False
    status: int = 200


@dataclass(frozen=True)
class Hang:
    """No reply until the client gives up."""


@dataclass(frozen=True)
class Raw:
    """Status 200 with exactly these bytes."""

    body: bytes


@dataclass(frozen=True)
class Torn:
    """A stream that ends after its first pieces, cleanly or with a dropped connection."""

    pieces: int = 2
    clean: bool = True
    text: str = "a reply that is never finished"


Behavior = Answer | Status | Drop | Hang | Raw | Torn

REPETITION = Answer("again and " * 50, finish="length")
EMPTY = Answer("")
BROKEN_JSON = Raw(b'{"choices": [{"text": "half a re')
NOT_A_REPLY = Raw(b'{"hello": "world"}')


@dataclass
class Seen:
    """A received request."""

    route: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass
class FakeServer:
    """Each generation takes the next behavior of the queue; `plan` gives the later ones (by default a fixed Answer).

    `dialect` is "openai", "vllm" or "llamacpp"; `root` is the folder that vLLM reports for its model.
    """

    dialect: str = "openai"
    models: tuple[str, ...] = ("toy-model",)
    root: str | None = None
    template: str = CHATML
    plan: Callable[[Seen], Behavior] = lambda seen: Answer()
    seen: list[Seen] = field(default_factory=list)
    high_water: int = 0
    _queue: deque[Behavior] = field(default_factory=deque)
    _in_flight: int = 0
    _runner: web.AppRunner | None = None
    address: str = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/props", self._props)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        for route in ("/completion", "/v1/completions", "/v1/chat/completions"):
            app.router.add_post(route, self._generate)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.address = "http://{}:{}".format(*self._runner.addresses[0][:2])
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close the port; later connections are refused."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        """A model spec for this server."""
        return f"{self.address}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Bodies of the generation requests."""
        return [seen.body for seen in self.seen]

    def queue(self, *behaviors: Behavior) -> None:
        """Add the behaviors of the next generations."""
        self._queue.extend(behaviors)

    async def _models(self, request: web.Request) -> web.Response:
        owner = {"vllm": "vllm", "llamacpp": "llamacpp"}.get(self.dialect, "somebody")
        entries = [{"id": name, "object": "model", "owned_by": owner, "root": self.root} for name in self.models]
        return web.json_response({"object": "list", "data": entries})

    async def _props(self, request: web.Request) -> web.Response:
        return web.json_response({"chat_template": self.template, "bos_token": "", "eos_token": "<|im_end|>"})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"tokens": encode(body["content"], special=body["parse_special"])})

    async def _detokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"content": decode((await request.json())["tokens"])})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.path, dict(request.headers), json.loads(await request.read()))
        self.seen.append(seen)
        behavior = self._queue.popleft() if self._queue else self.plan(seen)
        self._in_flight += 1
        self.high_water = max(self.high_water, self._in_flight)
        try:
            if isinstance(behavior, Answer | Torn):
                return await self._answer(request, seen, behavior)
            return await _misbehave(request, behavior)
        finally:
            self._in_flight -= 1

    async def _answer(self, request: web.Request, seen: Seen, answer: Answer | Torn) -> web.StreamResponse:
        whole = answer if isinstance(answer, Answer) else Answer(answer.text)
        await asyncio.sleep(whole.delay)
        form = {"/completion": _llamacpp, "/v1/completions": _completion, "/v1/chat/completions": _chat}[seen.route]
        pieces = form(self, seen, whole)
        if not seen.body.get("stream"):
            return web.json_response(_merged(pieces))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces[: answer.pieces] if isinstance(answer, Torn) else pieces:
            await response.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
        if isinstance(answer, Torn) and not answer.clean:
            assert request.transport is not None
            request.transport.abort()
        elif isinstance(answer, Answer) and seen.route != "/completion":
            await response.write(b"data: [DONE]\n\n")
        return response


@contextmanager
def serving(*servers: FakeServer) -> Iterator[None]:
    """The servers in an event loop of their own, in a thread: the test itself waits without one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    started: list[FakeServer] = []
    try:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
            started.append(server)
        yield
    finally:
        for server in started:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _misbehave(request: web.Request, behavior: Status | Drop | Hang | Raw) -> web.StreamResponse:
    if isinstance(behavior, Raw):
        return web.Response(body=behavior.body, content_type="application/json")
    if isinstance(behavior, Status):
        headers = dict(behavior.headers)
        if behavior.retry_after is not None:
            headers["Retry-After"] = behavior.retry_after
        return web.Response(status=behavior.code, text=behavior.text, headers=headers)
    assert request.transport is not None
    if isinstance(behavior, Hang):
        while not request.transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return web.Response()
    if behavior.midway:
        response = web.StreamResponse(status=behavior.status, headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        request.transport.close()
        return response
    request.transport.abort()
    return web.Response()


def _token_pieces(answer: Answer) -> list[tuple[int, str]]:
    """(id, new text) of each token; the last one ends the turn, unless the reply is truncated."""
    pieces: list[tuple[int, str]] = []
    for char in answer.text:  # engines show a character of several tokens with its last token
        *first, last = encode(char)
        pieces += [*((token, "") for token in first), (last, char)]
    return [*pieces, (IM_END, "")] if answer.finish == "stop" else pieces


def _alternatives(answer: Answer, token: int) -> list[tuple[int, float]]:
    return [(token, -0.25), *((encode(char)[0], logprob) for char, logprob in answer.alternatives.items())]


def _llamacpp(server: FakeServer, seen: Seen, answer: Answer) -> list[dict[str, Any]]:
    tokens = _token_pieces(answer)
    pieces: list[dict[str, Any]] = []
    for token, text in tokens:
        top = [{"id": i, "token": decode([i]), "logprob": p} for i, p in _alternatives(answer, token)]
        entry = {"id": token, "token": text, "logprob": -0.25, "top_logprobs": top[: seen.body["n_probs"]]}
        pieces.append({"content": text, "tokens": [token], "stop": False, "completion_probabilities": [entry]})
    last = {"content": "", "tokens": [], "stop": True, "stop_type": "limit" if answer.finish == "length" else "eos"}
    counts = {"tokens_evaluated": len(seen.body["prompt"]), "tokens_predicted": len(tokens)}
    return [*pieces, last | counts | {"timings": {"cache_n": answer.cached}}]


def _usage(prompt: int, answer: Answer) -> dict[str, Any]:
    completion = len(_token_pieces(answer))
    details = {"cached_tokens": answer.cached}
    return {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}


def _named(server: FakeServer, token: int) -> str:
    return f"token_id:{token}" if server.dialect == "vllm" else decode([token])


def _completion(server: FakeServer, seen: Seen, answer: Answer) -> list[dict[str, Any]]:
    pieces: list[dict[str, Any]] = []
    for token, text in _token_pieces(answer):
        top = {_named(server, i): p for i, p in _alternatives(answer, token)[: 1 + seen.body["logprobs"]]}
        logprobs = {"tokens": [_named(server, token)], "token_logprobs": [-0.25], "top_logprobs": [top]}
        pieces.append({"choices": [{"text": text, "token_ids": [token], "logprobs": logprobs, "finish_reason": None}]})
    pieces[0]["choices"][0]["prompt_token_ids"] = seen.body["prompt"]
    pieces[-1]["choices"][0]["finish_reason"] = answer.finish
    return [*pieces, {"choices": [], "usage": _usage(len(seen.body["prompt"]), answer)}]


def _chat(server: FakeServer, seen: Seen, answer: Answer) -> list[dict[str, Any]]:
    pieces: list[dict[str, Any]] = []
    if answer.reasoning:
        pieces.append({"choices": [{"delta": {"reasoning_content": answer.reasoning}, "finish_reason": None}]})
    for token, text in _token_pieces(answer):
        choice: dict[str, Any] = {"delta": {"content": text}, "finish_reason": None}
        if server.dialect == "vllm":
            choice["token_ids"] = [token]
        if seen.body.get("logprobs"):
            tops = _alternatives(answer, token)[: max(1, seen.body["top_logprobs"])]
            top = [{"token": _named(server, i), "logprob": p} for i, p in tops]
            choice["logprobs"] = {"content": [{"token": _named(server, token), "logprob": -0.25, "top_logprobs": top}]}
        pieces.append({"choices": [choice]})
    if not pieces:
        pieces.append({"choices": [{"delta": {"content": ""}, "finish_reason": None}]})
    prompt = encode("".join(str(message["content"]) for message in seen.body["messages"]))
    if server.dialect == "vllm":
        pieces[0]["prompt_token_ids"] = prompt
    pieces[-1]["choices"][0]["finish_reason"] = answer.finish
    return [*pieces, {"choices": [], "usage": _usage(len(prompt), answer)}]


def _merged(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole reply of a stream's pieces."""
    whole: Any = None
    for piece in pieces:
        whole = piece if whole is None else _joined(whole, piece)
    for choice in whole.get("choices", []):
        if "delta" in choice:
            choice["message"] = choice.pop("delta")
    return whole


def _joined(left: Any, right: Any) -> Any:
    if isinstance(left, dict) and isinstance(right, dict):
        both = {name: _joined(left[name], right[name]) for name in left.keys() & right.keys()}
        return left | right | both
    if isinstance(left, list) and isinstance(right, list):
        if left and right and isinstance(left[0], dict) and "finish_reason" in left[0]:  # the one choice
            return [_joined(left[0], right[0])]
        return left + right
    if isinstance(left, str) and isinstance(right, str):
        return left + right
    return left if right is None else right


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def text_answer(text: str, content_type: str = "application/json", status: int = 200) -> Handler:
    """A handler that always answers the same."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type=content_type, status=status)

    return answer


@dataclass
class ScriptedServer:
    """A server whose chat route, and list of models, the test writes."""

    chat: Handler
    models: Handler = text_answer('{"data": [{"id": "m"}]}')
    address: str = ""
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = "http://{}:{}".format(*self._runner.addresses[0][:2])
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()
