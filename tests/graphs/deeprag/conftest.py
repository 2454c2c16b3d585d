"""Fixtures of the DeepRAG tests."""

from __future__ import annotations

import pytest

from agentsys.models.scripted import ScriptedChatModel
from tests.support.deeprag_world import Install, World


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a world in the place of all models and of the retriever."""

    def put(world: World) -> World:
        models: dict[str, ScriptedChatModel] = {}

        def load(spec: str, default: str = "embedded") -> ScriptedChatModel:
            return models.setdefault(spec or default, world.model(spec or default))

        monkeypatch.setattr("agentsys.systems.load_model", load)
        monkeypatch.setattr("agentsys.collect.fingerprint.load_model", load)
        monkeypatch.setattr("agentsys.knowledge.context.Knowledge.search", lambda self, query: world.search(query))
        return world

    return put
