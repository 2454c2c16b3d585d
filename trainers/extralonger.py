"""Extralonger: forecast traffic up to a week ahead from a table of counts (arXiv 2411.00844). No language model.

    python trainers/extralonger.py --data counts.csv.gz --step 15min --out-horizon week --out model
    python trainers/forecast.py model --data latest.csv --out next_week.csv --picture next_week.png

The table compares the model with every baseline on the same test windows. The folder has the model, report.json,
metrics.jsonl, settings.json, pictures and a model card.
"""

from __future__ import annotations

import sys

from agentsys.commands import command, run_app
from agentsys.trainers.traffic.calendar import CalendarOptions
from agentsys.trainers.traffic.formats import DataOptions
from agentsys.trainers.traffic.options import FitOptions, GraphOptions, ModelOptions, TableOptions


def main(
    data: DataOptions,
    model: ModelOptions,
    calendar: CalendarOptions,
    graph: GraphOptions,
    training: FitOptions,
    table: TableOptions,
) -> None:
    """Train a forecaster of traffic on a table of counts, and compare it with all baselines."""
    from agentsys.trainers.traffic.compare import run

    run(data, model, calendar, graph, training, table)


app = command(main, name="train extralonger")

if __name__ == "__main__":
    sys.exit(run_app(app))
