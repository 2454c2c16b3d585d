"""Check DRT's evaluator against pairs of translations of which one is known to be better (Wang et al., ACL 2025).

    agentsys evaluate drt-evaluator --model embedded
    agentsys evaluate drt-evaluator --pairs mine.jsonl --model http://host:8000/v1 --out check

A pair has text, better and worse, and optionally source_language, target_language, group and note; 40 pairs are
shipped. Three methods are compared: the stated score, the expected score, and the comparison in both orders, with DRT's
roles and prompts. An equal score, or a verdict that changes with the order, counts half. The check is a collect run in
a folder under --out: rerun the same command to resume. docs/drt-evaluator.md has results.

--out gets evaluation.json and pairs.jsonl (one pair per line). Exit codes: 0; 1 an endpoint failed; 2 bad
configuration; 3 a pair cannot be used, or a method has no usable reply for one; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import typer

from agentsys.commands import command, knob, run_app
from agentsys.console import Console
from agentsys.evaluation.report import report_head
from agentsys.evaluation.run import OutputOptions, SystemRun, collect_systems
from agentsys.evaluation.sample import SampleOptions, read_sample
from agentsys.graphs.drt import evaluator_measures as measures
from agentsys.graphs.drt.evaluator_check import Context, EvaluatorCheck
from agentsys.graphs.drt.evaluator_measures import Pair
from agentsys.records import BadRecord
from agentsys.view.command import show_page

EXAMPLES: Final = Path(__file__).parent / "examples" / "evaluator_pairs.jsonl"


@dataclass(frozen=True)
class PairFile:
    """The pairs."""

    panel: ClassVar[str] = "Pairs"
    pairs: Path | None = knob(None, "pairs with text, better and worse: .jsonl, .csv, ...; default: 40 shipped pairs")


def main(pairs: PairFile, sample: SampleOptions, context: Context, run: OutputOptions) -> None:
    """Check DRT's evaluator: how often its scores and its comparison prefer the better translation, and their cost.

    Rerun the same command to resume.
    """

    def read(file: Path, options: SampleOptions) -> Iterator[Pair | BadRecord]:
        return measures.read_pairs(file, options, context.languages)

    test = read_sample(pairs.pairs or EXAMPLES, read, sample, "pair")
    out = run.folder(f"drt-evaluator-{test.file.stem}")
    fields = ("id", "text", "better", "worse", "source_language", "target_language")
    records = [{name: getattr(row, name) for name in fields} for row in test.rows]
    graph = EvaluatorCheck().builder().compile(name="drt_evaluator")
    system = SystemRun("evaluator", graph, context, records, out / "evaluator")
    [(_, traces)] = collect_systems([system], run, out, "pair")
    by_id = {trace.id: measures.verdict_of(trace) for trace in traces}
    verdicts = [by_id[row.id] for row in test.rows]
    report = {
        **report_head(test, "pair", out, pairs, sample, context, run),
        "file": test.file.name,
        "pairs": len(test.rows),
        "models": measures.models_of(system),
        **measures.measure(test.rows, verdicts),
    }
    measures.write_results(report, test.rows, verdicts, out)
    measures.print_report(report, Console())
    show_page(out)
    incomplete = any(method["unusable"] for method in report["methods"].values())
    raise typer.Exit(3 if incomplete or report["unusable"] else 0)


app = command(main, name="evaluate drt-evaluator")

if __name__ == "__main__":
    sys.exit(run_app(app))
