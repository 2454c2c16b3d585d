"""The table after a LongDPO run: its pairs, and whether the critique, the memory and the search were at work.

`eta_of_run` finds a threshold for the critique: judges differ in their scale, and a fixed one may never be reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from agentsys.collect.report import pair_rows
from agentsys.evaluation.sample import read_run
from agentsys.graphs.longdpo.search import SearchContext
from agentsys.graphs.longdpo.state import Layer
from agentsys.records import InputError
from agentsys.traces import Trace

Rows = list[tuple[str, str]]


def summarize(traces: Iterable[Trace], context: SearchContext) -> Rows:
    """Rows of the final table: the pairs with margins and cost, why responses stopped, and each part's work."""
    margins: list[float] = []
    layers: list[Layer] = []
    stops: Counter[str] = Counter()
    records = calls = tokens = judged_pairs = 0
    for trace in traces:
        result = trace.result or {}
        records += 1
        calls += len(trace.calls)
        tokens += sum(call.completion_tokens for call in trace.calls)
        judged_pairs += sum(call.role == "contradiction" for call in trace.calls)
        margins += [target.scores["margin"] for target in trace.targets]
        stops[str(result.get("stop", "")).partition(" (")[0]] += 1
        layers += result.get("layers", [])
    rows = [("pairs", f"{len(margins)} from {records} requests"), *pair_rows(margins, calls, tokens)]
    rows.append(("why responses stopped", ", ".join(f"{reason} {n}" for reason, n in stops.most_common())))
    if not layers:
        return rows
    return [
        *rows,
        *_critique_rows(layers, context),
        _memory_row(layers, judged_pairs, context),
        _search_row(layers, context),
    ]


def _critique_rows(layers: list[Layer], context: SearchContext) -> Rows:
    """The values of the chosen steps, and how many were low enough for a critique."""
    chosen = [layer["candidates"][layer["chosen"]] for layer in layers]
    rewritten = sum(bool(step.get("suggestions")) for step in chosen)
    values = [value_before_rewriting(layer) for layer in layers]
    low = sum(value <= context.eta for value in values)
    text = f"{low} of {len(layers)} steps were at most eta {context.eta:.2f}, {rewritten} rewritten"
    if not low:
        text += f" (lowest {min(values):.2f}: take eta from this run with --eta-run)"
    mean = fmean(step["value"] for step in chosen)
    return [("mean value of the chosen steps, 1-5", f"{mean:.2f}"), ("critique", text)]


def _memory_row(layers: list[Layer], judged_pairs: int, context: SearchContext) -> tuple[str, str]:
    if not context.embedding:
        return "memory", "off (--embedding)"
    facts = sum(len(layer["facts"]) for layer in layers)
    excluded = sum(bool(step.get("contradicts")) for layer in layers for step in layer["candidates"])
    return "memory", f"{facts} facts, {judged_pairs} checks of a chunk, {excluded} candidates excluded"


def _search_row(layers: list[Layer], context: SearchContext) -> tuple[str, str]:
    """How many simulations wrote something, and in how many layers nothing within reach was left to write.

    Layers at the depth limit, below which nothing can be written, are not counted.
    """
    searched = [layer for layer in layers if layer.get("expansions")]
    if not searched:
        return "simulations", "off (--simulations)" if not context.simulations else "none wrote a step"
    mean = fmean(layer["expansions"] for layer in searched)
    saturated = sum(layer["saturated"] for layer in searched)
    text = f"{mean:.1f} of {context.simulations} per layer wrote new steps"
    if saturated:
        text += f"; {saturated} of {len(searched)} layers saturated: raise --lookahead or lower --simulations"
    return "simulations", text


def value_before_rewriting(layer: Layer) -> float:
    """The value of a layer's choice, before a rewritten step replaced it."""
    chosen = layer["candidates"][layer["chosen"]]
    if not chosen.get("suggestions"):
        return chosen["value"]
    originals = [step for step in layer["candidates"] if not (step.get("suggestions") or step.get("contradicts"))]
    return max(originals, key=lambda step: step.get("q", step["value"]))["value"]


def eta_of_run(folder: Path, quantile: float) -> tuple[float, int]:
    """The least value that this share of a run's chosen steps does not exceed, and the number of the steps.

    Raises InputError for a folder that is no run of LongDPO or has no chosen step.
    """
    import numpy as np

    results = [trace.result or {} for trace in read_run(folder, "--eta-run")]
    values = [value_before_rewriting(layer) for result in results for layer in result.get("layers", [])]
    if not values:
        raise InputError(f"--eta-run {folder}: its records have no chosen steps; name a run of `collect longdpo`")
    return float(np.quantile(values, quantile, method="inverted_cdf")), len(values)
