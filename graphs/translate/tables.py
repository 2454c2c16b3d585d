"""What a translation evaluation prints: the conditions, the tables, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from agentsys.console import Console
from agentsys.evaluation.report import number_cell, overlap_line, plain_printer, sample_order, unusable_lines
from agentsys.graphs.translate.measures import Scores
from agentsys.graphs.translate.options import STUDENTS
from agentsys.graphs.translate.rows import missing_lines
from agentsys.graphs.translate.systems import Cost


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the conditions, the tables, and what is missing."""
    say = plain_printer(console)
    systems, absent = report["systems"], report["absent"]
    for line in _condition_lines(report):
        say(line)
    scores: Scores = {name: result["metrics"] for name, result in systems.items()}
    console.print(score_table(scores, report["metrics"], absent))
    for line in (*_counted_lines(scores), *_repeat_lines(systems)):
        say(line)
    for table in (_preference_table(systems), _error_table(systems), _cost_table(systems)):
        if table.row_count:
            console.print(table)
    for line in (*_absent_lines(report), *unusable_lines(report, "translated"), *_missing_lines(systems)):
        say(line)
    for name, signature in report["signatures"].items():
        say(f"{name}: {signature}")
    if not report["settings"]["table_only"]:
        say(f"numbers, translations and runs: {report['out']}")


def _condition_lines(report: Mapping[str, Any]) -> Iterator[str]:
    settings = report["settings"]
    judge = f"judge {settings['judge']}" if settings["judge"] else "no judge"
    script = ", one script" if settings["one_script"] else ""
    bleu = f"BLEU {report['signature']}{script}; " if report["signature"] else ""
    yield (
        f"{settings['pairs']}, n={report['sentences']}{sample_order(settings)}; {settings['source_language']} to "
        f"{settings['target_language']}; {judge}; {bleu}baseline {report['baseline']}"
    )
    total = report["sentences"] + len(report["unusable"])
    for name, result in report["systems"].items():
        sampling = "".join(f", {key} {value}" for key, value in result["sampling"].items())
        origin = f"file {result['file']}" if result["file"] else f"model {', '.join(result['models'])}{sampling}"
        runs = f" x {result['repeats']} runs" if result["repeats"] > 1 else ""
        yield f"{name}: {origin}; n={result['translated']} of {total}{runs}"
    yield from report["term_sources"]


def _absent_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The metrics that no system has (a table of one system shows them), and other limits of the comparison."""
    absent = report["absent"] if len(report["systems"]) > 1 else {}
    for reason in dict.fromkeys(absent.values()):
        yield f"no {', '.join(name for name, of in absent.items() if of == reason)}: {reason}"
    if report["tokenizer"] and "BLEU" in report["signatures"]:
        yield f"BLEU is over characters; {report['tokenizer']}"
    if report["without_reference"]:
        yield report["without_reference"]
    if report["scripts_differ"]:
        yield "most references are in another Chinese script than most translations; --one-script converts both"
    yield from report["leaks"]
    if not report["overlap_checked"] and {*report["systems"]} & {*STUDENTS}:
        yield overlap_line("pair")


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


def _repeat_lines(systems: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if any(result["repeats"] > 1 for result in systems.values()):
        yield "values are means over the runs of a system; ± is the standard deviation of its runs"


def score_table(scores: Scores, metrics: list[str], absent: Mapping[str, str]) -> Table:
    """One line per metric for one system; for several a block per metric, with the differences from the baseline."""
    if len(scores) == 1:
        return _single_table(next(iter(scores.values())), metrics, absent)
    table = Table("metric", "system", "value, 95 %", "minus baseline, 95 %", "p", "n", box=SIMPLE, pad_edge=False)
    for metric in metrics:
        by_system = {name: of_system[metric] for name, of_system in scores.items() if metric in of_system}
        for i, (name, score) in enumerate(by_system.items()):
            cells = ["" if i else metric, name, _cell(score, ""), *_difference_cells(score), str(score["n"])]
            table.add_row(*cells, end_section=i == len(by_system) - 1)
    return table


def _single_table(scores: Mapping[str, Mapping[str, Any]], metrics: list[str], absent: Mapping[str, str]) -> Table:
    table = Table("metric", "value", "95 % interval", "n")
    for metric in metrics:
        if score := scores.get(metric):
            value, low, high = (f"{score[end]:.2f}" for end in ("value", "low", "high"))
            table.add_row(metric, f"{value}{_deviation(score)}", f"{low} to {high}", str(score["n"]))
        else:
            table.add_row(metric, "absent", absent[metric], "0")
    return table


def _cell(score: Mapping[str, Any], sign: str) -> str:
    interval = f"[{score['low']:{sign}.1f}, {score['high']:{sign}.1f}]"
    return f"{score['value']:{sign}.2f}{_deviation(score)} {interval}"


def _deviation(score: Mapping[str, Any]) -> str:
    return f" ±{score['sd']:.2f}" if "sd" in score else ""


def _difference_cells(score: Mapping[str, Any]) -> list[str]:
    difference = score["difference"]
    return [_cell(difference, "+"), f"{difference['p']:.3f}"] if difference else ["", ""]


def _preference_table(systems: Mapping[str, Mapping[str, Any]]) -> Table:
    """The judge's comparisons with the baseline."""
    table = Table("against the baseline", "wins", "losses", "ties", "preferred %, 95 %", "p (sign test)")
    for name, result in systems.items():
        if counts := result["preference"]:
            outcomes = [str(counts[outcome]) for outcome in ("win", "loss", "tie")]
            table.add_row(name, *outcomes, _cell(counts, ""), f"{counts['p']:.3f}")
    return table


def _error_table(systems: Mapping[str, Mapping[str, Any]]) -> Table:
    """The errors that the judge lists, by category: critical/major/minor of each system."""
    listed = {name: result["errors"] for name, result in systems.items() if result["errors"]}
    table = Table("errors: critical/major/minor", *listed)
    if not listed:
        return table
    for category in sorted({name for counts in listed.values() for name in counts["categories"]}):
        table.add_row(category, *(_severities(counts["categories"].get(category, {})) for counts in listed.values()))
    table.add_section()
    table.add_row("all", *(_severities(counts) for counts in listed.values()))
    table.add_row("translations without errors", *(str(counts["without_errors"]) for counts in listed.values()))
    return table


def _severities(counts: Mapping[str, Any]) -> str:
    return "/".join(str(counts.get(name, 0)) for name in ("critical", "major", "minor"))


def _cost_table(systems: Mapping[str, Mapping[str, Any]]) -> Table:
    """The cost of each system per sentence, without the judges of this evaluation."""
    table = Table("system", "translated", "calls per sentence", "prompt tokens", "completion tokens")
    for name, result in systems.items():
        means = (result["cost"] or {}).get("per_sentence", {})
        table.add_row(name, str(result["translated"]), *(number_cell(means.get(part), 1) for part in Cost.PARTS))
    return table
