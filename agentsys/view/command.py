"""The command `agentsys view`."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer

from agentsys.collect.manifest import read_manifest
from agentsys.display import show
from agentsys.records import InputError
from agentsys.shards import content_size
from agentsys.traces import RunFolderError, failed_file, shards
from agentsys.view.compare import compare_runs
from agentsys.view.page import Pieces, to_json, write_page
from agentsys.view.run import RunData, finished_records, read_rows, read_run
from agentsys.view.training import is_training, read_training
from agentsys.view.vocabulary import find_vocabulary

PAGE: Final = "view.html"
"""The page's name in the folder of a run."""
MAX_RUNS: Final = 8
"""Runs of one page."""
DEFAULT_PORT: Final = 7171
MAX_RECORDS: Final = 10_000
"""Records above which the end of a command names the command that writes the page."""
MAX_TRACE_BYTES: Final = 100_000_000
"""The same for the size of the traces."""


@dataclass
class Sources:
    """What is to be shown, by kind."""

    runs: list[Path] = field(default_factory=list)
    trainings: list[Path] = field(default_factory=list)
    evaluations: list[Path] = field(default_factory=list)
    states: list[Path] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Sort in a path of the command line. Raises InputError for what cannot be shown."""
        if path.is_file() and path.suffix == ".json":
            self.states.append(path)
        elif not path.is_dir():
            raise InputError(f"{path}: no such folder; give the output folder of a run, an evaluation or a training")
        elif (path / "evaluation.json").is_file():
            self.evaluations.append(path)
            self.runs += sorted(file.parent for file in path.glob("*/manifest.json") if is_run(file.parent))
        elif is_training(path):
            self.trainings.append(path)
        elif is_run(path):
            self.runs.append(path)
        else:
            raise InputError(f"{path}: no run, evaluation or training there; give the output folder of a command")


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a collect run."""
    files = [*shards(folder), failed_file(folder)] if (folder / "manifest.json").is_file() else []
    return any(file.exists() and file.stat().st_size for file in files)


def view(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="output folders of collect runs, evaluations or trainings; or a .json file with the state of a graph",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="HTML file; by default view.html in the first folder")] = None,
    rows: Annotated[Path | None, typer.Option(help="folder of training rows that were made of the run")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder with the tokenizer.json of the models, to show their tokens as text")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="serve the page of a run while it goes on, on loopback")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port of --live; 0: any free one")] = DEFAULT_PORT,
) -> None:
    """Write runs, evaluations and trainings as one HTML page, which needs no server and no network."""
    sources = Sources()
    if live:
        if len(paths) != 1:
            raise InputError("--live shows one run: give one folder")
        if refused := [name for name, value in (("--out", out), ("--rows", rows)) if value is not None]:
            raise InputError(f"--live writes no file: leave {' and '.join(refused)} out")
        from agentsys.view.live import serve

        serve(paths[0], port, partial(find_vocabulary, folder=tokenizer))
        return
    for path in paths:
        sources.add(path)
    page = write_view(sources, out, rows=rows, tokenizer=tokenizer)
    show(f"page: {' and '.join(map(str, page))}")


def write_view(
    sources: Sources, out: Path | None = None, *, rows: Path | None = None, tokenizer: Path | None = None
) -> list[Path]:
    """Write the page and return its files. Raises InputError, RunFolderError and OSError."""
    if len(sources.runs) > MAX_RUNS and not sources.evaluations:
        raise InputError(f"{len(sources.runs)} runs: a page shows at most {MAX_RUNS}; give fewer folders")
    out = _check_out(out, sources)
    row_table = read_rows(rows) if rows is not None else {}
    if rows is not None and not row_table:
        raise InputError(f"--rows {rows}: no training rows there; give the folder that `agentsys rows` wrote")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".view-") as temporary:
        pieces = Pieces(Path(temporary))
        find = partial(find_vocabulary, folder=tokenizer)
        runs = [read_run(folder, f"r{i}", pieces, find, row_table) for i, folder in enumerate(sources.runs)]
        head = make_head(runs, sources)
        for i, folder in enumerate(sources.evaluations):
            scores = read_scores(folder)
            head["evaluations"][i]["has_scores"] = bool(scores)
            pieces.add(f"e{i}-scores", to_json(scores))
        return write_page(out, " · ".join(_names(sources)), head, pieces)


