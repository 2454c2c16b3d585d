"""Evaluate a model on maths questions: accuracy, pass@k, and best-of-n against tree search at equal tokens.

    python graphs/maths_evaluate.py --questions gsm8k_test.jsonl --model http://host:8000/v1 --limit 200 --shuffle
    python graphs/maths_evaluate.py --questions math500.jsonl --model vllm:student/model --trained-on runs/maths-step

Systems: greedy (one solution at temperature 0), samples (n solutions and then as many as the budget allows: majority@n,
pass@k, best-of-n) and tree (Monte Carlo tree search with the same prompt and sampling). Both have --budget completion
tokens a question, judgements included. Neither sees the reference answer: best-of-n and the tree are led by the same
judge, which is the model itself unless --judge-model names another. Each is a collect run in a folder of its own under
--out; stopped, the same command goes on where it was.

A question that a system failed at counts as wrong, is tried again by the next run, and is counted in the report.

--out gets evaluation.json, predictions.jsonl (a question a line) and tokens.png. Exit codes: 0; 1 an endpoint failed;
2 bad configuration; 3 a question cannot be used, or a system failed at one; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final

import orjson
import typer
from rich.console import Console

from agentsys.collect import Options
from agentsys.collect.fingerprint import context_models
from agentsys.commands import command, knob, run_app
from agentsys.evaluation.report import plainly, write_report
from agentsys.evaluation.run import SharingPlace, check_folder, collected
from agentsys.evaluation.sample import Asked, Sample, read_rows, sampled
from agentsys.graphs.maths import samples as maths_samples
from agentsys.graphs.maths import search as maths
from agentsys.graphs.maths.measures import Prediction, budgets_of, difference, measure, plot, prediction_of, tables
from agentsys.knobs import listed
from agentsys.metrics.maths import check_installed, reference_of
from agentsys.models.spec import DEFAULT_SPEC, split_spec
from agentsys.records import BadRecord, InputError, Record
from agentsys.traces import read_traces, shards

SYSTEMS: Final = ("greedy", "samples", "tree")
SIMULATIONS: Final = 1024
"""More than a budget allows: the tokens end a search, or that nothing is left to expand."""


@dataclass(frozen=True)
class Questions(Sample):
    """What is asked."""

    panel: ClassVar[str] = "Questions"
    questions: Path | None = knob(None, "questions with their answers (GSM8K, MATH): .jsonl, .parquet, ...")
    field: list[str] = knob((), "field and column, as question=text; may be repeated")
    id_field: str = knob("id", "column that holds the question's id; without it the id is a digest of the record")
    limit: int | None = knob(None, "take only the first so many questions")
    shuffle: bool = knob(False, "take them in an order that --seed decides")
    seed: int = knob(0, "seed of the shuffle")


@dataclass(frozen=True)
class Compared:
    """Who is asked, and what it may write."""

    panel: ClassVar[str] = "Systems"
    systems: str = knob("", f"which, separated by commas, of {', '.join(SYSTEMS)}; all where it is left out")
    model: str = knob(DEFAULT_SPEC, "model spec")
    judge_model: str = knob("", "model spec of the judge; empty: the model itself")
    trained_on: list[Path] = knob((), "collect run it was trained on: no question may be in it; may be repeated")
    samples: int = knob(8, "n of majority@n and of pass@k")
    budget: int = knob(4096, "completion tokens a question for best-of-n and for tree search")
    solution_tokens: int = knob(1024, "tokens of a solution; one that is cut off there counts as wrong")
    step_tokens: int = knob(256, "tree: tokens of a step")
    width: int = knob(4, "tree: steps that are tried after each prefix")
    depth: int = knob(8, "tree: steps at most")
    explore: float = knob(1.0, "tree: c_init of PUCT")

    def contexts(self) -> dict[str, tuple[Any, Any]]:
        """Each system's graph and context, in the order in which they run. Raises InputError, ValueError."""
        given = listed(self.systems) or list(SYSTEMS)
        if unknown := [name for name in given if name not in SYSTEMS]:
            raise InputError(f"--systems: there is no '{unknown[0]}'; there are {', '.join(SYSTEMS)}")
        if self.budget < 1:
            raise InputError(f"--budget {self.budget}: at least 1 is needed")
        for option, spec in (("--model", self.model), ("--judge-model", self.judge_model)):
            _check_sampling(option, spec)
        one: dict[str, Any] = {"model": self.model, "solution_tokens": self.solution_tokens}
        more: dict[str, Any] = {**one, "judge_model": self.judge_model, "budget": self.budget}
        tree = {name: getattr(self, name) for name in ("step_tokens", "width", "depth", "explore")}
        made = {
            "greedy": (maths_samples.graph, maths_samples.SamplesContext(greedy=True, samples=1, **one)),
            "samples": (maths_samples.graph, maths_samples.SamplesContext(samples=self.samples, **more)),
            "tree": (maths.graph, maths.Context(value="judge", simulations=SIMULATIONS, **more, **tree)),
        }
        return {name: made[name] for name in SYSTEMS if name in given}


