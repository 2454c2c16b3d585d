"""Maths answers: references, verdicts of the real checker, and its limits on time and memory."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agentsys.metrics import maths
from agentsys.metrics.maths import check_answer, group_equal_answers, last_boxed, reference_of
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def forget() -> None:
    """No verdict of another test is known."""
    maths._known.clear()


UNDECIDED = (r"\boxed{x+1}", "1+x")
"""A response and a reference that only math-verify can compare, in a worker."""


@pytest.mark.parametrize(
    ("record", "reference"),
    [
        ({"answer": "She sold 48/2 = <<48/2=24>>24.\n#### 1,072"}, "1,072"),
        ({"answer": r"\frac{14}{3}", "solution": r"so \boxed{2}"}, r"\frac{14}{3}"),
        ({"answer": "", "solution": r"so \boxed{\frac{1}{2}}."}, r"\frac{1}{2}"),
        ({"answer": 12}, "12"),
    ],
)
def test_references(record: dict[str, Any], reference: str) -> None:
    assert reference_of(record) == reference


@pytest.mark.parametrize(
    "record", [{}, {"answer": "  "}, {"answer": "words\n####"}, {"solution": "no box"}, {"answer": None}]
)
def test_a_record_without_an_answer_is_refused_in_one_line(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no right answer: a record needs `answer`") as refused:
        reference_of(record)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{}", None),
        (r"\boxed{a \\} and } more", r"a \\"),
        (r"\\boxed{5}", "5"),
        (r"\boxed{1} } \boxed{2} {", "2"),
        (r"\boxed{\boxed{6}}", "6"),
        ("\\boxed{" * 100_000, None),
        ("none", None),
    ],
)
def test_boxes(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.needs("maths")
@pytest.mark.parametrize(
    ("response", "reference", "right", "how"),
    [
        (r"It is \boxed{\frac{2}{4}}.", "0.5", True, "maths"),
        (r"First \boxed{3}, no: \boxed{4}. And 3 more.", "4", True, "maths"),
        (r"\boxed{\left(3, \frac{\pi}{2}\right)}", r"\left( 3, \frac{\pi}{2} \right)", True, "maths"),
        ("He pays $1,234 in all.", "1234", True, "maths"),
        ("x + 1 = 5\n#### 4", "4", True, "maths"),
        ("50 + 50 = 100 percent, 100 / 3 = 33.333\n#### 33", "33", True, "maths"),
        (r"\boxed{4} \boxed{3}", "4", False, "maths"),
        (r"\boxed{x=5}", "5", True, "maths"),
        (r"\boxed{5}", "-5", False, "maths"),
        (r"\boxed{2+3}", "6", False, "maths"),
        ("The answer is Evelyn.", r"\text{Evelyn}", True, "text"),
        ("The answer is Briana.", r"\text{Evelyn}", False, "text"),
        ("The answer is: Evelyn", r"\text{Evelyn}", True, "text"),
        ("The answer is **Evelyn**.", r"\text{Evelyn}", True, "text"),
        ("no idea", "4", False, "text"),
        ("", "4", False, "empty"),
        (" \n", "4", False, "empty"),
    ],
)
async def test_verdicts(response: str, reference: str, right: bool, how: str) -> None:
    verdict = await check_answer(response, reference)
    assert (verdict.right, verdict.how) == (right, how), verdict


@pytest.mark.needs("maths")
async def test_an_endless_check_is_killed_and_the_loop_is_not_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power is computed in C, which signals do not interrupt: only killing the worker helps."""
    await check_answer(*UNDECIDED)  # starts a worker
    monkeypatch.setattr(maths, "CHECK_SECONDS", 0.5)
    ticks = 0

    async def count_ticks() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    task = asyncio.create_task(count_ticks())
    started = time.monotonic()
    assert await maths._run_in_worker(pow, 7, 10**9) is None
    task.cancel()
    assert ticks > 10 and time.monotonic() - started < 60
    monkeypatch.undo()
    assert (await check_answer("2", "2")).right, "a new worker replaces it"


@pytest.mark.needs("maths")
async def test_a_worker_that_dies_is_replaced() -> None:
    """While it works, or idle: killed from outside, for example by a signal to the process group."""
    assert await maths._run_in_worker(os._exit, 1) is None
    assert await check_answer(*UNDECIDED) == (True, "x+1", "maths")
    pid = await maths._run_in_worker(os.getpid)
    assert pid
    os.kill(pid, signal.SIGKILL)
    maths._known.clear()
    await asyncio.sleep(0.5)
    assert await check_answer(*UNDECIDED) == (True, "x+1", "maths")


ORPHAN = """
import asyncio, os
from agentsys.metrics import maths

async def main():
    maths.CHECK_SECONDS = 60
    worker = await maths._run_in_worker(os.getpid)
    maths.CHECK_SECONDS = 0.5  # sets the worker's CPU limit; the deadline is not reached
    maths._workers().schedule(maths._run_limited, args=(0.5, pow, 7, 10**9), timeout=300)
    print(worker, flush=True)
    await asyncio.sleep(300)

if __name__ == "__main__":
    maths.os.cpu_count = lambda: 1
    asyncio.run(main())
"""


