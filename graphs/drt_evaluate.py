"""Evaluate translations as DRT does (Wang et al., Findings of ACL 2025, section 3.1 and appendix C).

    python graphs/drt_evaluate.py --pairs test.jsonl --model http://host:8000/v1 --judge http://other:8000/v1 --out eval
    python graphs/drt_evaluate.py --pairs test.jsonl --translations mine.txt

One model or one file of translations, with DRT's long thoughts if it writes them; graphs/translate_evaluate.py scores
several systems side by side with the same code. BLEU and chrF come from sacrebleu, COMET from an environment of its own
(--comet-python), GRF, GRB and GEA from a judge model (the paper judges 400 random pairs: --limit 400 --shuffle). Every
interval is a bootstrap over pairs.

Translations from a file are plain text, one a line, or records (.jsonl, .json, .csv, .tsv, .parquet) with a field
`translation`, matched by `id` where they have one, else in the order of the pairs. translations.jsonl is such a file.

A pair without a translation (a call that failed for good, a thought that never ended, no line in the file) is reported
as missing and not scored as an empty text: every score is over the pairs that have it, and its n says how many. So
compare two models on the ids that both have in translations.jsonl. A translation that the token limit cut off, or a
reply that left out tags of --style thought, is scored as it stands.

Translating and judging is a collect run in --out (without it: in a temporary folder). Stopped, the same command goes on
where it was; pairs that failed are tried again. Exit codes: 0; 1 an endpoint or COMET failed; 2 bad configuration; 3 a
pair or one of its scores is missing; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from agentsys.collect import Options
from agentsys.collect.fingerprint import digest
from agentsys.commands import run_app
from agentsys.evaluation.report import plainly, write_report
from agentsys.evaluation.sample import drawn
from agentsys.graphs.translate.measures import METRICS, absences, add_comet, check_comet, measure, score_table
from agentsys.graphs.translate.rows import Columns, Row, missing_of, read_pairs, reasons_of, rows_of
from agentsys.graphs.translate.system import Context
from agentsys.graphs.translate.systems import judged
from agentsys.metrics.corpus import bleu_signature
from agentsys.models.endpoint import DEFAULT_IN_FLIGHT
from agentsys.models.spec import DEFAULT_SPEC
from agentsys.records import InputError

Style = Literal["plain", "thought"]


def _option(panel: str, text: str, **about: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, **about)


@dataclass(frozen=True)
class Settings:
    """Translate a test set with a model, or read its translations from a file, and score them.

    BLEU, chrF, COMET (times 100), GRF, GRB and GEA, all from 0 to 100, with 95 % bootstrap intervals.
    """

    pairs: Annotated[Path, _option("Data", "Sources and references: .jsonl, .json, .csv, .tsv or .parquet.")]
    source_field: Annotated[str, _option("Data", "Column of the source texts.")] = "text"
    reference_field: Annotated[str, _option("Data", "Column of the reference translations.")] = "trans"
    source_language: Annotated[str, _option("Data", "Language of the sources.")] = "English"
    target_language: Annotated[str, _option("Data", "Language of the translations; decides BLEU's tokens.")] = "Chinese"
    limit: Annotated[int | None, _option("Data", "Number of pairs, from the first. Default: all.", min=1)] = None
    shuffle: Annotated[bool, _option("Data", "Take the pairs in an order that --seed decides.")] = False
    seed: Annotated[int, _option("Data", "Seed of --shuffle.", min=0)] = 0
    model: Annotated[str, _option("Model", f"Spec of the model to evaluate. Default: {DEFAULT_SPEC}.")] = ""
    style: Annotated[Style, _option("Model", "Its reply: a translation, or DRT's <thought> and <output>.")] = "plain"
    translations: Annotated[Path | None, _option("Model", "Translations in its place: text lines or records.")] = None
    judge: Annotated[str, _option("Scores", "Spec of the judge model. Default: no GRF, GRB, GEA.")] = ""
    comet_python: Annotated[Path | None, _option("Scores", "A Python with unbabel-comet. Default: no COMET.")] = None
    comet_model: Annotated[str, _option("Scores", "COMET model: a name or a checkpoint.")] = "Unbabel/wmt22-comet-da"
    out: Annotated[Path | None, _option("Run", "Folder of the results and traces. Default: only the table.")] = None
    in_flight: Annotated[int, _option("Run", "Requests at once, per endpoint.", min=1)] = DEFAULT_IN_FLIGHT

    def __post_init__(self) -> None:
        """Raises InputError for options that do not go together."""
        if self.translations and self.model:
            raise InputError("--translations takes the place of --model; give one of the two")
        if self.translations and self.style == "thought":
            raise InputError("--style thought is for what a --model writes; leave it out with --translations")
        if self.out and self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out}: a file is there; name a folder")
        if not self.translations and not self.model:
            object.__setattr__(self, "model", DEFAULT_SPEC)

    def as_json(self) -> dict[str, Any]:
        """All settings, paths as text, and the SHA-256 of the files."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        texts = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        return texts | {f"{name}_sha256": sha256 for name, (_, sha256) in self._files().items()}

    def context(self) -> Context:
        """The graph's context. Its `data` keeps what other files give out of a run's folder."""
        data = [f"{path.name}@{sha256[:16]}" for path, sha256 in self._files().values()]
        return Context(
            model=self.model or self.judge,
            **{name: self.judge for name in ("grf_model", "grb_model", "gea_model")},
            style=self.style,
            judge=bool(self.judge),
            source_language=self.source_language,
            target_language=self.target_language,
            data=" ".join([*data, self.source_field, self.reference_field]),
        )

    def _files(self) -> dict[str, tuple[Path, str]]:
        files = {"pairs": self.pairs, "translations": self.translations}
        return {name: (path, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files.items() if path}


def evaluate(settings: Settings) -> dict[str, Any]:
    """Read, translate, judge and score; what evaluation.json holds. Raises what `judged` raises, and InputError."""
    columns = Columns(settings.source_field, settings.reference_field)
    every = read_pairs(settings.pairs, columns, (settings.source_language, settings.target_language))
    pairs, unusable = drawn(
        every, settings.pairs, "pair", limit=settings.limit, shuffle=settings.shuffle, seed=settings.seed
    )
    rows = rows_of(pairs, settings.translations, every) if settings.translations else [Row(pair) for pair in pairs]
    if settings.comet_python:
        check_comet(settings.comet_python)
    with nullcontext(settings.out) if settings.out else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = _run(rows, settings, folder) | {
            "settings": settings.as_json(),
            "pairs": len(pairs) + len(unusable),
            **missing_of(rows, unusable),
            **_scored([row for row in rows if row.translation], settings),
        }
        write_report(report, "translations.jsonl", map(_line, rows), folder)
    return report


def _line(row: Row) -> dict[str, Any]:
    about = {"id": row.pair.id, "source": row.pair.text, "reference": row.pair.references[0]}
    return about | {"translation": row.translation} | row.scores


def _run(rows: list[Row], settings: Settings, folder: Path) -> dict[str, Any]:
    if not settings.model and not settings.judge:
        return {"version": 1, "run": digest(settings.as_json()), "fingerprint": None}
    options = Options(in_flight=settings.in_flight, retry_failed=True)
    manifest = judged(rows, folder, settings.context(), options)
    return {"version": 1, "run": manifest["run"], "fingerprint": manifest["fingerprint"]}


def _scored(rows: list[Row], settings: Settings) -> dict[str, Any]:
    failure = add_comet(rows, settings.comet_python, settings.comet_model) if settings.comet_python and rows else None
    metrics = measure({"": rows}, settings.target_language, METRICS)[""]
    absent = absences(rows, METRICS, comet=failure or "no --comet-python", judge=bool(settings.judge))
    return {
        "translated": len(rows),
        "well_formed": sum(bool(row.well_formed) for row in rows) if settings.style == "thought" else None,
        "signature": bleu_signature(settings.target_language, [len(row.pair.references) for row in rows] or [1]),
        "metrics": {
            name: {end: score[end] for end in ("value", "low", "high", "n")} for name, score in metrics.items()
        },
        "absent": {name: reason for name, reason in absent.items() if name not in metrics},
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print the conditions, the table, and what is missing."""
    settings, prints = report["settings"], report["fingerprint"] or {"models": {}, "roles": {}}
    names = {field: model["name"] for field, model in prints["models"].items()}
    role = prints["roles"].get("student" if settings["style"] == "thought" else "translator", {})
    sampling = role.get("sampling", {}) | prints["models"].get("model", {}).get("sampling", {})
    conditions = [
        f"model {names.get('model', settings['model'])}" if settings["model"] else f"file {settings['translations']}",
        f"on {settings['pairs']}, n={report['translated']} of {report['pairs']}",
        f"shuffled with seed {settings['seed']}" if settings["shuffle"] else "in file order",
        f"{settings['source_language']} to {settings['target_language']}",
        f"style {settings['style']}, {', '.join(f'{k} {v}' for k, v in sampling.items())}" if settings["model"] else "",
        f"judge {names.get('grf_model', settings['judge'])}" if settings["judge"] else "no judge",
        f"BLEU {report['signature']}",
    ]
    say = plainly(console)
    say("; ".join(filter(None, conditions)))
    console.print(score_table({"": report["metrics"]}, report["absent"], METRICS))
    if report["well_formed"] is not None:
        console.print(f"{report['well_formed']} of {report['translated']} replies have the form of --style thought")
    for line in reasons_of(report["missing"], report["unscored"]):
        say(line)


def run(settings: Settings) -> int:
    """Evaluate and print; the exit code."""
    report = evaluate(settings)
    show(report, Console())
    if settings.comet_python and "COMET" in report["absent"]:
        return 1
    return 3 if report["missing"] or report["unscored"] else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    app = typer.Typer(add_completion=False)
    app.command()(Settings)
    return run_app(app, arguments, then=run)


if __name__ == "__main__":
    sys.exit(main())
