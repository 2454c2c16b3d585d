"""Forecast with a model folder of `extralonger`: the steps after the last value of a table, with 10-90 % bands.

python trainers/forecast.py model --data latest.csv --out next_week.csv --picture next_week.png
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from agentsys.commands import command, knob, run_app
from agentsys.display import show
from agentsys.trainers.loading import TrainerError


@dataclass(frozen=True)
class ForecastOptions:
    """The latest data, and what is written."""

    panel: ClassVar[str] = "Forecast"
    data: Path | None = knob(
        None, "table with the latest values, in a format of the training's data; default: the end of that data"
    )
    start: str = knob("", "time of the first row, for files without times")
    school: str = knob("", "CSV file of school holidays, if the training had one; default: the same file")
    known: str = knob("", "table of values known of the future, if the training had one; default: the same file")
    out: Path = knob(Path("forecast.csv"), "CSV file: time, sensor, forecast, low_10, high_90, naive")
    picture: Path | None = knob(None, "PNG file with up to four sensors")


def main(
    model: Annotated[Path, typer.Argument(help="output folder of `agentsys train extralonger`")],
    options: ForecastOptions,
) -> None:
    """Forecast the steps after the last value of a table, beside the naive forecast."""
    from agentsys.trainers.traffic.folder import load_model
    from agentsys.trainers.traffic.forecast import make_forecast, read_latest, verdict, write_csv

    if options.out.is_dir():
        raise TrainerError(f"--out {options.out} is a folder: give a CSV file")
    trained = load_model(model)
    for name, value in (("school", options.school), ("known", options.known)):
        if value and not trained.info.calendar.get(name):
            raise TrainerError(f"--{name} {value}: the model was trained without one; leave it out")
        if value:
            calendar = {**trained.info.calendar, name: value}
            trained = replace(trained, info=replace(trained.info, calendar=calendar))
    series = read_latest(model, trained.info, options.data, options.start)
    for sentence in series.corrections:
        show(sentence)
    forecast = make_forecast(trained, series, options.data.name if options.data else "the training's data")
    for note in forecast.notes:
        show(f"note: {note}")
    write_csv(forecast, options.out)
    show(f"{options.out}: {len(forecast.times)} steps of {len(forecast.sensors)} sensors from {forecast.starts}")
    if options.picture:
        from agentsys.trainers.traffic.report import plot_forecast

        plot_forecast(forecast, options.picture)
        show(options.picture)
    show(verdict(trained.info))


app = command(main, name="train forecast")

if __name__ == "__main__":
    sys.exit(run_app(app))
