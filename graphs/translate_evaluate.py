"""Let several systems translate the same sentences, and score them side by side.

    python graphs/translate_evaluate.py --pairs data.jsonl --systems plain,rag,crat,crat-judge,crat-graph \
        --sources terms:terms.csv,tmx:memory.tmx --terms terms.csv --judge http://judge:8000/v1 --out eval
    python graphs/translate_evaluate.py --pairs data.jsonl --source-field src --reference-field tgt --out eval \
        --systems ragtrans-none,ragtrans-golden,ragtrans-noisy,ragtrans-retrieved --document-language zh --index index

Systems are those of graphs/translate/systems.py, and files of finished translations (--translations name=FILE). Each is
a collect run in a folder of its own under --out, its judgements are one in `judged` in there; stopped, the same command
goes on where it was, and what failed is tried again. Metrics are those of graphs/translate/measures.py, each over the
sentences that every system translated, with 95 % bootstrap intervals; the difference from the baseline (the first
system, or --baseline) is tested by paired bootstrap resampling. docs/evaluate.md says what each metric counts.

--out gets evaluation.json and translations.jsonl (a sentence a line). Exit codes: 0; 1 an endpoint or COMET failed; 2
bad configuration; 3 a pair cannot be used, or a translation or score is missing; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import typer
from rich.console import Console
from rich.table import Table

from agentsys.collect import Options, RunOptions
from agentsys.collect.fingerprint import context_models
from agentsys.commands import command, knob, run_app
from agentsys.evaluation.report import plainly, write_report
from agentsys.evaluation.run import Place
from agentsys.evaluation.sample import drawn
from agentsys.graphs import translate
from agentsys.graphs.translate.measures import (
    METRICS,
    TERM_METRICS,
    Found,
    absences,
    add_comet,
    check_comet,
    measure,
    score_table,
    scripts_differ,
)
from agentsys.graphs.translate.rows import Columns, Pair, Row, missing_of, read_pairs, reasons_of, rows_of, with_terms
from agentsys.graphs.translate.systems import SYSTEMS, Cost, Outcome, judged, system, translated
from agentsys.knobs import listed
from agentsys.metrics.corpus import bleu_signature
from agentsys.models.spec import DEFAULT_SPEC
from agentsys.records import BadRecord, InputError


@dataclass(frozen=True)
class Data:
    """What is translated."""

    panel: ClassVar[str] = "Data"
    pairs: Path | None = knob(None, "sources and references: .jsonl, .json, .csv, .tsv, .parquet or .tmx")
    source_field: str = knob("text", "column of the source texts")
    reference_field: str = knob("trans", "column of the reference, or of a list of references")
    document_field: str = knob("document", "column that names the document a sentence is of")
    terms: str = knob(
        "", "lists of terms, FILE.csv, separated by commas: what a source and its reference have is counted"
    )
    source_language: str = knob("English", "language of the sources")
    target_language: str = knob("Chinese", "language of the translations; decides BLEU's tokens")
    limit: int | None = knob(None, "take only the first so many sentences")
    shuffle: bool = knob(False, "take them in an order that --seed decides")
    seed: int = knob(0, "seed of the shuffle")


@dataclass(frozen=True)
class Compared:
    """Who translates."""

    panel: ClassVar[str] = "Systems"
    systems: str = knob("", f"which, separated by commas, of {', '.join(SYSTEMS)}")
    translations: list[str] = knob((), "a finished system, as name=FILE: text lines or records; may be repeated")
    baseline: str = knob("", "the system that the others are tested against; empty: the first")
    model: str = knob(DEFAULT_SPEC, "model spec of every system")
    sources: str = knob("", "where CRAT and rag look terms up: specs as terms:FILE.csv, separated by commas")
    document_language: str = knob("", "RAGtrans' documents: zh is column zh_doc or noisy_zh_doc; empty: doc")
    index: str = knob("", "ragtrans-retrieved: folder of an index that `python -m agentsys.knowledge build` wrote")
    retriever: Literal["", "bm25", "dense", "hybrid"] = knob("", "which of the index's retrievers; empty: the best")

    def files(self) -> dict[str, Path]:
        """Finished systems by name. Raises InputError."""
        found: dict[str, Path] = {}
        for entry in self.translations:
            name, _, file = entry.partition("=")
            if not name or not file or "/" in name:
                raise InputError(f"--translations {entry}: give a name and a file, as mine=mine.jsonl")
            if name in found or name in SYSTEMS:
                raise InputError(f"--translations {entry}: there is a system '{name}' already; choose another name")
            found[name] = Path(file)
        return found

    def names(self) -> list[str]:
        """All systems, in the order in which they run. Raises InputError."""
        given = list(dict.fromkeys(listed(self.systems)))
        names = [*given, *self.files()]
        if not names:
            raise InputError(f"--systems: name some of {', '.join(SYSTEMS)}, or give finished --translations")
        if self.baseline and self.baseline not in names:
            raise InputError(f"--baseline {self.baseline}: it is not among the systems; name it in --systems too")
        return names


@dataclass(frozen=True)
class Scores:
    """What they are measured by, besides BLEU, chrF and terms."""

    panel: ClassVar[str] = "Scores"
    judge: str = knob("", "model spec of the judge; without it there is no GRF, GRB and GEA")
    comet_python: Path | None = knob(None, "a Python with unbabel-comet; without it there is no COMET")
    comet_model: str = knob("Unbabel/wmt22-comet-da", "COMET model: a name or a checkpoint")
    one_script: bool = knob(False, "turn translations and references to simplified Chinese before BLEU and chrF")


@dataclass(frozen=True)
class UserPlace(Place):
    """A place whose systems share the user's request cache."""

    cache: Path | None = knob(None, "request cache file; by default one in the user's cache folder")


