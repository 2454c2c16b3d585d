"""Evaluate DeepRAG and what it is compared with (Guan et al. 2025, tables 1 to 3 and figure 4).

    python graphs/deeprag_evaluate.py --questions dev.jsonl --index index --out eval --limit 100 --shuffle
    python graphs/deeprag_evaluate.py --questions dev.jsonl --index index --trained vllm:DIR --trained-on runs/deeprag

Systems: direct (the answer at once), cot (after thinking), cot_retrieve (with the passages that the question finds),
always and never (DeepRAG with every sub-query looked up, or none), deeprag (prompted, with a worked example), and with
--trained deeprag_trained (without one). Each is a collect run in a folder of its own under --out; stopped, the same
command goes on where it was. The embedded engine is loaded once for all of them; a `vllm:` model starts anew for each.

A question that a system failed at counts as wrong, is tried again by the next run, and is counted in the report. Its
retrievals and seconds are not known and left out. Seconds are the wall time of a question beside all others in flight.
Each system has its own request cache, for DeepRAG's variants ask much the same: with --cache, which they share, what
comes from the cache is not timed.

--out gets evaluation.json, predictions.jsonl (a question a line) and retrievals.png. Exit codes: 0; 1 an endpoint
failed; 2 bad configuration; 3 a question cannot be used, or a system failed at one; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import orjson
import typer
from rich.console import Console

from agentsys.collect import Options
from agentsys.collect.fingerprint import context_models
from agentsys.commands import command, knob, run_app
from agentsys.evaluation.report import plainly, write_report
from agentsys.evaluation.run import SharingPlace, check_folder, collected
from agentsys.evaluation.sample import Asked, Sample, check_overlap, sampled
from agentsys.graphs import deeprag
from agentsys.graphs.deeprag import baselines as question
from agentsys.graphs.deeprag.measures import Prediction, boundary, measure, plot, prediction_of, read_questions, tables
from agentsys.knobs import listed
from agentsys.knowledge.context import Knowledge, with_index
from agentsys.metrics.answers import Match
from agentsys.models.spec import DEFAULT_SPEC
from agentsys.records import InputError

DIRECT: Final = ("direct", "cot", "cot_retrieve")
TRAINED: Final = "deeprag_trained"
SYSTEMS: Final = (*DIRECT, "always", "never", "deeprag", TRAINED)
NO_INDEX: Final = ("direct", "cot", "never")
NEVER_SEARCH: Final = ("direct", "cot")
"""Their knowledge boundary cannot be asked for."""


@dataclass(frozen=True)
class Questions(Sample):
    """What is asked."""

    panel: ClassVar[str] = "Questions"
    questions: Path | None = knob(None, "questions with answer, answers or answer_aliases: .jsonl, .parquet, ...")
    field: list[str] = knob((), "field and column, as question=qText; may be repeated")
    id_field: str = knob("id", "column that holds the question's id; without it the id is a digest of the record")
    limit: int | None = knob(None, "take only the first so many questions")
    shuffle: bool = knob(False, "take them in an order that --seed decides")
    seed: int = knob(0, "seed of the shuffle")


@dataclass(frozen=True)
class Compared:
    """Who is asked."""

    panel: ClassVar[str] = "Systems"
    systems: str = knob("", f"which, separated by commas, of {', '.join(SYSTEMS)}; all where it is left out")
    model: str = knob(DEFAULT_SPEC, "model spec of every system but the trained one")
    trained: str = knob("", "model spec of the trained model; without it there is no deeprag_trained")
    trained_on: list[Path] = knob((), "collect run it was trained on: no question may be in it; may be repeated")
    index: str = knob("", "folder of an index that `python -m agentsys.knowledge build` wrote")
    retriever: Literal["", "bm25", "dense", "hybrid"] = knob("", "which of the index's retrievers; empty: the best")
    k: int = knob(3, "passages for a search")
    max_steps: int = knob(6, "T: sub-queries after which the final answer is forced")
    match: Match = knob("exact", "what counts as right: SQuAD-normalized exact match, or the lenient containment")

    @property
    def names(self) -> list[str]:
        """The systems, in the order in which they run. Raises InputError."""
        given = listed(self.systems)
        if unknown := [name for name in given if name not in SYSTEMS]:
            raise InputError(f"--systems: there is no '{unknown[0]}'; there are {', '.join(SYSTEMS)}")
        if TRAINED in given and not self.trained:
            raise InputError(f"--systems {TRAINED}: name its model with --trained")
        if given and self.trained and TRAINED not in given:
            raise InputError(f"--trained is the model of {TRAINED}; name that in --systems too")
        return [name for name in SYSTEMS if (name in given if given else name != TRAINED or self.trained)]


def systems(compared: Compared) -> dict[str, tuple[Any, Knowledge]]:
    """Each system's graph and context. Raises InputError, KnowledgeError, SpecError and ValueError before any call."""
    searching = [name for name in compared.names if name not in NO_INDEX]
    if searching and not compared.index:
        raise InputError(
            f"--index is needed, for {', '.join(searching)} look things up; name the folder of an index, or leave them "
            f"out: --systems {','.join(NO_INDEX)}"
        )
    found = {name: _system(name, compared) for name in compared.names}
    for _, context in found.values():
        context_models(context)
    return found


def _system(name: str, compared: Compared) -> tuple[Any, Knowledge]:
    index: dict[str, Any] = {}
    if name not in NO_INDEX:
        index = {"index": compared.index, "retriever": compared.retriever, "k": compared.k}
    if name in DIRECT:
        strategy: Any = name
        return question.graph, _opened(question.BaselineContext(model=compared.model, strategy=strategy, **index))
    decisions: Any = {"always": "retrieve", "never": "parametric"}.get(name, "model")
    context = deeprag.Context(
        model=compared.trained if name == TRAINED else compared.model,
        decisions=decisions,
        example=name != TRAINED,
        max_steps=compared.max_steps,
        **index,
    )
    return deeprag.graph, _opened(context)


