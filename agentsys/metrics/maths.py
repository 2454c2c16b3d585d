"""Checks answers to mathematical questions with Hugging Face's `math-verify`.

It runs sympy on text that a model wrote, which can take minutes (10^10^10 is short to write). Its own timeouts use
signals, which interrupt neither threads nor C code. So every check runs in a worker process, which is killed at a
deadline; the event loop only waits. The workers are loky's, which do not rerun the user's script as Python's do. If
this process itself is killed, a limit on CPU time ends its workers. Answers that cannot be parsed as mathematics, or
not in time, are compared as text.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final, Literal, NamedTuple, TypeVar

from agentsys.installation import install_command

T = TypeVar("T")

CHECK_SECONDS: Final = 20.0
"""Deadline of one check in seconds; math-verify's own timeouts of 5 s each come first where signals work."""
MEMORY: Final = 4 * 2**30
"""Maximum address space of a worker in bytes."""
LONGEST: Final = 4_000
"""Number of characters at the end of a response in which its answer is searched."""

_ANSWER_MARKERS = ("####", "answer is", "answer:")
_BRACE: Final = re.compile(r"(\\boxed\s*\{)|\\[{}]|\\\\(?!boxed)|([{}])")
"""The start of a box, an escaped brace, a LaTeX line break, a brace."""
_start = threading.Lock()


class Verdict(NamedTuple):
    """Whether an answer is right, the answer that was extracted, and how it was compared.

    `how` is "maths"; "text" if one of the two sides cannot be parsed, or not in time; "empty" for an empty response.
    """

    right: bool
    answer: str
    how: Literal["maths", "text", "empty"]


def check_installed() -> None:
    """Raise ValueError if a package of the checker is missing, so that answers are not silently compared as text."""
    for module, package in (("math_verify", "math-verify"), ("pebble", "pebble"), ("loky", "loky")):
        if find_spec(module) is None:
            raise ValueError(f"{package} is not installed: {install_command('maths')}")


async def check_answer(response: str, reference: str) -> Verdict:
    """Check the answer of a response: its last \\boxed{}, else the text after "####", else what math-verify extracts.

    Raises ValueError if the checker is not installed.
    """
    if not response.strip():
        return Verdict(False, "", "empty")
    answer = extract_answer(response)
    text = _in_box(answer) if last_boxed(response) else response.rpartition("####")[2]
    if verdict := await _run_in_worker(_compare, text[-LONGEST:], reference):
        return verdict
    return Verdict(normalize_answer(answer) == normalize_answer(reference) != "", answer, "text")


async def group_equal_answers(answers: Sequence[str]) -> list[int]:
    """Return for each answer the index of the first answer that is mathematically equal to it (possibly its own)."""
    groups = await _run_in_worker(_group, tuple(answers)) if any(answers) else None
    if groups is not None:
        return groups
    texts = [normalize_answer(answer) for answer in answers]
    return [texts.index(text) for text in texts]


def reference_of(record: Mapping[str, Any]) -> str:
    """Return the right answer of a record: GSM8K's `answer` after "####", MATH's `answer`, or a `solution`'s \\boxed{}.

    Raises ValueError for a record without one.
    """
    answer = record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    if isinstance(answer, str) and (reference := answer.rpartition("####")[2].strip()):
        return reference
    solution = record.get("solution")
    if isinstance(solution, str) and (reference := last_boxed(solution) or ""):
        return reference
    raise ValueError(
        "no right answer: a record needs `answer` (GSM8K's ends in '#### 12') or a `solution` with \\boxed{}; "
        "--field answer=COLUMN names another column"
    )