def evaluate(data: Data, compared: Compared, scores: Scores, place: UserPlace) -> dict[str, Any]:
    """Read, check, translate, judge and measure; what evaluation.json holds.

    Raises what a user can mend before anything is asked, and what `translated` and `judged` raise.
    """
    names, files = compared.names(), compared.files()
    options = RunOptions(in_flight=place.in_flight, cache=place.cache, retry_failed=True).runner()
    every, pairs, unusable = _sampled(data)
    settings = _settings(data, compared)
    ready = {name: system(name, settings, pairs) for name in names if name not in files}
    done = {name: Outcome(rows_of(pairs, file, every), {"run": _sha256(file)}) for name, file in files.items()}
    with_sources = any(about.takes_sources for about in ready.values())
    told = _told(data, compared, with_sources)
    given_away = _given_away(pairs, data, compared) if with_sources else []
    judge = _judge(data, scores)
    if scores.comet_python:
        check_comet(scores.comet_python)
    assert data.pairs is not None
    out = place.out or Path("runs") / f"translate-eval-{data.pairs.stem}"
    for i, (name, about) in enumerate(ready.items(), 1):
        print(f"{name} ({i} of {len(ready)})", file=sys.stderr)
        done[name] = translated(about, pairs, out / name, options)
    outcomes = {name: done[name] for name in names}
    if judge:
        for name, outcome in outcomes.items():
            print(f"judging {name}", file=sys.stderr)
            _judged(outcome, out / name / "judged", judge, options)
    report = {
        "version": 1,
        "out": str(out),
        "settings": {**asdict(data), **asdict(compared), **asdict(scores), **asdict(place)},
        "pairs_sha256": _sha256(data.pairs),
        "sentences": len(pairs),
        "unusable": [asdict(row) for row in unusable],
        "told": told,
        "given_away": given_away,
        **_measured(outcomes, compared.baseline or names[0], data.target_language, scores),
    }
    _write(report, pairs, outcomes, out)
    return report


def _settings(data: Data, compared: Compared) -> dict[str, Any]:
    """What a system's context can take from the command."""
    names = ("model", "sources", "document_language", "index", "retriever")
    languages = {"source_language": data.source_language, "target_language": data.target_language}
    return {name: getattr(compared, name) for name in names} | languages


