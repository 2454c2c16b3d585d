"""Figures over the traces of a CRAT run, and its knowledge graphs as files."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from agentsys.graphs.crat.transkg import TransKG
from agentsys.traces import Trace

CHECKS: Final = ("relevance", "substitution", "invariance", "counterfactual", "failed call")


def summarize(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Table rows: terms, the verdicts on their candidates, repairs, and the cost per sentence."""
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for trace in traces:
        counts["documents"] += 1
        counts["calls"] += len(trace.calls)
        counts["tokens"] += sum(call.completion_tokens for call in trace.calls)
        result = trace.result or {}
        for sentence in result.get("document", []):
            kinds.update(mention["kind"] for mention in sentence["mentions"])
            counts.update({name: len(sentence[name]) for name in ("invented", "nested", "faults")})
        for decision in result.get("decisions", []):
            _count_decision(decision, counts, sources)
        edges = (result.get("graph") or {}).get("edges", [])
        counts["relations"] += sum("item" not in edge for edge in edges)
        for rendered in result.get("rendered", []):
            statuses[rendered["status"]] += 1
            counts["repaired"] += rendered["repaired"]
            counts.update({name: len(rendered[name]) for name in ("missing", "left", "checked")})
    return _rows(counts, kinds, statuses, sources)


def _count_decision(decision: dict[str, Any], counts: Counter[str], sources: Counter[str]) -> None:
    """Count a decision, and in `sources` its candidates by source."""
    counts["decisions"] += 1
    counts["faults"] += len(decision["faults"])
    counts["second retrievals"] += decision["retrievals"] - 1
    counts["candidates"] += len(decision["candidates"])
    counts["accepted"] += any(candidate["accepted"] for candidate in decision["candidates"])
    counts.update(f"rejected: {candidate['rejected_by']}" for candidate in decision["candidates"])
    counts["judged"] += sum(candidate["relevant"] is not None for candidate in decision["candidates"])
    counts["with candidates"] += bool(decision["candidates"])
    for candidate in decision["candidates"]:
        sources.update({source.partition(":")[0] for source in candidate["sources"]})


def _rows(
    counts: Counter[str], kinds: Counter[str], statuses: Counter[str], sources: Counter[str]
) -> list[tuple[str, str]]:
    sentences = statuses.total() or 1
    return [
        ("sentences", f"{statuses.total()} in {counts['documents']} documents ({_list_counts(statuses) or 'none'})"),
        ("terms found", f"{kinds.total()} ({_list_counts(kinds) or 'none'})"),
        ("  dropped", f"{counts['invented']} invented, {counts['nested']} inside longer ones"),
        ("relations in the texts", f"{counts['relations']}"),
        ("terms decided", f"{counts['decisions']}, {counts['second retrievals']} of them after a second retrieval"),
        ("  candidates", f"{counts['candidates']}; accepted for {counts['accepted']} terms"),
        ("  their sources", f"{_list_counts(sources) or 'none'}; for {counts['with candidates']} terms"),
        ("  judged", f"{counts['judged']}"),
        ("  rejected by", ", ".join(f"{check} {counts[f'rejected: {check}']}" for check in CHECKS)),
        (
            "accepted terms in translations",
            f"{counts['checked'] - counts['left']} of {counts['checked']} "
            f"({counts['missing']} missing at first, {counts['repaired']} sentences repaired)",
        ),
        ("failed or partly unusable replies", str(counts["faults"])),
        (
            "calls and completion tokens per sentence",
            f"{counts['calls'] / sentences:.1f}, {counts['tokens'] / sentences:,.0f}",
        ),
    ]


def _list_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def write_graphs(traces: Iterable[Trace], folder: Path) -> int:
    """Write each document's knowledge graph as GraphML and PNG, named after the record's id; returns their number."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for trace in traces:
        if data := (trace.result or {}).get("graph"):
            graph, name = TransKG.from_json(data), _file_name(trace.id)
            graph.write_graphml(folder / f"{name}.graphml")
            graph.draw(folder / f"{name}.png")
            count += 1
    return count


def _file_name(record_id: str) -> str:
    """A record's id as a file name; an id that has to be changed gets a digest, so that names stay unique."""
    name = re.sub(r"[^\w.-]+", "_", record_id).strip("._")[:80]
    return name if name == record_id else f"{name}-{hashlib.sha256(record_id.encode()).hexdigest()[:8]}"