def _check_sampling(option: str, spec: str) -> None:
    """Raises InputError where a spec would win over the roles: over greedy, a step's tokens, the judge's one token."""
    given = split_spec(spec)[1]
    if name := next((name for name in ("temperature", "max_tokens") if name in given), ""):
        raise InputError(
            f"{option}: {name} cannot be set here, the roles have their own; leave {name}={given[name]} out of the spec"
        )


def read_questions(path: Path, options: Options) -> Iterator[Asked | BadRecord]:
    """All questions with their references, in the file's order. Raises InputError."""

    def asked(record: Record) -> Asked:
        return Asked(record.id, maths.question_of(record.data), [reference_of(record.data)], record.source)

    return read_rows(path, options, asked, "question")


def check_overlap(sample: Sequence[Asked], runs: Sequence[Path]) -> None:
    """Raises InputError where a run has a question of the sample: the same text but for case and white space.

    Unlike DeepRAG's check it reads MATH's `problem` too, keeps signs (2-1 is not 21), and takes equal ids of two files
    for what they often are, two counts from 1.
    """
    texts = {_folded(row.question): row for row in sample}
    for folder in runs:
        if not shards(folder):
            raise InputError(f"--trained-on {folder}: no traces there; name the --out folder of a collect run")
        try:
            asked = {_folded(maths.question_of(trace.input)) for trace in read_traces(folder)}
        except ValueError:
            raise InputError(
                f"--trained-on {folder}: its records have no question; name a run over questions"
            ) from None
        if met := [row for text, row in texts.items() if text in asked]:
            raise InputError(
                f"--questions: {len(met)} of {len(sample)} are in {folder} too ({met[0].at}: {met[0].question[:80]}); "
                "evaluate on questions that no model was trained on"
            )


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def asked_of(rows: Sequence[Asked]) -> list[dict[str, Any]]:
    """The records of a run."""
    return [{"id": row.id, "question": row.question, "answer": row.golds[0]} for row in rows]


def ask(graph: Any, context: Any, rows: Sequence[Asked], folder: Path, options: Options) -> list[Prediction]:
    """The solutions, asked for where they are not there yet. Raises what `collected` raises."""
    traces = collected(graph, asked_of(rows), folder, context, options)
    predictions = {trace.id: prediction_of(trace) for trace in traces}
    return [predictions[row.id] for row in rows]


def evaluate(test: Questions, compared: Compared, place: SharingPlace) -> dict[str, Any]:
    """Read, check, ask and measure; what evaluation.json holds. Raises what a user can mend, and what `ask` raises."""
    check_installed()
    if find_spec("matplotlib") is None:
        raise InputError("matplotlib is not installed: pip install 'agentsys[maths]'")
    if test.questions is None:
        raise InputError("--questions: name a file of questions with their answers, .jsonl or .parquet, say")
    rows, unusable = sampled(test.questions, read_questions, test.options(), "question")
    check_overlap(rows, compared.trained_on)
    chosen = compared.contexts()
    for _, context in chosen.values():
        context_models(context)
    sha256 = hashlib.sha256(test.questions.read_bytes()).hexdigest()
    out = place.out or Path("runs") / f"maths-eval-{test.questions.stem}"
    for name in chosen:
        check_folder(out / name, asked_of(rows), ["question", "answer"], "question", "other words or another answer")
    options = {name: place.runner(out / name, place.cache) for name in chosen}
    predictions: dict[str, list[Prediction]] = {}
    for name, (graph, context) in chosen.items():
        print(f"{name} ({len(predictions) + 1} of {len(chosen)})", file=sys.stderr)
        predictions[name] = ask(graph, context, rows, out / name, options[name])
    both = {"samples", "tree"} <= chosen.keys()
    report = {
        "version": 1,
        "out": str(out),
        "settings": {**asdict(test), **asdict(compared), **asdict(place)},
        "questions_sha256": sha256,
        "questions": len(rows),
        "unusable": [asdict(row) for row in unusable],
        "overlap_checked": bool(compared.trained_on),
        "systems": {name: _measured(name, found, out / name, compared) for name, found in predictions.items()},
        "tree_minus_best_of_n": difference(predictions["tree"], predictions["samples"], compared.budget)
        if both
        else None,
    }
    _write(report, rows, predictions, out)
    return report


