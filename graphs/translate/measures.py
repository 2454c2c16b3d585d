"""The metrics of translations: BLEU, chrF, COMET, judges' scores, terms; with intervals, and against a baseline.

| metric | computed from | resampled |
|---|---|---|
| BLEU, chrF, chrF++, spBLEU | all references of a sentence (agentsys/metrics/corpus.py) | sentences |
| COMET models, by name | source, translation, first reference (comet.py) | sentences |
| GRF, GRB, GEA | graphs/translate/system.py's judge | sentences |
| MQM, preference | errors and comparisons of graphs/translate/judges.py | sentences |
| document | the score of a whole document (graphs/translate/judges.py) | documents |
| terms, m-ETA | terms and entities of a sentence (agentsys/metrics/terms.py) | sentences that have one |
| consistency | terms that two sentences of a document share (agentsys/metrics/terms.py) | documents |

MQM is from -25 to 0, all others are from 0 to 100. A metric is computed over the sentences for which every system has
it in all of its runs, so that a column compares the same sentences. A missing translation is not scored as an empty
text: its sentence is left out for all systems. The value of a system that ran several times is the mean over its runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import stdev
from typing import Any, Final

from agentsys.evaluation.report import score_against
from agentsys.graphs.translate.rows import Pair, TranslatedPair
from agentsys.installation import install_command
from agentsys.metrics import terms as term_scores
from agentsys.metrics.corpus import (
    SPM_TOKENIZER,
    WORD_ORDER,
    Statistic,
    bleu_statistic,
    chrf_statistic,
    mean_of,
    mean_statistic,
    missing_pieces,
    ratio_statistic,
)
from agentsys.text.chinese import can_simplify, has_chinese, to_simplified

CORPUS: Final = ("BLEU", "chrF", "chrF++", "spBLEU")
JUDGED: Final = ("GRF", "GRB", "GEA")
TERM_METRICS: Final = ("terms", "m-ETA", "consistency")

Scores = dict[str, dict[str, dict[str, Any]]]
"""System -> metric -> {value, low, high, n, counted, difference}; of several runs also {runs, sd}."""
Measurement = tuple[Statistic, int, int | None]
"""A metric as a statistic of resampled items, the number of items, and the number of terms it counts."""
RowsById = dict[str, TranslatedPair]
"""The rows of one run by the id of their pair."""


def find_limits(pairs: Sequence[Pair]) -> dict[str, str]:
    """The metrics that cannot be computed of these pairs on this machine, with the reason and the fix."""
    limits = {}
    if pieces := missing_pieces():
        limits["spBLEU"] = f"its tokenizer is not here: {pieces}"
    if not any(pair.references for pair in pairs):
        limits |= dict.fromkeys((*CORPUS, "GRB"), "the pairs have no reference")
    if not can_simplify() and any(map(has_chinese, _terms_in(pairs))):
        fix = f"Chinese terms are compared in one script by OpenCC: {install_command('knowledge')}"
        limits |= dict.fromkeys(TERM_METRICS, fix)
    return limits


def limit_line(limits: Mapping[str, str]) -> str:
    """A line for the metrics of terms that cannot be computed, which is known before any call; "" if they can."""
    return f"no {', '.join(TERM_METRICS)}: {limits['terms']}" if "terms" in limits else ""


def _terms_in(pairs: Iterable[Pair]) -> Iterable[str]:
    for pair in pairs:
        yield from (name for names in pair.mentions for name in names)
        yield from (text for term in pair.terms for text in (term.source, *term.targets))


def measure(
    systems: Mapping[str, Sequence[TranslatedPair]],
    language: str,
    metrics: Iterable[str],
    *,
    baseline: str = "",
    one_script: bool = False,
) -> Scores:
    """The metrics of each system with 95 % bootstrap intervals, and the paired difference from the baseline.

    The rows of a system are those of all of its runs. `language` is that of the translations. `one_script` converts
    translations and references to simplified Chinese before BLEU and chrF. A system without any translation does not
    restrict the sentences; a metric that no system has is absent.
    """
    scores: Scores = {name: {} for name in systems}
    for metric in metrics:
        runs_by_name = {name: _runs_with(rows, metric) for name, rows in systems.items()}
        runs_by_name = {name: runs for name, runs in runs_by_name.items() if runs}
        measurements = {
            name: [_measurement(metric, rows, language, one_script) for rows in runs]
            for name, runs in _shared_rows(runs_by_name).items()
        }
        of_baseline = measurements.get(baseline, [])
        for name, of_runs in measurements.items():
            rivals = of_baseline if name != baseline else []
            if score := _score(of_runs, rivals):
                scores[name][metric] = score
    return scores


def _runs_with(rows: Sequence[TranslatedPair], metric: str) -> list[RowsById]:
    """The rows that have a metric, by run; a run without any is left out."""
    runs: defaultdict[int, RowsById] = defaultdict(dict)
    for row in rows:
        if _has(row, metric):
            runs[row.run][row.pair.id] = row
    return list(runs.values())


def _shared_rows(runs_by_name: Mapping[str, Sequence[RowsById]]) -> dict[str, list[list[TranslatedPair]]]:
    """The rows of each run of each system for the pairs that all of them have, in one order."""
    runs = [rows for of_system in runs_by_name.values() for rows in of_system]
    ids = [key for key in next(iter(runs), ()) if all(key in rows for rows in runs)]
    return {name: [[rows[key] for key in ids] for rows in of_system] for name, of_system in runs_by_name.items()}


def _score(runs: Sequence[Measurement | None], baseline: Sequence[Measurement | None]) -> dict[str, Any] | None:
    """The mean over the runs with its interval, tested against the mean over the baseline's runs."""
    measured = [run for run in runs if run is not None]
    if not measured:
        return None
    statistics = [statistic for statistic, _, _ in measured]
    rivals = [statistic for statistic, _, _ in filter(None, baseline)]
    _, n, counted = measured[0]
    score = {**score_against(_mean(statistics), n, _mean(rivals) if rivals else None), "counted": counted}
    if len(statistics) > 1:
        values = [statistic(range(n)) for statistic in statistics]
        score |= {"runs": values, "sd": stdev(values)}
    return score


