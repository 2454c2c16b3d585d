"""Fixtures of CRAT's tests."""

from __future__ import annotations

from typing import Any

import pytest

from agentsys.graphs.crat.system import Context, graph
from agentsys.models.scripted import ScriptedChatModel
from agentsys.recorder import Recorder, current
from tests.support.crat import SENTENCE, Runner, Script


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Runner:
    async def start(
        script: Script, source: Any = SENTENCE, model: Any = None, crat: Any = graph, **knobs: Any
    ) -> dict[str, Any]:
        model = model or ScriptedChatModel(respond=script)
        monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
        recorder = current.set(Recorder("r"))  # raises for a key that is used twice
        try:
            form = "sentences" if isinstance(source, list) else "text"
            inputs = source if isinstance(source, dict) else {form: source}
            context = Context(**({"signals": "identifier"} | knobs))
            return dict(await crat.ainvoke(inputs, context=context))
        finally:
            current.reset(recorder)

    return start
