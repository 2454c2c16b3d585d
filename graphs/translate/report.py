"""The report of a translation evaluation: the results of all systems, the files, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, Final

from agentsys.evaluation.report import write_report
from agentsys.graphs.translate.comet import CometRun, add_comet
from agentsys.graphs.translate.judges import COUNTED_ERRORS, MAX_PENALTY, WEIGHTS, Judges
from agentsys.graphs.translate.judging import count_errors, count_preferences
from agentsys.graphs.translate.measures import JUDGED, TERM_METRICS, measure, scripts_differ
from agentsys.graphs.translate.options import ScoreOptions
from agentsys.graphs.translate.rows import Pair, TranslatedPair, missing_of
from agentsys.graphs.translate.system import Translate
from agentsys.graphs.translate.systems import SystemResult
from agentsys.metrics.corpus import corpus_signatures, missing_tokenizer
from agentsys.roles import Role


def measure_results(
    results: Mapping[str, SystemResult],
    baseline: str,
    language: str,
    options: ScoreOptions,
    limits: Mapping[str, str],
    cache: Path,
) -> dict[str, Any]:
    """Score all systems: the keys of the report that depend on translations. COMET runs here.

    `limits` are the metrics that cannot be computed, and why. Raises CacheError.
    """
    rows = {name: result.rows for name, result in results.items()}
    translated = [row for result in results.values() for row in result.translated]
    comet: dict[str, CometRun] = {}
    if options.comet_python and translated:
        comet = add_comet(translated, options.comet_python, options.comet_columns, cache)
    metrics = [name for name in options.metrics if name not in limits]
    scores = measure(rows, language, metrics, baseline=baseline, one_script=options.one_script)
    measured = set(chain.from_iterable(scores.values()))
    reasons = absences(options, translated, limits, comet)
    signatures = make_signatures(language, [row.pair for row in next(iter(rows.values()))], comet)
    return {
        "baseline": baseline,
        "metrics": options.metrics,
        "signature": signatures.get("BLEU", ""),
        "signatures": {name: text for name, text in signatures.items() if name in measured},
        "tokenizer": missing_tokenizer(language),
        "comet": {name: asdict(run) for name, run in comet.items()},
        "systems": {name: _result_json(result, scores[name]) for name, result in results.items()},
        "absent": {name: reason for name, reason in reasons.items() if name not in measured},
        "scripts_differ": not options.one_script and scripts_differ(translated),
    }


def absences(
    options: ScoreOptions,
    rows: Sequence[TranslatedPair],
    limits: Mapping[str, str],
    comet: Mapping[str, CometRun],
) -> dict[str, str]:
    """The reason why each metric may be absent; `rows` are those with a translation."""
    if not rows:
        return dict.fromkeys(options.metrics, "no translation to score")
    judged = "no usable reply" if options.judge else "no --judge"
    reasons = {
        "COMET": "no --comet-python",
        **{name: run.failed or "the model needs references" for name, run in comet.items()},
        **dict.fromkeys((*JUDGED, "MQM", "preference", "document"), judged),
        "terms": "the pairs have no terms",
        "m-ETA": "the pairs have no mentions",
        "consistency": "no document has a term in two sentences",
        **limits,
    }
    return {name: reasons.get(name, "no sentence that every system translated") for name in options.metrics}


def make_signatures(language: str, pairs: Sequence[Pair], comet: Mapping[str, CometRun]) -> dict[str, str]:
    """What others need to compute each metric in the same way."""
    counts = [len(pair.references) for pair in pairs if pair.references]
    single, further = Translate(), Judges()
    judges: dict[str, Role[Any]] = dict(zip(JUDGED, (single.grf, single.grb, single.gea), strict=True))
    judges |= {"MQM": further.mqm, "preference": further.preference, "document": further.document}
    return {
        **(corpus_signatures(language, counts) if counts else {}),
        **{name: run.signature for name, run in comet.items()},
        **{name: _role_signature(role) for name, role in judges.items()},
        "MQM": f"{_role_signature(further.mqm)}|{_MQM}",
        **{name: f"match:{match}|nfkc|casefold|script:t2s" for name, match in _MATCHES.items()},
    }


_MQM: Final = f"weights:{'/'.join(map(str, WEIGHTS.values()))}|worst:{COUNTED_ERRORS}|max:{MAX_PENALTY}"
_MATCHES: Final = dict(zip(TERM_METRICS, ("words", "substring", "words"), strict=True))
"""How each metric of terms looks for a translation of a term."""


def _role_signature(role: Role[Any]) -> str:
    sampling = "|".join(f"{name}:{value}" for name, value in role.sampling.items())
    return f"prompt:{role.text.name}|sha256:{role.text.sha256[:8]}|{sampling}"


def _result_json(result: SystemResult, metrics: Mapping[str, Any]) -> dict[str, Any]:
    thoughts = any(row.well_formed is not None for row in result.rows)
    return {
        "run": result.run,
        "file": result.file,
        "models": result.models,
        "sampling": result.sampling,
        "repeats": result.repeats,
        "translated": len(result.translated),
        "well_formed": sum(bool(row.well_formed) for row in result.translated) if thoughts else None,
        **missing_of(result.rows),
        "cost": result.cost.as_json(),
        "metrics": metrics,
        "errors": count_errors(result.rows),
        "preference": count_preferences(result.rows),
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
            "systems": {name: _translations_json(result.rows[i :: len(pairs)]) for name, result in results.items()},
        }
        for i, pair in enumerate(pairs)
    )
    write_report(report, "translations.jsonl", lines, out)


def _translations_json(rows: Iterable[TranslatedPair]) -> dict[str, Any]:
    """The translation of a pair; of several runs the first one, and all of them under `runs`."""
    runs = [
        {"translation": row.translation, "reason": row.reason, "scores": row.scores}
        | ({} if row.errors is None else {"errors": row.errors})
        for row in rows
    ]
    return runs[0] if len(runs) == 1 else {**runs[0], "runs": runs}
