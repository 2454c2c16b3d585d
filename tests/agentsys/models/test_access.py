"""Options of a spec for real servers: body fields, keys, headers, base URLs, rates, proxies, and vLLM's flags."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agentsys.models import ModelError, SpecError, load_model
from agentsys.models.access import proxy_of
from agentsys.models.chat import reply_from_message
from agentsys.models.child import ChildEngine
from agentsys.models.errors import Refused
from agentsys.models.rate import RateLimit
from agentsys.models.server_options import flag_arguments, revision_with_flags
from agentsys.models.spec import _load, _make_endpoint, _make_engine
from agentsys.models.wire import Reply
from agentsys.prompt import Prompt
from agentsys.recorder import Recorder, current, identity
from agentsys.roles import Role
from tests.support.chats import CHAT
from tests.support.servers import CHATML, Answer, FakeServer, Status, decode, write_model_folder


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Models are cached by their spec; every test reads its own environment."""
    for cache in (_load, _make_engine, _make_endpoint):
        cache.cache_clear()
    yield
    for cache in (_load, _make_engine, _make_endpoint):
        cache.cache_clear()


async def ask(spec: str) -> Reply:
    model = load_model(spec)
    try:
        return reply_from_message(await model.ainvoke(CHAT))
    finally:
        await model.aclose()


# Body fields


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ("extra.chat_template_kwargs.enable_thinking=false", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("extra.reasoning_effort=low", {"reasoning_effort": "low"}),
        ("extra.n=1&extra.user=%22me%22", {"n": 1, "user": "me"}),
        ("extra.provider={%22order%22:[%22a%22]}", {"provider": {"order": ["a"]}}),
        ("extra.a.b=1&extra.a.c=null", {"a": {"b": 1, "c": None}}),
        ("extra.note=", {"note": ""}),
        ("extra.thinking.budget_tokens=100", {"thinking": {"budget_tokens": 100}}),
    ],
)
async def test_extra_fields_are_sent(server: FakeServer, options: str, fields: dict[str, Any]) -> None:
    await ask(f"{server.url}?{options}&temperature=0.5")
    assert {name: server.bodies[0].get(name) for name in fields} == fields
    assert server.bodies[0]["temperature"] == 0.5 and "extra" not in server.bodies[0]


@pytest.mark.parametrize(
    "options",
    ["extra.=1", "extra.a..b=1", "extra.model=x", "extra.messages=[]", "extra.temperature=1", "extra.stream=true",
     "extra.a=1&extra.a.b=2", "extra.api_key=x", "extra.auth.token=x"],
)  # fmt: skip
def test_bad_extra_fields(options: str) -> None:
    with pytest.raises(SpecError, match=r"extra\."):
        load_model(f"http://one/v1?{options}")


async def test_extra_fields_are_part_of_a_calls_identity_and_of_the_trace(server: FakeServer) -> None:
    role = Role(Prompt.parse("# user\n{{ text }}", "t"))
    seeds, settings = [], []
    for options in ("", "?extra.reasoning_effort=low", "?extra.reasoning_effort=high"):
        token = current.set(Recorder("record"))
        call = (await role.answer(load_model(server.url + options), key="k", text="x")).call
        current.reset(token)
        seeds.append(call.seed)
        settings.append(call.sampling.get("extra"))
    assert len(set(seeds)) == 3, "the seed derives from the identity"
    assert settings == [None, {"reasoning_effort": "low"}, {"reasoning_effort": "high"}]
    assert identity(sampling={"extra": {}}) != identity(sampling={})


async def test_an_extra_field_that_is_refused_ends_the_run(server: FakeServer) -> None:
    server.plan = lambda seen: Status(400, text="Unsupported parameter: 'reasoning_effort'")
    with pytest.raises(Refused, match=r"leave \?extra\.reasoning_effort out of the spec"):
        await ask(f"{server.url}?extra.reasoning_effort=low")


