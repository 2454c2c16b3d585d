"""agentsys/evaluation/run.py: systems as collect runs, checked before any call and resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentsys.evaluation.run import OutputOptions, SystemRun, choose_systems, collect_systems
from agentsys.models.errors import SpecError
from agentsys.records import InputError
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


def test_choosing_systems() -> None:
    assert choose_systems("", ["a", "b"]) == ["a", "b"]
    assert choose_systems("b, a", ["a", "b", "c"]) == ["a", "b"], "in the order in which they run"
    with pytest.raises(InputError, match="--systems: there is no 'd'; there are a, b"):
        choose_systems("a,d", ["a", "b"])
