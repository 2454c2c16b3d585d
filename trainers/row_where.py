"""Conditions over the scores of rows: `--where 'rejected_tried >= 4 and chosen_low > 0.3'`.

The text is parsed as a Python expression and every part of it must be of a kind listed here; it is never evaluated as
Python. What remains is arithmetic and comparisons of numbers: no call, attribute, subscript, power or long text.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentsys.trainers.loading import TrainerError

Values = Mapping[str, Any]
"""The scores of a row by name, and `kind`."""
Term = Callable[[Values], Any]
"""Computes a part of an expression for a row. Raises KeyError for a score that the row does not have."""

LONGEST: Final = 500
"""Characters of an expression."""

_ARITHMETIC: Final[Mapping[type, Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_COMPARISONS: Final[Mapping[type, Callable[[Any, Any], bool]]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_SIGNS: Final[Mapping[type, Callable[[Any], Any]]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition."""

    text: str
    term: Term

    def drop_reason(self, values: Values) -> str | None:
        """Why a row is dropped, or None. Raises TrainerError for values that cannot be compared or computed."""
        try:
            return None if self.term(values) else f"not {self.text}"
        except KeyError as err:
            return f"no score {err.args[0]} (--where)"
        except ZeroDivisionError:
            return f"division by zero in {self.text} (--where)"
        except TypeError as err:
            raise TrainerError(f"--where {self.text!r}: {err}; compare numbers with numbers, kind with text") from None


def parse_condition(text: str) -> Condition:
    """Parse `--where`. Raises TrainerError for anything but numbers, scores, arithmetic, comparisons, and, or, not."""
    if len(text) > LONGEST:
        raise TrainerError(f"--where: {len(text)} characters; an expression has at most {LONGEST}")
    try:
        term = _term_of(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise TrainerError(
            f"--where {text!r} is no expression; write for example 'rejected_tried >= 4 and chosen_low > 0.3'"
        ) from None
    except _Refused as err:
        raise TrainerError(
            f"--where {text!r}: {err} is not allowed; use scores, numbers, + - * /, comparisons, and, or, not, "
            "and kind == 'step'"
        ) from None
    return Condition(text.strip(), term)


class _Refused(Exception):
    """A part of an expression that is not on the list."""


def _term_of(node: ast.expr) -> Term:
    """The function of one part of an expression. Raises _Refused."""
    match node:
        case ast.Constant(value=int() | float() | str() as value) if not isinstance(value, bool):
            return lambda values: value
        case ast.Name(id=name):
            return lambda values: values[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _binary(_ARITHMETIC[type(op)], _number_of(left), _number_of(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
            sign, inner = _SIGNS[type(op)], _term_of(operand)
            return lambda values: sign(inner(values))
        case ast.BoolOp(op=op, values=parts):
            terms, choose = [_term_of(part) for part in parts], all if isinstance(op, ast.And) else any
            return lambda values: choose(term(values) for term in terms)
        case ast.Compare(left=left, ops=ops, comparators=rights) if all(type(op) in _COMPARISONS for op in ops):
            sides = [_term_of(side) for side in (left, *rights)]
            pairs = [_binary(_COMPARISONS[type(op)], *sides[i : i + 2]) for i, op in enumerate(ops)]
            return lambda values: all(pair(values) for pair in pairs)
    raise _Refused(ast.unparse(node)[:40])


def _number_of(node: ast.expr) -> Term:
    """A side of an arithmetic operation, which is no text: kind * 10000000000 would fill the memory."""
    if getattr(node, "id", "") == "kind" or isinstance(getattr(node, "value", None), str):
        raise _Refused(f"arithmetic with {ast.unparse(node)[:20]}, a text,")
    return _term_of(node)


def _binary(function: Callable[[Any, Any], Any], left: Term, right: Term) -> Term:
    return lambda values: function(left(values), right(values))
