"""Checks answers to mathematical questions with Hugging Face's `math-verify`.

It runs sympy on text that a model wrote, which can take minutes (10^10^10 is short to write). Its own timeouts use
signals, which interrupt neither threads nor C code. So every check runs in a worker process, which is killed at a
deadline; the event loop only waits. The workers are loky's, which do not rerun the user's script as Python's do. If
this process itself is killed, a limit on CPU time ends its workers. Answers that cannot be parsed as mathematics, or
not in time, are compared as text.

Most answers need no worker: equal texts, words, letters of choices and numbers are compared at once.
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
from agentsys.metrics.maths_text import (
    choice_letter,
    fold_text,
    is_words,
    normalize_answer,
    remove_thought,
    same_word,
    separate_scripts,
    to_latex,
)
from agentsys.metrics.quantities import Quantity, contradict, equal, read_quantity

T = TypeVar("T")
Origin = Literal["box", "marker", ""]

CHECK_SECONDS: Final = 20.0
"""Deadline of one check in seconds; math-verify's own timeouts of 5 s each come first where signals work."""
MEMORY: Final = 4 * 2**30
"""Maximum address space of a worker in bytes."""
LONGEST: Final = 4_000
"""Number of characters at the end of a response in which its answer is searched."""
SHORT: Final = 200
"""Characters of an answer and of a reference up to which they may be compared at once."""
KNOWN: Final = 10_000
"""Verdicts of workers that are kept."""
WORKERS: Final = "AGENTSYS_CHECK_WORKERS"
"""Environment variable with the number of worker processes; default: one per core, at most 4."""

_MARKER: Final = re.compile(
    r"####|answers?(?:\s+is|\s+are|\*{0,2}\s*:)\*{0,2}"
    r"|选择?\s*[:：]?(?=\s*\(?[A-H])|答案\*{0,2}\s*(?:就是|应为|應為|应该是|是|为|為|等于)?\s*\*{0,2}[:：]?\*{0,2}|答\s*[:：]|答え\s*(?:は|[:：])"
    r"|(?:정답|답)\s*(?:은|는|[:：])|\b(?:la )?(?:respuesta|réponse|risposta|resposta)(?: final)?\s*(?:es|est|è|é|:)"
    r"|\b(?:antwort|lösung)\s*(?:ist|lautet|:)|ответ\s*[:—-]?|الجواب\s*(?:هو|:)|उत्तर\s*(?:है|:)",
    re.IGNORECASE,
)
"""What stands before an answer, in the languages of the common data sets."""
_BETWEEN_BOXES: Final = re.compile(r"[\s$.,;]*(?:,|;|and|or|\\text\{\s*(?:and|or)\s*\}|和|或|、)[\s$,]*", re.IGNORECASE)
_SENTENCE_END: Final = re.compile(
    r"[。！？!?](?=.)|[.](?=\s)|[,，]\s*(?:(?=不是|而|因为|因為|即)|(?=(?:not|because|since|which|so|as)\b))"
)
_BRACE: Final = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\[{}]|\\\\(?!boxed|fbox)|([{}])")
"""The start of a box, an escaped brace, a LaTeX line break, a brace."""
_BARE_BOX: Final = re.compile(r"(?<!\\)(\\(?:boxed|fbox))\s+(-?[\w.]+)")
_start = threading.Lock()


