"""The report of a translation evaluation: the results of all systems, the files, and what is printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from agentsys.console import Console
from agentsys.evaluation.report import number_cell, plain_printer, sample_order, unusable_lines, write_report
from agentsys.graphs.translate.measures import (
    METRICS,
    TERM_METRICS,
    Scores,
    absences,
    add_comet,
    measure,
    scripts_differ,
)
from agentsys.graphs.translate.options import ScoreOptions
from agentsys.graphs.translate.rows import Pair, TranslatedPair, missing_lines, missing_of
from agentsys.graphs.translate.systems import Cost, SystemResult
from agentsys.metrics.corpus import bleu_signature

ALL_METRICS = (*METRICS, *TERM_METRICS)


def measure_results(
    results: Mapping[str, SystemResult], baseline: str, language: str, options: ScoreOptions
) -> dict[str, Any]:
    """Score all systems: the keys of the report that depend on translations. COMET runs here."""
    rows = {name: result.rows for name, result in results.items()}
    translated = [row for row in chain.from_iterable(rows.values()) if row.translation]
    failure = None
    if options.comet_python and translated:
        failure = add_comet(translated, options.comet_python, options.comet_model)
    scores = measure(rows, language, ALL_METRICS, baseline=baseline, one_script=options.one_script)
    reasons = absences(translated, ALL_METRICS, comet=failure or "no --comet-python", judge=bool(options.judge))
    measured = set(chain.from_iterable(scores.values()))
    return {
        "baseline": baseline,
        "signature": bleu_signature(language, [len(row.pair.references) for row in next(iter(rows.values()))]),
        "systems": {name: _result_json(result, scores[name]) for name, result in results.items()},
        "absent": {name: reason for name, reason in reasons.items() if name not in measured},
        "scripts_differ": not options.one_script and scripts_differ(translated),
    }


def _result_json(result: SystemResult, metrics: Mapping[str, Any]) -> dict[str, Any]:
    translated = [row for row in result.rows if row.translation]
    thoughts = any(row.well_formed is not None for row in result.rows)
    return {
        "run": result.run,
        "file": result.file,
        "models": result.models,
        "sampling": result.sampling,
        "translated": len(translated),
        "well_formed": sum(bool(row.well_formed) for row in translated) if thoughts else None,
        **missing_of(result.rows),
        "cost": result.cost.as_json(),
        "metrics": metrics,
    }


def write_results(
    report: Mapping[str, Any], pairs: Sequence[Pair], results: Mapping[str, SystemResult], out: Path
) -> None:
    """Write evaluation.json and translations.jsonl."""
    lines = (
        {
            "id": pair.id,
            "document": pair.document,
            "source": pair.text,
            "references": pair.references,
            "terms": pair.terms,
            "mentions": pair.mentions,
            "systems": {name: _translation_json(result.rows[i]) for name, result in results.items()},
        }
        for i, pair in enumerate(pairs)
    )
    write_report(report, "translations.jsonl", lines, out)


def _translation_json(row: TranslatedPair) -> dict[str, Any]:
    return {"translation": row.translation, "reason": row.reason, "scores": row.scores}


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the conditions, the tables, and what is missing."""
    say = plain_printer(console)
    systems, absent = report["systems"], report["absent"]
    for line in _condition_lines(report):
        say(line)
    scores: Scores = {name: result["metrics"] for name, result in systems.items()}
    console.print(score_table(scores, absent))
    for line in _counted_lines(scores):
        say(line)
    console.print(_cost_table(systems))
    for line in (*_absent_lines(report), *unusable_lines(report, "translated"), *_missing_lines(systems)):
        say(line)
    if not report["settings"]["table_only"]:
        say(f"numbers, translations and runs: {report['out']}")