def _measured(name: str, predictions: Sequence[Prediction], folder: Path, compared: Compared) -> dict[str, Any]:
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    reasons = Counter(prediction.error for prediction in predictions if prediction.error)
    models = manifest["fingerprint"]["models"]
    name_of = models.get("model", {"name": "of another integration"})["name"]
    about = {"run": manifest["run"], "model": name_of}
    n = {"greedy": 1, "samples": compared.samples, "tree": 0}[name]
    budgets = () if name == "greedy" else budgets_of(compared.budget)
    return {**about, **measure(predictions, n, budgets), "errors": dict(reasons.most_common(5))}


def _write(
    report: Mapping[str, Any], rows: Sequence[Asked], predictions: Mapping[str, Sequence[Prediction]], out: Path
) -> None:
    """evaluation.json, predictions.jsonl and tokens.png."""
    lines = (
        {
            "id": row.id,
            "question": row.question,
            "reference": row.golds[0],
            "systems": {name: asdict(found[i]) for name, found in predictions.items()},
        }
        for i, row in enumerate(rows)
    )
    write_report(report, "predictions.jsonl", lines, out)
    plot(report["systems"], f"{report['settings']['questions'].stem}, n = {len(rows)}", out / "tokens.png")


def show(report: Mapping[str, Any], console: Console) -> None:
    """The conditions, the tables, and what went wrong."""
    say = plainly(console)
    settings, found = report["settings"], report["systems"]
    order = f", seed {settings['seed']}" if settings["shuffle"] else ""
    judge = settings["judge_model"] or "the model itself"
    say(
        f"{next(iter(found.values()))['model']}; {settings['questions']}, n={report['questions']}{order}; "
        f"judge: {judge}; {settings['budget']:,} tokens a question; "
        f"tree: width {settings['width']}, depth {settings['depth']}"
    )
    for table in tables(found, settings["samples"]):
        console.print(table)
    if gap := report["tree_minus_best_of_n"]:
        told = ", ".join(f"{name} {g['value']:+.1f} ({g['low']:+.1f} to {g['high']:+.1f})" for name, g in gap.items())
        say(f"tree search minus best-of-n with {settings['budget']:,} tokens, in points: {told}")
    for entry in report["unusable"][:5]:
        say(f"not asked: {entry['source']}: {entry['reason']}")
    for name, about in found.items():
        if as_text := about["compared"].get("text"):
            say(f"{name}: {as_text} answers could not be read as mathematics and were compared as text")
        if about["failed"]:
            say(f"{name} failed at {about['failed']} of {about['n']} questions, which count as wrong:")
        for reason, count in about["errors"].items():
            say(f"  {count} x {reason}")
    if not report["overlap_checked"]:
        say("not checked: whether a model was trained on these questions; --trained-on RUN checks it")
    say(f"numbers, solutions and plot: {report['out']}")


def main(questions: Questions, compared: Compared, run: SharingPlace) -> None:
    """Ask a model maths questions, and compare one solution, many, and tree search.

    Accuracies have 95 % bootstrap intervals. Stopped, the same command goes on where it was.
    """
    report = evaluate(questions, compared, run)
    show(report, Console())
    if report["unusable"] or any(about["failed"] for about in report["systems"].values()):
        raise typer.Exit(3)


if __name__ == "__main__":
    sys.exit(run_app(command(main)))
