"""The metrics of translations: BLEU, chrF, COMET, a judge's scores, terms; with intervals, and against a baseline.

| metric | computed from | resampled |
|---|---|---|
| BLEU, chrF | all references of a sentence (agentsys/metrics/corpus.py) | sentences |
| COMET | source, translation, first reference; in a separate environment | sentences |
| GRF, GRB, GEA | graphs/translate/system.py's judge | sentences |
| terms, m-ETA | terms and entities of a sentence (agentsys/metrics/terms.py) | sentences that have one |
| consistency | terms that two sentences of a document share (agentsys/metrics/terms.py) | documents |

All are from 0 to 100. A metric is computed over the sentences for which every system has it, so that a column compares
the same sentences. A missing translation is not scored as an empty text: its sentence is left out for all systems.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.evaluation.report import score_against
from agentsys.graphs.translate.rows import TranslatedPair
from agentsys.metrics import terms as term_scores
from agentsys.metrics.corpus import (
    Statistic,
    bleu_statistic,
    chrf_statistic,
    mean_statistic,
    ratio_statistic,
)
from agentsys.records import InputError
from agentsys.text.chinese import to_simplified

JUDGED: Final = ("GRF", "GRB", "GEA")
METRICS: Final = ("BLEU", "chrF", "COMET", *JUDGED)
TERM_METRICS: Final = ("terms", "m-ETA", "consistency")

COMET_IMPORT: Final = "from comet import download_model, load_from_checkpoint"
COMET_SCRIPT: Final = f"""
import json, os, sys, torch
{COMET_IMPORT}
name, result = sys.argv[1:]
model = load_from_checkpoint(name if os.path.exists(name) else download_model(name))
scores = model.predict(json.load(sys.stdin), batch_size=8, gpus=int(torch.cuda.is_available())).scores
with open(result, "w") as file:
    json.dump([float(score) for score in scores], file)
"""
"""Runs in the environment of --comet-python: unbabel-comet's dependencies conflict with ours."""

Scores = dict[str, dict[str, dict[str, Any]]]
"""System -> metric -> {value, low, high, n, counted, difference}."""
Measurement = tuple[Statistic, int, int | None]
"""A metric as a statistic of resampled items, the number of items, and the number of terms it counts."""


def check_comet(python: Path) -> None:
    """Raises InputError if that interpreter cannot import unbabel-comet."""
    try:
        tried = subprocess.run([python, "-c", COMET_IMPORT], capture_output=True, check=False)
    except OSError as err:
        raise InputError(f"--comet-python {python}: {err.strerror}; give a Python that has unbabel-comet") from None
    if tried.returncode:
        raise InputError(f"--comet-python {python}: unbabel-comet cannot be imported: {_last_line(tried.stderr)}")


def add_comet(rows: Sequence[TranslatedPair], python: Path, model: str) -> str | None:
    """Add COMET, times 100 as in DRT's paper, to the scores of rows that have a translation; returns why it failed."""
    data = [{"src": row.pair.text, "mt": row.translation, "ref": row.pair.references[0]} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "scores.json"
        command: list[str | Path] = [python, "-c", COMET_SCRIPT, model, result]
        done = subprocess.run(command, input=orjson.dumps(data), capture_output=True, check=False)
        if done.returncode:
            return f"{model} failed: {_last_line(done.stderr)}"
        for row, score in zip(rows, orjson.loads(result.read_bytes()), strict=True):
            row.scores["COMET"] = 100 * score
    return None


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["no message"])[-1].strip()


def measure(
    systems: Mapping[str, Sequence[TranslatedPair]],
    language: str,
    metrics: Iterable[str],
    *,
    baseline: str = "",
    one_script: bool = False,
) -> Scores:
    """The metrics of each system with 95 % bootstrap intervals, and the paired difference from the baseline.

    `language` is that of the translations. `one_script` converts translations and references to simplified Chinese
    before BLEU and chrF. A system without any translation does not restrict the sentences; a metric that no system has
    is absent.
    """
    scores: Scores = {name: {} for name in systems}
    for metric in metrics:
        rows_by_id = {name: {row.pair.id: row for row in rows if _has(row, metric)} for name, rows in systems.items()}
        rows_by_id = {name: rows for name, rows in rows_by_id.items() if rows}
        ids = [key for key in next(iter(rows_by_id.values()), ()) if all(key in rows for rows in rows_by_id.values())]
        measurements = {
            name: _measurement(metric, [rows[key] for key in ids], language, one_script)
            for name, rows in rows_by_id.items()
        }
        of_baseline = measurements.get(baseline)
        for name, measurement in measurements.items():
            if measurement is not None:
                rival = of_baseline[0] if of_baseline and name != baseline else None
                statistic, n, counted = measurement
                scores[name][metric] = {**score_against(statistic, n, rival), "counted": counted}
    return scores


def _has(row: TranslatedPair, metric: str) -> bool:
    if not row.translation:
        return False
    match metric:
        case "BLEU" | "chrF":
            return True
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
    if metric not in ("BLEU", "chrF"):
        return mean_statistic([row.scores[metric] for row in rows]), len(rows), None
    script = to_simplified if one_script else str
    hypotheses = [script(str(row.translation)) for row in rows]
    references = [[script(reference) for reference in row.pair.references] for row in rows]
    if metric == "BLEU":
        return bleu_statistic(hypotheses, references, language), len(rows), None
    return chrf_statistic(hypotheses, references), len(rows), None


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


def absences(rows: Sequence[TranslatedPair], metrics: Iterable[str], *, comet: str, judge: bool) -> dict[str, str]:
    """The reason why each metric may be absent; `rows` are those with a translation."""
    if not rows:
        return dict.fromkeys(metrics, "no translation to score")
    reasons = {
        "COMET": comet,
        **dict.fromkeys(JUDGED, "no usable reply" if judge else "no --judge"),
        "terms": "the pairs have no terms",
        "m-ETA": "the pairs have no mentions",
        "consistency": "no document has a term in two sentences",
    }
    return {name: reasons.get(name, "no sentence that every system translated") for name in metrics}


def scripts_differ(rows: Sequence[TranslatedPair]) -> bool:
    """Whether most references have traditional Chinese characters and most translations none, or the reverse."""

    def traditional(texts: Sequence[str]) -> bool:
        return 2 * sum(to_simplified(text) != text for text in texts) > len(texts)

    return traditional([str(row.translation) for row in rows]) != traditional([row.pair.references[0] for row in rows])
