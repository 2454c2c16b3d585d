"""metrics/maths.py: references, verdicts of the real checker, its bounds; and the estimators of the evaluation."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.maths.measures import Prediction as Found
from agentsys.graphs.maths.measures import best, budgets_of, covered, measure, pass_at_k, vote, within
from agentsys.graphs.maths.solver import prior, solution
from agentsys.graphs.maths.targets import label_smoothing
from agentsys.metrics import maths
from agentsys.metrics.maths import alike, boxed, check, reference_of
from tests.support.toys import ROOT


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
    assert boxed(text) == content


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
    verdict = await check(response, reference)
    assert (verdict.right, verdict.how) == (right, how), verdict


async def test_what_never_ends_is_killed_and_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power is computed in C, where no signal reaches: only killing the worker helps."""
    await check("1", "1")  # a worker is up
    monkeypatch.setattr(maths, "CHECK_SECONDS", 0.5)
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    task = asyncio.create_task(heart())
    began = time.monotonic()
    assert await maths._bounded(pow, 7, 10**9) is None
    task.cancel()
    assert beats > 10 and time.monotonic() - began < 60
    monkeypatch.undo()
    assert (await check("2", "2")).right, "another worker takes its place"


async def test_a_worker_that_dies_is_replaced() -> None:
    """At its work, or idle: killed from outside, by a signal to the process group, say."""
    assert await maths._bounded(os._exit, 1) is None
    assert (await check(r"\boxed{2/4}", "0.5")) == (True, r"\frac{2}{4}", "maths")
    pid = await maths._bounded(os.getpid)
    assert pid
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert (await check(r"\boxed{2/4}", "0.5")) == (True, r"\frac{2}{4}", "maths")


ORPHAN = """
import asyncio, os
from agentsys import maths

async def main():
    maths.CHECK_SECONDS = 60
    worker = await maths._bounded(os.getpid)
    maths.CHECK_SECONDS = 0.5  # of which the worker's limit is made; the deadline does not come
    maths._workers().schedule(maths._limited, args=(0.5, pow, 7, 10**9), timeout=300)
    print(worker, flush=True)
    await asyncio.sleep(300)

if __name__ == "__main__":
    maths.os.cpu_count = lambda: 1
    asyncio.run(main())
"""


