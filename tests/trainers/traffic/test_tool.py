"""A model folder as a LangChain tool, and the example graph: question -> sensor and time -> forecast -> sentence."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.roles import RoleError
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.assistant import Context, graph
from agentsys.trainers.traffic.tool import describe, load_forecast, look_up, make_tool, read_time
from tests.support.toys import write_lines
from tests.support.traffic import weekly
from tests.support.traffic_models import noisy_week, write_counts, write_profile_model

DAY = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_profile_model(tmp_path_factory.mktemp("model"))


def test_the_forecast_of_a_sensor_at_a_local_time(folder: Path) -> None:
    """56 days from 2024-01-01T00:00 UTC: the forecast begins on Monday, 2024-02-26, at 01:00 of Berlin."""
    forecast = load_forecast(folder)
    found = look_up(forecast, "b", "2024-02-26T08:30")
    assert (found["sensor"], found["weekday"], found["time"]) == ("b", "Monday", "2024-02-26T08:00:00+01:00")
    assert found["forecast"] == pytest.approx(2 * (10 + 8), rel=1e-3) == found["naive"]
    assert found["low_10"] < found["forecast"] < found["high_90"]
    assert look_up(forecast, "b", "2024-02-26T07:30Z") == found == look_up(forecast, "b", "2024-02-26T08:30:00+01:00")
    assert describe(forecast)["days"] == ["Monday 2024-02-26", "Tuesday 2024-02-27"]


def test_wrong_times_and_sensors(folder: Path) -> None:
    forecast = load_forecast(folder)
    for sensor, time, message in (
        ("x", "2024-02-26T08:00", "there is no sensor x"),
        ("a", "2024-03-01T08:00", "is outside the forecast"),
        ("a", "tomorrow", "'tomorrow' is no time: write it as 2026-07-01T08:00"),
    ):
        with pytest.raises(TrainerError, match=message):
            look_up(forecast, sensor, time)
    assert str(read_time("2024-07-01T08:00", "Europe/Berlin")) == "2024-07-01T06:00:00"


def test_an_agent_calls_the_tool(folder: Path) -> None:
    tool = make_tool(folder)
    assert tool.name == "forecast" and "Sensors: a, b." in tool.description and "2024-02-26T01:00" in tool.description
    assert tool.args.keys() == {"sensor", "time"}
    assert tool.invoke({"sensor": "a", "time": "2024-02-26T08:00"})["forecast"] == pytest.approx(18, rel=1e-3)
    call = {"name": "forecast", "args": {"sensor": "x", "time": "2024-02-26T08:00"}, "id": "1", "type": "tool_call"}
    message = tool.invoke(call)
    assert message.status == "error" and message.content == "there is no sensor x: the sensors are a, b"


def test_the_tool_over_later_data(folder: Path, tmp_path: Path) -> None:
    series = weekly(DAY * 7 * 9, sensors=2)
    data = write_counts(tmp_path / "later.csv", series.between(DAY * 50, DAY * 63))
    assert str(load_forecast(folder, data).times[0]) == "2024-03-04T00:00:00"
    with pytest.raises(TrainerError, match=r"other.csv has no sensor a, b"):
        load_forecast(folder, write_counts(tmp_path / "other.csv", replace(noisy_week(20), sensors=("x", "y", "z"))))


def ask(folder: Path, tmp_path: Path, *replies: dict[str, Any]) -> dict[str, Any]:
    script = write_lines(tmp_path / "replies.jsonl", replies)
    context = Context(f"scripted:{script}", forecaster=str(folder))
    state: dict[str, Any] = asyncio.run(graph.ainvoke({"question": "b on Monday at eight?"}, context=context))
    return state


def test_a_question_becomes_a_sentence_with_the_band(folder: Path, tmp_path: Path) -> None:
    """The reader's first two replies name a wrong day; the writer's first leaves the band out."""
    days = ("Monday 2024-02-27", "Tuesday 2024-02-27", "Monday 2024-02-26")
    replies = [json.dumps({"sensor": "b", "day": day, "time": "08:00"}) for day in days]
    found = look_up(load_forecast(folder), "b", "2024-02-26T08:00")
    low, high = (f"{found[name]:.1f}" for name in ("low_10", "high_90"))
    sentence = f"b will count 36.0 on Monday at 08:00 (80 %: {low} to {high})."
    result = ask(
        folder,
        tmp_path,
        {"role": "reader", "key": "read", "replies": [replies[0]]},
        {"role": "reader", "key": "read#1", "replies": [replies[1]]},
        {"role": "reader", "key": "read#2", "replies": [replies[2]]},
        {"role": "writer", "key": "answer", "replies": ["b will count 36.0."]},
        {"role": "writer", "key": "answer#1", "replies": [sentence]},
    )
    assert result["answer"] == sentence and result["forecast"] == found


@pytest.mark.parametrize(
    ("sensor", "day", "time", "reason"),
    [
        ("c", "Monday 2024-02-26", "08:00", "there is no sensor c: copy one of the list"),
        ("b", "2024-02-26", "08:00", "there is no day 2024-02-26: copy one of the list, weekday and date"),
        ("b", "Tuesday 2024-02-27", "08:00", "the question asks for a Monday, and 2024-02-27 is a Tuesday"),
        ("b", "Monday 2024-02-26", "00:30", "2024-02-26 00:30 is outside the forecast"),
        ("b", "Monday 2024-02-26", "eight", "is no time"),
    ],
)
def test_a_question_that_cannot_be_read_is_a_failed_record(
    folder: Path, tmp_path: Path, sensor: str, day: str, time: str, reason: str
) -> None:
    reply = json.dumps({"sensor": sensor, "day": day, "time": time})
    with pytest.raises(RoleError, match=reason):
        ask(folder, tmp_path, {"role": "reader", "replies": [reply] * 5})


def test_the_graph_needs_a_model_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSYS_FORECASTERS", f"{folder}, {tmp_path}")
    assert Context("embedded").load().sensors == ("a", "b")
    monkeypatch.delenv("AGENTSYS_FORECASTERS")
    with pytest.raises(TrainerError, match="forecaster: name the output folder"):
        Context("embedded").load()
    with pytest.raises(TrainerError, match=r"has no model.json"):
        Context("embedded", forecaster=str(tmp_path)).load()
