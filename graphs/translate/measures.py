"""What translations are worth: BLEU, chrF, COMET, a judge's scores, terms; with intervals, and against a baseline.

| metric | of | resampled |
|---|---|---|
| BLEU, chrF | all references of a sentence (agentsys/metrics/corpus.py) | sentences |
| COMET | source, translation, first reference; in an environment of its own | sentences |
| GRF, GRB, GEA | graphs/translate/system.py's judge | sentences |
| terms, m-ETA | terms and entities of a sentence (agentsys/metrics/terms.py) | sentences that have one |
| consistency | terms that two sentences of a document share (agentsys/metrics/terms.py) | documents |

All are from 0 to 100. A metric is taken over the sentences for which every system has it, so that a column compares
like with like. A translation that is missing is not an empty text: that sentence is left out for all.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from agentsys.graphs.translate.rows import Row
from agentsys.metrics import terms as term_scores
from agentsys.metrics.corpus import (
    Statistic,
    bleu_statistic,
    chrf_statistic,
    mean_statistic,
    paired_bootstrap,
    ratio_statistic,
    with_interval,
)
from agentsys.records import InputError
from agentsys.text.chinese import simplified

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
"""Runs in the environment of --comet-python: unbabel-comet's dependencies cannot live together with ours."""

Found = dict[str, dict[str, dict[str, Any]]]
"""System -> metric -> {value, low, high, n, counted, difference}."""
Scored = tuple[Statistic, int, int | None]
"""A metric as a function of what is resampled, how many of those there are, and how many terms it counts."""


def check_comet(python: Path) -> None:
    """Raises InputError if that interpreter cannot import unbabel-comet."""
    try:
        tried = subprocess.run([python, "-c", COMET_IMPORT], capture_output=True, check=False)
    except OSError as err:
        raise InputError(f"--comet-python {python}: {err.strerror}; give a Python that has unbabel-comet") from None
    if tried.returncode:
        raise InputError(f"--comet-python {python}: unbabel-comet cannot be imported: {_last_line(tried.stderr)}")


def add_comet(rows: Sequence[Row], python: Path, model: str) -> str | None:
    """Add COMET, times 100 as in DRT's paper, to the scores of rows that have a translation; or say why it failed."""
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
    return (output.decode(errors="replace").strip().splitlines() or ["it gave no message"])[-1].strip()


def measure(
    systems: Mapping[str, Sequence[Row]],
    language: str,
    metrics: Iterable[str],
    *,
    baseline: str = "",
    one_script: bool = False,
) -> Found:
    """The metrics of each system with 95 % bootstrap intervals, and the paired difference from the baseline.

    `language` is that of the translations. `one_script` turns translations and references to simplified Chinese before
    BLEU and chrF. A system without a single translation holds no other up; a metric that none has is not there.
    """
    found: Found = {name: {} for name in systems}
    for metric in metrics:
        able = {name: {row.pair.id: row for row in rows if _has(row, metric)} for name, rows in systems.items()}
        able = {name: rows for name, rows in able.items() if rows}
        ids = [key for key in next(iter(able.values()), ()) if all(key in rows for rows in able.values())]
        shared = {name: [rows[key] for key in ids] for name, rows in able.items()}
        made = {name: _statistic(metric, rows, language, one_script) for name, rows in shared.items()}
        for name, scored in made.items():
            if scored is not None:
                found[name][metric] = _scores(scored, made.get(baseline) if name != baseline else None)
    return found


def _scores(scored: Scored, baseline: Scored | None) -> dict[str, Any]:
    statistic, n, counted = scored
    difference = asdict(paired_bootstrap(statistic, baseline[0], n)) if baseline else None
    return {**asdict(with_interval(statistic, n)), "n": n, "counted": counted, "difference": difference}


def _has(row: Row, metric: str) -> bool:
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


