"""Figures over the traces of RAGtrans's runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import fmean

from agentsys.traces import Trace


def summarize_translations(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Table rows of `ragtrans`: documents that are missing or truncated, mean scores."""
    counts: Counter[str] = Counter()
    scores: dict[str, list[float]] = defaultdict(list)
    tokens: list[int] = []
    for trace in traces:
        result = trace.result or {}
        counts["translations"] += bool(result.get("translation"))
        counts[f"without a document ({result.get('without')})"] += bool(result.get("without"))
        counts["retrieved paragraphs removed because they leak the reference"] += result.get("leaks", 0)
        if cut := result.get("cut"):
            tokens.append(cut["tokens"])
            counts["documents truncated"] += cut["tokens"] < cut["of_tokens"]
        for target in trace.targets:
            for name, score in target.scores.items():
                scores[name].append(score)
    rows = [(name, str(count)) for name, count in counts.items() if count]
    if any(tokens):
        rows.append(("mean tokens per document (estimated)", f"{fmean(tokens):.0f}"))
    names = {"score": "mean sentence chrF, 0-100", "relevance": "mean relevance, 1-5"}
    return rows + [(names[name], f"{fmean(values):.2f} (n={len(values)})") for name, values in scores.items()]


def summarize_tasks(traces: Iterable[Trace]) -> list[tuple[str, str]]:
    """Table rows of `ragtrans_tasks`: how many records of each task were kept."""
    kept: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for trace in traces:
        task = str(trace.input.get("task"))
        total[task] += 1
        kept[task] += trace.outcome == "kept"
    return [(f"{task}: kept", f"{kept[task]} of {count}") for task, count in sorted(total.items())]
