"""Evaluate translations as DRT does (Wang et al., Findings of ACL 2025, section 3.1 and appendix C).

    python graphs/drt_evaluate.py --pairs test.jsonl --model http://host:8000/v1 --judge http://other:8000/v1 --out eval
    python graphs/drt_evaluate.py --pairs test.jsonl --translations mine.txt

BLEU and chrF come from sacrebleu, COMET from an environment of its own (--comet-python), GRF, GRB and GEA from a judge
model (the paper judges 400 random pairs: --limit 400 --shuffle). Every interval is a bootstrap over pairs.

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
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentsys.collect.fingerprint import digest
from agentsys.collect.report import ProgressView
from agentsys.commands import run_app
from agentsys.metrics import Score, bleu_signature, mean_with_interval, score_corpus
from agentsys.models.endpoint import DEFAULT_IN_FLIGHT
from agentsys.models.spec import DEFAULT_SPEC
from agentsys.records import BadRecord, InputError, shuffled
from graphs.translate import Context, Row, add_translations, read_pairs, run_over

Style = Literal["plain", "thought"]
JUDGED: Final = ("GRF", "GRB", "GEA")
METRICS: Final = ("BLEU", "chrF", "COMET", *JUDGED)

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
            grf_model=self.judge,
            grb_model=self.judge,
            gea_model=self.judge,
            style=self.style,
            judge=bool(self.judge),
            source_language=self.source_language,
            target_language=self.target_language,
            data=" ".join([*data, self.source_field, self.reference_field]),
        )

    def _files(self) -> dict[str, tuple[Path, str]]:
        files = {"pairs": self.pairs, "translations": self.translations}
        return {name: (path, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files.items() if path}


def check_comet(python: Path) -> None:
    """Raises InputError if that interpreter cannot import unbabel-comet."""
    try:
        tried = subprocess.run([python, "-c", COMET_IMPORT], capture_output=True, check=False)
    except OSError as err:
        raise InputError(f"--comet-python {python}: {err.strerror}; give a Python that has unbabel-comet") from None
    if tried.returncode:
        raise InputError(f"--comet-python {python}: unbabel-comet cannot be imported: {_last_line(tried.stderr)}")


def add_comet(rows: list[Row], python: Path, model: str) -> str | None:
    """Add COMET, times 100 as in the paper, to the scores of rows that have a translation; or say why it failed."""
    data = [{"src": row.text, "mt": row.translation, "ref": row.reference} for row in rows]
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


def measure(rows: list[Row], language: str) -> dict[str, dict[str, float]]:
    """Metric -> value, ends of its 95 % interval, and n, of translated rows; what none has is not there."""
    scores: dict[str, tuple[Score, int]] = {}
    if rows:
        corpus = score_corpus(
            [str(row.translation) for row in rows], [row.reference for row in rows], language=language
        )
        scores |= {name: (score, len(rows)) for name, score in corpus.items()}
    for name in ("COMET", *JUDGED):
        if values := [row.scores[name] for row in rows if name in row.scores]:
            scores[name] = mean_with_interval(values), len(values)
    return {name: {**asdict(score), "n": n} for name, (score, n) in scores.items()}


def evaluate(settings: Settings) -> dict[str, Any]:
    """Read, translate, judge and score; what evaluation.json holds. Raises what `run_over` raises, and InputError."""
    pairs = read_pairs(settings.pairs, settings.source_field, settings.reference_field)
    if settings.translations:
        add_translations(pairs, settings.translations)
    sample = list(islice(shuffled(pairs, seed=settings.seed) if settings.shuffle else pairs, settings.limit))
    rows = [row for row in sample if isinstance(row, Row)]
    missing = [{"id": None, "source": bad.source, "reason": bad.reason} for bad in sample if isinstance(bad, BadRecord)]
    if not rows:
        raise InputError(
            f"--pairs {settings.pairs}: no pair to use: {missing[0]['reason'] if missing else 'empty file'}"
        )
    if settings.comet_python:
        check_comet(settings.comet_python)
    with nullcontext(settings.out) if settings.out else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = _run(rows, settings, folder) | {"settings": settings.as_json(), "pairs": len(sample)}
        report["missing"] = missing + [{"id": r.id, "source": r.at, "reason": r.reason} for r in rows if r.reason]
        report["unscored"] = [{"id": row.id, "reasons": row.unscored} for row in rows if row.unscored]
        report |= _scored([row for row in rows if row.translation], settings)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
        with (folder / "translations.jsonl").open("wb") as file:
            for row in rows:
                line = {"id": row.id, "source": row.text, "reference": row.reference, "translation": row.translation}
                file.write(orjson.dumps(line | row.scores, option=orjson.OPT_APPEND_NEWLINE))
    return report


def _run(rows: list[Row], settings: Settings, folder: Path) -> dict[str, Any]:
    if not settings.model and not settings.judge:
        return {"version": 1, "run": digest(settings.as_json()), "fingerprint": None}
    with ProgressView(total=len(rows)) as view:
        manifest = run_over(rows, folder, settings.context(), in_flight=settings.in_flight, watch=view)
    return {"version": 1, "run": manifest["run"], "fingerprint": manifest["fingerprint"]}


def _scored(rows: list[Row], settings: Settings) -> dict[str, Any]:
    failure = add_comet(rows, settings.comet_python, settings.comet_model) if settings.comet_python and rows else None
    metrics = measure(rows, settings.target_language)
    absent = dict.fromkeys(METRICS, "no translation to score")
    if rows:
        absent["COMET"] = failure or "no --comet-python"
        absent |= dict.fromkeys(JUDGED, "no usable reply" if settings.judge else "no --judge")
    return {
        "translated": len(rows),
        "well_formed": sum(bool(row.well_formed) for row in rows) if settings.style == "thought" else None,
        "signature": bleu_signature(settings.target_language),
        "metrics": metrics,
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
    console.print("; ".join(filter(None, conditions)), soft_wrap=True, markup=False, highlight=False)
    table = Table("metric", "value", "95 % interval", "n")
    for name in METRICS:
        if found := report["metrics"].get(name):
            value, low, high = (f"{found[end]:.2f}" for end in ("value", "low", "high"))
            table.add_row(name, value, f"{low} to {high}", str(found["n"]))
        else:
            table.add_row(name, "absent", escape(report["absent"][name]), "0")
    console.print(table)
    if report["well_formed"] is not None:
        console.print(f"{report['well_formed']} of {report['translated']} replies have the form of --style thought")
    reasons = Counter(f"missing: {entry['reason']}" for entry in report["missing"])
    reasons.update(f"no {name}: {why}" for entry in report["unscored"] for name, why in entry["reasons"].items())
    for reason, count in reasons.most_common(5):
        console.print(f"{count} x {reason}", soft_wrap=True, markup=False, highlight=False)


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
