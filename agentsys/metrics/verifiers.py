"""Verifiers by name: is the answer of a response right?

maths                   as mathematics (agentsys/metrics/maths.py)
exact                   the same text, ignoring case, white space and a final period
contains                the reference occurs in the response
choice                  the same letter of a multiple choice
code                    the record's `tests` pass after the response's last block of Python, in a sandbox
python:MODULE:FUNCTION  a function of yours: (response, record) -> bool
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from agentsys.metrics.maths import Verdict, check_answer, extract_answer, reference_of
from agentsys.metrics.maths_text import choice_letter, fold_text, normalize_answer, remove_thought
from agentsys.metrics.sandbox import run_program
from agentsys.models.spec import served_to_browsers

NAMES: Final = ("maths", "exact", "contains", "choice", "code")
PYTHON: Final = "python:"
_BLOCK: Final = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)

Function = Callable[[str, Mapping[str, Any]], Any]


def check_verifier(name: str) -> None:
    """Raises ValueError for an unknown verifier, and in Studio for one that runs code."""
    if name not in NAMES and not name.startswith(PYTHON):
        raise ValueError(f"verifier: '{name}' is none of {', '.join(NAMES)} and python:MODULE:FUNCTION")
    if served_to_browsers() and (name == "code" or name.startswith(PYTHON)):
        raise ValueError(f"verifier: in Studio, {name.partition(':')[0]} is not allowed, because it runs code")
    if name.startswith(PYTHON):
        _load_function(name)


@lru_cache(maxsize=16)
def _load_function(name: str) -> Function:
    module, _, attribute = name.removeprefix(PYTHON).partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute or "-")
    except (ImportError, AttributeError, ValueError) as err:
        raise ValueError(f"verifier: {name}: {err}; give python:MODULE:FUNCTION of an importable module") from None
    if not callable(function):
        raise ValueError(f"verifier: {name} is no function")
    verifier: Function = function
    return verifier


def expected_of(name: str, record: Mapping[str, Any]) -> Any:
    """What a verifier compares a response with. Raises ValueError for a record that lacks it."""
    if name.startswith(PYTHON):
        return dict(record)
    return tests_of(record) if name == "code" else reference_of(record)


def tests_of(record: Mapping[str, Any]) -> str:
    """The unit tests of a record: the text `tests`, or a list of lines. Raises ValueError for a record without them."""
    tests = record.get("tests")
    if isinstance(tests, list | tuple) and all(isinstance(line, str) for line in tests):
        tests = "\n".join(tests)
    if isinstance(tests, str) and tests.strip():
        return tests
    raise ValueError("no tests: a record needs `tests`, lines of Python that fail with an error if the code is wrong")


async def verify(name: str, response: str, expected: Any, *, unsafe_code: bool = False) -> Verdict:
    """Check a response. `expected` is that of `expected_of`. Raises ValueError, also where there is no sandbox.

    A function of the user that raises an error fails the record.
    """
    if name == "maths":
        return await check_answer(response, expected)
    response = fold_text(remove_thought(response))
    if not response.strip():
        return Verdict(False, "", "empty")
    if name.startswith(PYTHON):
        right = _load_function(name)(response, expected)
        return Verdict(bool(await right if inspect.isawaitable(right) else right), extract_answer(response), "text")
    if name == "code":
        return await _run_tests(response, expected, unsafe_code)
    answer = extract_answer(response)
    right = {"exact": _is_same, "contains": _is_contained, "choice": _is_choice}[name](response, answer, expected)
    return Verdict(right, answer, "text")


def _is_same(response: str, answer: str, expected: str) -> bool:
    return normalize_answer(answer) == normalize_answer(expected)


def _is_contained(response: str, answer: str, expected: str) -> bool:
    text, part = (" ".join(fold_text(side).casefold().split()) for side in (response, expected))
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


def _is_choice(response: str, answer: str, expected: str) -> bool:
    chosen, right = choice_letter(answer), choice_letter(expected)
    return chosen is not None and right is not None and chosen[0] == right[0]


async def _run_tests(response: str, tests: str, unsafe: bool) -> Verdict:
    """The answer is a name of the code, so that equal programs are one answer."""
    blocks = _BLOCK.findall(response)
    code = blocks[-1] if blocks else response
    outcome = await run_program(f"{code}\n\n{tests}\n", unsafe=unsafe)
    return Verdict(outcome.passed, f"code {hashlib.sha256(code.strip().encode()).hexdigest()[:12]}", "text")
