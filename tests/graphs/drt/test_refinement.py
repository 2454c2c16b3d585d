"""DRT as a translator: its best and its last draft, without a thought, and in the evaluation of translations."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsys.graphs.drt.refinement import graph
from agentsys.graphs.translate_evaluate import main
from tests.support.drt import TEXT, TEXTS, Runner, result_of, script_rules, small_rules
from tests.support.evaluations import read_lines, read_report, run_command
from tests.support.toys import write_lines


def test_the_best_and_the_last_draft_without_a_thought(run: Runner) -> None:
    result = result_of(run(script_rules((40, 70, 55, 50)), drt=graph))
    assert (result["trans"], result["last"]) == (TEXTS[1], TEXTS[3])
    assert "thought" not in result and "targets" not in result


def test_the_last_candidate_is_the_one_that_was_sampled_last(run: Runner) -> None:
    trace = run([*small_rules(), *script_rules((70, 40, 55))], drt=graph, refiner="candidates")
    assert (result_of(trace)["trans"], result_of(trace)["last"]) == (TEXTS[0], TEXTS[2])
    assert not {"contrast", "narrator", "short_narrator"} & {call.role for call in trace.calls}


def test_too_few_steps_for_training_data_are_a_translation(run: Runner) -> None:
    trace = run(script_rules((95,)), drt=graph)
    assert trace.outcome == "kept" and result_of(trace)["trans"] == result_of(trace)["last"] == TEXTS[0]


def test_without_a_draft_there_is_no_translation(run: Runner) -> None:
    bad = {"role": "draft", "replies": ["The lamp shone."]}
    trace = run(script_rules((), TEXTS, bad), drt=graph)
    assert trace.outcome == "dropped" and "last" not in result_of(trace)


def test_the_evaluation_compares_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], isolated_cache: Path) -> None:
    pairs = write_lines(tmp_path / "pairs.jsonl", [{"id": "r", "text": TEXT, "trans": TEXTS[1]}])
    script = write_lines(tmp_path / "replies.jsonl", [*small_rules(), *script_rules((70, 40, 55))])
    options = (
        "--pairs",
        pairs,
        "--model",
        f"scripted:{script}",
        "--systems",
        "drt-last,drt-best",
        "--drt-profile",
        "small",
    )
    code, output, _ = run_command(main, capsys, *options, "--out", tmp_path / "out")
    assert code == 0, output
    [line] = read_lines(tmp_path / "out" / "translations.jsonl")
    assert {name: system["translation"] for name, system in line["systems"].items()} == {
        "drt-last": TEXTS[2],
        "drt-best": TEXTS[0],
    }
    systems = read_report(tmp_path / "out")["systems"]
    assert systems["drt-best"]["cost"]["calls"] == systems["drt-last"]["cost"]["calls"] == 7
