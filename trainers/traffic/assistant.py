"""An example graph for Studio: a question about traffic, answered in a sentence from a trained model's forecast.

    question -> read (sensor and time) -> look_up (value and band) -> answer (a sentence with the band)

The model folder is an option; in Studio it must be one that $AGENTSYS_FORECASTERS lists. torch loads with the first
question: Studio's server starts without it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NotRequired

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel
from typing_extensions import TypedDict

from agentsys.installation import install_command
from agentsys.knobs import split_names
from agentsys.knowledge.index import allowed_path
from agentsys.roles import Role
from agentsys.systems import BaseContext, System, ask, knob, role_options, sequence_graph
from agentsys.trainers.loading import TrainerError

if TYPE_CHECKING:
    from agentsys.trainers.traffic.forecast import Forecast

FOLDERS: Final = "AGENTSYS_FORECASTERS"
"""Environment variable: the model folders that Studio may open, separated by commas."""


class Query(BaseModel):
    """The reader's reply: what the question asks for."""

    sensor: str
    day: str
    """Weekday and date: a model that writes both takes fewer Wednesdays for Tuesdays."""
    time: str


class Input(TypedDict):
    """Graph input."""

    question: str


class Output(Input):
    """Graph output: the sentence, and the forecast that it states."""

    answer: NotRequired[str]
    forecast: NotRequired[dict[str, Any]]


class State(Output):
    """The output, and what the question asks for."""

    query: NotRequired[dict[str, str]]


def check_query(reply: Query, inputs: Mapping[str, Any]) -> str | None:
    """Return why the reader's reply is refused, or None: a sensor, a day and a time of the forecast.

    A weekday in the question, if it names one in English, must be that of the day.
    """
    from agentsys.trainers.traffic.tool import read_time

    if reply.sensor not in inputs["sensors"]:
        return f"there is no sensor {reply.sensor}: copy one of the list"
    if reply.day not in inputs["days"]:
        return f"there is no day {reply.day}: copy one of the list, weekday and date"
    weekday, date = reply.day.split()
    asked = {day.split()[0] for day in inputs["days"] if day.split()[0].lower() in inputs["question"].lower()}
    if len(asked) == 1 and weekday not in asked:
        return f"the question asks for a {asked.pop()}, and {date} is a {weekday}"
    try:
        moment = read_time(f"{date}T{reply.time}", inputs["zone"])
    except TrainerError as err:
        return str(err)
    first, last = (read_time(inputs[name], inputs["zone"]) for name in ("first", "last"))
    if not first <= moment <= last:
        return f"{date} {reply.time} is outside the forecast, which is from {inputs['first']} to {inputs['last']}"
    return None


def check_answer(reply: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why a sentence is refused, or None: it states the forecast and both ends of the range."""
    missing = [inputs[name] for name in ("value", "low", "high") if inputs[name] not in reply]
    return f"it does not state {' and '.join(missing)}: copy the numbers" if missing else None


@dataclass(frozen=True)
class TrafficAssistant(System):
    """The roles and nodes."""

    reader: Role[Query] = Role(
        "traffic/reader", Query, check=check_query, sampling={"temperature": 0.0, "max_tokens": 80}
    )
    writer: Role[str] = Role("traffic/writer", check=check_answer, sampling={"temperature": 0.0, "max_tokens": 160})

    async def read(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The sensor and the time of the question."""
        inputs = await asyncio.to_thread(_describe, runtime.context)
        answer = await ask(runtime.context, self.reader, key="read", question=state["question"], **inputs)
        return {"query": answer.value.model_dump(), "answer": "", "forecast": {}}

    async def look_up(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The forecast for them."""
        return {"forecast": await asyncio.to_thread(_find, runtime.context, state["query"])}

    async def answer(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """A sentence with the forecast and its band."""
        forecast = state["forecast"]
        numbers = await asyncio.to_thread(_round, forecast)
        time = f"{forecast['weekday']}, {forecast['time'][:16].replace('T', ' ')}"
        inputs = {"question": state["question"], "sensor": forecast["sensor"], "time": time}
        answer = await ask(runtime.context, self.writer, key="answer", **inputs, **numbers)
        return {"answer": answer.value.strip()}

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """read -> look_up -> answer."""
        nodes = (self.read, self.look_up, self.answer)
        return sequence_graph(*nodes, state=State, context=Context, input=Input, output=Output)


@dataclass(frozen=True)
@role_options(TrafficAssistant)
class Context(BaseContext):
    """Models, prompts and the model folder."""

    forecaster: str = knob(
        "", f"output folder of `agentsys train extralonger`, in Studio one of ${FOLDERS}; empty: the first of them"
    )

    def load(self) -> Forecast:
        """The forecast from the end of the training's data. Raises TrainerError, and KnowledgeError in Studio."""
        name = self.forecaster or next(iter(split_names(os.environ.get(FOLDERS, ""))), "")
        if not name:
            raise TrainerError(
                f"forecaster: name the output folder of `agentsys train extralonger`, or list it in ${FOLDERS}"
            )
        folder = allowed_path(name, FOLDERS)
        if find_spec("torch") is None:
            raise TrainerError(f"torch is not installed; {install_command('traffic')}")
        file = folder / "model.json"
        return _load(folder, file.stat().st_mtime_ns if file.is_file() else 0)


@lru_cache(maxsize=8)
def _load(folder: Path, changed: int) -> Forecast:
    """`changed` is when the model was written: one that was trained anew is read anew."""
    from agentsys.trainers.traffic.tool import load_forecast

    return load_forecast(folder)


# What the nodes do in threads: files, torch and its imports would block the server's event loop.


def _describe(context: Context) -> dict[str, Any]:
    forecast = context.load()
    from agentsys.trainers.traffic.tool import describe

    return describe(forecast)


def _find(context: Context, query: Mapping[str, str]) -> dict[str, Any]:
    forecast = context.load()
    from agentsys.trainers.traffic.tool import look_up

    return look_up(forecast, query["sensor"], f"{query['day'].split()[-1]}T{query['time']}")


def _round(forecast: Mapping[str, Any]) -> dict[str, str]:
    from agentsys.trainers.traffic.report import number

    names = {"value": "forecast", "low": "low_10", "high": "high_90"}
    return {name: number(forecast[key]) for name, key in names.items()}


builder = TrafficAssistant().builder()
graph = builder.compile(name="traffic")
