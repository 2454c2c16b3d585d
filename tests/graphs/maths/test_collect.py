"""Records of stepwise maths that cannot be used, and the command graphs/maths_collect.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agentsys.collect import RunOptions, acollect
from agentsys.commands import command, run_app
from agentsys.graphs.maths.search import Context, graph
from agentsys.graphs.maths_collect import main
from tests.support.maths_policy import QUESTION, RECORD, Policy
from tests.support.toys import one_error, write_lines

Start = Callable[..., Policy]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": QUESTION}, "no right answer: a record needs"),
        ({"question": " ", "answer": "17"}, "no question: a record needs"),
    ],
)
async def test_an_unusable_record_fails(start: Start, tmp_path: Path, record: dict[str, str], reason: str) -> None:
    start()
    await acollect(graph, [record], tmp_path / "run", context=Context(), options=RunOptions(no_cache=True))
    (line,) = (tmp_path / "run" / "failed.jsonl").read_text().splitlines()
    assert reason in json.loads(line)["reason"]


async def test_math_records_have_other_fields(start: Start) -> None:
    start()
    record = {"problem": QUESTION, "solution": r"It is \boxed{17}."}
    result = await graph.ainvoke(record, context=Context(simulations=2, width=4, depth=2))
    assert result["question"] == QUESTION and result["right"]


async def test_a_server_without_token_ids_cannot_be_used(start: Start, tmp_path: Path) -> None:
    start(returns_ids=False)
    await acollect(graph, [RECORD], tmp_path / "run", context=Context(), options=RunOptions(no_cache=True))
    (line,) = (tmp_path / "run" / "failed.jsonl").read_text().splitlines()
    assert "returns no token ids" in json.loads(line)["reason"]


def test_the_command(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    monkeypatch.setenv("COLUMNS", "200")
    questions = write_lines(
        tmp_path / "questions.jsonl", [{**RECORD, "id": "a"}, {"id": "b", "question": "No answer?"}]
    )
    options = ["--out", tmp_path / "run", "--no-cache", "--width", 4, "--depth", 4, "--simulations", 6]
    arguments = [str(option) for option in ("--input", questions, *options)]
    assert run_app(command(main), arguments) == 3
    printed = capsys.readouterr().out
    assert "solved at least once" in printed and "1 of 1" in printed and "no right answer" in printed
    assert run_app(command(main), [str(option) for option in options]) == 2
    assert "--input: name a file" in one_error(capsys.readouterr().err)
    assert run_app(command(main), [*arguments, "--width", "0"]) == 2
    assert "width: 0 is below 1" in one_error(capsys.readouterr().err)
