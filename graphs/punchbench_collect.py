"""Build PunchBench's task files from image-caption pairs. `python graphs/punchbench_collect.py --help`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import orjson
from rich.table import Table

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.collect.pictures import PictureOptions
from agentsys.commands import command, knob, run_app
from agentsys.console import Console
from agentsys.display import show
from agentsys.evaluation.report import check_installed
from agentsys.graphs.punchbench.shortcuts import Shortcut, drop_shortcuts, report_shortcuts, shortcut_rows
from agentsys.graphs.punchbench.system import FAULTS, Context, graph
from agentsys.graphs.punchbench.tasks import (
    Format,
    Item,
    Task,
    count_answers,
    make_items,
    read_pairs,
    write_tasks,
)
from agentsys.installation import install_command
from agentsys.records import InputError
from agentsys.traces import read_traces

Files = Mapping[tuple[Task, Format], Sequence[Item]]


@dataclass(frozen=True)
class BenchmarkOptions:
    """The task files."""

    panel: ClassVar[str] = "Benchmark"
    clean: bool = knob(False, "drop items that can be answered without the picture, until no file is flagged")


def count_faults(pairs: Mapping[str, Mapping[str, object]]) -> Counter[tuple[str, str]]:
    """How often each item was dropped, by item and reason."""
    counts: Counter[tuple[str, str]] = Counter()
    for pair in pairs.values():
        for name in FAULTS:
            for fault in pair.get(name) or ():  # type: ignore[attr-defined]  # lists of a graph's output
                counts[fault["item"], fault["reason"]] += 1
    return counts


def print_files(files: Files, shortcuts: Sequence[Shortcut], console: Console) -> None:
    """Print a table of the task files: items, answers, and what is right without the picture."""
    answerers = sorted({shortcut.answerer for shortcut in shortcuts})
    table = Table("task", "format", "items", "answers", *answerers, title="task files, and answers without the picture")
    measured = {(s.task, s.format, s.answerer): s for s in shortcuts}
    for (task, format), items in files.items():
        cells = []
        for name in answerers:
            shortcut = measured.get((task, format, name))
            flag = " above chance" if shortcut and shortcut.is_flagged else ""
            interval = f"{shortcut.accuracy:.1f} ({shortcut.low:.1f}-{shortcut.high:.1f}){flag}" if shortcut else "-"
            cells.append(interval)
        answers = ", ".join(f"{answer} {count}" for answer, count in count_answers(items).items())
        table.add_row(task, format, str(len(items)), answers or "-", *cells)
    console.print(table)


def main(run: CollectOptions, pictures: PictureOptions, benchmark: BenchmarkOptions, context: Context) -> None:
    """Write PunchBench's six task files from image-caption pairs, and report what can be answered without the picture.

    A record has image and caption, and what is known of the pair: label or votes, reasoning, synonymous, antonymous,
    distractor, distractor_reasoning. An unfinished run in --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of image-caption pairs, such as pairs.jsonl")
    check_installed({"sklearn": "scikit-learn"}, install_command("knowledge"))
    out = run.out or Path("runs") / f"punchbench-{run.input_name}"
    summary = run_with_view(graph, run.input, run, context, out=out, pictures=pictures)
    pairs = read_pairs(read_traces(summary.out))
    files: Files = make_items(pairs)
    rows = [("pairs", str(len(pairs)))]
    if benchmark.clean:
        files, dropped = drop_shortcuts(files)
        rows.append(("items dropped, answered without the picture", str(dropped)))
    folder = summary.out / "benchmark"
    write_tasks(files, summary.out, folder)
    shortcuts = report_shortcuts(files)
    faults = count_faults(pairs)
    report = {
        "pairs": len(pairs),
        "files": [
            {"task": task, "format": format, "items": len(items), "answers": count_answers(items)}
            for (task, format), items in files.items()
        ],
        "shortcuts": shortcut_rows(shortcuts),
        "faults": [{"item": i, "reason": reason, "count": n} for (i, reason), n in faults.most_common()],
    }
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    print_files(files, shortcuts, Console())
    rows += [(f"without {item}", str(count)) for item, count in Counter(i for i, _ in faults.elements()).items()]
    show(f"task files and report.json: {folder}")
    finish(summary, run, rows)


app = command(main, name="collect punchbench")

if __name__ == "__main__":
    sys.exit(run_app(app))