def _condition_lines(report: Mapping[str, Any]) -> Iterator[str]:
    settings = report["settings"]
    judge = f"judge {settings['judge']}" if settings["judge"] else "no judge"
    script = ", one script" if settings["one_script"] else ""
    yield (
        f"{settings['pairs']}, n={report['sentences']}{sample_order(settings)}; {settings['source_language']} to "
        f"{settings['target_language']}; {judge}; BLEU {report['signature']}{script}; baseline {report['baseline']}"
    )
    total = report["sentences"] + len(report["unusable"])
    for name, result in report["systems"].items():
        sampling = "".join(f", {key} {value}" for key, value in result["sampling"].items())
        origin = f"file {result['file']}" if result["file"] else f"model {', '.join(result['models'])}{sampling}"
        yield f"{name}: {origin}; n={result['translated']} of {total}"
    yield from report["term_sources"]


def _absent_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The metrics that no system has (a table of one system shows them), and other limits of the comparison."""
    absent = report["absent"] if len(report["systems"]) > 1 else {}
    for reason in dict.fromkeys(absent.values()):
        yield f"no {', '.join(name for name, of in absent.items() if of == reason)}: {reason}"
    if report["scripts_differ"]:
        yield "most references are in another Chinese script than most translations; --one-script converts both"
    yield from report["leaks"]


def _missing_lines(systems: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, result in systems.items():
        if result["well_formed"] is not None:
            yield f"{name}: {result['well_formed']} of {result['translated']} replies have the form of a long thought"
        for line in missing_lines(result["missing"], result["unscored"]):
            yield f"{name}: {line}"
        cost = result["cost"] or {"truncated": 0}
        if cost["truncated"]:
            yield f"{name}: {cost['truncated']} of {cost['calls']} replies truncated at a token limit"


def _counted_lines(scores: Scores) -> Iterator[str]:
    """How many terms and sentences the term metrics count."""
    kinds = {
        "terms": "terms in {} sentences",
        "m-ETA": "entities in {} sentences",
        "consistency": "terms in {} documents",
    }
    for name, kind in kinds.items():
        if score := next((of_system[name] for of_system in scores.values() if name in of_system), None):
            yield f"{name}: {score['counted']} {kind.format(score['n'])}"


def score_table(scores: Scores, absent: Mapping[str, str]) -> Table:
    """One line per metric for one system; for several a block per metric, with the differences from the baseline."""
    if len(scores) == 1:
        return _single_table(next(iter(scores.values())), absent)
    table = Table("metric", "system", "value, 95 %", "minus baseline, 95 %", "p", "n", box=SIMPLE, pad_edge=False)
    for metric in ALL_METRICS:
        by_system = {name: of_system[metric] for name, of_system in scores.items() if metric in of_system}
        for i, (name, score) in enumerate(by_system.items()):
            cells = ["" if i else metric, name, _cell(score, ""), *_difference_cells(score), str(score["n"])]
            table.add_row(*cells, end_section=i == len(by_system) - 1)
    return table


def _single_table(scores: Mapping[str, Mapping[str, Any]], absent: Mapping[str, str]) -> Table:
    table = Table("metric", "value", "95 % interval", "n")
    for metric in ALL_METRICS:
        if score := scores.get(metric):
            value, low, high = (f"{score[end]:.2f}" for end in ("value", "low", "high"))
            table.add_row(metric, value, f"{low} to {high}", str(score["n"]))
        else:
            table.add_row(metric, "absent", absent[metric], "0")
    return table


def _cell(score: Mapping[str, float], sign: str) -> str:
    return f"{score['value']:{sign}.2f} [{score['low']:{sign}.1f}, {score['high']:{sign}.1f}]"


def _difference_cells(score: Mapping[str, Any]) -> list[str]:
    difference = score["difference"]
    return [_cell(difference, "+"), f"{difference['p']:.3f}"] if difference else ["", ""]


def _cost_table(systems: Mapping[str, Mapping[str, Any]]) -> Table:
    """The cost of each system per sentence, without the judges of this evaluation."""
    table = Table("system", "translated", "calls per sentence", "prompt tokens", "completion tokens")
    for name, result in systems.items():
        means = (result["cost"] or {}).get("per_sentence", {})
        table.add_row(name, str(result["translated"]), *(number_cell(means.get(part), 1) for part in Cost.PARTS))
    return table