def last_boxed(text: str) -> str | None:
    """Return the content of the last non-empty \\boxed{} of a text, with matching braces, or None."""
    open_starts: list[int] = []  # one per open brace: the start of a box's content, 0 for another brace
    ends: dict[int, int] = {}
    for match in _BRACE.finditer(text):
        box, brace = match.groups()
        if box or brace == "{":
            open_starts.append(match.end() if box else 0)
        elif brace and open_starts:
            ends[open_starts.pop()] = match.start()
    contents = (text[start : ends[start]].strip() for start in sorted(ends, reverse=True) if start)
    return next(filter(None, contents), None)


def extract_answer(response: str) -> str:
    """Return the answer of a response: the last \\boxed{}, the text after "####" or "answer is", or the last line."""
    if content := last_boxed(response):
        return content
    line = response.strip().rpartition("\n")[2]
    position, length = max((line.casefold().rfind(marker), len(marker)) for marker in _ANSWER_MARKERS)
    return (line[position + length :] if position >= 0 else line).lstrip(" \t:*").rstrip(" \t*.")


def normalize_answer(answer: str) -> str:
    """Normalize an answer for comparison as text: lower case, no dollar signs, \\text, white space or final period."""
    bare = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\1", answer)
    return re.sub(r"[\s$]|\\[ !,;]", "", bare).rstrip(".").casefold()


def _in_box(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


async def _run_in_worker(function: Callable[..., T], *args: Any) -> T | None:
    """Return the result of a function in a worker process, or None if it failed twice or reached its deadline."""
    for _ in range(2):  # a worker may die for unrelated reasons, such as a signal or a lack of memory
        pool = await asyncio.to_thread(_workers)
        try:
            limited_args = (CHECK_SECONDS, function, *args)
            return await asyncio.wrap_future(pool.schedule(_run_limited, args=limited_args, timeout=CHECK_SECONDS))
        except TimeoutError:
            return None
        except Exception as err:
            logging.getLogger(__name__).debug("a check failed: %r", err)
    return None


def _workers() -> Any:
    """Return the pool of worker processes, a new one if the last one broke."""
    with _start:  # the first checks may run concurrently
        if not _pool().active:
            _pool.cache_clear()
        return _pool()


@lru_cache(maxsize=1)
def _pool() -> Any:
    """Start the worker processes, at the first check; they end with this process."""
    check_installed()
    from loky.backend import get_context
    from pebble import ProcessPool

    return ProcessPool(
        max_workers=min(4, os.cpu_count() or 1), context=get_context("loky"), initializer=_initialize_worker
    )


def _initialize_worker() -> None:
    """Ignore Ctrl-C, which the main process handles, and limit the memory that a huge number can take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    with suppress(ImportError):  # not available on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run_limited(seconds: float, function: Callable[..., T], *args: Any) -> T:
    """Run a function in a worker, with twice the deadline as CPU time limit in case the main process was killed."""
    with suppress(ImportError):
        import resource

        limit = int(time.process_time() + 2 * seconds) + 1
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    return function(*args)


def _compare(response: str, reference: str) -> Verdict | None:
    """In a worker: compare a response with a reference; None if one of them is not mathematics."""
    from math_verify import verify

    gold, answer = _parse(_in_box(reference)), _parse(response)
    if gold is None or answer is None:
        return None
    return Verdict(bool(verify(gold, answer)), str(answer[-1]), "maths")


def _group(answers: Sequence[str]) -> list[int]:
    """In a worker: see `group_equal_answers`."""
    from math_verify import verify

    parsed = [_parse(_in_box(answer)) for answer in answers]
    texts = [normalize_answer(answer) for answer in answers]
    firsts: list[int] = []
    for i, text in enumerate(texts):
        equal = (
            j for j in dict.fromkeys(firsts) if texts[j] == text or (parsed[i] and verify(parsed[j] or [], parsed[i]))
        )
        firsts.append(next(equal, i))
    return firsts


def _parse(text: str) -> list[Any] | None:
    """Parse a text with math-verify, which prefers a \\boxed{}; None if there is no mathematical expression."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    results = parse(text, extraction_config=[LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()])
    return list(results) if results and not isinstance(results[0], str) else None