@pytest.mark.needs("maths")
def test_a_check_does_not_outlive_a_killed_run(tmp_path: Path) -> None:
    """No process is left to kill the worker at its deadline, and no signal handler runs inside C code."""
    (tmp_path / "orphan.py").write_text(ORPHAN)
    with subprocess.Popen(
        [sys.executable, tmp_path / "orphan.py"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        time.sleep(0.5)  # the check has started
        run.kill()
    assert ends_within(worker, 60)


UNGUARDED = r"""
import asyncio
from agentsys.metrics.maths import check_answer
print("started")
print(asyncio.run(check_answer(r"so \boxed{x+1}", "1+x")))
"""


@pytest.mark.needs("maths")
def test_a_script_needs_no_main_guard_and_is_not_rerun_by_the_workers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, tmp_path / "mine.py"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.count("started") == 1 and "right=True" in done.stdout and "how='maths'" in done.stdout, done


def ends_within(pid: int, seconds: float) -> bool:
    """Whether a process ends within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    return False


@pytest.mark.needs("maths")
async def test_an_answer_that_takes_too_long_is_compared_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async def late(*arguments: Any) -> None:
        return None

    monkeypatch.setattr(maths, "_run_in_worker", late)
    assert await check_answer(r"\boxed{2^{X}}", "2^{x}") == (True, "2^{X}", "text")
    assert await check_answer(r"\boxed{4}", "2+2") == (False, "4", "text")
    assert await group_equal_answers([r"\text{A}", "b", "a."]) == [0, 1, 0]


@pytest.mark.needs("maths")
async def test_an_expression_that_takes_too_long_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    await check_answer(*UNDECIDED)
    monkeypatch.setattr(maths, "CHECK_SECONDS", 0.5)
    assert await check_answer(r"\boxed{(10^9)!}", "3") == (False, "(10^9)!", "text")


async def test_a_missing_checker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maths, "find_spec", lambda name: None)
    maths._pool.cache_clear()
    with pytest.raises(ValueError, match="math-verify is not installed: pip install"):
        await check_answer(*UNDECIDED)


@pytest.mark.needs("maths")
async def test_equal_answers_are_grouped() -> None:
    assert await group_equal_answers(["0.5", "3", r"\frac{1}{2}", "", "Evelyn", r"\text{evelyn}", "", "3.0"]) == [
        0, 1, 0, 3, 4, 4, 3, 1,
    ]  # fmt: skip
    assert await group_equal_answers([]) == [] and await group_equal_answers(["", ""]) == [0, 0]


def test_the_checker_is_imported_only_where_it_is_used() -> None:
    loaded = "[m for m in ('sympy', 'pebble', 'math_verify') if m in sys.modules]"
    code = f"import sys, agentsys.metrics.maths, agentsys.graphs.maths.search; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("response", "reference", "right"),
    [
        (r"\boxed{x+1}", "x+1", True),
        (r"\boxed{\left( 2, 3\right)}", "(2,3)", True),
        ("so\n#### 1,072", "1072", True),
        ("so\n#### 1072", "1073", False),
        ("The answer is $24.", "24", True),
        (r"\boxed{24 \text{ apples}}", "24", True),
        (r"\boxed{£5}", r"\$5", False),
        (r"\boxed{\frac{2}{4}}", "0.5", True),
        (r"\boxed{33.33}", r"33.333", False),
        ("The answer is (B).", "B", True),
    ],
)
async def test_plain_answers_need_no_worker(
    monkeypatch: pytest.MonkeyPatch, response: str, reference: str, right: bool
) -> None:
    monkeypatch.setattr(maths, "_run_in_worker", None)
    assert (await check_answer(response, reference)).right is right


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        UNDECIDED,
        (r"\boxed{2+2}", "4"),
        (r"\boxed{50\%}", "0.4"),
        (r"\boxed{x=5}", "6"),
        (r"\boxed{" + "1" * 300 + "}", "1" * 300),
        (r"\boxed{X+1}", "x+1"),
        ("so it is x+1", "x+1"),
    ],
)
async def test_other_answers_go_to_a_worker(monkeypatch: pytest.MonkeyPatch, response: str, reference: str) -> None:
    async def record(function: Any, *arguments: Any) -> maths.Verdict:
        return maths.Verdict(True, "asked a worker", "maths")

    monkeypatch.setattr(maths, "_run_in_worker", record)
    assert (await check_answer(response, reference)).answer == "asked a worker"


def test_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maths.os, "cpu_count", lambda: 64)
    monkeypatch.delenv(maths.WORKERS, raising=False)
    assert maths._worker_count() == 4
    monkeypatch.setenv(maths.WORKERS, "16")
    assert maths._worker_count() == 16
    for value in ("0", "many", "-2"):
        monkeypatch.setenv(maths.WORKERS, value)
        with pytest.raises(ValueError, match=f"AGENTSYS_CHECK_WORKERS={value}: give the number of processes"):
            maths._worker_count()


async def test_the_same_comparison_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands around the box; a comparison that failed is made again, and old ones are forgotten."""
    comparisons: list[Any] = []

    async def record(function: Any, *arguments: Any) -> maths.Verdict | None:
        comparisons.append(arguments)
        return maths.Verdict(True, "x+1", "maths") if len(comparisons) > 1 else None

    monkeypatch.setattr(maths, "_run_in_worker", record)
    monkeypatch.setattr(maths, "KNOWN", 2)
    for response in (r"\boxed{x+1}", r"\boxed{x+1}", r"So it is \boxed{x+1}."):
        await check_answer(response, "1+x")
    assert len(comparisons) == 2
    for reference in ("2+x", "3+x", "1+x"):
        await check_answer(r"\boxed{x+1}", reference)
    assert len(comparisons) == 5
