"""The records of CSC multi-task training, mixed by weight from a benchmark's files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import orjson

from agentsys.graphs.ragtrans.samples import Row
from agentsys.records import InputError, Record, read_records, shuffled

TASKS: Final = ("ragtrans", "clic", "sket", "clrd")
"""The tasks of CSC multi-task training: the benchmark's own training samples and the three tasks."""


def read_weights(entries: Sequence[str]) -> dict[str, float]:
    """The weights above 0 by task, from entries such as clic=0.5; 1 by default. Raises InputError."""
    weights = dict.fromkeys(TASKS, 1.0)
    for entry in entries:
        task, _, number = entry.partition("=")
        try:
            weights[task] = float(number) if task in weights else float("nan")
        except ValueError:
            weights[task] = float("nan")
        if not 0 <= weights[task] < float("inf"):
            raise InputError(f"--weight {entry}: give a task of {', '.join(TASKS)} and a number, such as clic=0.5")
    if not any(weights.values()):
        raise InputError("--weight: every task has weight 0; give at least one task a weight above 0")
    return {task: weight for task, weight in weights.items() if weight}


def write_mix(data: Path, weights: Mapping[str, float], samples: int | None, out: Path, seed: int) -> Path:
    """Write the mixed records to a file in the run's folder, named by weights and seed. Raises InputError for none."""
    rows = mix_records(data, weights, samples, seed)
    first = next(rows, None)
    if first is None:
        raise InputError(f"--data {data}: no records of {', '.join(weights)}; see its report.json")
    shares = ",".join(f"{task}={weight:g}" for task, weight in weights.items())
    file = out / "mixed" / f"{shares},seed={seed}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("wb") as lines:
        for row in (first, *rows):
            lines.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    part.replace(file)
    return file


def mix_records(folder: Path, weights: Mapping[str, float], samples: int | None, seed: int) -> Iterator[Row]:
    """Records of the tasks, each once, in shares that follow the weights at every point.

    Ends after `samples` records, or when the next task has none left. Raises InputError for a task without a file.
    """
    streams = {task: _task_records(folder, task, seed) for task in weights}
    counts: Counter[str] = Counter()
    total = sum(weights.values())
    while samples is None or counts.total() < samples:
        task = max(weights, key=lambda task: weights[task] / total * (counts.total() + 1) - counts[task])
        row = next(streams[task], None)
        if row is None:
            return
        counts[task] += 1
        yield row


def _task_records(folder: Path, task: str, seed: int) -> Iterator[Row]:
    file = folder / f"{'train' if task == 'ragtrans' else task}.jsonl"
    if not file.is_file():
        raise InputError(f"{file}: no such file; `build` writes it, or leave {task} out with --weight {task}=0")
    fields = ("src", "tgt") if task == "ragtrans" else ("text", "answer")
    records = (record for record in read_records(file, required=fields) if isinstance(record, Record))
    order = shuffled(records, seed=seed)
    return (_as_task(record) if task == "ragtrans" else record.data for record in order)


def _as_task(record: Record) -> Row:
    """A training record, which may lack an id, in the form of a task's record."""
    row = record.data
    texts = {"text": row["src"], "document": row.get("doc") or "", "answer": row["tgt"]}
    return {"id": f"ragtrans/{record.id}", "task": "ragtrans", **texts, "language": row.get("tag", "")}
