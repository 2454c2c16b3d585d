"""Translate the same sentences with several systems and score them side by side, or score one model or one file.

    python graphs/translate_evaluate.py --pairs data.jsonl --systems plain,rag,crat,crat-judge,crat-graph \
        --sources terms:terms.csv,tmx:memory.tmx --terms terms.csv --judge http://judge:8000/v1 --out eval
    python graphs/translate_evaluate.py --pairs test.jsonl --systems thought --model vllm:student --judge ... --out eval
    python graphs/translate_evaluate.py --pairs test.jsonl --translations mine=mine.txt --table-only

Systems are those of graphs/translate/systems.py, and files of existing translations (--translations name=FILE): plain
text with one translation per line, or records with `translation`, matched by `id` if they have one. Each system is a
collect run in its own folder under --out, and each of its judges one in there: rerun the same command to resume; what
failed is retried. With --repeat K each system runs K times with other seeds. The metrics are those of
graphs/translate/measures.py, computed over the sentences that every system translated, with 95 % bootstrap intervals;
the difference from the baseline (the first system, or --baseline) is tested by paired bootstrap resampling. With one
system this is the evaluation of DRT (Wang et al., Findings of ACL 2025, section 3.1 and appendix C). A truncated
translation, or a reply without the tags of a long thought, is scored as it is. docs/evaluate.md defines each metric.

--out gets evaluation.json and translations.jsonl (one sentence per line). Exit codes: 0; 1 an endpoint or COMET failed;
2 bad configuration; 3 a pair cannot be used, or a translation or score is missing; 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from agentsys.commands import command, run_app
from agentsys.console import Console
from agentsys.display import say
from agentsys.evaluation.report import exit_code, report_head
from agentsys.evaluation.run import collect_systems
from agentsys.evaluation.sample import SampleOptions, check_overlap, file_sha256
from agentsys.graphs.translate.leaks import leak_lines, term_source_lines
from agentsys.graphs.translate.measures import find_limits, limit_line
from agentsys.graphs.translate.options import DataOptions, ScoreOptions, SystemOptions, TranslationOutput
from agentsys.graphs.translate.report import measure_results, write_results
from agentsys.graphs.translate.rows import read_translations, reference_line
from agentsys.graphs.translate.systems import SystemResult
from agentsys.graphs.translate.tables import print_report
from agentsys.view.command import show_page


def main(
    data: DataOptions, sample: SampleOptions, systems: SystemOptions, scores: ScoreOptions, run: TranslationOutput
) -> None:
    """Translate the same sentences with several systems and score them: BLEU, chrF, COMET, judge, terms; and the cost.

    Metrics have 95 % bootstrap intervals, differences from the baseline a p-value by paired bootstrap resampling. Rerun
    the same command to resume.
    """
    names, files = systems.names(), systems.files()
    all_pairs, test = data.read(sample)
    pairs = test.rows
    check_overlap({pair.id: pair.text for pair in pairs}, systems.trained_on, "text", "pair", match_ids=False)
    results = {
        name: SystemResult(read_translations(pairs, file, all_pairs), file_sha256(file), file)
        for name, file in files.items()
    }
    with run.open_folder(f"translate-eval-{test.file.stem}") as out:
        loaded = systems.load(data, pairs, out)
        sources = systems.sources if any(system.uses_sources for system in loaded) else ""
        term_sources = term_source_lines(data.terms, sources, data.languages)
        leaks = leak_lines(sources, pairs, data.languages)
        judging = scores.judging(data, run)
        scores.check(pairs, names)
        limits, without_reference = find_limits(pairs), reference_line(pairs, data.reference_field)
        for line in filter(None, (without_reference, limit_line(limits))):
            say(line)
        runs = collect_systems([system.run for system in loaded], run, out, "sentence")
        for system, (_, traces) in zip(loaded, runs, strict=True):
            results[system.run.name] = system.result(pairs, traces)
        results = {name: results[name] for name in names}
        baseline = systems.baseline or names[0]
        if judging:
            judging.score(results, baseline, out)
        report = {
            **report_head(test, "pair", out, data, sample, systems, scores, run),
            "sentences": len(pairs),
            "term_sources": term_sources,
            "leaks": leaks,
            "overlap_checked": bool(systems.trained_on),
            "without_reference": without_reference,
            **measure_results(results, baseline, data.target_language, scores, limits, run.cache_path),
        }
        write_results(report, pairs, results, out)
    print_report(report, Console())
    if out.is_dir():  # not with --table-only
        show_page(out)
    if any(comet["failed"] for comet in report["comet"].values()):
        raise typer.Exit(1)
    raise typer.Exit(exit_code(report, "missing", "unscored"))


app = command(main, name="evaluate translate")

if __name__ == "__main__":
    sys.exit(run_app(app))