def test_a_check_does_not_outlive_a_killed_run(tmp_path: Path) -> None:
    """Nobody is left to kill the worker at its deadline, and no signal handler runs inside C code."""
    (tmp_path / "orphan.py").write_text(ORPHAN)
    with subprocess.Popen(
        [sys.executable, tmp_path / "orphan.py"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        time.sleep(0.5)  # the check has begun
        run.kill()
    assert gone(worker, 60)


UNGUARDED = r"""
import asyncio
from agentsys.maths import check
print("begun")
print(asyncio.run(check(r"so \boxed{1/2}", "0.5")))
"""


def test_a_script_need_not_be_guarded_and_is_not_run_again_by_the_workers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, tmp_path / "mine.py"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.count("begun") == 1 and "right=True" in done.stdout and "how='maths'" in done.stdout, done


def gone(pid: int, seconds: float) -> bool:
    """Whether a process ends in that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    return False


async def test_an_answer_that_takes_too_long_is_compared_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async def late(*given: Any) -> None:
        return None

    monkeypatch.setattr(maths, "_bounded", late)
    assert await check(r"\boxed{ 2^{x} }", "2^{x}") == (True, "2^{x}", "text")
    assert await check(r"\boxed{4}", "2+2") == (False, "4", "text")
    assert await alike([r"\text{A}", "b", "a."]) == [0, 1, 0]


async def test_a_sum_that_outgrows_its_time_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    await check("1", "1")
    monkeypatch.setattr(maths, "CHECK_SECONDS", 0.5)
    assert await check(r"\boxed{(10^9)!}", "3") == (False, "(10^9)!", "text")


async def test_without_the_checker_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maths, "find_spec", lambda name: None)
    maths._pool.cache_clear()
    with pytest.raises(ValueError, match="math-verify is not installed: pip install"):
        await check("1", "1")


async def test_equal_answers_are_grouped() -> None:
    assert await alike(["0.5", "3", r"\frac{1}{2}", "", "Evelyn", r"\text{evelyn}", "", "3.0"]) == [
        0, 1, 0, 3, 4, 4, 3, 1,
    ]  # fmt: skip
    assert await alike([]) == [] and await alike(["", ""]) == [0, 0]


def test_the_checker_is_loaded_where_it_is_used() -> None:
    named = "[m for m in ('sympy', 'pebble', 'math_verify') if m in sys.modules]"
    code = f"import sys, agentsys.maths, graphs.maths; print({named})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(("n", "right"), [(5, 0), (5, 2), (5, 5), (6, 1)])
def test_pass_at_k_is_the_share_of_all_subsets(n: int, right: int) -> None:
    samples = [i < right for i in range(n)]
    for k in range(1, n + 1):
        subsets = [any(chosen) for chosen in combinations(samples, k)]
        assert pass_at_k(n, right, k) == pytest.approx(sum(subsets) / len(subsets))


def test_pass_at_k_refuses_what_it_cannot_know() -> None:
    for n, right, k in ((3, 1, 4), (3, 4, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(n, right, k)


def find(right: bool, score: float, tokens: int, group: int, answer: str = "x") -> Any:
    return {
        "call": "", "right": right, "answer": answer, "how": "maths", "score": score, "tokens": tokens, "group": group,
    }  # fmt: skip


FINDS = [find(False, 0.5, 10, 0), find(True, 0.9, 20, 1), find(False, 0.1, 30, 0), find(True, -1, 40, 1),
         find(True, 0.0, 50, 1), find(False, 1.0, 60, 5, "")]  # fmt: skip


def test_choices_under_a_budget() -> None:
    told = {b: tuple(choice(within(FINDS, b)) for choice in (best, vote, covered)) for b in (5, 10, 20, 30, 50, 60)}
    assert told == {
        5: (False, False, False),
        10: (False, False, False),
        20: (True, False, True),  # a tie of votes goes to the first
        30: (True, False, True),
        50: (True, True, True),
        60: (False, True, True),  # an answer that is none has no vote
    }
    assert budgets_of(16) == [1, 2, 4, 8, 16] and budgets_of(3) == [1, 3]


def test_measures_of_two_questions() -> None:
    """A question that failed is wrong everywhere; pass@2 of 2 right among 4: 1 - C(2, 2) / C(4, 2)."""
    predictions = [Found(FINDS, 60, 100, 1.0), Found(error="the model fell over")]
    found = measure(predictions, 4, (20, 60))
    assert found["pass"]["1"]["value"] == 25 and found["pass"]["2"]["value"] == pytest.approx(100 * (1 - 1 / 6) / 2)
    assert found["pass"]["4"]["value"] == 50 and list(found["pass"]) == ["1", "2", "4"]
    assert found["majority"]["value"] == 0, "of the first four two and two"
    assert found["at"]["20"]["best"]["value"] == 50 and found["at"]["60"]["best"]["value"] == 0
    assert (found["n"], found["failed"], found["tokens"], found["seconds"]) == (2, 1, 60, 1.0)


def test_small_formulas() -> None:
    assert label_smoothing(9, 1) == pytest.approx(0.1) and label_smoothing(0, 5) == 0.5
    assert label_smoothing(3, 0) == 0
    assert prior([-1.0, -1.0]) == pytest.approx(2.718281828 ** (-2 / 2**1.25)) and prior(None) == 1
    assert solution(["Step 1: a.\n\n", ": b. See", ": c"]) == "Step 1: a.\n\nStep 2: b. See Step 3: c"