def _sampled(data: Data) -> tuple[list[Pair | BadRecord], list[Pair], list[BadRecord]]:
    """All pairs of the file, those to translate, and those among them that cannot be used. Raises InputError."""
    if data.pairs is None:
        raise InputError("--pairs: name a file of sources and references, .jsonl, .tmx or .parquet, say")
    if data.limit is not None and data.limit < 1:
        raise InputError(f"--limit {data.limit}: at least 1 is needed")
    columns = Columns(data.source_field, data.reference_field, data.document_field)
    languages = (data.source_language, data.target_language)
    every = read_pairs(data.pairs, columns, languages)
    pairs, unusable = drawn(every, data.pairs, "pair", limit=data.limit, shuffle=data.shuffle, seed=data.seed)
    if lists := listed(data.terms):
        pairs = with_terms(pairs, lists, languages)
    return every, pairs, unusable


def _told(data: Data, compared: Compared, with_sources: bool) -> list[str]:
    """What the lists of terms and the sources hold, each file once."""
    from agentsys.terms.sources import told

    specs = [f"terms:{name}" for name in listed(data.terms)] + (listed(compared.sources) if with_sources else [])
    return told(list(dict.fromkeys(specs)), data.source_language, data.target_language)


def _given_away(pairs: Sequence[Pair], data: Data, compared: Compared) -> list[str]:
    """A line for each memory among the sources that holds sentences of the test, with their translations."""
    from agentsys.terms.sources import TranslationMemory, load_sources

    specs = [spec for spec in listed(compared.sources) if spec.startswith("tmx:")]
    lines = []
    for memory in load_sources(specs, data.source_language, data.target_language) if specs else ():
        if isinstance(memory, TranslationMemory) and (held := sum(memory.holds(pair.text) for pair in pairs)):
            lines.append(
                f"{memory.name} holds {held} of the sentences and gives their translations away; leave them out"
            )
    return lines


def _judge(data: Data, scores: Scores) -> translate.Context | None:
    if not scores.judge:
        return None
    context = translate.Context(
        model=scores.judge, source_language=data.source_language, target_language=data.target_language
    )
    context_models(context)
    return context


def _judged(outcome: Outcome, folder: Path, judge: translate.Context, options: Options) -> None:
    """Judge what a system translated; another run of it, or another file, does not mix with this one's scores."""
    if rows := [row for row in outcome.rows if row.translation]:
        judged(rows, folder, replace(judge, data=outcome.manifest["run"]), options)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _measured(outcomes: Mapping[str, Outcome], baseline: str, language: str, scores: Scores) -> dict[str, Any]:
    rows = {name: outcome.rows for name, outcome in outcomes.items()}
    there = [row for row in chain.from_iterable(rows.values()) if row.translation]
    failure = add_comet(there, scores.comet_python, scores.comet_model) if scores.comet_python and there else None
    metrics = (*METRICS, *TERM_METRICS)
    found = measure(rows, language, metrics, baseline=baseline, one_script=scores.one_script)
    absent = absences(there, metrics, comet=failure or "no --comet-python", judge=bool(scores.judge))
    return {
        "baseline": baseline,
        "signature": bleu_signature(language, [len(row.pair.references) for row in next(iter(rows.values()))]),
        "systems": {
            name: {
                "run": outcome.manifest["run"],
                "models": _models(outcome),
                "translated": sum(bool(row.translation) for row in outcome.rows),
                **missing_of(outcome.rows),
                "cost": {**asdict(outcome.cost), "a_sentence": outcome.cost.a_sentence()}
                if outcome.cost.calls
                else None,
                "metrics": found[name],
            }
            for name, outcome in outcomes.items()
        },
        "absent": {name: why for name, why in absent.items() if not any(name in scores for scores in found.values())},
        "scripts_differ": not scores.one_script and scripts_differ(there),
    }


def _models(outcome: Outcome) -> list[str]:
    prints = outcome.manifest.get("fingerprint", {}).get("models", {})
    return sorted({model["name"] for model in prints.values()})


