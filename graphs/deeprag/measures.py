"""What DeepRAG's evaluation measures of each system's answers, and how it is shown.

EM, token F1 and retrievals are those of tables 1 and 2 of Guan et al. 2025. Knowledge-boundary agreement is that of
table 3: a question whose CoT answer is right is one that the model knows, and one that a system answered without a
search is one that it took for known. The positive class is "known": the paper does not say so, but only then has a
system that always searches an F1 of 0, as it has there, and only then do the other rows' four numbers fit together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rich.box import SIMPLE
from rich.table import Table

from agentsys.collect import RunOptions
from agentsys.evaluation.run import seconds_of
from agentsys.evaluation.sample import Asked, read_rows
from agentsys.graphs.deeprag.narrative import golds
from agentsys.metrics.answers import Match, contains_match, exact_match, token_f1
from agentsys.metrics.corpus import mean_with_interval
from agentsys.records import BadRecord, Record
from agentsys.traces import Trace

FORCED: Final = ("always", "never")
"""Systems whose decisions are not the model's own: a marker of their own in the plot."""
BOUNDARY: Final = ("f1", "accuracy", "balanced_accuracy", "mcc")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a system made of one question; `error` says why it gave no answer, which counts as a wrong one.

    `seconds` is None where calls came from the request cache, `steps` and `stop` where the system takes no steps.
    """

    answer: str = ""
    long_answer: str = ""
    em: bool = False
    contains: bool = False
    f1: float = 0.0
    well_formed: bool = False
    retrievals: int | None = None
    steps: int | None = None
    stop: str | None = None
    seconds: float | None = None
    error: str | None = None

    def correct(self, match: Match) -> bool:
        """Whether the answer counts as right."""
        return self.em if match == "exact" else self.contains


def prediction_of(trace: Trace, golds: Sequence[str]) -> Prediction:
    """What a trace of graphs/deeprag/system.py or graphs/deeprag/baselines.py says, against the right answers."""
    result = trace.result
    if result is None:
        return Prediction(error=trace.reason)
    return Prediction(
        answer=result["answer"],
        long_answer=result["long_answer"],
        em=exact_match(result["answer"], golds),
        contains=contains_match(result["answer"], golds),
        f1=token_f1(result["answer"], golds),
        well_formed=result["well_formed"],
        retrievals=result["retrievals"],
        steps=len(result["steps"]) if "steps" in result else None,
        stop=result.get("stop"),
        seconds=seconds_of(trace),
    )


def measure(predictions: Sequence[Prediction], match: Match) -> dict[str, Any]:
    """The measures of one system; EM, containment and F1 in percent with 95 % bootstrap intervals over questions.

    Retrievals, steps and seconds are means over the questions with an answer; None where there are none.
    """
    answered = [prediction for prediction in predictions if prediction.error is None]
    right = [prediction.retrievals for prediction in answered if prediction.correct(match)]
    wrong = [prediction.retrievals for prediction in answered if not prediction.correct(match)]
    scores = {
        name: [100.0 * getattr(prediction, name) for prediction in predictions] for name in ("em", "contains", "f1")
    }
    return {
        "n": len(predictions),
        "failed": len(predictions) - len(answered),
        **{name: asdict(mean_with_interval(values)) for name, values in scores.items()},
        "retrievals": {"all": _mean([*right, *wrong]), "correct": _mean(right), "incorrect": _mean(wrong)},
        "seconds": _mean([prediction.seconds for prediction in answered]),
        "timed": sum(prediction.seconds is not None for prediction in answered),
        "steps": _mean([prediction.steps for prediction in answered]),
        "stops": dict(Counter(_ended(prediction.stop) for prediction in answered if prediction.stop)),
        "well_formed": sum(prediction.well_formed for prediction in answered),
    }


def _ended(stop: str) -> str:
    return stop if stop in ("terminate", "max_steps") else "a role failed"


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def boundary(predictions: Sequence[Prediction], cot: Sequence[Prediction], match: Match) -> dict[str, Any]:
    """Agreement of "answered without a search" with "the CoT answer is right", over the questions that got an answer.

    F1, balanced accuracy and MCC are None where the CoT answers are all right or all wrong.
    """
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef

    pairs = [
        (thought.correct(match), not prediction.retrievals)
        for prediction, thought in zip(predictions, cot, strict=True)
        if prediction.error is None
    ]
    known, taken = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    both = len(set(known)) == 2
    return {
        "n": len(pairs),
        "known": sum(known),
        "taken_for_known": sum(taken),
        "f1": float(f1_score(known, taken, zero_division=0)) if both else None,
        "accuracy": float(accuracy_score(known, taken)) if pairs else None,
        "balanced_accuracy": float(balanced_accuracy_score(known, taken)) if both else None,
        "mcc": float(matthews_corrcoef(known, taken)) if both else None,
    }


def tables(systems: Mapping[str, Mapping[str, Any]], match: Match) -> list[Table]:
    """Answers and retrievals; and, where CoT was evaluated, the knowledge boundary."""
    lenient = match == "contains"
    answers = Table(box=SIMPLE)
    answers.add_column("system", no_wrap=True)
    for score in ("EM", *(["contains"] if lenient else []), "F1"):
        answers.add_column(score)
    answers.add_column("retrievals\nall / right / wrong")
    answers.add_column("s a\nquestion")
    for name, found in systems.items():
        scores = [found[score] for score in ("em", *(["contains"] if lenient else []), "f1")]
        cells = [f"{s['value']:.1f} ({s['low']:.1f}-{s['high']:.1f})" for s in scores]
        searches = " / ".join(_number(value) for value in found["retrievals"].values())
        answers.add_row(name, *cells, searches, _number(found["seconds"]))
    agreement = Table("knowledge boundary", "F1", "accuracy", "balanced accuracy", "MCC", box=SIMPLE)
    for name, found in systems.items():
        if found["boundary"]:
            agreement.add_row(name, *(_number(found["boundary"][score], 3) for score in BOUNDARY))
    return [answers, agreement] if agreement.row_count else [answers]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def plot(systems: Mapping[str, Mapping[str, Any]], match: Match, title: str, file: Path) -> None:
    """Accuracy against mean retrievals, one point a system with its 95 % interval (figure 4 of the paper).

    Of systems with about as many retrievals (several never search) each stands a little to the right of the one before.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    score = "em" if match == "exact" else "contains"
    shown = {name: found for name, found in systems.items() if found["retrievals"]["all"] is not None}
    apart = 0.015 * max([1.0, *(found["retrievals"]["all"] for found in shown.values())])
    beside: Counter[int] = Counter()
    for name, found in shown.items():
        near = round(found["retrievals"]["all"] / (5 * apart))
        x = found["retrievals"]["all"] + apart * beside[near]
        beside[near] += 1
        y, low, high = (found[score][end] for end in ("value", "low", "high"))
        marker = "s" if name in FORCED else "o"
        axes.errorbar(x, y, [[y - low], [high - y]], fmt=marker, elinewidth=1, capsize=2, label=name)
    axes.set_xlabel("mean retrievals a question")
    axes.set_ylabel("exact match, %" if match == "exact" else "answers that contain a gold or are in one, %")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=120)


def read_questions(path: Path, options: RunOptions) -> Iterator[Asked | BadRecord]:
    """All questions in the file's order. Raises InputError."""

    def asked(record: Record) -> Asked:
        if not (right := golds(record.data)):
            raise ValueError(
                "no right answer in the fields answer, answers, answer_aliases; --field answer=COLUMN names it"
            )
        return Asked(record.id, record.data["question"], right, record.source)

    return read_rows(path, options, asked, "question", required=["question"])
