"""The real collect commands with logged models, started in child processes that a test kills."""

from __future__ import annotations

import asyncio
import importlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentsys.models.wire import Reply
from agentsys.recorder import current
from tests.support.maths_policy import QUESTION, Policy, pupil
from tests.support.paths import ROOT
from tests.support.punchbench import CAPTION, usual_reply
from tests.support.toys import RULES, LoggedChatModel, TreeChatModel, environment, paid_calls, sentences, write_lines

MAX_SECONDS: Final = 0.02
"""Longest time that a call takes."""


class SlowChatModel(LoggedChatModel):
    """`langchain:tests.support.kills:SlowChatModel?script=FILE&log=FILE`: each call takes its own random time."""

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        await asyncio.sleep(random.SystemRandom().random() * MAX_SECONDS)
        return reply


class SlowTreeChatModel(TreeChatModel):
    """`langchain:tests.support.kills:SlowTreeChatModel?log=FILE`: its calls take time after they are logged."""

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        await asyncio.sleep(random.SystemRandom().random() * MAX_SECONDS)
        return reply


class SlowPolicy(Policy):
    """`langchain:tests.support.kills:SlowPolicy?log=FILE`: the solutions of a scripted pupil, logged."""

    log: str

    def __init__(self, log: str) -> None:
        super().__init__(author=pupil, revision="1", log=log)

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        recorder = current.get()
        assert recorder is not None
        with open(self.log, "ab", buffering=0) as file:
            file.write(f"{os.getpid()} {recorder.record} {kwargs['key']}\n".encode())
        await asyncio.sleep(random.SystemRandom().random() * MAX_SECONDS)
        return await super().complete(messages, **kwargs)


def _json(**fields: Any) -> list[str]:
    return [json.dumps(fields, ensure_ascii=False)]


DEEPRAG: Final = [
    {"role": "decomposer", "key": "root/*", "replies": ["Follow up: Who wrote that novel?"]},
    {"role": "decomposer", "key": "root:?/*", "replies": ["Follow up: Where was she born?"]},
    {"role": "decomposer", "replies": ["So the final answer is: I know it."]},
    {"role": "reader", "replies": ["Jane Austen", "In Steventon"]},
    {"role": "parametric", "replies": ["Somebody", "Somewhere"]},
    {"role": "concluder", "key": "root:1:1/*", "replies": _json(long="It is Steventon.", short="Steventon")},
    {"role": "concluder", "replies": _json(long="It is Bath.", short="Bath")},
]
"""Trees of three levels, where only the path with two retrievals gives the answer."""
PASSAGES: Final = [
    {"id": "p1", "title": "Emma", "text": "Emma is a novel that Jane Austen wrote."},
    {"id": "p2", "title": "Jane Austen", "text": "Jane Austen was born in Steventon."},
]

CRAT: Final = [
    {"role": "identifier", "replies": _json(terms=[{"term": t, "kind": "proper"} for t in ("Scotia", "Arctia")])},
    {"role": "glosser", "replies": ["Scotia = 斯科舍"]},
    {"role": "kg_constructor", "replies": _json(relations=[{"term": "Scotia", "relation": "is", "object": "cold"}])},
    {"role": "llm_source", "replies": _json(senses=[{"meaning": "a song", "translation": "斯科提亚"}])},
    {"role": "query_expander", "replies": _json(names=["Nova Scotia"])},
    {"role": "relevance", "replies": _json(here="a land", entry="a land", relevant=True)},
    {"role": "substituter", "replies": ["斯科舍很冷。", "斯科提亚很冷。", "苏格兰很冷。"]},
    {"role": "back_translator", "replies": ["Scotia is cold."]},
    {"role": "invariance", "key": "judge/*/1/*", "replies": _json(first="a land", last="a song", same=False)},
    {"role": "invariance", "replies": _json(first="a land", last="a land", same=True)},
    {"role": "counterfactual", "replies": _json(reason="so", changes=True, better="entry")},
    {"role": "translator", "replies": ["那里很冷。", "斯科舍很冷。", "斯科提亚很冷。"]},
    {"role": "repairer", "replies": ["斯科舍很冷。"]},
]