def _opened(context: Knowledge) -> Knowledge:
    return with_index(context) if context.index else context


def asked_of(rows: Sequence[Asked]) -> list[dict[str, Any]]:
    """The records of a run."""
    return [{"id": row.id, "question": row.question, "answers": row.golds} for row in rows]


def ask(graph: Any, context: Any, rows: Sequence[Asked], folder: Path, options: Options) -> list[Prediction]:
    """The answers, asked for where they are not there yet. Raises what `collected` raises."""
    by_id = {row.id: row for row in rows}
    traces = collected(graph, asked_of(rows), folder, context, options)
    predictions = {t.id: prediction_of(t, by_id[t.id].golds) for t in traces if t.id in by_id}
    return [predictions[row.id] for row in rows]


def evaluate(test: Questions, compared: Compared, place: SharingPlace) -> dict[str, Any]:
    """Read, check, ask and measure; what evaluation.json holds. Raises what a user can mend, and what `ask` raises."""
    for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise InputError(f"{package} is not installed: pip install 'agentsys[knowledge]'")
    if test.questions is None:
        raise InputError("--questions: name a file of questions with their answers, .jsonl or .parquet, say")
    rows, unusable = sampled(test.questions, read_questions, test.options(), "question")
    check_overlap({row.id: row.question for row in rows}, compared.trained_on, "question", "question")
    chosen = systems(compared)
    sha256 = hashlib.sha256(test.questions.read_bytes()).hexdigest()
    out = place.out or Path("runs") / f"deeprag-eval-{test.questions.stem}"
    for name in chosen:
        check_folder(out / name, asked_of(rows), ["question"], "question")
    options = {name: place.runner(out / name, place.cache) for name in chosen}
    predictions: dict[str, list[Prediction]] = {}
    for name, (graph, context) in chosen.items():
        print(f"{name} ({len(predictions) + 1} of {len(chosen)})", file=sys.stderr)
        predictions[name] = ask(graph, context, rows, out / name, options[name])
    digest = next((context.index_digest for _, context in chosen.values() if context.index), "")
    report = {
        "version": 1,
        "out": str(out),
        "settings": {**asdict(test), **asdict(compared), **asdict(place), "index_digest": digest},
        "questions_sha256": sha256,
        "questions": len(rows),
        "unusable": [asdict(row) for row in unusable],
        "overlap_checked": bool(compared.trained_on),
        "systems": {name: _measured(name, predictions, out / name, compared.match) for name in chosen},
    }
    _write(report, rows, predictions, out)
    return report


def _measured(name: str, predictions: Mapping[str, Sequence[Prediction]], folder: Path, match: Match) -> dict[str, Any]:
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    agreement = None
    if "cot" in predictions and name not in NEVER_SEARCH:
        agreement = boundary(predictions[name], predictions["cot"], match)
    reasons = Counter(prediction.error for prediction in predictions[name] if prediction.error)
    models = manifest["fingerprint"]["models"]
    about = {"run": manifest["run"], "model": models["model"]["name"] if models else "of another integration"}
    return {**about, **measure(predictions[name], match), "boundary": agreement, "errors": dict(reasons.most_common(5))}


def _write(
    report: Mapping[str, Any], rows: Sequence[Asked], predictions: Mapping[str, Sequence[Prediction]], out: Path
) -> None:
    """evaluation.json, predictions.jsonl and retrievals.png."""
    lines = (
        {
            "id": row.id,
            "question": row.question,
            "golds": row.golds,
            "systems": {name: asdict(found[i]) for name, found in predictions.items()},
        }
        for i, row in enumerate(rows)
    )
    write_report(report, "predictions.jsonl", lines, out)
    settings = report["settings"]
    title = f"{settings['questions'].stem}, n = {len(rows)}"
    plot(report["systems"], settings["match"], title, out / "retrievals.png")


def show(report: Mapping[str, Any], console: Console) -> None:
    """The conditions, the tables, and what went wrong."""
    say = plainly(console)
    settings, found = report["settings"], report["systems"]
    models = {TRAINED if name == TRAINED else "model": about["model"] for name, about in found.items()}
    order = f", seed {settings['seed']}" if settings["shuffle"] else ""
    say(
        f"{'; '.join(f'{name} {model}' for name, model in models.items())}; {settings['questions']}, "
        f"n={report['questions']}{order}; k={settings['k']}, T={settings['max_steps']}, "
        f"at most {settings['in_flight']} requests in flight"
    )
    for table in tables(found, settings["match"]):
        console.print(table)
    for entry in report["unusable"][:5]:
        say(f"not asked: {entry['source']}: {entry['reason']}")
    for name, about in found.items():
        if about["failed"]:
            say(f"{name} failed at {about['failed']} of {about['n']} questions, which count as wrong:")
        for reason, count in about["errors"].items():
            say(f"  {count} x {reason}")
    if TRAINED in found and not report["overlap_checked"]:
        say("not checked: whether the model was trained on these questions; --trained-on RUN checks it")
    say(f"numbers, answers and plot: {report['out']}")


def main(questions: Questions, compared: Compared, run: SharingPlace) -> None:
    """Ask DeepRAG and simpler systems the same questions, and compare answers, searches and seconds.

    EM and F1 have 95 % bootstrap intervals. Stopped, the same command goes on where it was.
    """
    report = evaluate(questions, compared, run)
    show(report, Console())
    if report["unusable"] or any(about["failed"] for about in report["systems"].values()):
        raise typer.Exit(3)


if __name__ == "__main__":
    sys.exit(run_app(command(main)))