def _write(report: Mapping[str, Any], pairs: Sequence[Pair], outcomes: Mapping[str, Outcome], out: Path) -> None:
    """evaluation.json and translations.jsonl."""
    lines = (
        {
            "id": pair.id,
            "document": pair.document,
            "source": pair.text,
            "references": pair.references,
            "terms": pair.terms,
            "mentions": pair.mentions,
            "systems": {name: _said(outcome.rows[i]) for name, outcome in outcomes.items()},
        }
        for i, pair in enumerate(pairs)
    )
    write_report(report, "translations.jsonl", lines, out)


def _said(row: Row) -> dict[str, Any]:
    return {"translation": row.translation, "reason": row.reason, "scores": row.scores}


def show(report: Mapping[str, Any], console: Console) -> None:
    """The conditions, the tables, and what went wrong."""
    say = plainly(console)
    settings, systems = report["settings"], report["systems"]
    order = f", shuffled with seed {settings['seed']}" if settings["shuffle"] else ""
    judge = f"judge {settings['judge']}" if settings["judge"] else "no judge"
    say(
        f"{', '.join(sorted({model for about in systems.values() for model in about['models']})) or 'files'}; "
        f"{settings['pairs']}, n={report['sentences']}{order}; {settings['source_language']} to "
        f"{settings['target_language']}; {judge}; BLEU {report['signature']}"
        f"{', one script' if settings['one_script'] else ''}; baseline {report['baseline']}"
    )
    for line in report["told"]:
        say(line)
    found: Found = {name: about["metrics"] for name, about in systems.items()}
    present = [name for name in (*METRICS, *TERM_METRICS) if name not in report["absent"]]
    console.print(score_table(found, report["absent"], present))
    for line in _counted(found, present):
        say(line)
    console.print(_costs(systems))
    for reason in dict.fromkeys(report["absent"].values()):
        say(f"no {', '.join(name for name, why in report['absent'].items() if why == reason)}: {reason}")
    if report["scripts_differ"]:
        say("most references are in another Chinese script than most translations: --one-script compares them in one")
    for line in report["given_away"]:
        say(line)
    for entry in report["unusable"][:5]:
        say(f"not translated: {entry['source']}: {entry['reason']}")
    for name, about in systems.items():
        for line in reasons_of(about["missing"], about["unscored"]):
            say(f"{name}: {line}")
        cost = about["cost"] or {"cut_off": 0}
        if cost["cut_off"]:
            say(f"{name}: {cost['cut_off']} of {cost['calls']} replies were cut off by their token limit")
    say(f"numbers, translations and runs: {report['out']}")


def _counted(found: Found, metrics: Sequence[str]) -> list[str]:
    """What the measures of terms are out of."""
    first = {name: next(scores[name] for scores in found.values() if name in scores) for name in metrics}
    kinds = {
        "terms": "terms in {} sentences",
        "m-ETA": "entities in {} sentences",
        "consistency": "terms in {} documents",
    }
    return [
        f"{name}: {first[name]['counted']} {kind.format(first[name]['n'])}"
        for name, kind in kinds.items()
        if name in first
    ]


def _costs(systems: Mapping[str, Mapping[str, Any]]) -> Table:
    """What a sentence cost each system, judges of this evaluation left out."""
    table = Table("system", "translated", "calls a sentence", "prompt tokens", "written tokens")
    for name, about in systems.items():
        cost = about["cost"] and about["cost"]["a_sentence"]
        cells = [f"{cost[part]:,.1f}" for part in Cost.PARTS] if cost else ["-"] * len(Cost.PARTS)
        table.add_row(name, str(about["translated"]), *cells)
    return table


def main(data: Data, compared: Compared, scores: Scores, run: UserPlace) -> None:
    """Let systems translate the same sentences and score them: BLEU, chrF, COMET, judge, terms; and what they cost.

    Metrics have 95 % bootstrap intervals, differences from the baseline a p-value by paired bootstrap resampling.
    Stopped, the same command goes on where it was.
    """
    report = evaluate(data, compared, scores, run)
    show(report, Console())
    if scores.comet_python and "COMET" in report["absent"]:
        raise typer.Exit(1)
    if report["unusable"] or any(about["missing"] or about["unscored"] for about in report["systems"].values()):
        raise typer.Exit(3)


if __name__ == "__main__":
    sys.exit(run_app(command(main)))
