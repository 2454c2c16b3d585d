"""Scripted models in place of every model, for the graph of layers, the tree search and the evaluation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.longdpo import system
from agentsys.graphs.longdpo.system import graph
from agentsys.graphs.longdpo_evaluate import main as evaluate_main
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from tests.support.evaluations import run_command
from tests.support.long_responses import CALLS, FAILING, PROMPTS, REQUESTS, SILENT
from tests.support.longdpo_script import STATED, Script, WordCounts
from tests.support.toys import write_lines

Run = Callable[..., Any]
REQUEST = {"prompt": "Write a long letter about a lighthouse.", "length": 300}
Start = Callable[..., ScriptedChatModel]


class LayerModel(ScriptedChatModel):
    """Steps end at the token limit unless their key is in `final`; a letter is a token."""

    final: Any = ()
    returns_ids: bool = True

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        truncated = kwargs["role"] == "writer" and kwargs["key"] not in self.final
        ids = [*map(ord, reply.text)] if self.returns_ids else None
        return replace(reply, finish="length" if truncated else "stop", ids=ids)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the graph of layers on one request with a script."""

    async def run_layers(
        script: Script, final: Sequence[str] = (), returns_ids: bool = True, request: Any = REQUEST, **options: Any
    ) -> dict[str, Any]:
        model = LayerModel(respond=script, final=final, returns_ids=returns_ids)
        monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **about: model)
        monkeypatch.setattr(system, "load_embedder", lambda spec: WordCounts())
        return dict(await graph.ainvoke(request, context=replace(STATED, **options)))

    return run_layers


class SearchModel(ScriptedChatModel):
    """Steps end at the token limit; each reply takes its own time."""

    delays: Any = None

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        if self.delays is not None:
            await asyncio.sleep(self.delays.random() / 200)
        reply = await super().complete(messages, **kwargs)
        return replace(reply, finish="length", ids=[*map(ord, reply.text)]) if kwargs["role"] == "writer" else reply


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """`start(script)` makes every model spec give a model that replies with the script."""

    def load_script(script: Any, delays: random.Random | None = None) -> ScriptedChatModel:
        model = SearchModel(respond=script, delays=delays)
        monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **about: model)
        monkeypatch.setattr("agentsys.collect.fingerprint.load_model", lambda *spec, **about: model)
        monkeypatch.setattr(system, "load_embedder", lambda spec: WordCounts())
        return model

    return load_script


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """The file of requests of the evaluation."""
    return write_lines(tmp_path / "requests.jsonl", REQUESTS)


@pytest.fixture
def evaluate(requests: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """graphs/longdpo_evaluate.py on the requests: exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    for log in (CALLS, PROMPTS, FAILING, SILENT):
        log.clear()

    def call(*options: object) -> tuple[int, str, str]:
        return run_command(evaluate_main, capsys, "--requests", requests, *options)

    return call
