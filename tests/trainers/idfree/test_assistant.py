"""The example graph: a text, the general and the personal answer, and a sentence with both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentsys.trainers.idfree.device import DeviceError
from agentsys.trainers.loading import TrainerError
from tests.support.toys import write_lines

pytest.importorskip("fastapi")

from agentsys.trainers.idfree.assistant import DEVICE, SERVER, Context, graph
from tests.support.idfree import Info, ScriptedModel, serve, write_demo_device

SENTENCE = "The general answer is bad and the personal one is good, so they differ."


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()


@pytest.fixture
def environment(model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with serve(model) as server:
        monkeypatch.setenv(SERVER, server)
        monkeypatch.setenv(DEVICE, str(write_demo_device(tmp_path / "device.npz")))
        yield


def ask(tmp_path: Path, *replies: dict[str, Any]) -> dict[str, Any]:
    context = Context(f"scripted:{write_lines(tmp_path / 'replies.jsonl', replies)}")
    state: dict[str, Any] = asyncio.run(graph.ainvoke({"text": "An odd film."}, context=context))
    return state


@pytest.mark.usefixtures("environment")
def test_both_answers_and_a_sentence(model: ScriptedModel, tmp_path: Path) -> None:
    """The first sentence leaves an answer out, and is asked for again."""
    result = ask(
        tmp_path,
        {"role": "comparer", "key": "compare", "replies": ["It is bad."]},
        {"role": "comparer", "key": "compare#1", "replies": [SENTENCE]},
    )
    assert result == {"text": "An odd film.", "general": "bad", "personal": "good", "comparison": SENTENCE}
    assert model.sizes == [1, 1]


@pytest.mark.usefixtures("environment")
def test_a_device_of_another_model_sends_nothing(model: ScriptedModel, tmp_path: Path) -> None:
    model.info = Info(model="c3" * 32)
    with pytest.raises(DeviceError, match="fitted with another central model"):
        ask(tmp_path)
    assert model.sizes == [1]


def test_server_and_device_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVER, raising=False)
    monkeypatch.delenv(DEVICE, raising=False)
    assert not {"server", "device"} & {name for name in Context.__dataclass_fields__}
    with pytest.raises(TrainerError, match=f"start the server with {SERVER}: the address of"):
        ask(tmp_path)
    with serve(ScriptedModel()) as server:
        monkeypatch.setenv(SERVER, server)
        with pytest.raises(TrainerError, match=f"start the server with {DEVICE}: a parameter file"):
            ask(tmp_path)
