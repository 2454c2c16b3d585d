"""agentsys/evaluation/run.py: systems as collect runs, checked before any call and resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from agentsys.collect.limits import BudgetSpent, TooManyFailures
from agentsys.commands import run_guarded
from agentsys.evaluation.run import OutputOptions, SystemRun, choose_systems, collect_systems
from agentsys.models.errors import SpecError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.prompt import Prompt
from agentsys.records import InputError
from agentsys.roles import Role
from tests.support.evaluations import COLLECT
from tests.support.toys import one_node

pytestmark = pytest.mark.usefixtures("isolated_cache")

CALLS: list[str] = []
"""The text of every record that went through a graph."""
FAILING: set[str] = set()
"""Texts at which the graph fails."""


@dataclass(frozen=True)
class Context:
    """A context with a model."""

    model: str = "scripted:nobody.jsonl"


def count(state: dict[str, Any]) -> dict[str, Any]:
    CALLS.append(state["text"])
    if state["text"] in FAILING:
        raise ValueError("it failed")
    return {"reply": len(state["text"])}


def systems(out: Path, *texts: str, context: Any = None) -> list[SystemRun]:
    CALLS.clear()
    records = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    return [SystemRun(name, one_node(count, name), context, records, out / name) for name in ("one", "two")]


def replies(runs: list[SystemRun], output: OutputOptions | None = None) -> dict[str, list[Any]]:
    """The replies of each system, None where it failed."""
    by_system = {}
    for run, traces in collect_systems(runs, output or OutputOptions(), Path("."), "text"):
        by_id = {trace.id: trace.result and trace.result["reply"] for trace in traces}
        assert by_id.keys() == {record["id"] for record in run.records}
        by_system[run.name] = [by_id[record["id"]] for record in run.records]
    return by_system


def test_systems_run_in_order_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replies(systems(tmp_path, "a", "bb")) == {"one": [1, 2], "two": [1, 2]} and len(CALLS) == 4
    assert capsys.readouterr().err == "one (1 of 2)\ntwo (2 of 2)\n"
    assert replies(systems(tmp_path, "a", "bb", "ccc")) == {"one": [1, 2, 3], "two": [1, 2, 3]}
    assert CALLS == ["ccc", "ccc"], "only what is missing"
    assert replies(systems(tmp_path, "a")) == {"one": [1], "two": [1]} and not CALLS, "a smaller sample is read alone"
    assert (tmp_path / "one" / "requests.sqlite").exists(), "each system has its own request cache"


def test_the_progress_names_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agentsys.progress.LINE_SECONDS", -1)
    replies(systems(tmp_path, "a", "bb"), OutputOptions(price="1,2"))
    lines = [line for line in capsys.readouterr().err.splitlines() if " of 2 records done" in line]
    assert " one: 2 of 2 records done, about 0 s left, 0 in progress, 2 kept, " in lines[len(lines) // 2 - 1]
    assert " two: 2 of 2 records done, about 0 s left, 0 in progress, 2 kept, " in lines[-1]
    assert lines[-1].endswith(", cost 0.0000")


def test_a_shared_cache(tmp_path: Path) -> None:
    replies(systems(tmp_path, "a"), OutputOptions(cache=tmp_path / "shared.sqlite"))
    assert (tmp_path / "shared.sqlite").exists() and not (tmp_path / "one" / "requests.sqlite").exists()


def test_failed_records_are_returned_and_retried(tmp_path: Path) -> None:
    FAILING.add("bb")
    assert replies(systems(tmp_path, "a", "bb")) == {"one": [1, None], "two": [1, None]}
    FAILING.clear()
    assert replies(systems(tmp_path, "a", "bb")) == {"one": [1, 2], "two": [1, 2]} and CALLS == ["bb", "bb"]


def test_a_folder_with_other_texts_is_refused_before_any_call(tmp_path: Path, capsys: Any) -> None:
    replies(systems(tmp_path, "a", "bb")[1:])
    capsys.readouterr()
    with pytest.raises(InputError, match=r"two: text 1 differs from the one that was evaluated there; choose .*--out"):
        replies(systems(tmp_path, "a", "other"))
    assert not CALLS and not (tmp_path / "one").exists() and not capsys.readouterr().err


def test_only_the_named_fields_are_compared(tmp_path: Path) -> None:
    [run] = systems(tmp_path, "a")[:1]
    replies([run])
    tagged = SystemRun(run.name, run.graph, None, [{"id": "0", "text": "a", "tag": "new"}], run.folder)
    tagged.check("text", ["text"])
    with pytest.raises(InputError, match="text 0 differs"):
        tagged.check("text")


def test_all_models_are_checked_before_any_call(tmp_path: Path) -> None:
    runs = [*systems(tmp_path, "a")[:1], *systems(tmp_path, "a", context=Context())[1:]]
    with pytest.raises(SpecError, match=r"nobody\.jsonl"):
        replies(runs)
    assert not CALLS and not (tmp_path / "one").exists()


def test_a_system_without_records_runs_nothing(tmp_path: Path) -> None:
    assert replies(systems(tmp_path)) == {"one": [], "two": []} and not (tmp_path / "one").exists()
    assert systems(tmp_path)[0].manifest() == {}


def test_a_stopped_run_ends_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        stopped = "interrupted"
        cost = None

    monkeypatch.setattr(COLLECT, lambda *args, **kwargs: Stopped())
    with pytest.raises(KeyboardInterrupt):
        replies(systems(tmp_path, "a"))


def test_output_options(tmp_path: Path) -> None:
    assert OutputOptions().folder("test-eval") == Path("runs/test-eval")
    assert OutputOptions(out=tmp_path).folder("test-eval") == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="this is a file; name a folder"):
        OutputOptions(out=tmp_path / "file").folder("test-eval")
    with pytest.raises(InputError, match="--in-flight 0"):
        OutputOptions(in_flight=0)
    for bad in ({"price": "1"}, {"price": "a,b"}, {"cost_budget": 5.0}, {"price": "1,1", "cost_budget": -1.0}):
        with pytest.raises(InputError, match=r"--price|--cost-budget"):
            OutputOptions(**bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--max-failures many"):
        OutputOptions(max_failures="many")


# Money and failures

MODEL = ScriptedChatModel(respond=lambda messages, call: "two words")
ROLE = Role(Prompt.parse("# user\n{{ text }}", "writer"))


async def ask_writer(state: dict[str, Any]) -> dict[str, Any]:
    CALLS.append(state["text"])
    return {"reply": len(await ROLE(MODEL, key="k", text=state["text"]))}


def paid_systems(out: Path, count: int) -> list[SystemRun]:
    """Two systems over records whose only call costs the same."""
    CALLS.clear()
    records = [{"id": str(i), "text": f"text {i % 10}"} for i in range(count)]
    return [SystemRun(name, one_node(ask_writer, name), None, records, out / name) for name in ("one", "two")]


def cost_of_a_record(tmp_path: Path) -> float:
    manifest_of = paid_systems(tmp_path / "measured", 1)
    replies(manifest_of, OutputOptions(price="1000000,1000000"))
    cost = float(manifest_of[0].manifest()["totals"]["cost"])
    assert cost > 0
    return cost


def test_the_price_of_each_system_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    each = cost_of_a_record(tmp_path)
    capsys.readouterr()
    replies(paid_systems(tmp_path, 3), OutputOptions(price="1000000,1000000"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["one (1 of 2)", f"one: cost {3 * each:,.4f}", "two (2 of 2)", f"two: cost {3 * each:,.4f}"]


@pytest.mark.parametrize("affordable", [1, 5, 80])
def test_a_budget_is_shared_by_all_systems_and_a_higher_one_resumes(tmp_path: Path, affordable: int) -> None:
    each, count = cost_of_a_record(tmp_path), 60

    def output(records: int) -> OutputOptions:
        return OutputOptions(price="1000000,1000000", cost_budget=records * each, in_flight=1)

    with pytest.raises(
        BudgetSpent, match=r"^the budget is spent: .* of --cost-budget .* rerun the same command"
    ) as err:
        replies(paid_systems(tmp_path, count), output(affordable))
    assert run_guarded_code(err.value) == 2
    assert affordable <= len(CALLS) < affordable + 10, "and the records in progress"
    done = len(CALLS)
    by_system = replies(paid_systems(tmp_path, count), output(2 * count))
    assert len(CALLS) == 2 * count - done, "what is finished is not paid again"
    assert by_system == {"one": [9] * count, "two": [9] * count}
    assert replies(paid_systems(tmp_path, count), output(1)) == by_system and not CALLS, "nothing is left to pay"


def test_a_budget_that_is_just_enough(tmp_path: Path) -> None:
    each = cost_of_a_record(tmp_path)
    output = OutputOptions(price="1000000,1000000", cost_budget=8 * each, in_flight=1)
    assert len(replies(paid_systems(tmp_path, 4), output)["two"]) == 4


def run_guarded_code(error: Exception) -> int:
    def fail() -> None:
        raise error

    with pytest.raises(typer.Exit) as end:
        run_guarded(fail)
    return int(end.value.exit_code)


@pytest.mark.parametrize(("limit", "counts"), [("2", "2 records failed"), ("", "20 records in a row"), ("0.5", "of")])
def test_failures_stop_an_evaluation(tmp_path: Path, limit: str, counts: str) -> None:
    """The advice does not name --retry-failed, which an evaluation does not have."""
    texts = [f"t{i}" for i in range(30)]
    FAILING.update(texts)
    try:
        with pytest.raises(TooManyFailures, match=counts) as err:
            replies(systems(tmp_path, *texts), OutputOptions(max_failures=limit))
        assert str(err.value).endswith("correct the cause and rerun the same command")
        assert not (tmp_path / "two").exists()
        assert replies(systems(tmp_path, *texts), OutputOptions(max_failures="none"))["two"] == [None] * 30
    finally:
        FAILING.difference_update(texts)


def test_choosing_systems() -> None:
    assert choose_systems("", ["a", "b"]) == ["a", "b"]
    assert choose_systems("b, a", ["a", "b", "c"]) == ["a", "b"], "in the order in which they run"
    with pytest.raises(InputError, match="--systems: there is no 'd'; there are a, b"):
        choose_systems("a,d", ["a", "b"])
