"""A failed record is known by its content: another path or place is no other record, a corrected one is due again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from agentsys.collect import RunFolderError, RunOptions, Summary, collect
from agentsys.collect.store import MANIFEST_COPY
from agentsys.traces import read_traces
from tests.support.toys import read_failed, read_manifest


class State(TypedDict):
    text: str


def shout(state: State) -> State:
    if "bad" in state["text"]:
        raise ValueError("a bad text")
    return {"text": state["text"].upper()}


builder = StateGraph(State)
builder.add_node("shout", shout)
builder.add_edge(START, "shout")
builder.add_edge("shout", END)
GRAPH = builder.compile(name="shout")

GOOD = '{"id": "a", "text": "one"}'
BAD = '{"id": "b", "text": "bad"}'
BROKEN = ["not json", '{"txt": "no text"}', '{"id": "c", "text": ""}', "not json"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """Writes the lines to in.jsonl, if any are given, and collects it into the folder `run`."""
    monkeypatch.chdir(tmp_path)

    def collect_lines(*lines: str, path: str = "in.jsonl", **options: Any) -> Summary:
        if lines:
            Path(path).write_text("\n".join(lines))
        summary = collect(GRAPH, path, "run", options=RunOptions(no_cache=True, **options))
        assert summary.failed == len(read_failed(Path("run"))) == read_manifest(Path("run"))["counts"]["failed"]
        return summary

    return collect_lines


def forget_content(folder: Path) -> None:
    """Rewrite failed.jsonl as an earlier version wrote it."""
    entries = read_failed(folder)
    for entry in entries:
        entry.pop("content", None)
        entry.get("measured", {}).pop("content", None)
    (folder / "failed.jsonl").write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))


def failed_sources() -> list[str]:
    return sorted(entry["source"] for entry in read_failed(Path("run")))


def test_the_same_input_by_another_path_fails_once(run: Callable[..., Summary]) -> None:
    assert run(GOOD, BAD, *BROKEN).failed == 5
    before = Path("run/failed.jsonl").read_bytes()
    Path("other").mkdir()
    os.link("in.jsonl", "other/in.jsonl")
    for path in ("in.jsonl", "./in.jsonl", str(Path("in.jsonl").absolute()), "other/in.jsonl"):
        assert run(path=path).failed == 5
    assert Path("run/failed.jsonl").read_bytes() == before


def test_lines_that_moved_fail_once(run: Callable[..., Summary]) -> None:
    run(GOOD, BAD, *BROKEN)
    assert run(*BROKEN, '{"id": "d", "text": "two"}', BAD, GOOD).failed == 5
    summary = run('{"id": "e", "text": "three"}', *reversed(BROKEN), BAD, GOOD)
    assert (summary.failed, summary.kept, summary.processed) == (5, 3, 1)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_corrected_input_is_run_without_an_option(run: Callable[..., Summary], is_old: bool) -> None:
    run(GOOD, BAD, *BROKEN)
    if is_old:
        forget_content(Path("run"))
    assert run().processed == 0
    fixed = BAD.replace("bad", "better")
    summary = run(GOOD, fixed, '{"text": "now JSON"}', BROKEN[1], '{"id": "c", "text": "filled"}', BROKEN[3])
    assert (summary.kept, summary.failed) == (4, 2)
    assert failed_sources() == ["in.jsonl:4", "in.jsonl:6"]
    assert sorted(trace.result["text"] for trace in read_traces("run") if trace.result) == [
        "BETTER", "FILLED", "NOW JSON", "ONE",
    ]  # fmt: skip
    assert run().processed == 0


def test_a_correction_that_fails_again_replaces_the_failure(run: Callable[..., Summary]) -> None:
    run(GOOD, BAD, "not json")
    summary = run(GOOD, BAD.replace("bad", "still bad"), "no json")
    assert (summary.failed, summary.kept) == (2, 1)
    assert failed_sources() == ["in.jsonl:2", "in.jsonl:3"]
    assert {entry.get("input", {}).get("text") for entry in read_failed(Path("run"))} == {"still bad", None}
    assert run().processed == 0


@pytest.mark.parametrize("is_old", [False, True])
def test_retry_failed_runs_them_again(run: Callable[..., Summary], is_old: bool) -> None:
    run(GOOD, BAD, *BROKEN)
    if is_old:
        forget_content(Path("run"))
    summary = run(retry_failed=True, path=str(Path("in.jsonl").absolute()))
    assert (summary.processed, summary.failed, summary.kept) == (5, 5, 1)


def test_a_duplicate_is_counted_once(run: Callable[..., Summary]) -> None:
    lines = [GOOD, GOOD.replace("one", "other"), GOOD]
    assert run(*lines).failed == 2
    assert run(path=str(Path("in.jsonl").absolute())).failed == 2
    assert run(GOOD, '{"id": "z", "text": "renamed"}', GOOD).failed == 1


# the manifest


@pytest.mark.parametrize("content", [b"", b"{", b"3", b"null", b'{"fingerprint": 1}', b'{"totals": {"calls": "x"}}'])
def test_a_torn_manifest_is_taken_from_its_copy(run: Callable[..., Summary], content: bytes) -> None:
    first = run(GOOD)
    fingerprint = read_manifest(Path("run"))["fingerprint"]
    Path("run/manifest.json").write_bytes(content)
    summary = run()
    assert (summary.run, summary.skipped, summary.processed) == (first.run, 1, 0)
    assert read_manifest(Path("run"))["fingerprint"] == fingerprint
    Path("run/manifest.json").write_bytes(content)
    with pytest.raises(RunFolderError, match="holds a run with other settings"):
        run(id_field="text")


@pytest.mark.parametrize("content", [b"", b"{", b"3"])
def test_without_a_good_manifest_a_run_is_refused(run: Callable[..., Summary], content: bytes) -> None:
    run(GOOD)
    for name in ("manifest.json", MANIFEST_COPY):
        Path("run", name).write_bytes(content)
    with pytest.raises(
        RunFolderError, match=r"manifest\.json: .*, and there is no good copy of it; run `agentsys check"
    ):
        run()


def test_without_any_manifest_the_traces_show_whether_the_settings_are_theirs(run: Callable[..., Summary]) -> None:
    first = run(GOOD)
    for name in ("manifest.json", MANIFEST_COPY):
        Path("run", name).unlink()
    with pytest.raises(RunFolderError, match=r"holds records, but no manifest\.json .* or choose another --out"):
        run(id_field="text")
    summary = run()
    assert (summary.run, summary.skipped, summary.processed) == (first.run, 1, 0)
    assert read_manifest(Path("run"))["fingerprint"]
