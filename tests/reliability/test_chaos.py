"""A DRT run through a server that breaks a third, or two thirds, of its replies, in every way at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentsys.collect import RunOptions, acollect
from agentsys.collect.summary import Summary
from agentsys.graphs.drt.system import Context, graph
from agentsys.models import load_model
from agentsys.models.endpoint import RetryPolicy
from agentsys.traces import read_traces
from tests.support.chaos import KINDS, LIMIT, PROMPTS, ChaosServer
from tests.support.toys import outcomes, read_failed, read_manifest

RECORDS = [{"id": f"r{i}", "text": f"{i}: The lamp shone."} for i in range(48)]
MEMORY = 150 * 2**20
"""Bytes that a run may need above what the process had: its replies have at most LIMIT bytes each."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def watch_memory(peak: list[int]) -> None:
    while True:
        peak[0] = max(peak[0], resident_bytes())
        await asyncio.sleep(0.02)


async def collect_drt(server: ChaosServer, out: Path, **options: Any) -> Summary:
    """A run with quick retries. Its replies are those of the server, not of a cache."""
    spec = f"{server.address}?timeout=1"
    model: Any = load_model(spec)
    model.engine.endpoint.retry = RetryPolicy(first=0.005, longest=0.05)
    model.engine.endpoint.max_bytes = LIMIT
    context = Context(model=spec, threshold=85, **PROMPTS)
    run = RunOptions(in_flight=32, max_failures="none", **({"no_cache": True} | options))
    return await acollect(graph, RECORDS, out, context=context, options=run)


def by_id(folder: Path) -> dict[str, Any]:
    lines = [orjson.loads(line) for line in outcomes(folder)]
    assert len({line["id"] for line in lines}) == len(lines), "a record is there twice"
    return {line["id"]: line for line in lines}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("rate", [0.3, 0.66])
async def test_every_record_is_whole_or_failed_with_a_reason(rate: float, tmp_path: Path) -> None:
    async with ChaosServer(seed=round(100 * rate)) as server:
        await collect_drt(server, tmp_path / "clean")
        clean = by_id(tmp_path / "clean")
        assert {line["outcome"] for line in clean.values()} == {"kept", "dropped"}

        server.rate = rate
        peak = [before := resident_bytes()]
        watcher = asyncio.create_task(watch_memory(peak))
        summary = await collect_drt(server, tmp_path / "run")
        watcher.cancel()
    assert peak[0] - before < MEMORY

    lines = by_id(tmp_path / "run")
    assert lines.keys() == clean.keys(), "each record is accounted for"
    counts = Counter(line["outcome"] for line in lines.values())
    assert counts == {"kept": summary.kept, "dropped": summary.dropped, "failed": summary.failed}
    assert counts == Counter(read_manifest(tmp_path / "run")["counts"])
    finished = {name for name, line in lines.items() if line["outcome"] != "failed"}
    assert 5 < len(finished) < len(RECORDS)
    assert all(lines[name] == clean[name] for name in finished), "a reply is whole, and that of its own request"
    for entry in read_failed(tmp_path / "run"):
        assert "traceback" not in entry["measured"], entry["measured"]
        assert "(tried 6 times)" in entry["reason"] or "more than" in entry["reason"], entry["reason"]
    assert server.replies.keys() >= {"good", *KINDS}
    retries = sum(call.measured.get("retries", 0) for trace in read_traces(tmp_path / "run") for call in trace.calls)
    assert retries > 0


@pytest.mark.timeout(60)
async def test_failed_records_are_finished_once_the_server_is_well(tmp_path: Path) -> None:
    cache = {"no_cache": False, "cache": tmp_path / "cache.sqlite"}
    async with ChaosServer(rate=0.66, seed=7) as server:
        first = await collect_drt(server, tmp_path / "run", **cache)
        finished = {line["id"]: line for line in by_id(tmp_path / "run").values() if line["outcome"] != "failed"}
        assert first.failed > 0
        server.rate = 0
        summary = await collect_drt(server, tmp_path / "run", retry_failed=True, **cache)
    lines = by_id(tmp_path / "run")
    assert summary.failed == 0 and summary.skipped == len(finished)
    assert len(lines) == len(RECORDS)
    assert all(lines[name] == line for name, line in finished.items())