def make_head(runs: Sequence[RunData], sources: Sources) -> dict[str, Any]:
    """What the page has before any piece is read."""
    return {
        "runs": [run.head for run in runs],
        "comparisons": [compare_runs(first, second) for first, second in _pairs(runs, sources)],
        "trainings": [read_training(folder) for folder in sources.trainings],
        "evaluations": [read_evaluation(folder) for folder in sources.evaluations],
        "states": [read_state(file) for file in sources.states],
    }


def _pairs(runs: Sequence[RunData], sources: Sources) -> list[tuple[RunData, RunData]]:
    """The runs to compare: each two; of an evaluation the first with each other."""
    return [(runs[0], run) for run in runs[1:]] if sources.evaluations else list(combinations(runs, 2))


def _names(sources: Sources) -> list[str]:
    paths = [*sources.evaluations, *sources.runs, *sources.trainings, *sources.states]
    return [path.resolve().name for path in paths]


def _check_out(out: Path | None, sources: Sources) -> Path:
    if out is None:
        first = next(iter([*sources.evaluations, *sources.runs, *sources.trainings]), None)
        out = first / PAGE if first else sources.states[0].with_suffix(".html")
    if out.is_dir():
        raise InputError(f"--out {out}: this is a folder; name a file in it, such as {out / PAGE}")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; create it, or name a file elsewhere")
    return out


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The systems of an evaluation with their metrics, and its settings. Raises RunFolderError for a damaged file."""
    file = folder / "evaluation.json"
    try:
        report = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as err:
        raise RunFolderError(f"{file}: not JSON ({err}); run the evaluation again") from None
    systems = report.get("systems") or report.get("methods") or {}
    return {
        "folder": folder.resolve().name,
        "settings": report.get("settings") or {},
        "systems": {name: _metrics(entry) for name, entry in systems.items() if isinstance(entry, dict)},
    }


def _metrics(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a system in an evaluation's report, each {"value", "low", "high", ...}; of drt-evaluator one."""
    if _is_score(entry):
        return {"value": entry}
    metrics: dict[str, Any] = {}
    for name, value in (entry.get("metrics") or entry).items():
        if _is_score(value):
            metrics[name] = value
        elif isinstance(value, dict):
            metrics |= {f"{name} {key}": part for key, part in value.items() if _is_score(part)}
    return metrics


def _is_score(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("value"), int | float)


def read_scores(folder: Path) -> dict[str, dict[str, dict[str, float | bool]]]:
    """What an evaluation says of each record with an id, by system: the numbers of its file of lines.

    Raises RunFolderError for a damaged line.
    """
    scores: dict[str, dict[str, dict[str, float | bool]]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as err:
                raise RunFolderError(f"{file}:{number}: not JSON ({err}); run the evaluation again") from None
            if isinstance(row, dict) and "id" in row and isinstance(row.get("systems"), dict):
                by_system = {name: _numbers(values) for name, values in row["systems"].items()}
                if any(by_system.values()):
                    scores[str(row["id"])] = by_system
    return scores


def _numbers(values: Any) -> dict[str, float | bool]:
    """The numbers of a system's result for a record, with those in its `scores`."""
    if not isinstance(values, dict):
        return {}
    scores = values.get("scores")
    every = values | scores if isinstance(scores, dict) else values
    return {name: value for name, value in every.items() if isinstance(value, int | float)}


def read_state(file: Path) -> dict[str, Any]:
    """A graph's final state, as saved from a thread. Raises InputError for what is none."""
    try:
        state = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as err:
        raise InputError(f"{file}: not JSON ({err})") from None
    state = state.get("values", state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise InputError(f"{file}: not the state of a graph; save the thread's state (its values) as a JSON object")
    return {"name": file.name, "state": state}


def show_page(folder: Path) -> None:
    """Write the page of a folder that a command has just finished, and print its path; of a large run only the command
    that writes it. What the command made is complete: if its page cannot be written, a line says why.
    """
    sources = Sources()
    command = f"agentsys view {shlex.quote(str(folder))}"
    try:
        sources.add(folder)
        size = sum(content_size(shard) for run in sources.runs for shard in shards(run))
        records = sum(finished_records(read_manifest(run)) for run in sources.runs)
        if records > MAX_RECORDS or size > MAX_TRACE_BYTES:
            show(f"page: {command} writes it")
        else:
            show(f"page: {write_view(sources)[0]}")
    except OSError as err:
        show(f"no page: {err.filename or folder}: {err.strerror or err}; {command} writes it")
    except (InputError, RunFolderError) as err:
        show(f"no page: {err}; {command} writes it")