async def test_template_variables_reach_the_template_in_token_mode(start_server: Any, tmp_path: Path) -> None:
    template = CHATML.replace(
        "assistant\n", "assistant\n{% if enable_thinking is false %}<think></think>{% endif %}", 1
    )
    server = await start_server(dialect="vllm", root=str(write_model_folder(tmp_path / "m", template)))
    for options, ends in (("", False), ("?extra.chat_template_kwargs.enable_thinking=false", True)):
        await ask(server.url + options)
        assert decode(server.bodies[-1]["prompt"]).endswith("<think></think>") == ends


# Keys, headers, URLs


async def test_each_server_gets_its_own_key(
    start_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTSYS_API_KEY", "sk-default")
    monkeypatch.setenv("AGENTSYS_API_KEY_JUDGE", " sk-judge\n")
    policy, judge = await start_server(), await start_server()
    for _ in range(2):
        await ask(policy.url)
        await ask(f"{judge.url}?key=JUDGE")
    assert {seen.headers["Authorization"] for seen in policy.seen} == {"Bearer sk-default"}
    assert {seen.headers["Authorization"] for seen in judge.seen} == {"Bearer sk-judge"}
    policy.plan = judge.plan = lambda seen: Status(
        302, headers={"Location": (judge if seen.headers["Authorization"].endswith("default") else policy).url}
    )
    count = len(policy.seen), len(judge.seen)
    with pytest.raises(Refused):
        await ask(f"{judge.url}?key=JUDGE")
    assert len(policy.seen) == count[0], "a redirect is not followed with a key"
    assert "sk-" not in capsys.readouterr().err


async def test_headers_come_from_the_environment(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSYS_HEADER_TITLE", "my title")
    monkeypatch.setenv("AGENTSYS_HEADER_GATE", "sk-gate")
    spec = f"{server.url}?header.X-Title=TITLE&header.api-key=GATE"
    reply = await ask(spec)
    headers = server.seen[0].headers
    assert (headers["X-Title"], headers["api-key"]) == ("my title", "sk-gate")
    model = load_model(spec)
    assert "sk-gate" not in repr(model) + repr(reply) + repr(model.engine) + repr(await model.identity())
    await model.aclose()
    server.plan = lambda seen: Status(500, text=str(seen.headers))
    with pytest.raises(ModelError) as caught:
        await ask(spec.replace("/v1", "/v1") + "&timeout=5")
    assert "sk-gate" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "environment", "complaint"),
    [
        ("key=JUDGE", {}, "AGENTSYS_API_KEY_JUDGE is not set"),
        ("key=JUDGE", {"AGENTSYS_API_KEY_JUDGE": " "}, "AGENTSYS_API_KEY_JUDGE is not set"),
        ("key=JUDGE", {"AGENTSYS_API_KEY_JUDGE": "sk-1\nsk-2"}, "AGENTSYS_API_KEY_JUDGE has a line break"),
        ("", {"AGENTSYS_API_KEY": "sk-1\r\nX: y"}, "AGENTSYS_API_KEY has a line break"),
        ("key=sk-secret", {}, r"\?key= takes a name in capitals"),
        ("key=0123456789abcdef", {}, r"\?key= takes a name in capitals"),
        ("key=", {}, r"\?key= takes a name"),
        ("header.X-A=sk-secret", {}, r"\?header\.X-A= takes a name"),
        ("header.X-A=HOME", {"HOME": "/home"}, "AGENTSYS_HEADER_HOME is not set"),
        ("header.X A=NAME", {"AGENTSYS_HEADER_NAME": "x"}, "not the name of a header"),
        ("header.=NAME", {"AGENTSYS_HEADER_NAME": "x"}, "not the name of a header"),
        ("query.api_key=x", {}, "a secret must not be in a spec"),
        ("rpm=0", {}, "rpm=0: must be an integer"),
        ("tpm=many", {}, "tpm=many: must be an integer"),
    ],
)
def test_bad_access(monkeypatch: pytest.MonkeyPatch, options: str, environment: dict[str, str], complaint: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match=complaint) as caught:
        load_model(f"http://one/v1?{options}")
    assert "sk-" not in str(caught.value) and "0123456789" not in str(caught.value)


