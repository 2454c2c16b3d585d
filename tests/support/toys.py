"""Runs for tests: a script for DRT, records, models that log their calls, the DRT command, a graph of one node."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NotRequired

import orjson
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from agentsys.graphs.longdpo.judge import PRINCIPLES
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from agentsys.recorder import current
from agentsys.traces import strip_measured
from tests.support.paths import ROOT
from tests.support.shards import shard_lines

PYTHON_PATH = os.pathsep.join([str(ROOT / "tests" / "support" / "offline"), str(ROOT)])
COMMAND = ROOT / "graphs" / "drt_collect.py"
ROUNDS = ("--max-rounds", "3")
"""As many refinements as RULES has replies for; a test's own option comes later and wins."""


def evaluation(score: int) -> str:
    return json.dumps({"reason": "as it is", "score": score})


def thought_with_marks(count: int) -> str:
    """A narrator's reply of at least four paragraphs, which quotes the translations 1 to `count` in order."""
    middle = [f"I try ⟦{i}⟧. It is better." for i in range(1, count)]
    filler = ["It is accurate, but stiff."] * (2 - len(middle))
    return "\n\n".join(["I start by identifying the keywords.", *middle, *filler, f"I decide on ⟦{count}⟧"])


RULES: list[dict[str, Any]] = [
    {"role": "keywords", "replies": ['{"keywords": [{"word": "like", "translation": "像"}]}']},
    {"role": "draft", "replies": ["初稿甲", "初稿乙"]},
    {"role": "advisor", "replies": ['"稿" is word for word; "译" reads better.', 'Nobody says "稿", but "译文".']},
    {"role": "evaluator", "replies": [*map(evaluation, (40, 55, 60, 70, 80, 85, 93)), "not JSON at all"]},
    {"role": "refiner", "replies": [f"改稿{i}" for i in range(9)]},
    {"role": "rewriter", "replies": [f"另稿{i}" for i in range(9)]},
    *(
        {"role": "narrator", "key": f"narrate#{n}" if n else "narrate", "replies": [thought_with_marks(n + 2)]}
        for n in range(3)
    ),
]
"""With these replies DRT keeps, drops and asks again; a sentence without "like" fails: it lacks the keyword."""


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    """Write JSON lines and return the path."""
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def sentences(count: int, unusable: int = 25) -> list[dict[str, str]]:
    """Records with ids; every `unusable`-th one lacks the word that the scripted model picks."""
    texts = ["The lamp shone like a moon." if i % unusable else "Nothing here." for i in range(1, count + 1)]
    return [{"id": f"r{i}", "text": f"{i}: {text}"} for i, text in enumerate(texts)]


class LoggedChatModel(ScriptedChatModel):
    """`langchain:tests.support.toys:LoggedChatModel?script=FILE&log=FILE&seconds=0.01`: logs one line per call."""

    log: str

    def __init__(self, script: str, log: str, **settings: Any) -> None:
        plain = ScriptedChatModel.from_file(script, {})
        super().__init__(respond=plain.respond, revision=plain.revision, log=log, **settings)

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        recorder = current.get()
        assert recorder is not None
        line = f"{os.getpid()} {recorder.record} {kwargs['key']}\n".encode()
        file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line)
        os.close(file)
        return await super().complete(messages, **kwargs)


class TreeChatModel(LoggedChatModel):
    """`langchain:tests.support.toys:TreeChatModel?log=FILE`: LongDPO's steps and judgements, after a random delay.

    The replies depend only on the call's key and seed and on the text judged; a few judgements are unusable.
    """

    def __init__(self, log: str, **settings: Any) -> None:
        ScriptedChatModel.__init__(self, respond=tree_reply, revision="1", log=log, **settings)

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        await asyncio.sleep(random.SystemRandom().random() / 100)
        reply = await super().complete(messages, **kwargs)
        return replace(reply, finish="length", ids=[*map(ord, reply.text)]) if kwargs["role"] == "writer" else reply


