"""What a run writes: manifest, data card, shards, Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentsys.cli import main
from agentsys.collect import RunOptions, collect
from agentsys.graphs.drt.system import Context as DrtContext
from agentsys.graphs.drt.system import graph as drt
from agentsys.traces import read_traces, shards
from tests.support.greeter import UNCACHED
from tests.support.toys import one_error, one_node, read_failed, read_manifest, sentences


@pytest.fixture
def run_folder(tmp_path: Path, model: str) -> Path:
    """A DRT run of 40 sentences in two parts."""
    for limit in (15, None):
        options = RunOptions(cache=tmp_path / "cache.sqlite", limit=limit)
        context = DrtContext(model, min_steps=3, source_language="English", target_language="German")
        collect(drt, sentences(40, 9), tmp_path / "run", context=context, options=options)
    return tmp_path / "run"


def test_the_manifest_adds_up(run_folder: Path, calls: Callable[[], int]) -> None:
    manifest = read_manifest(run_folder)
    traces = list(read_traces(run_folder))
    trace_calls = [call for trace in traces for call in trace.calls]
    failed_calls = [call for line in read_failed(run_folder) for call in line["calls"]]
    assert manifest["totals"]["calls"] == calls() == len(trace_calls) + len(failed_calls)
    assert manifest["totals"]["cache_hits"] == 0
    for name in ("prompt_tokens", "completion_tokens"):
        tokens = sum(getattr(c, name) for c in trace_calls) + sum(c[name] for c in failed_calls)
        assert manifest["totals"][name] == tokens
    assert manifest["totals"]["seconds"] > 0
    counts = Counter(trace.outcome for trace in traces)
    assert manifest["counts"] == {"kept": counts["kept"], "dropped": counts["dropped"], "failed": 4}
    assert counts["kept"]
    assert counts["dropped"]
    assert {trace.run for trace in traces} == {manifest["run"]}
    assert set(manifest["fingerprint"]["roles"]) == {
        "keywords", "draft", "advisor", "evaluator", "comparer", "refiner", "narrator",
        "candidate", "contrast", "rewriter", "short_narrator",
    }  # fmt: skip
    assert manifest["fingerprint"]["knobs"]["target_language"] == "German"


def test_the_data_card_says_where_the_rows_come_from(run_folder: Path) -> None:
    card, manifest = (run_folder / "README.md").read_text(), read_manifest(run_folder)
    assert card.startswith("---\nconfigs:\n")
    counts, totals = manifest["counts"], manifest["totals"]
    for line in (
        "# Traces of drt",
        f"Run `{manifest['run']}`: {counts['kept']} records kept, {counts['dropped']} dropped by the method, 4 failed.",
        f"{totals['calls']} calls, {totals['prompt_tokens']} prompt and {totals['completion_tokens']} completion",
        f"| model | scripted | {manifest['fingerprint']['models']['model']['revision']} |",
        f"| evaluator | {manifest['fingerprint']['roles']['evaluator']['prompt'][:16]} |",
        "- target_language: German",
        "- threshold: 90.0",
    ):
        assert line in card


@pytest.mark.needs("train")
def test_traces_load_with_datasets(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    loaded = datasets.load_dataset(
        "json", data_files=str(run_folder / "traces-*.jsonl.zst"), split="train", cache_dir=str(tmp_path / "datasets")
    )
    traces = list(read_traces(run_folder))
    assert loaded["id"] == [trace.id for trace in traces]
    assert [len(calls) for calls in loaded["calls"]] == [len(trace.calls) for trace in traces]
    kept = next(i for i, trace in enumerate(traces) if trace.outcome == "kept")
    assert loaded[kept]["result"]["trans"] == (traces[kept].result or {})["trans"]
    card = datasets.load_dataset(str(run_folder), "traces", split="train", cache_dir=str(tmp_path / "datasets"))
    assert card["id"] == loaded["id"]


def test_the_parquet_export_reads_back(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet

    file = tmp_path / "traces.parquet"
    code = main(["export", str(run_folder), str(file)])
    traces = list(read_traces(run_folder))
    assert (code, capsys.readouterr().out.split()[0]) == (0, str(len(traces)))
    rows = pyarrow.parquet.read_table(file).to_pylist()
    assert [row["id"] for row in rows] == [trace.id for trace in traces]
    for row, trace in zip(rows, traces, strict=True):
        assert (row["outcome"], row["reason"], row["system"]) == (trace.outcome, trace.reason, "drt")
        assert row["n_calls"] == len(trace.calls)
        assert row["completion_tokens"] == sum(call.completion_tokens for call in trace.calls)
        assert orjson.loads(row["result"]) == trace.result
        assert [call["key"] for call in orjson.loads(row["calls"])] == [call.key for call in trace.calls]
        assert len(orjson.loads(row["targets"])) == len(trace.targets)


@pytest.mark.needs("train")
def test_the_parquet_export_of_shards_with_nulls_loads_with_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a field is null in a whole shard, that shard does not show its type."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("agentsys.collect.store.SHARD_BYTES", 0)  # each trace gets its own shard
    monkeypatch.setattr("agentsys.collect.export.ROW_GROUP", 1)  # and row group
    import datasets

    async def node(state: Any) -> dict[str, Any]:
        return {"reply": None} if state["text"] == "null" else {"reply": {"score": 0.5}, "dropped": "too low"}

    records = [{"id": text, "text": text} for text in ("null", "full")]
    collect(one_node(node), records, tmp_path / "run", options=UNCACHED)
    assert len(shards(tmp_path / "run")) == 2
    assert main(["export", str(tmp_path / "run")]) == 0
    file = str(tmp_path / "run" / "traces.parquet")
    loaded = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "datasets"))
    rows = {row["id"]: (row["reason"], orjson.loads(row["result"])["reply"]) for row in loaded}
    assert rows == {"null": (None, None), "full": ("too low", {"score": 0.5})}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "."], "no traces-*.jsonl here, compressed or not; name the output folder of a collect run"),
        (["export"], "Missing argument"),
        (["export", ".", "--nope"], "--nope"),
        (["cache", "--path", "nope.sqlite"], "--path nope.sqlite: no such file"),
        (["cache", "--limit", "-1"], "--limit"),
    ],
)
def test_a_wrong_export_or_cache_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in one_error(capsys.readouterr().err)
