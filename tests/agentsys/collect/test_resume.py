"""Resuming a run that an earlier version started: trace version 1 with rejected.jsonl, manifest versions 1 and 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentsys.collect import RunFolderError, RunOptions, Summary, collect
from agentsys.graphs.drt.system import Context, graph
from agentsys.traces import VERSION, read_finished, read_traces
from tests.support.shards import unpack_shards
from tests.support.toys import outcomes, read_failed, read_manifest, sentences

COUNT = 14
FIRST = 8


@pytest.fixture
def run(tmp_path: Path, model: str) -> Callable[..., Summary]:
    """Collects into the folder `run` with one request cache; of the first 8 records, r7 fails."""

    def collect_records(**options: int | bool) -> Summary:
        settings = RunOptions(cache=tmp_path / "cache.sqlite", **options)  # type: ignore[arg-type]
        records = [*sentences(COUNT, 7), {"id": "empty", "text": ""}]
        records = records[: FIRST - 1] + records[-1:] + records[FIRST - 1 : -1]  # the empty one among the first
        return collect(graph, records, tmp_path / "run", context=Context(model), options=settings)

    return collect_records


def make_version_1(folder: Path, schema: str | None = None) -> None:
    """Rewrite a run's files as version 1 wrote them, with another schema digest of the evaluator if given."""
    for path in unpack_shards(folder).glob("*.jsonl"):
        lines = [_make_line_1(orjson.loads(line)) for line in path.read_bytes().splitlines()]
        path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    (folder / "failed.jsonl").rename(folder / "rejected.jsonl")
    make_manifest(folder, 1)
    manifest = read_manifest(folder)
    manifest["counts"]["rejected"] = manifest["counts"].pop("failed")
    if schema:
        manifest["fingerprint"]["roles"]["evaluator"]["schema"] = schema
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))


def _make_line_1(line: dict[str, Any]) -> dict[str, Any]:
    """A trace as version 1 wrote it; a refused input, which has no version, as it is."""
    if "version" not in line:
        return line
    outcome = "rejected" if line["outcome"] == "failed" else line["outcome"]
    return {name: value for name, value in line.items() if name != "path"} | {"version": 1, "outcome": outcome}


def make_manifest(folder: Path, version: int) -> None:
    """Rewrite a run's manifest as that version wrote it, with another id of the run, and remove its prompts."""
    manifest = read_manifest(folder) | {"version": version, "run": "0" * 16}
    topology = manifest["fingerprint"]["topology"]
    manifest["fingerprint"]["topology"] = {name: topology[name] for name in ("nodes", "edges")}
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    shutil.rmtree(folder / "prompts")


def test_a_version_2_run_is_resumed_under_its_id(tmp_path: Path, run: Callable[..., Summary]) -> None:
    folder = tmp_path / "run"
    run(limit=FIRST)
    make_manifest(folder, 2)
    second = run(limit=FIRST + 2)
    assert (second.run, second.processed, second.skipped) == ("0" * 16, 2, FIRST - 1)
    manifest = read_manifest(folder)
    assert (manifest["version"], manifest["run"]) == (3, "0" * 16)
    assert manifest["fingerprint"]["topology"]["branches"]
    assert {trace.run for trace in list(read_traces(folder))[-2:]} == {"0" * 16}
    assert run(limit=FIRST + 2).run == "0" * 16  # also when the fingerprint is that of this version
    assert (folder / "prompts" / "advisor.md").exists()


def test_a_version_2_run_with_another_edge_is_refused(tmp_path: Path, run: Callable[..., Summary]) -> None:
    folder = tmp_path / "run"
    run(limit=FIRST)
    make_manifest(folder, 2)
    manifest = read_manifest(folder)
    manifest["fingerprint"]["topology"]["edges"].pop()
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    with pytest.raises(RunFolderError, match=r"holds a run with other settings \(topology\.edges: .*other --out"):
        run()
    assert read_manifest(folder) == manifest
    assert not (folder / "prompts").exists()


def test_a_version_1_run_is_resumed(tmp_path: Path, run: Callable[..., Summary], calls: Callable[[], int]) -> None:
    folder = tmp_path / "run"
    first = run(limit=FIRST)
    assert first.failed == 2 and first.kept + first.dropped == FIRST - 2
    before = {trace.id: (trace.outcome, trace.reason) for trace in read_finished(folder)}
    make_version_1(folder)
    assert {trace.id: (trace.outcome, trace.reason) for trace in read_finished(folder)} == before
    paid = calls()

    second = run()
    assert second.skipped == FIRST - 1  # all but the refused input, which has no id
    assert second.calls == calls() - paid > 0
    assert not (folder / "rejected.jsonl").exists()
    assert len(outcomes(folder)) == COUNT + 1
    assert {trace.version for trace in read_traces(folder)} == {1, VERSION}
    assert before.items() <= {trace.id: (trace.outcome, trace.reason) for trace in read_finished(folder)}.items()
    manifest = read_manifest(folder)
    assert manifest["version"] == 3
    assert manifest["counts"] == {"kept": second.kept, "dropped": second.dropped, "failed": len(read_failed(folder))}
    assert sum(manifest["counts"].values()) == COUNT + 1


def test_failed_records_of_a_version_1_run_are_retried(tmp_path: Path, run: Callable[..., Summary]) -> None:
    run(limit=FIRST)
    make_version_1(tmp_path / "run")
    summary = run(limit=FIRST, retry_failed=True)
    assert (summary.failed, summary.skipped) == (2, FIRST - 2)
    assert summary.calls > 0  # a retried record's calls are new ones
    assert len(read_failed(tmp_path / "run")) == 2
    assert [trace.version for trace in read_finished(tmp_path / "run") if trace.outcome == "failed"] == [VERSION]


def test_a_version_1_run_with_other_schemas_is_refused_in_one_line(tmp_path: Path, run: Callable[..., Summary]) -> None:
    folder = tmp_path / "run"
    run(limit=FIRST)
    make_version_1(folder, schema="0" * 64)
    files = {path.name: path.read_bytes() for path in folder.glob("*.json*")}
    with pytest.raises(
        RunFolderError, match=r"earlier version of agentsys.*roles\.evaluator\.schema: 0+\.\.\. -> "
    ) as error:
        run()
    assert "\n" not in str(error.value) and "choose another --out" in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.glob("*.json*")} == files  # that version can finish it


def test_a_folder_with_only_failed_records_says_that_it_can_go(tmp_path: Path) -> None:
    model = tmp_path / "replies.jsonl"
    model.write_text('{"role": "nobody", "replies": ["x"]}\n')
    records = [{"id": "a", "text": "The moon hung over the bay."}]
    settings = RunOptions(cache=tmp_path / "cache.sqlite")
    context = Context(f"scripted:{model}")
    assert collect(graph, records, tmp_path / "run", context=context, options=settings).failed == 1
    with pytest.raises(RunFolderError, match=r"remove it, as all its records failed, or choose another --out"):
        collect(graph, records, tmp_path / "run", context=Context(f"scripted:{model}", max_rounds=1), options=settings)