class Verdict(NamedTuple):
    """Whether an answer is right, the answer that was extracted, and how it was compared.

    `how` is "maths"; "text" for words, and if one of the sides cannot be parsed, or not in time; "empty" for an empty
    response.
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
    """Check the answer of a response, the part after its thought, against the reference.

    The answer is the last \\boxed{} (or several joined by "and" or "or"), else the text after "####", else that after
    "answer is" or the like, else what math-verify extracts. Raises ValueError if the checker is not installed.
    """
    response = fold_text(remove_thought(response))
    if not response.strip():
        return Verdict(False, "", "empty")
    answer, origin = _find_answer(response)
    reference = fold_text(reference)
    if max(len(answer), len(reference)) <= SHORT and (verdict := _compare_at_once(answer, origin, reference)):
        return verdict
    text = "" if origin == "box" else response.rpartition("####")[2][-LONGEST:]
    comparison = (answer[-LONGEST:], origin, text, reference)
    if verdict := _known.get(comparison) or await _run_in_worker(_compare, *comparison):
        _remember(comparison, verdict)
        return verdict
    return Verdict(normalize_answer(reference) in _texts(answer), answer, "text")


_known: Final[dict[tuple[str, ...], Verdict]] = {}
"""What workers found out last: the solutions of a search have few different answers."""


def _remember(comparison: tuple[str, ...], verdict: Verdict) -> None:
    _known[comparison] = verdict
    if len(_known) > KNOWN:
        del _known[next(iter(_known))]


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
    if isinstance(answer, list | tuple) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, int | float) and answer == answer:  # not NaN, which an empty cell becomes
        return str(answer)
    if isinstance(answer, str) and (reference := answer.rpartition("####")[2].strip()):
        return last_boxed(reference) or reference
    solution = record.get("solution")
    if isinstance(solution, str) and (reference := last_boxed(solution) or ""):
        return reference
    raise ValueError(
        "no right answer: a record needs `answer` (GSM8K's ends in '#### 12') or a `solution` with \\boxed{}; "
        "--field answer=COLUMN names another column"
    )


def last_boxed(text: str) -> str | None:
    """Return the content of the last non-empty \\boxed{} of a text, with matching braces, or None."""
    boxes = _boxes(_add_braces(text))
    return boxes[-1][2] if boxes else None


def joined_boxes(text: str) -> list[str]:
    """Return the content of the last \\boxed{}, after those of the boxes that only "and", "or" or a comma separates."""
    text = _add_braces(text)
    boxes = _boxes(text)
    contents = [boxes[-1][2]] if boxes else []
    for (_, end, content), (start, _, _) in zip(reversed(boxes[:-1]), reversed(boxes), strict=False):
        if not _BETWEEN_BOXES.fullmatch(text[end:start]):
            break
        contents.insert(0, content)
    return list(dict.fromkeys(contents))


def _add_braces(text: str) -> str:
    """Return a text with braces around the content of boxes that have none: TeX takes the next sign."""
    return _BARE_BOX.sub(r"\1{\2}", text)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Return start, end and content of the non-empty boxes of a text, innermost ones only if they are the content."""
    open_starts: list[tuple[int, int]] = []  # one per open brace: where a box and its content start, or 0 and 0
    spans: dict[int, tuple[int, int]] = {}
    for match in _BRACE.finditer(text):
        box, brace = match.groups()
        if box or brace == "{":
            open_starts.append((match.start(), match.end()) if box else (0, 0))
        elif brace and open_starts:
            start, content_start = open_starts.pop()
            if content_start:
                spans[content_start] = (start, match.start())
    boxes = [(spans[key][0], spans[key][1] + 1, text[key : spans[key][1]].strip()) for key in sorted(spans)]
    return [box for box in boxes if box[2]]


def extract_answer(response: str) -> str:
    """Return the answer of a response: its last \\boxed{}, the text after "####" or "answer is", or the last line."""
    return _find_answer(response)[0]


def _find_answer(response: str) -> tuple[str, Origin]:
    """Return the answer of a response, and what says that it is the answer: "" if nothing does."""
    if boxes := joined_boxes(response):
        return ", ".join(boxes), "box"
    lines = [line for line in response.split("\n") if line.strip(" \t*")]
    for number, line in reversed(list(enumerate(lines))):
        if matches := list(_MARKER.finditer(line)):
            # The answer may be on the line after "Answer:".
            for text in (line[matches[-1].end() :], *lines[number + 1 : number + 2]):
                if answer := _strip_answer(text):
                    return answer, "marker"
    return (_strip_answer(lines[-1]) if lines else ""), ""


def _strip_answer(text: str) -> str:
    return text.lstrip(" \t:*").rstrip(" \t*.。")


def _texts(answer: str) -> list[str]:
    """Return an answer and its first sentence, normalized, without empty ones."""
    return list(filter(None, map(normalize_answer, _sentences(answer))))


def _sentences(answer: str) -> list[str]:
    return list(dict.fromkeys((answer, _SENTENCE_END.split(answer, maxsplit=1)[0])))


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

    return ProcessPool(max_workers=_worker_count(), context=get_context("loky"), initializer=_initialize_worker)


def _worker_count() -> int:
    """The number of worker processes. Raises ValueError for an AGENTSYS_CHECK_WORKERS that is not at least 1."""
    text = os.environ.get(WORKERS, "")
    if not text:
        return min(4, os.cpu_count() or 1)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{WORKERS}={text}: give the number of processes that check answers, at least 1")
    return int(text)


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


def _compare_at_once(answer: str, origin: Origin, reference: str) -> Verdict | None:
    """Compare words, equal texts and quantities without math-verify; None if only it can say whether they are equal."""
    right = _compare_words(answer, reference)
    if right is not None or (origin and same_word(answer)):  # as mathematics, "no" would equal "on"
        return Verdict(bool(right), answer, "text")
    answer = _without_letter(answer)
    number = answer if origin == "box" else next(filter(read_quantity, _sentences(answer)), "")
    first, second = read_quantity(number), read_quantity(reference)
    if first and second:
        are_equal, bare = equal(first, second), _is_bare(first) and _is_bare(second)
        if bare or are_equal or contradict(first, second):
            return Verdict(are_equal, number, "maths")
    return Verdict(True, answer, "maths") if origin and _bare_text(answer) == _bare_text(reference) else None


