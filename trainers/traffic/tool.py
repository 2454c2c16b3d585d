"""A trained model as a LangChain tool: `forecast(sensor, time)` -> value and band.

agent = create_agent(chat_model, [make_tool(Path("model"))])
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.folder import load_model
from agentsys.trainers.traffic.forecast import Forecast, local_texts, make_forecast, read_latest
from agentsys.trainers.traffic.series import find_zone, to_local, weekdays

if TYPE_CHECKING:
    from langchain_core.tools import StructuredTool

WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMED: Final = 50
"""Sensors that the tool's description names, at most."""


def load_forecast(folder: Path, data: Path | None = None) -> Forecast:
    """What a model forecasts from a file of the latest values, or from the end of its training's data.

    Raises TrainerError for a folder without a model and for data that does not fit it.
    """
    model = load_model(folder)
    return make_forecast(model, read_latest(folder, model.info, data), data.name if data else "the training's data")


def look_up(forecast: Forecast, sensor: str, time: str) -> dict[str, Any]:
    """The forecast of a sensor for the step that holds an ISO time, which is local unless it has an offset from UTC.

    Returns sensor, time (local, with its offset), weekday, forecast, low_10, high_90 and naive. Raises TrainerError for
    an unknown sensor, a text that is no time, and a time outside the forecast.
    """
    moment = read_time(time, forecast.zone)
    index, column = forecast.find(sensor, moment)
    return {
        "sensor": sensor,
        "time": local_texts(forecast.times[index : index + 1], forecast.zone)[0],
        "weekday": name_day(to_local(forecast.times[index : index + 1], forecast.zone)[0]),
        "forecast": float(forecast.values[index, column]),
        "low_10": float(forecast.low[index, column]),
        "high_90": float(forecast.high[index, column]),
        "naive": float(forecast.naive[index, column]),
    }


def read_time(text: str, zone: str) -> np.datetime64:
    """The UTC time of an ISO text, which is local to `zone` unless it has an offset. Raises TrainerError."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise TrainerError(f"{text!r} is no time: write it as 2026-07-01T08:00") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=find_zone(zone))
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "s")


def describe(forecast: Forecast) -> dict[str, Any]:
    """What can be asked of a forecast: sensors, days ("Monday 2026-08-17"), zone, and the first and last local time."""
    days = np.unique(to_local(forecast.times, forecast.zone).astype("datetime64[D]"))
    first, last = local_texts(forecast.times[[0, -1]], forecast.zone)
    return {
        "sensors": list(forecast.sensors),
        "days": [f"{name_day(day)} {day}" for day in days],
        "zone": forecast.zone,
        "first": first,
        "last": last,
    }


def name_day(time: np.datetime64) -> str:
    """The day of the week of a local time."""
    return WEEKDAYS[int(weekdays(time))]


def make_tool(folder: Path, data: Path | None = None) -> StructuredTool:
    """The tool of a model folder, over a file of the latest values or the end of the training's data.

    The forecast is made once, here. A wrong sensor or time is answered with one line, from which the agent can correct
    its call. Raises TrainerError as `load_forecast` does.
    """
    from langchain_core.tools import StructuredTool, ToolException

    forecast = load_forecast(folder, data)

    def run(sensor: str, time: str) -> Mapping[str, Any]:
        try:
            return look_up(forecast, sensor, time)
        except TrainerError as err:
            raise ToolException(str(err)) from None

    first, last = (describe(forecast)[name] for name in ("first", "last"))
    names = ", ".join(forecast.sensors[:NAMED])
    more = f" and {len(forecast.sensors) - NAMED} more" if len(forecast.sensors) > NAMED else ""
    return StructuredTool.from_function(
        run,
        name="forecast",
        description=(
            f"Traffic forecast of a sensor at a time, with its 10-90 % band. Times are local, such as {first[:16]}, "
            f"from {first} to {last}. Sensors: {names}{more}."
        ),
        handle_tool_error=True,
    )
