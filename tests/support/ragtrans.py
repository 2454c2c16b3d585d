"""RAGtrans with scripted replies: a runner of both graphs, the command, and the files it reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions
from agentsys.collect import collect as run_graph
from agentsys.commands import command, run_app
from agentsys.graphs.ragtrans.system import Context, graph
from agentsys.graphs.ragtrans.tasks import TasksContext
from agentsys.graphs.ragtrans.tasks import graph as tasks_graph
from agentsys.graphs.ragtrans_collect import build, collect, tasks
from agentsys.traces import Trace, load
from tests.support.shards import shard_lines
from tests.support.toys import write_lines

TEXT = "The harbour was built by fishermen from the islands."
REFERENCE = "这座港口由来自北方群岛的渔民修建而成。"
REPLY = "这座港口由渔民修建。"
DOCUMENT = "埃尔姆松德是一座港口城市。  它由渔民修建。"
Rule = dict[str, Any]
RULES: list[Rule] = [
    {"role": "translator", "replies": [REPLY]},
    {"role": "labeler", "replies": [json.dumps({"relevance": 4, "found": "港口", "translation": REPLY})]},
    {"role": "knowledge", "replies": ["Elmsund is a harbour town. It lies in the north."]},
]


class Runner:
    """Runs records through a graph and returns their traces, failed ones included."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = write_lines(folder / "replies.jsonl", RULES)

    def __call__(self, graph: Any, context: Any, *records: dict[str, Any]) -> list[Trace]:
        out = self.folder / f"run{len(list(self.folder.glob('run*')))}"
        run_graph(graph, records, out, context=context, options=RunOptions(no_cache=True))
        return [load(line) for line in [*shard_lines(out), *(out / "failed.jsonl").read_bytes().splitlines()]]

    def translate(self, record: dict[str, Any] | None = None, rules: Sequence[Rule] = RULES, **knobs: Any) -> Trace:
        """The trace of a text with a document and a reference, or of `record`."""
        script = write_lines(self.folder / "replies.jsonl", rules)
        record = {"text": TEXT, "document": DOCUMENT, "reference": REFERENCE} if record is None else record
        [trace] = self(graph, Context(model=f"scripted:{script}", **knobs), record)
        return trace

    def teach(self, **record: Any) -> Trace:
        """The trace of a task's record."""
        [trace] = self(tasks_graph, TasksContext(f"scripted:{self.script}"), record)
        return trace


def result(trace: Trace) -> dict[str, Any]:
    """A trace's result, which must exist."""
    assert trace.result is not None, trace.reason
    return trace.result


def request_of(trace: Trace) -> str:
    """The last message of a trace's only call."""
    [call] = trace.calls
    return str(call.messages[-1]["content"])


def learned_text(trace: Trace, kind: str = "sft") -> tuple[str, str]:
    """(prompt, learned answer) of a target."""
    [target] = [target for target in trace.targets if target.kind == kind]
    parts = {
        flag: "\n".join(str(s.text or s.call) for s in target.segments if s.learned is flag) for flag in (False, True)
    }
    return parts[False], parts[True]


def run_command(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    capsys.readouterr()
    code = run_app(command(build, collect, tasks), [str(option) for option in options])
    output = capsys.readouterr()
    return code, output.out, output.err


def write_records(tmp_path: Path) -> Path:
    """Three records of a test set; only the first has a Chinese document."""
    rows = [
        {
            "id": str(i),
            "src": f"{TEXT} {i}",
            "tgt": REFERENCE,
            "zh_doc": "",
            "en_doc": "A town.",
            "noisy_zh_doc": "面包。",
        }
        for i in range(3)
    ]
    rows[0]["zh_doc"] = DOCUMENT
    return write_lines(tmp_path / "test.jsonl", rows)


def write_task_files(folder: Path, count: int = 8) -> Path:
    """The files that `build` writes for the tasks."""
    (folder / "data").mkdir()
    texts = {"text": TEXT, "document": DOCUMENT, "language": "zh"}
    rows = [
        {"id": str(i), "src": f"{TEXT} {i}", "tgt": f"{REFERENCE}{i}", "doc": DOCUMENT, "tag": "x"}
        for i in range(count)
    ]
    write_lines(folder / "data" / "train.jsonl", rows)
    for task in ("clic", "sket", "clrd"):
        answer = {"clic": "总结", "sket": REFERENCE, "clrd": "true"}[task]
        rows = [
            {**texts, "id": f"{task}/{i}", "task": task, "text": f"{TEXT} {i}", "answer": answer} for i in range(count)
        ]
        write_lines(folder / "data" / f"{task}.jsonl", rows)
    return folder / "data"