def tree_reply(messages: Sequence[Mapping[str, Any]], call: Mapping[str, Any]) -> str:
    """A unique text for each step; seven principles with soft weights."""
    if call["role"] == "writer":
        return f"text {call['key']} {call['seed']}"
    text = str(messages[-1]["content"]).rpartition("judge:\n")[2].partition("\n\n(An earlier")[0]
    rng = random.Random(text)
    sums = [0.0 if rng.random() < 0.02 else 1.0 for _ in PRINCIPLES]
    rows = [[rng.random() for _ in range(5)] for _ in PRINCIPLES]
    rows = [[weight * total / sum(row) for weight in row] for row, total in zip(rows, sums, strict=True)]
    return json.dumps({"analysis": ""} | dict(zip(PRINCIPLES, rows, strict=True)))


def paid_calls(log: Path) -> list[tuple[str, str]]:
    """(process, record and key) of every call in the log of a LoggedChatModel."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(process, call) for process, _, call in (line.partition(" ") for line in lines)]


def outcomes(folder: Path) -> list[bytes]:
    """The lines of all records of a run, failed ones included, sorted by id, each without its `measured` objects."""
    stored = [*shard_lines(folder), *(folder / "failed.jsonl").read_bytes().splitlines()]
    lines = [strip_measured(orjson.loads(line)) for line in stored]
    return [orjson.dumps(line) for line in sorted(lines, key=lambda line: str(line["id"]))]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run."""
    return dict(orjson.loads((folder / "manifest.json").read_bytes()))


def read_failed(folder: Path) -> list[dict[str, Any]]:
    """The lines of failed.jsonl of a run."""
    return [orjson.loads(line) for line in (folder / "failed.jsonl").read_bytes().splitlines()]


def environment(cache: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a subprocess that can import our modules and does not use the user's cache folder."""
    clean = {name: value for name, value in os.environ.items() if name != "AGENTSYS_API_KEY"}
    return clean | {"PYTHONPATH": PYTHON_PATH, "AGENTSYS_CACHE": str(cache), "COLUMNS": "200"} | dict(more or {})


def start_drt(cache: Path, *options: object, **settings: Any) -> subprocess.Popen[str]:
    """Start `python graphs/drt_collect.py <options>`."""
    return subprocess.Popen(
        [sys.executable, str(COMMAND), *ROUNDS, *map(str, options)],
        env=environment(cache, settings.pop("env", None)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def run_drt(cache: Path, *options: object, timeout: float = 120, **settings: Any) -> tuple[int, str, str]:
    """Run `python graphs/drt_collect.py <options>`. Returns exit code, stdout and stderr."""
    process = start_drt(cache, *options, **settings)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def call_drt(capsys: Any, *options: object) -> tuple[int, str, str]:
    """Run the command in this process, which saves the seconds of its imports. Returns exit code, stdout and stderr."""
    from agentsys.commands import command, run_app
    from agentsys.graphs.drt_collect import main

    capsys.readouterr()
    code = run_app(command(main), [*ROUNDS, *map(str, options)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fork_drt(*options: object, output: Path) -> BaseProcess:
    """Start the command in a process forked after its imports; stdout and stderr go to a file."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["agentsys.graphs.drt_collect", "uvloop"])
    process = processes.Process(target=_run_forked, args=([*ROUNDS, *map(str, options)], str(output)))
    process.start()
    return process


def _run_forked(options: list[str], output: str) -> None:
    from agentsys.commands import command, run_app
    from agentsys.graphs.drt_collect import main

    file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(run_app(command(main), options))


def one_error(err: str) -> str:
    """The message of a command's error; asserts that stderr has this one line, and lines of finished records, only."""
    assert "Traceback" not in err, err
    err = without_record_lines(err)
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    return err.removeprefix("error: ").strip()


def without_record_lines(err: str) -> str:
    """A command's stderr without the lines that the progress view prints for finished records."""
    lines = err.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"\S+ (kept|dropped|failed)[ ,:(]", line))


class Input(TypedDict):
    """Graph input."""

    text: str


class State(Input):
    """Graph state: whatever the one node may return."""

    reply: NotRequired[Any]
    dropped: NotRequired[Any]
    targets: NotRequired[Any]


def one_node(node: Any, name: str = "toy") -> Any:
    """A compiled graph of one node."""
    builder = StateGraph(State, input_schema=Input)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile(name=name)
