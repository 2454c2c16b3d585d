"""Long texts in entries: what is counted, as the value of a step and as an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.longdpo.entries import Entries, EntryScores, read_entries, score_entries, score_step, split_entries
from agentsys.graphs.longdpo.system import Context
from tests.support.evaluations import Run, read_report
from tests.support.long_responses import scores
from tests.support.longdpo_script import STATED, Script
from tests.support.toys import write_lines

TASK = {
    "label": "Week", "count": 4,
    "required": [{"at": [1], "words": ["apple pie"]}, {"at": [2, 3, 4], "words": ["fish", "cod"]}],
}  # fmt: skip
TEXT = """Here is the menu.
#*# Week 1 (January): Apple
pie, then soup.
**Week 2**: Codfish with rice.
Week 3: fish, and next to it the week 9 leftovers.
week 3: Meat."""


def test_entries_are_found_by_their_headings() -> None:
    texts = split_entries(TEXT, "Week")
    assert [*texts] == [1, 2, 3] and texts[2] == "**: Codfish with rice.\n"
    assert texts[3].startswith(": fish"), "the first of two with one number"
    assert split_entries("no heading: Week 1", "Week") == {}


def test_entries_and_requirements_are_counted() -> None:
    """Of four requirements two hold: in week 2 "cod" is a part of a word, and there is no week 4."""
    counted = score_entries(Entries.model_validate(TASK), TEXT)
    assert counted == EntryScores(completed=0.75, items=0.5, items_present=pytest.approx(2 / 3))
    better = TEXT.replace("Apple", "an APPLE").replace("Codfish", "Cod") + "\n- Week 4 - no meat, fish"
    assert score_entries(Entries.model_validate(TASK), better) == EntryScores(1.0, 1.0, 1.0)
    assert score_entries(Entries(label="Week", count=4), TEXT) == EntryScores(0.75, None, None)
    assert score_entries(Entries.model_validate(TASK), "nothing") == EntryScores(0.0, 0.0, None)


def test_words_without_spaces_between_them() -> None:
    task = Entries.model_validate({"label": "周", "count": 1, "required": [{"at": [1], "words": ["苹果"]}]})
    assert score_entries(task, "周 1：吃苹果派。") == EntryScores(1.0, 1.0, 1.0)


def test_the_scores_of_a_step() -> None:
    """Two of four entries in 20 words: 40 words if it goes on like this."""
    text = "Week 1: an apple pie and " + "word " * 4 + "\nWeek 2: no cod " + "word " * 6
    record = {"entries": TASK, "length": 40}
    assert score_step(record, text, final=False) == pytest.approx({"completed": 3.0, "items": 3.0, "length": 5.0})
    ended = score_step(record, text, final=True)
    assert ended == pytest.approx({"completed": 3.0, "items": 3.0, "length": 3.0}), "half of the words: S_l is 50"
    assert score_step(record, "", final=False) == {"completed": 1.0, "items": 1.0, "length": 1.0}
    assert [*score_step({"entries": {"label": "Week", "count": 4}}, text, final=False)] == ["completed"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("Week", "entries: Input should be a valid dictionary"),
        ({"label": "Week"}, "entries.count: Field required"),
        ({"label": " ", "count": 2}, "entries.label: String should match"),
        ({"label": "Week", "count": 0}, "entries.count: Input should be greater than or equal to 1"),
        ({**TASK, "count": 3}, "entries: a requirement is at entry 4, but count is 3"),
        ({**TASK, "items": []}, "entries.items: Extra inputs are not permitted"),
        ({**TASK, "required": [{"at": [], "words": ["x"]}]}, "entries.required.0.at: List should have at least 1 item"),
        ({**TASK, "required": [{"at": [1], "words": [" "]}]}, "entries.required.0.words.0: String should match"),
    ],
)
def test_malformed_entries_are_one_line(entries: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_entries({"entries": entries})
    assert str(error.value).startswith(message) and str(error.value).endswith("see docs/longdpo.md")
    assert read_entries({}) is None and read_entries({"entries": None}) is None


STEPS = {"0/0": "Week 1: soup.\n", "0/1": "Week 1: apple pie.\n", "0/2": "Lovely.\n",
         "1/0": "Week 2: cod.\nWeek 3: fish.\n", "1/1": "Week 2: meat.\n", "1/2": "That was it.\n"}  # fmt: skip
REQUEST = {"prompt": "Four weeks of menus.", "entries": TASK}
Layers = Callable[..., Any]


async def test_the_value_of_a_step_is_counted_without_a_judge(run: Layers) -> None:
    script = Script(STEPS, {})
    result = await run(script, request=REQUEST, value="entries", rejected="worst")
    assert result["response"] == STEPS["0/1"] + STEPS["1/0"]
    first, second = result["layers"]
    assert [step["scores"] for step in first["candidates"]] == [[2.0, 1.0], [2.0, 2.0], [1.0, 1.0]]
    assert [step["value"] for step in second["candidates"]] == [4.0, 2.5, 2.0]
    assert {role for role, _, _ in script.calls} == {"writer"}


async def test_the_critic_is_told_the_criterion(run: Layers) -> None:
    """The best of the first layer has more entries, another one more items."""
    steps = {"0/0": "Week 1: soup.\nWeek 2: soup.\nWeek 3: soup.\n", "0/1": "Week 2: cod.\n", "0/2": "Lovely.\n"}
    rewritten = "Week 1: apple pie.\nWeek 2: cod.\nWeek 3: fish.\n"
    script = Script({**steps, "0/0/rewrite": rewritten}, {})
    result = await run(script, request=REQUEST, value="entries", depth=1, eta=5.0)
    assert result["response"] == rewritten and result["layers"][0]["candidates"][3]["value"] == 4.0
    ((key, request),) = [(key, request) for role, key, request in script.calls if role == "critic"]
    assert key == "0/0/critic/items" and "each entry contains what the request requires of it" in request


async def test_a_record_without_entries_has_no_counted_value(run: Layers) -> None:
    with pytest.raises(ValueError, match=r"the record has no field 'entries' .* with --value judge it needs none"):
        await run(Script(STEPS, {}), value="entries")


def test_a_judge_that_would_not_be_asked_is_an_error() -> None:
    with pytest.raises(ValueError, match="judge_model is not used with value=entries, which asks no judge; remove it"):
        replace(STATED, value="entries", judge_model="http://judge")
    assert Context(value="entries").value == "entries"


def test_entries_are_evaluated(evaluate: Run, requests: Path, tmp_path: Path) -> None:
    """Beside S_l and S_q; a response that another system wrote, and one request that names no entries."""
    write_lines(requests, [{"id": "menu", **REQUEST, "length": 30}, {"id": "free", "prompt": "Write."},
                           {"id": "bad", "prompt": "x", "entries": {}}])  # fmt: skip
    texts = write_lines(
        tmp_path / "theirs.jsonl",
        [{"prompt": REQUEST["prompt"], "response": TEXT}, {"prompt": "Write.", "response": "x"}],
    )
    code, output, _ = evaluate("--responses", texts, "--out", tmp_path / "out")
    report = read_report(tmp_path / "out")
    result = report["systems"]["theirs"]["entries"]
    assert code == 3 and report["unusable"][0]["reason"].startswith("entries.label: Field required")
    assert {name: (score["value"], score["n"]) for name, score in result.items()} == {
        "completed": (75.0, 1), "items_present": (pytest.approx(200 / 3), 1), "items": (50.0, 1),
    }  # fmt: skip
    line = next(line for line in output.splitlines() if line.split()[:1] == ["theirs"] and "75.0" in line)
    assert "66.7" in line and "50.0" in line
    assert scores(tmp_path / "out")["menu"]["theirs"]["entries"]["completed"] == 0.75
    assert scores(tmp_path / "out")["free"]["theirs"]["entries"] is None