PUNCHBENCH: Final = [
    {"role": role, "key": key, "replies": [usual_reply(role, key)]}
    for role, key in (
        ("filter_judge", "filter/ethics"), ("filter_judge", "filter/picture"), ("filter_judge", "filter/caption"),
        ("punchline_judge", "synonymous_caption/0/judge"),
    )
] + [
    {"role": "punchline_judge", "replies": [usual_reply("punchline_judge", "other")]},
    *(
        {"role": role, "replies": [usual_reply(role, "")]}
        for role in ("splitter", "substituter", "inverter", "captioner", "explainer", "misexplainer", "optioner")
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Killed:
    """A graph whose collect command is killed.

    `prepare` writes the files that the command reads, and returns its options. `under_way` is the largest number of
    calls that wait for their replies at one time.
    """

    name: str
    prepare: Callable[[Path], list[object]]
    under_way: int
    extras: tuple[str, ...] = ()
    has_pool: bool = False

    def options(self, folder: Path, run: str) -> list[str]:
        """The command's options for the run with this name, which has its own request cache and log of calls."""
        paths = ["--out", folder / run, "--cache", folder / f"{run}.sqlite"]
        options = [str(option) for option in (*self.prepare(folder), *paths)]
        return [option.replace("LOG", str(folder / f"{run}.log")) for option in options]


def _scripted(folder: Path, rules: Sequence[Mapping[str, Any]], records: Sequence[Any]) -> list[object]:
    script = write_lines(folder / "script.jsonl", rules)
    model = f"langchain:tests.support.kills:SlowChatModel?script={script}&log=LOG"
    return ["--model", model, "--input", write_lines(folder / "in.jsonl", records)]


def _drt(folder: Path) -> list[object]:
    return [*_scripted(folder, RULES, sentences(50)), "--min-steps", 2, "--in-flight", 8]


def _deeprag(folder: Path) -> list[object]:
    from agentsys.knowledge import build_index

    if not (folder / "index").exists():
        build_index(PASSAGES, folder / "index")
    questions = [{"id": f"q{i}", "question": f"{i}: Where was its author born?"} for i in range(12)]
    records = [question | {"answer": "Bristol" if i % 4 == 3 else "Steventon"} for i, question in enumerate(questions)]
    return [*_scripted(folder, DEEPRAG, records), "--index", folder / "index", "--parallel", 3, "--in-flight", 2]


def _longdpo(folder: Path) -> list[object]:
    requests = [{"id": f"r{i}", "prompt": f"Request {i}", "length": 300} for i in range(5)]
    search = ["--width", 3, "--depth", 3, "--eta", 1, "--simulations", 8, "--parallel", 3, "--lookahead", 2]
    model = "langchain:tests.support.kills:SlowTreeChatModel?log=LOG"
    files = ["--model", model, "--input", write_lines(folder / "in.jsonl", requests), "--weights", "stated"]
    return [*files, *search, "--in-flight", 2]


def _crat(folder: Path) -> list[object]:
    (folder / "terms.csv").write_text("source,target\nScotia,斯科舍\nScotia,苏格兰\n", encoding="utf-8")
    lines = ("Scotia is cold.", "And Arctia is far from Scotia.", "Nothing grows there.")
    records = [{"id": f"d{i}", "sentences": [f"{i}: {line}" for line in lines]} for i in range(10)]
    script = _scripted(folder, CRAT, [*records, {"id": "blank", "text": " "}])
    return [*script, "--sources", f"terms:{folder / 'terms.csv'}", "--in-flight", 2]


def _maths(folder: Path) -> list[object]:
    records = [{"id": f"r{i}", "question": f"{QUESTION} ({i})", "answer": "#### 17"} for i in range(9)]
    files = ["--input", write_lines(folder / "in.jsonl", [*records, {"id": "none", "question": "No answer?"}])]
    search = ["--width", 4, "--depth", 4, "--simulations", 6, "--in-flight", 2]
    return ["--model", "langchain:tests.support.kills:SlowPolicy?log=LOG", *files, *search]


def _punchbench(folder: Path) -> list[object]:
    from tests.support.images import png

    (folder / "images").mkdir(exist_ok=True)
    records = []
    for number in range(10):
        (folder / "images" / f"{number}.png").write_bytes(png(number))
        fields = {"caption": f"{CAPTION} {number}", "label": number % 2}
        records.append({"id": f"p{number}", "image": f"images/{number}.png", **fields})
    records.append({"id": "broken", "image": "images/none.png", "caption": CAPTION, "label": 1})
    return [*_scripted(folder, PUNCHBENCH, records), "--in-flight", 2]


KILLED: Final = [
    Killed("drt", _drt, 12),
    Killed("deeprag", _deeprag, 3 * 3 * 2, ("knowledge",)),
    Killed("longdpo", _longdpo, 3 * 3 * 3),
    Killed("crat", _crat, 3 * 3 * 3, ("knowledge",)),
    Killed("maths", _maths, 3 * 4 * 2, ("maths",), has_pool=True),
    Killed("punchbench", _punchbench, 3 * 3, ("knowledge", "pictures")),
]
"""Three records in progress (DRT: twelve), times what a record does in parallel."""


class Running:
    """A graph's collect command in a child process; stdout and stderr go to a file.

    It is forked after its imports, which saves seconds. One with a pool of processes, if it shall end by itself, gets
    an interpreter of its own: the pool ends with the interpreter, which a forked process does not end.

    With `kill_at`, it stops (SIGSTOP) when its log has so many calls, and can be killed there however late that is
    noticed.
    """

    def __init__(self, graph: Killed, options: Sequence[str], output: Path, log: Path, kill_at: int | None) -> None:
        if graph.has_pool and kill_at is None:
            command = [sys.executable, ROOT / "graphs" / f"{graph.name}_collect.py", *options]
            with output.open("ab") as file:
                self._child: Any = subprocess.Popen(
                    command, env=environment(output.parent / "cache"), stdout=file, stderr=file
                )
            return
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload([*(f"agentsys.graphs.{graph.name}_collect" for graph in KILLED), "uvloop"])
        self._child = processes.Process(
            target=_run_forked, args=(graph.name, list(options), str(output), str(log), kill_at)
        )
        self._child.start()

    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._child.poll() if isinstance(self._child, subprocess.Popen) else self._child.exitcode

    def kill(self) -> list[int]:
        """Send SIGKILL. Returns the ids of the process's own children."""
        children = [pid for pid, parent in _parents().items() if parent == self._child.pid]
        self._child.kill()
        return children

    def wait(self, seconds: float = 100, until: Callable[[], bool] = lambda: False) -> int | None:
        """Wait for the end or for a condition. Returns the exit code."""
        end = time.monotonic() + seconds
        while self.exit_code() is None and not until() and time.monotonic() < end:
            time.sleep(0.002)
        return self.exit_code()


def _parents() -> dict[int, int]:
    """The parent of each process (Linux)."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return parents


def wait_for_end(processes: Sequence[int], seconds: float = 20) -> list[int]:
    """Wait until processes are gone. Returns those that are not, which are killed."""
    end = time.monotonic() + seconds
    while (alive := [pid for pid in processes if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    return alive


def _run_forked(name: str, options: list[str], output: str, log: str, kill_at: int | None) -> None:
    from agentsys.commands import command, run_app

    if kill_at is not None:
        threading.Thread(target=_stop_at, args=(Path(log), kill_at), daemon=True).start()
    file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    main = importlib.import_module(f"agentsys.graphs.{name}_collect").main
    sys.exit(run_app(command(main), options))


def _stop_at(log: Path, calls: int) -> None:
    while len(paid_calls(log)) < calls:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGSTOP)