@pytest.mark.parametrize("spec", ["embedded?key=A", "vllm:m?key=A", "vllm:m?header.X=A", "transformers:m?query.a=b"])
def test_access_is_for_servers(spec: str) -> None:
    with pytest.raises(SpecError, match="has no such option"):
        load_model(spec)


def test_studio_refuses_what_a_page_must_not_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSYS_ENDPOINTS", "http://good/v1")
    monkeypatch.setenv("AGENTSYS_API_KEY_A", "sk-a")
    monkeypatch.setattr("agentsys.models.spec.served_to_browsers", lambda: True)
    load_model("http://good/v1?temperature=0")
    for options in ("key=A", "header.X=A", "query.a=b", "extra.n=1000"):
        with pytest.raises(SpecError, match="in Studio"):
            load_model(f"http://good/v1?{options}")


@pytest.fixture
async def paths() -> AsyncIterator[tuple[str, list[str]]]:
    """A server that answers on every path, with its address and the paths that were asked for."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        if request.method == "GET":
            return web.json_response({"data": [{"id": "m"}]})
        return web.json_response({"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield "http://{}:{}".format(*runner.addresses[0][:2]), asked
    await runner.cleanup()


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("", "/v1"),
        ("/", "/v1"),
        ("/v1", "/v1"),
        ("/v1/", "/v1"),
        ("/proxy/v1", "/proxy/v1"),
        ("/api/paas/v4", "/api/paas/v4"),
        ("/v1beta/openai/", "/v1beta/openai"),
        ("/compatible-mode", "/compatible-mode"),
    ],
)
async def test_a_path_is_used_as_it_is(paths: tuple[str, list[str]], url: str, asked: str) -> None:
    assert (await ask(paths[0] + url)).text == "fine"
    assert paths[1] == [f"{asked}/models", f"{asked}/chat/completions"]


async def test_a_query_is_added_to_every_url(paths: tuple[str, list[str]]) -> None:
    await ask(f"{paths[0]}/openai/v1?query.api-version=2024-10-21&temperature=0")
    assert paths[1] == [f"/openai/v1/{name}?api-version=2024-10-21" for name in ("models", "chat/completions")]


# Rates


async def test_requests_per_minute() -> None:
    limit = RateLimit(3, None, seconds=0.3)
    started = time.monotonic()
    times = []

    async def send() -> None:
        await limit.reserve(0)
        times.append(time.monotonic() - started)

    await asyncio.gather(*(send() for _ in range(8)))
    for i, moment in enumerate(times[3:]):
        assert moment - times[i] >= 0.29, "never more than three in a window"
    assert len(times) == 8


async def test_tokens_per_minute_are_those_of_the_replies() -> None:
    limit = RateLimit(None, 100, seconds=0.3)
    started = time.monotonic()
    limit.settle(await limit.reserve(40), Reply("x", "stop", 50, 45))
    await limit.reserve(40)
    assert time.monotonic() - started >= 0.29, "95 of 100 tokens were used, where the estimate was 10"
    await limit.reserve(4_000_000)
    assert time.monotonic() - started >= 0.58, "a request above the limit goes alone"


async def test_the_rate_is_that_of_the_endpoint(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.models.rate.MINUTE", 0.4)
    monkeypatch.setattr(RateLimit.__init__, "__defaults__", (0.4,))
    models = [load_model(f"{server.url}?rpm=2&temperature={t}") for t in (0, 1)]
    assert models[0].engine.endpoint is models[1].engine.endpoint
    started = time.monotonic()
    await asyncio.gather(*(models[i % 2].ainvoke(CHAT) for i in range(5)))
    assert time.monotonic() - started >= 0.79
    await models[0].aclose()


# Proxies


@pytest.mark.parametrize(
    ("address", "environment", "proxy"),
    [
        ("http://model.test", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("http://model.test", {"http_proxy": "p:1"}, "http://p:1"),
        ("https://model.test", {"HTTP_PROXY": "http://p:1"}, None),
        ("https://model.test", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://model.test", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ("http://model.test:8000", {"HTTP_PROXY": "http://p:1", "NO_PROXY": "other, .test"}, None),
        ("http://model.test", {"HTTP_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ("http://model.test", {}, None),
        *((f"http://{here}:80", {"HTTP_PROXY": "p:1"}, None) for here in ("127.0.0.1", "127.1.2.3", "[::1]")),
        ("http://localhost:80", {"HTTP_PROXY": "p:1"}, None),
    ],
)  # fmt: skip
def test_the_proxy_of_an_address(
    monkeypatch: pytest.MonkeyPatch, address: str, environment: dict[str, str], proxy: str | None
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(address) == proxy


def test_a_proxy_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://user:secret@p:1")
    with pytest.raises(SpecError, match=r"socks5:// proxy") as caught:
        proxy_of("https://model.test")
    assert "secret" not in str(caught.value)


async def test_requests_go_through_the_proxy(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake server is the proxy: it gets the URL of a host that does not exist."""
    monkeypatch.setenv("HTTP_PROXY", server.address)
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert (await ask("http://model.invalid/v1")).text == "fine"
    assert server.seen[0].headers["Host"] == "model.invalid"


