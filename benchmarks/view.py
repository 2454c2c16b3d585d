"""The viewer on a large run: writing the page, opening it, and filtering, in a headless Chromium.

    python -m benchmarks.view                     # 100,000 records
    python -m benchmarks.view --records 10000 --rounds 5

The traces are made up: two calls and two texts of about a line each, six of ten records kept. "open" is the time until
the first rows can be read, "all loaded" until every record can be found. A filter is timed from a change of its text
until the rows are drawn, sorting from a click on a column, a record from a click on its row. Medians of --rounds pages.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from rich.table import Table

from agentsys.console import Console
from agentsys.display import say
from agentsys.traces import Call, Step, Trace, dump
from agentsys.view.command import Sources, write_view
from tests.support.pages import open_browser

WORDS = ["river", "house", "stone", "wind", "night", "bread", "green", "carry", "slowly", "under", "window", "letter"]
FILTERS = ("river stone", "record-99", "one of three steps", "nowhere to be found")


def make_run(folder: Path, records: int) -> None:
    """Write a run's folder without running anything."""
    rng = random.Random(0)
    folder.mkdir()
    counts = {"kept": 0, "dropped": 0, "failed": 0}
    with (folder / "traces-00000.jsonl").open("wb") as file:
        for number in range(records):
            text, output = (" ".join(rng.choices(WORDS, k=12)) for _ in range(2))
            outcome = "kept" if rng.random() < 0.6 else "dropped"
            counts[outcome] += 1
            file.write(dump(_make_trace(f"record-{number}", text, output, outcome, rng.uniform(0, 100))))
    fingerprint = {"system": "benchmark", "topology": {"nodes": ["draft", "judge"], "edges": [["draft", "judge"]]}}
    manifest = {"version": 3, "run": "0" * 16, "fingerprint": fingerprint, "counts": counts, "totals": {}}
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))


def _make_trace(record: str, text: str, output: str, outcome: Any, score: float) -> Trace:
    messages = [{"role": "user", "content": f"Translate: {text}"}]
    calls = [
        Call(
            key=key, role=key, prompt_sha256="", model="benchmark", revision=None, mode="chat", sampling={}, seed=1,
            schema_sha256=None, messages=messages, text=output, finish="stop", prompt_tokens=20, completion_tokens=15,
            measured={"seconds": 0.5},
        )
        for key in ("draft", "judge")
    ]  # fmt: skip
    result = {"text": text, "trans": output, "steps": [{"translation": output, "score": round(score, 1)}]}
    reason = None if outcome == "kept" else f"one of {1 + int(score) % 5} steps left"
    path = [Step("draft", ["draft"], in_result=["trans"]), Step("judge", ["judge"], in_result=["steps"])]
    measured = {"seconds": round(score / 50, 3)}
    return Trace(
        record, "benchmark", "0" * 16, outcome, reason, "records.jsonl:1", {"text": text}, result, [], calls,
        path=path, measured=measured,
    )  # fmt: skip


TIME_FILTER = """async (text) => {
  const input = document.querySelector('input[type=search]');
  const start = performance.now();
  input.value = text;
  input.dispatchEvent(new Event('input'));
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  return performance.now() - start;
}"""
TIME_SORT = """async () => {
  const start = performance.now();
  document.querySelector('button.col-score').click();
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  return performance.now() - start;
}"""


def measure(browser: Any, url: str) -> dict[str, float]:
    """Milliseconds of each action on a new page."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    times: dict[str, float] = {}
    start = time.perf_counter()
    page.goto(f"{url}#/r0/records", wait_until="commit")
    page.locator(".rows .row").first.wait_for()
    times["open"] = 1000 * (time.perf_counter() - start)
    page.locator("body[data-ready]").wait_for()
    times["all loaded"] = 1000 * (time.perf_counter() - start)
    for text in FILTERS:
        times[f"filter: {text}"] = page.evaluate(TIME_FILTER, text)
    page.evaluate(TIME_FILTER, "")
    times["sort by score"] = page.evaluate(TIME_SORT)
    start = time.perf_counter()
    page.locator(".rows .row").nth(3).click()
    page.locator(".record .calls").wait_for()
    times["record"] = 1000 * (time.perf_counter() - start)
    page.close()
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        make_run(folder, arguments.records)
        start = time.perf_counter()
        files = write_view(Sources(runs=[folder]))
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for path in files for file in (path.rglob("*") if path.is_dir() else [path]))
        load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        say(
            f"{arguments.records:,} records, {os.cpu_count()} cores{load}: page written in {seconds:.0f} s "
            f"({arguments.records / seconds:,.0f} records/s), {size / 1e6:.0f} MB"
        )
        with open_browser() as browser:
            rounds = [measure(browser, files[0].as_uri()) for _ in range(arguments.rounds)]
    table = Table("action", "ms")
    for name in rounds[0]:
        table.add_row(name, f"{median(times[name] for times in rounds):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
