"""Whether the answer to a mathematical question is right, by Hugging Face's `math-verify`.

Its parsing and comparison run sympy on whatever a model wrote, which can take minutes (10^10^10 is short to write). It
bounds itself with signals, which reach neither a thread nor a computation inside C code. So every check runs in a
worker process with a deadline and is killed there; the event loop only waits. Workers are loky's: unlike Python's own
they do not run the user's script again. Where this process was killed itself, the kernel ends its workers at a limit of
processor time. What cannot be read as mathematics, or not in time, is compared as text.
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

T = TypeVar("T")

CHECK_SECONDS: Final = 20.0
"""Deadline of one check; math-verify's own timeouts of 5 s each come first where a signal can reach."""
MEMORY: Final = 4 * 2**30
"""Bytes of address space that a worker may take."""
LONGEST: Final = 4_000
"""Characters at the end of a response that are searched for its answer."""

_ENDS = ("####", "answer is", "answer:")
_BRACE: Final = re.compile(r"(\\boxed\s*\{)|\\[{}]|\\\\(?!boxed)|([{}])")
"""A box begins, an escaped brace, the end of a line in LaTeX, a brace."""
_start = threading.Lock()


class Verdict(NamedTuple):
    """Whether an answer is right, the answer as it was found, and how it was compared.

    `how` is "maths"; "text" where one of the two sides cannot be parsed, or not in time; "empty" for no response.
    """

    right: bool
    answer: str
    how: Literal["maths", "text", "empty"]


def check_installed() -> None:
    """Raises ValueError where the checker is missing: nothing is compared as text for want of a package."""
    for module, package in (("math_verify", "math-verify"), ("pebble", "pebble"), ("loky", "loky")):
        if find_spec(module) is None:
            raise ValueError(f"{package} is not installed: pip install 'agentsys[maths]'")


async def check(response: str, reference: str) -> Verdict:
    """The verdict on a whole response: its last \\boxed{}, else what follows "####", else what math-verify finds.

    Raises ValueError where the checker is not installed.
    """
    if not response.strip():
        return Verdict(False, "", "empty")
    answer = stated(response)
    searched = _in_box(answer) if boxed(response) else response.rpartition("####")[2]
    if verdict := await _bounded(_compare, searched[-LONGEST:], reference):
        return verdict
    return Verdict(plain(answer) == plain(reference) != "", answer, "text")


async def alike(answers: Sequence[str]) -> list[int]:
    """For each answer the index of the first one that is mathematically equal to it: its own if there is none."""
    grouped = await _bounded(_groups, tuple(answers)) if any(answers) else None
    if grouped is not None:
        return grouped
    texts = [plain(answer) for answer in answers]
    return [texts.index(text) for text in texts]


def reference_of(record: Mapping[str, Any]) -> str:
    """The right answer of a record: after "####" in GSM8K's `answer`, MATH's `answer`, or \\boxed{} in its `solution`.

    Raises ValueError for a record without one.
    """
    answer = record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    if isinstance(answer, str) and (found := answer.rpartition("####")[2].strip()):
        return found
    solution = record.get("solution")
    if isinstance(solution, str) and (found := boxed(solution) or ""):
        return found
    raise ValueError(
        "no right answer: a record needs `answer` (GSM8K's ends in '#### 12') or a `solution` with \\boxed{}; "
        "--field answer=COLUMN names another column"
    )


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{} of a text, its braces matched; None where none is closed and holds anything."""
    begun: list[int] = []  # of the braces that are open: where a box's content begins, 0 for another brace
    closed: dict[int, int] = {}
    for found in _BRACE.finditer(text):
        box, brace = found.groups()
        if box or brace == "{":
            begun.append(found.end() if box else 0)
        elif brace and begun:
            closed[begun.pop()] = found.start()
    contents = (text[begin : closed[begin]].strip() for begin in sorted(closed, reverse=True) if begin)
    return next(filter(None, contents), None)


def stated(response: str) -> str:
    """The answer of a response as text: in its last \\boxed{}, else after "####" or "answer is", else its last line."""
    if found := boxed(response):
        return found
    last = response.strip().rpartition("\n")[2]
    at, end = max((last.casefold().rfind(end), len(end)) for end in _ENDS)
    return (last[at + end :] if at >= 0 else last).lstrip(" \t:*").rstrip(" \t*.")


def plain(answer: str) -> str:
    """An answer for comparison as text: without dollar signs, \\text, white space and a full stop; in lower case."""
    bare = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\1", answer)
    return re.sub(r"[\s$]|\\[ !,;]", "", bare).rstrip(".").casefold()


def _in_box(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


async def _bounded(work: Callable[..., T], *given: Any) -> T | None:
    """The result of a worker process, or None where it failed twice or was killed at its deadline."""
    for _ in range(2):  # a worker can die of what has nothing to do with its work: a signal, a lack of memory
        pool = await asyncio.to_thread(_workers)
        try:
            limited = (CHECK_SECONDS, work, *given)
            return await asyncio.wrap_future(pool.schedule(_limited, args=limited, timeout=CHECK_SECONDS))
        except TimeoutError:
            return None
        except Exception as err:
            logging.getLogger(__name__).debug("a check failed: %r", err)
    return None


def _workers() -> Any:
    """The pool of worker processes; a new one where the last one broke."""
    with _start:  # several checks may come first
        if not _pool().active:
            _pool.cache_clear()
        return _pool()


@lru_cache(maxsize=1)
def _pool() -> Any:
    """Worker processes, started when the first check comes; they end with this process."""
    check_installed()
    from loky.backend import get_context
    from pebble import ProcessPool

    return ProcessPool(max_workers=min(4, os.cpu_count() or 1), context=get_context("loky"), initializer=_begin)


def _begin() -> None:
    """In a worker: Ctrl-C, which reaches it too, is the run's business; a huge number must not take all memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    with suppress(ImportError):  # there is none for Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limited(seconds: float, work: Callable[..., T], *given: Any) -> T:
    """In a worker: ended by the kernel after twice the deadline's processor time, should nobody be left to kill it."""
    with suppress(ImportError):
        import resource

        most = int(time.process_time() + 2 * seconds) + 1
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    return work(*given)


def _compare(response: str, reference: str) -> Verdict | None:
    """In a worker: None where one of the two is no mathematics."""
    from math_verify import verify

    gold, found = _parsed(_in_box(reference)), _parsed(response)
    if gold is None or found is None:
        return None
    return Verdict(bool(verify(gold, found)), str(found[-1]), "maths")


def _groups(answers: Sequence[str]) -> list[int]:
    """In a worker: see `alike`."""
    from math_verify import verify

    parsed = [_parsed(_in_box(answer)) for answer in answers]
    texts = [plain(answer) for answer in answers]
    firsts: list[int] = []
    for i, text in enumerate(texts):
        equal = (
            j for j in dict.fromkeys(firsts) if texts[j] == text or (parsed[i] and verify(parsed[j] or [], parsed[i]))
        )
        firsts.append(next(equal, i))
    return firsts


def _parsed(text: str) -> list[Any] | None:
    """math-verify's reading of a text, a \\boxed{} before everything else; None if it finds words and no expression."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    found = parse(text, extraction_config=[LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()])
    return list(found) if found and not isinstance(found[0], str) else None
