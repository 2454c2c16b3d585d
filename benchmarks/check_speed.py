"""Answers checked per second, and how many of them need a worker process.

    python benchmarks/check_speed.py [--repeats 3] [--in-flight 64]

1,000 responses as models write them: the 100 answers below, like those of GSM8K and MATH, each in every one of the ten
FORMS, as the solutions of a search have few different answers. 60 answers are numbers, 40 are not. The rows:

  as in the search   check_answer: equal texts, words, letters and numbers at once; the rest in worker processes, where
                     the verdict of the same answer is kept
  nothing kept       the same without the verdicts that are kept
  workers only       every check in a worker process
  in this process    the checks that need no worker, one after the other

The first three must agree on every verdict. AGENTSYS_CHECK_WORKERS sets the number of worker processes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import time
from collections.abc import Awaitable, Callable, Sequence

from agentsys.metrics import maths
from agentsys.metrics.maths import Verdict, check_answer

FORMS = (
    "Step 1: I add them up.\n\nStep 2: So the answer is \\boxed{%s}.",
    "Therefore, the final value is $\\boxed{%s}$.",
    "She does this three times, then rests.\n#### %s",
    "Adding both parts gives the total.\n\nThe answer is %s.",
    "**Answer:** %s",
    "Thus \\[ \\boxed{%s} \\] and we are done.",
    "Let x be the unknown. Solving gives what we want.\n\n\\boxed{%s}",
    "First 3 + 4 = 7, then we go on.\n#### %s",
    "So we get:\n\n$$\\boxed{%s}$$",
    "Final Answer: The final answer is $%s$. I hope it is correct.",
)
NUMBERS = (
    ("18", "18"), ("3", "3"), ("70000", "70,000"), ("540", "540"), ("20", "20"), ("64", "64"), ("260", "260"),
    ("160", "160"), ("45", "45"), ("460", "460"), ("366", "366"), ("694", "694"), ("13", "13"), ("2.5", "2.50"),
    ("\\$1,234", "1234"), ("5 apples", "5"), ("60\\%", "60"), ("-7", "-7"), ("0.25", "0.25"), ("1,072", "1072"),
    ("17", "18"), ("4", "3"), ("7000", "70,000"), ("530", "540"), ("19", "20"), ("63", "64"), ("216", "260"),
    ("-16", "16"), ("54", "45"), ("461", "460"), ("363", "366"), ("649", "694"), ("31", "13"), ("2.25", "2.5"),
    ("$1,243", "1234"), ("6 apples", "5"), ("40%", "60"), ("7", "-7"), ("0.2", "0.25"), ("1,702", "1072"),
    ("12 dollars", "12"), ("100", "100"), ("\\frac{3}{4}", "0.75"), ("\\frac{14}{3}", "\\frac{14}{3}"),
    ("\\frac{7}{2}", "3.5"), ("\\frac{1}{3}", "\\frac{2}{3}"), ("\\frac{9}{4}", "\\frac{4}{9}"), ("8 hours", "9"),
    ("90^\\circ", "90"), ("45^\\circ", "60"), ("2000", "2001"), ("$57", "57"), ("3 1/2", "3.5"), ("1e3", "1000"),
    ("48 km", "48"), ("25 m", "35 m"), ("999", "1000"), ("0", "0"), ("1", "0"), ("11", "11"),
)  # fmt: skip
OTHERS = (
    ("x^2+2x+1", "x^2+2x+1"), ("(x+1)(x-1)", "x^2-1"), ("2\\sqrt{3}", "2\\sqrt{3}"), ("3\\sqrt{2}", "2\\sqrt{3}"),
    ("\\left(3, \\frac{\\pi}{2}\\right)", "\\left( 3, \\frac{\\pi}{2} \\right)"), ("(2,3)", "(2,3)"),
    ("(3,2)", "(2,3)"), ("[0,1)", "[0,1)"), ("(-\\infty,3]", "x \\le 3"), ("p - q", "p - q"), ("q-p", "p - q"),
    ("\\pi", "\\pi"), ("2\\pi", "\\pi"), ("y = 2x + 1", "y=2x+1"), ("y=2x-1", "y = 2x + 1"),
    ("\\text{Evelyn}", "\\text{Evelyn}"), ("\\text{Briana}", "\\text{Evelyn}"), ("\\text{(B)}", "B"), ("C", "B"),
    ("\\text{even}", "\\text{odd}"), ("1 \\pm \\sqrt{5}", "1 \\pm \\sqrt{5}"), ("11\\sqrt2", "11\\sqrt{2}"),
    ("6+9i", "6+9i"), ("6-5i", "6+9i"), ("\\{1,2\\}", "2,1"), ("-\\frac{\\sqrt{3}}{2}", "-\\frac{\\sqrt{3}}{2}"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"), ("5^{10}", "5^{10}"),
    ("2^8", "256"), ("3, 5, 7", "3,5,7"), ("5, 7", "3,5,7"), ("x = 4", "4"), ("k = 5", "4"), ("n!", "n!"),
    ("\\sin^2 x", "1-\\cos^2 x"), ("10!", "3628800"), ("\\log_2 8", "3"), ("2+2", "4"), ("e^{2x}", "e^{2x}"),
    ("\\infty", "\\infty"),
)  # fmt: skip
Check = Callable[[str, str], Awaitable[Verdict]]


def responses() -> list[tuple[str, str]]:
    """The 1,000 responses with their references."""
    return [(form % answer, reference) for answer, reference in (*NUMBERS, *OTHERS) for form in FORMS]


async def check_in_worker(response: str, reference: str) -> Verdict:
    """Check an answer in a worker, whatever it is."""
    answer, origin = maths._find_answer(response)
    verdict = await maths._run_in_worker(maths._compare, answer, origin, response.rpartition("####")[2], reference)
    return verdict or Verdict(maths.normalize_answer(reference) in maths._texts(answer), answer, "text")


async def check_anew(response: str, reference: str) -> Verdict:
    """Check an answer without the verdicts that are kept."""
    maths._known.clear()
    return await check_answer(response, reference)


async def measure(check: Check, pairs: Sequence[tuple[str, str]], in_flight: int) -> tuple[float, list[bool]]:
    """Seconds for all checks with so many in flight, and their verdicts."""
    limit = asyncio.Semaphore(in_flight)

    async def one(pair: tuple[str, str]) -> bool:
        async with limit:
            return (await check(*pair)).right

    started = time.perf_counter()
    verdicts = await asyncio.gather(*map(one, pairs))
    return time.perf_counter() - started, list(verdicts)


def needs_worker(response: str, reference: str) -> bool:
    """Whether an answer cannot be compared at once."""
    answer, origin = maths._find_answer(response)
    return maths._compare_at_once(answer, origin, reference) is None


CHECKS: dict[str, Check] = {
    "as in the search": check_answer, "nothing kept": check_anew, "workers only": check_in_worker,
}  # fmt: skip


async def report(repeats: int, in_flight: int) -> None:
    """Measure and print the table."""
    pairs = responses()
    assert len(set(pairs)) == 1000, "every response once"
    await measure(check_in_worker, pairs[::10], in_flight)  # starts the workers, which load their libraries
    slow = [pair for pair in pairs if needs_worker(*pair)]
    print(
        f"{len(pairs):,} responses, {len(slow)} need a worker; {maths._worker_count()} workers, {in_flight} in flight; "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}; "
        f"median of {repeats}\n| | checks | seconds | checks per second |\n|---|---|---|---|"
    )
    verdicts = []
    for name, check in CHECKS.items():
        runs = []
        for _ in range(repeats):
            maths._known.clear()
            runs.append(await measure(check, pairs, in_flight))
        runs.sort(key=lambda run: run[0])
        print_row(name, len(pairs), runs[len(runs) // 2][0])
        verdicts.append(runs[0][1])
    started = time.perf_counter()
    for pair in pairs:
        needs_worker(*pair)
    print_row("in this process", len(pairs) - len(slow), time.perf_counter() - started)
    differ = [pair for pair, *found in zip(pairs, *verdicts, strict=True) if len(set(found)) > 1]
    print(f"right: {sum(verdicts[0])} of {len(pairs):,}; verdicts that differ between the first rows: {len(differ)}")
    for response, reference in differ[:5]:
        print(f"  {response!r} against {reference!r}")


def print_row(name: str, checks: int, seconds: float) -> None:
    """Print a row of the table."""
    print(f"| {name} | {checks:,} | {seconds:.2f} | {checks / seconds:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=64)
    args = parser.parse_args()
    asyncio.run(report(args.repeats, args.in_flight))


if __name__ == "__main__":
    main()
