"""Collect translations with CRAT. `python graphs/crat_collect.py --help` lists the options."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.commands import command, run_app
from agentsys.graphs.crat.state import with_digest
from agentsys.graphs.crat.system import Context, graph
from agentsys.graphs.crat.transkg import TransKG
from agentsys.records import InputError
from agentsys.terms.sources import told
from agentsys.traces import Trace, read_traces

CHECKS = ("relevance", "substitution", "invariance", "counterfactual", "failed call")


def findings(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Rows of the last table: terms, what became of their candidates, repairs, and what a sentence cost."""
    found: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    status: Counter[str] = Counter()
    for trace in traces:
        found["documents"] += 1
        found["calls"] += len(trace.calls)
        found["tokens"] += sum(call.completion_tokens for call in trace.calls)
        result = trace.result or {}
        for sentence in result.get("document", []):
            kinds.update(mention["kind"] for mention in sentence["mentions"])
            found["invented"] += len(sentence["invented"])
            found["nested"] += len(sentence["nested"])
            found["faults"] += len(sentence["faults"])
        for decision in result.get("decisions", []):
            found["decisions"] += 1
            found["faults"] += len(decision["faults"])
            found["again"] += decision["retrievals"] - 1
            found["candidates"] += len(decision["candidates"])
            found["accepted"] += any(candidate["accepted"] for candidate in decision["candidates"])
            found.update(f"rejected: {candidate['rejected_by']}" for candidate in decision["candidates"])
        for rendered in result.get("rendered", []):
            status[rendered["status"]] += 1
            found["repaired"] += rendered["repaired"]
            found["missing"] += len(rendered["missing"])
            found["left"] += len(rendered["left"])
            found["checked"] += len(rendered["checked"])
    return _rows(found, kinds, status)


def _rows(found: Counter[str], kinds: Counter[str], status: Counter[str]) -> list[tuple[str, str]]:
    sentences = status.total() or 1
    return [
        ("sentences", f"{status.total()} in {found['documents']} documents ({_listed(status) or 'none'})"),
        ("terms found", f"{kinds.total()} ({_listed(kinds) or 'none'})"),
        ("  dropped", f"{found['invented']} invented, {found['nested']} inside longer ones"),
        ("terms decided", f"{found['decisions']}, {found['again']} of them after a second retrieval"),
        ("  candidates", f"{found['candidates']}; a term was accepted {found['accepted']} times"),
        ("  rejected by", ", ".join(f"{check} {found[f'rejected: {check}']}" for check in CHECKS)),
        (
            "accepted terms in translations",
            f"{found['checked'] - found['left']} of {found['checked']} "
            f"({found['missing']} missing at first, {found['repaired']} sentences repaired)",
        ),
        ("replies that could not be used in full", str(found["faults"])),
        (
            "calls and tokens written a sentence",
            f"{found['calls'] / sentences:.1f}, {found['tokens'] / sentences:,.0f}",
        ),
    ]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def write_graphs(traces: Iterable[Trace], folder: Path) -> int:
    """Each document's knowledge graph as GraphML and PNG, named after the record's id; how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for trace in traces:
        if data := (trace.result or {}).get("graph"):
            known, name = TransKG.from_json(data), _file_name(trace.id)
            known.write_graphml(folder / f"{name}.graphml")
            known.draw(folder / f"{name}.png")
            written += 1
    return written


def _file_name(record: str) -> str:
    """An id as a file name; one that had to be changed gets a digest, so that no two are one."""
    name = re.sub(r"[^\w.-]+", "_", record).strip("._")[:80]
    return name if name == record else f"{name}-{hashlib.sha256(record.encode()).hexdigest()[:8]}"


Graphs = Annotated[
    Path | None, typer.Option(help="folder for each document's knowledge graph: GraphML, and a PNG for a person")
]


def main(run: CollectOptions, context: Context, graphs: Graphs = None) -> None:
    """Translate with CRAT: unknown terms looked up, put into a knowledge graph, judged, and only then used.

    A record has a text, or the sentences of a document as a list. A run that is in --out is resumed.
    """
    if run.input is None:
        raise InputError("--input: name a file of texts (text) or documents (sentences), .jsonl or .parquet, say")
    if graphs is not None and graphs.exists() and not graphs.is_dir():
        raise InputError(f"--graphs {graphs}: it is a file; name a folder")
    out, context = run.out or Path("runs") / f"crat-{run.input.stem}", with_digest(context)
    for line in told(context.specs, context.source_language, context.target_language):
        print(line)
    summary = run_with_view(graph, run.input, replace(run, out=out), context)
    print(f"traces and data-set card: {summary.out}")
    if graphs is not None:
        print(f"knowledge graphs: {write_graphs(read_traces(summary.out), graphs)} in {graphs}")
    finish(summary, run, findings(read_traces(summary.out)))


if __name__ == "__main__":
    sys.exit(run_app(command(main)))