def _statistic(metric: str, rows: Sequence[Row], language: str, one_script: bool) -> Scored | None:
    """The metric over these rows; None where there is nothing to measure."""
    if metric in TERM_METRICS:
        counts = [count for count in _counts(metric, rows) if count[1]]
        return (ratio_statistic(counts), len(counts), sum(asked for _, asked in counts)) if counts else None
    if not rows:
        return None
    if metric not in ("BLEU", "chrF"):
        return mean_statistic([row.scores[metric] for row in rows]), len(rows), None
    script = simplified if one_script else str
    hypotheses = [script(str(row.translation)) for row in rows]
    references = [[script(reference) for reference in row.pair.references] for row in rows]
    if metric == "BLEU":
        return bleu_statistic(hypotheses, references, language), len(rows), None
    return chrf_statistic(hypotheses, references), len(rows), None


def _counts(metric: str, rows: Sequence[Row]) -> Sequence[tuple[float, int]]:
    """(right, asked) of each sentence, or of each document."""
    if metric == "terms":
        return [term_scores.term_accuracy(str(row.translation), row.pair.terms) for row in rows]
    if metric == "m-ETA":
        return [term_scores.entity_accuracy(str(row.translation), row.pair.mentions) for row in rows]
    documents: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        documents[row.pair.document].append(row)
    return [
        term_scores.consistency((str(row.translation), row.pair.terms) for row in members)
        for members in documents.values()
    ]


def absences(rows: Sequence[Row], metrics: Iterable[str], *, comet: str, judge: bool) -> dict[str, str]:
    """Why a metric may be absent; `rows` are those with a translation."""
    if not rows:
        return dict.fromkeys(metrics, "no translation to score")
    why = {
        "COMET": comet,
        **dict.fromkeys(JUDGED, "no usable reply" if judge else "no --judge"),
        "terms": "the pairs have no terms",
        "m-ETA": "the pairs have no mentions",
        "consistency": "no document has a term in two sentences",
    }
    return {name: why.get(name, "no sentence that every system translated") for name in metrics}


def scripts_differ(rows: Sequence[Row]) -> bool:
    """Whether most references have traditional Chinese characters and most translations none, or the reverse."""

    def traditional(texts: Sequence[str]) -> bool:
        return 2 * sum(simplified(text) != text for text in texts) > len(texts)

    return traditional([str(row.translation) for row in rows]) != traditional([row.pair.references[0] for row in rows])


def score_table(found: Found, absent: Mapping[str, str], metrics: Iterable[str]) -> Table:
    """A line for each metric of one system; for several a block for each, with the differences from the baseline."""
    if len(found) == 1:
        return _one_system(next(iter(found.values())), absent, metrics)
    table = Table("metric", "system", "value, 95 %", "less baseline, 95 %", "p", "n", box=SIMPLE, pad_edge=False)
    for metric in metrics:
        there = {name: scores[metric] for name, scores in found.items() if metric in scores}
        for i, (name, score) in enumerate(there.items()):
            cells = ["" if i else metric, name, _value(score, ""), *_difference(score["difference"]), str(score["n"])]
            table.add_row(*cells, end_section=i == len(there) - 1)
    return table


def _one_system(scores: Mapping[str, Mapping[str, Any]], absent: Mapping[str, str], metrics: Iterable[str]) -> Table:
    table = Table("metric", "value", "95 % interval", "n")
    for metric in metrics:
        if score := scores.get(metric):
            value, low, high = (f"{score[end]:.2f}" for end in ("value", "low", "high"))
            table.add_row(metric, value, f"{low} to {high}", str(score["n"]))
        else:
            table.add_row(metric, "absent", escape(absent[metric]), "0")
    return table


def _value(score: Mapping[str, float], sign: str) -> str:
    return f"{score['value']:{sign}.2f} [{score['low']:{sign}.1f}, {score['high']:{sign}.1f}]"


def _difference(difference: Mapping[str, float] | None) -> list[str]:
    return [_value(difference, "+"), f"{difference['p']:.3f}"] if difference else ["", ""]