def _mean(statistics: Sequence[Statistic]) -> Statistic:
    return statistics[0] if len(statistics) == 1 else mean_of(statistics)


def _has(row: TranslatedPair, metric: str) -> bool:
    if not row.translation:
        return False
    match metric:
        case "BLEU" | "chrF" | "chrF++" | "spBLEU":
            return bool(row.pair.references)
        case "terms":
            return bool(row.pair.terms)
        case "m-ETA":
            return bool(row.pair.mentions)
        case "consistency":
            return bool(row.pair.document and row.pair.terms)
    return metric in row.scores


def _measurement(metric: str, rows: Sequence[TranslatedPair], language: str, one_script: bool) -> Measurement | None:
    """The metric over these rows; None if there is nothing to measure."""
    if metric in TERM_METRICS:
        counts = [count for count in _counts(metric, rows) if count[1]]
        return (ratio_statistic(counts), len(counts), sum(total for _, total in counts)) if counts else None
    if not rows:
        return None
    if metric == "document":
        by_document = {row.pair.document: row.scores[metric] for row in rows}
        return mean_statistic(list(by_document.values())), len(by_document), None
    if metric not in CORPUS:
        return mean_statistic([row.scores[metric] for row in rows]), len(rows), None
    return _corpus_statistic(metric, rows, language, one_script), len(rows), None


def _corpus_statistic(metric: str, rows: Sequence[TranslatedPair], language: str, one_script: bool) -> Statistic:
    script = to_simplified if one_script else str
    hypotheses = [script(str(row.translation)) for row in rows]
    references = [[script(reference) for reference in row.pair.references] for row in rows]
    match metric:
        case "BLEU":
            return bleu_statistic(hypotheses, references, language)
        case "spBLEU":
            return bleu_statistic(hypotheses, references, language, tokenizer=SPM_TOKENIZER)
        case _:
            return chrf_statistic(hypotheses, references, word_order=WORD_ORDER if metric == "chrF++" else 0)


def _counts(metric: str, rows: Sequence[TranslatedPair]) -> Sequence[tuple[float, int]]:
    """(correct, total) of each sentence, or of each document."""
    if metric == "terms":
        return [term_scores.term_accuracy(str(row.translation), row.pair.terms) for row in rows]
    if metric == "m-ETA":
        return [term_scores.entity_accuracy(str(row.translation), row.pair.mentions) for row in rows]
    documents: defaultdict[str, list[TranslatedPair]] = defaultdict(list)
    for row in rows:
        documents[row.pair.document].append(row)
    return [
        term_scores.consistency((str(row.translation), row.pair.terms) for row in members)
        for members in documents.values()
    ]


def scripts_differ(rows: Sequence[TranslatedPair]) -> bool:
    """Whether most references have traditional Chinese characters and most translations none, or the reverse.

    False without OpenCC, and for rows without a reference.
    """
    rows = [row for row in rows if row.pair.references]
    if not can_simplify():
        return False

    def traditional(texts: Sequence[str]) -> bool:
        return 2 * sum(to_simplified(text) != text for text in texts) > len(texts)

    return traditional([str(row.translation) for row in rows]) != traditional([row.pair.references[0] for row in rows])
