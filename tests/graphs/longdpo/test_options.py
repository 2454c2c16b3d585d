"""LongDPO's options: step lengths, ranges, models that would not be used; and invalid judgments."""

from __future__ import annotations

from typing import Any

import pytest

from agentsys.commands import command, run_app
from agentsys.graphs.longdpo.judge import PRINCIPLES, Judgment, check_weights
from agentsys.graphs.longdpo.search import SearchContext
from agentsys.graphs.longdpo.system import Context

CONTEXTS: list[SearchContext] = []


def keep(context: SearchContext) -> None:
    """A command that keeps its options."""
    CONTEXTS.append(context)


def test_former_options_are_accepted() -> None:
    assert run_app(command(keep), ["--descents", "5", "--at-once", "2"]) == 0
    assert (CONTEXTS[-1].simulations, CONTEXTS[-1].parallel) == (5, 2)
    assert run_app(command(keep), ["--simulations", "3", "--parallel", "1"]) == 0
    assert (CONTEXTS[-1].simulations, CONTEXTS[-1].parallel) == (3, 1)


def test_a_steps_tokens_follow_the_required_length() -> None:
    assert [Context().tokens(length) for length in (0, 499, 500, 3000, 9000)] == [512, 512, 2048, 3000, 8192]
    assert Context(step_tokens=64).tokens(9000) == 64
    with pytest.raises(ValueError, match="width: 0 is below 1"):
        Context(width=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": float("nan")}, "eta: nan is not a finite number"),
        ({"eta": -1.0}, "eta: -1.0 is below 0"),
        ({"eta": 30.0}, "eta: 30.0 is above 5"),
        ({"similarity": float("inf")}, "similarity: inf is not a finite number"),
        ({"similarity": 7.0}, "similarity: 7.0 is above 1"),
        ({"nearest": -1}, "nearest: -1 is below 0"),
        ({"simulations": 8, "lookahead": 1}, "simulations: 8 with lookahead 1 can write nothing below"),
        ({"alpha": -3.0}, "alpha: -3.0 is below 0"),
        ({"choice_seed": 2**63}, f"choice_seed: {2**63} is out of range"),
        ({"width": 10**20}, f"width: {10**20} is out of range"),
    ],
)
def test_a_number_out_of_range_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchContext(**options)


def test_a_judge_that_would_not_be_used_is_an_error() -> None:
    with pytest.raises(ValueError, match="judge_model is not used with weights=probabilities; set grader_model"):
        Context(judge_model="http://judge")
    with pytest.raises(ValueError, match="grader_model is not used with weights=stated; set judge_model"):
        Context(weights="stated", grader_model="http://judge")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 0, 0, 0.5, 0.5], None),
        ([0, 0, 0, 0.5, 0.4], None),
        ([0, 0, 0, 0, 0], "accuracy: its five weights make 0, not 1"),
        ([5, 5, 5, 5, 5], "accuracy: its five weights make 25, not 1"),
        ([0.2, 0.2, 0.2, 0.2, 0.2], "accuracy: five equal weights prefer no score"),
    ],
)
def test_weights_that_are_no_judgment(row: list[float], message: str | None) -> None:
    rows = {name: [0.0, 0.0, 1.0, 0.0, 0.0] for name in PRINCIPLES} | {"accuracy": row}
    problem = check_weights(Judgment(analysis="", **rows), {})
    assert problem is None if message is None else (problem or "").startswith(message)