def _bare_text(answer: str) -> str:
    """An answer without what TeX does not show; its letters keep their case, which has a meaning in mathematics."""
    return re.sub(r"\\(?:left|right)(?![A-Za-z])|[\s$]|\\[ !,;]", "", answer).rstrip(".")


def _is_bare(quantity: Quantity) -> bool:
    """Whether a quantity is only a number, of which another number is not another form."""
    return not (quantity.unit or quantity.name or quantity.commas)


def _without_letter(answer: str) -> str:
    """An answer without the letter of a choice before it: "B) 12" for a reference that is not a letter."""
    choice = choice_letter(answer)
    return choice[1] if choice and choice[1] else answer


def _compare(answer: str, origin: Origin, text: str, reference: str) -> Verdict | None:
    """In a worker: compare an answer with a reference; None if one of them is not mathematics.

    An answer that is not in a box and no quantity is what math-verify extracts from the text.
    """
    if verdict := _compare_at_once(answer, origin, reference):
        return verdict
    answer = _without_letter(answer)
    if origin != "box":
        quantity = next(filter(read_quantity, _sentences(answer)), None)
        if quantity is None:
            return _compare_parsed(separate_scripts(text), _in_box(_mathematics(reference)))
        answer = quantity
    if {_brackets(answer), _brackets(reference)} == {"{}", "()"}:  # a set is no point and no interval
        return Verdict(False, answer, "maths")
    return _compare_parsed(_in_box(_mathematics(answer)), _in_box(_mathematics(reference)))


def _brackets(answer: str) -> str:
    """Return "{}" for a set, "()" for a tuple or an open interval, else ""."""
    bare = re.sub(r"\\(?:left|right)|[\s$]", "", answer)
    if bare.startswith("\\{") and bare.endswith("\\}"):
        return "{}"
    return "()" if bare.startswith("(") and bare.endswith(")") and "," in bare else ""


def _compare_words(answer: str, reference: str) -> bool | None:
    """Whether a reference that is a letter of a choice, yes or no, or words is the answer; None if it is neither."""
    if expected := choice_letter(reference):
        chosen = choice_letter(answer)
        if chosen and chosen[1] and expected[1]:
            return chosen[0] == expected[0] and normalize_answer(chosen[1]) == normalize_answer(expected[1])
        return chosen[0] == expected[0] if chosen else None
    if word := same_word(reference):
        return same_word(answer) == word
    if is_words(reference) and not read_quantity(reference):
        return normalize_answer(reference) in _texts(answer)
    return None


def _mathematics(answer: str) -> str:
    """Return an answer as math-verify reads it; of a quantity only the number, unless its comma may separate two."""
    quantity = read_quantity(answer)
    return quantity.latex() if quantity and not quantity.name and not quantity.commas else to_latex(answer)


def _compare_parsed(response: str, reference: str) -> Verdict | None:
    from math_verify import verify

    gold, answer = _parse(reference), _parse(response)
    if gold is None or answer is None:
        return None
    return Verdict(bool(verify(gold, answer, allow_set_relation_comp=True)), str(answer[-1]), "maths")


def _group(answers: Sequence[str]) -> list[int]:
    """In a worker: see `group_equal_answers`."""
    from math_verify import verify

    answers = [fold_text(answer) for answer in answers]
    texts = [normalize_answer(answer) for answer in answers]
    quantities = [read_quantity(answer) for answer in answers]
    parsed = [None if _is_text(answer) else _parse(_in_box(_mathematics(answer))) for answer in answers]

    def are_equal(i: int, j: int) -> bool:
        first, second = quantities[j], quantities[i]
        if first and second and (equal(first, second) or contradict(first, second)):
            return equal(first, second)
        return texts[i] == texts[j] or bool(parsed[i] and parsed[j] and verify(parsed[j], parsed[i]))

    firsts: list[int] = []
    for i in range(len(answers)):
        firsts.append(next((j for j in dict.fromkeys(firsts) if are_equal(i, j)), i))
    return firsts


def _is_text(answer: str) -> bool:
    return bool(same_word(answer)) or (is_words(answer) and not read_quantity(answer))


@lru_cache(maxsize=1024)
def _parse(text: str) -> list[Any] | None:
    """Parse a text with math-verify, which prefers a \\boxed{}; None if there is no mathematical expression."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    results = parse(text, extraction_config=[LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()])
    return list(results) if results and not isinstance(results[0], str) else None