# vLLM's flags


def test_flags_of_vllm() -> None:
    spec = (
        "vllm:m?tensor-parallel-size=2&dtype=bfloat16&reasoning-parser=qwen3&enforce-eager&temperature=0.2&context=99"
    )
    model = load_model(spec + "&enable_prefix_caching=false&--seed=7&seed=3&trust-remote-code=true")
    engine = model.engine
    assert isinstance(engine, ChildEngine)
    assert model.sampling == {"temperature": 0.2, "seed": 3}
    command = " ".join(engine._command(1))
    for flag in ("--tensor-parallel-size 2", "--dtype bfloat16", "--reasoning-parser qwen3", "--enforce-eager ",
                 "--no-enable-prefix-caching", "--seed 7", "--max-model-len 99", "--trust-remote-code"):  # fmt: skip
        assert flag in f"{command} "
    assert flag_arguments((("a", "x y"), ("b", ""), ("c", "FALSE"))) == ["--a", "x y", "--b", "--no-c"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("temprature=0.2", "did you mean temperature"),
        ("top-k=5", "did you mean top_k"),
        ("max-tokens=5", "did you mean max_tokens"),
        ("port=80", "cannot be set; agentsys sets it"),
        ("served_model_name=x", "cannot be set"),
        ("max-model-len=5", r"use \?context="),
        ("api-key=sk-secret", "a secret must not be in a spec"),
        ("hf_token=sk-secret", "a secret must not be in a spec"),
        ("bad flag=1", "neither a sampling setting nor a flag"),
        ("temperature=hot", "temperature=hot: must be a number"),
    ],
)
def test_bad_flags(options: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint) as caught:
        load_model(f"vllm:m?{options}")
    assert "sk-secret" not in str(caught.value)


def test_flags_that_change_the_output_are_part_of_the_revision() -> None:
    flags = (("tensor-parallel-size", "2"), ("quantization", "awq"), ("dtype", "half"))
    assert revision_with_flags("abc", flags) == "abc dtype=half quantization=awq"
    assert revision_with_flags("abc", flags[:1]) == "abc"
    assert revision_with_flags(None, flags[2:]) == "dtype=half"
    assert revision_with_flags(None, ()) is None


def test_other_engines_take_no_flags() -> None:
    with pytest.raises(SpecError, match="unknown sampling setting 'dtype'"):
        load_model("transformers:m?dtype=bfloat16")


def test_loading_a_spec_does_not_import_the_http_client() -> None:
    code = (
        "import sys, agentsys.models as m; m.load_model('http://a/v1?temperature=0'); print('aiohttp' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", json.dumps(done.stderr)


async def test_a_reply_size_can_be_set(server: FakeServer) -> None:
    server.plan = lambda seen: Answer("x" * 1_500_000)
    with pytest.raises(ModelError, match="more than 1,048,576"):
        await ask(f"{server.url}?max_reply_mb=1")
