"""The measures of DeepRAG's evaluation: answers, retrievals and the knowledge boundary; their tables and figure.

EM, token F1 and retrievals are those of tables 1 and 2 of Guan et al. 2025, the knowledge boundary that of table 3: a
question is known if the CoT answer to it is correct, and assumed to be known if a system answers it without retrieval.
"Known" is the positive class. The paper does not say so, but only then is the F1 of a system that always retrieves 0 as
in its table, and only then are the four numbers of the other rows consistent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE
from rich.table import Table

from agentsys.console import Console
from agentsys.evaluation.report import (
    count_reasons,
    failure_lines,
    figure,
    mean_known,
    number_cell,
    overlap_line,
    percent_score,
    plain_printer,
    print_tables,
    result_lines,
    sample_order,
    score_cell,
    unusable_lines,
    write_report,
)
from agentsys.evaluation.run import SystemRun, seconds_of
from agentsys.evaluation.sample import Question, SampleOptions, read_rows
from agentsys.metrics.answers import Match, contains_match, exact_match, token_f1
from agentsys.metrics.golds import require_golds
from agentsys.records import BadRecord, Record
from agentsys.traces import Trace

BASELINES: Final = ("direct", "cot", "cot_retrieve")
TRAINED: Final = "deeprag_trained"
SYSTEMS: Final = (*BASELINES, "always", "never", "deeprag", TRAINED)
NO_INDEX: Final = ("direct", "cot", "never")
"""Systems that run without an index."""
FORCED: Final = ("always", "never")
"""Systems whose decisions are not the model's: they have another marker in the figure."""
NO_RETRIEVAL: Final = ("direct", "cot")
"""Baselines that never retrieve: they have no knowledge boundary."""
LOWEST: Final = -100.0
"""Log-probability, in nats, of an opening that is not among the alternatives: less than all that are."""
BOUNDARY: Final = ("f1", "accuracy", "balanced_accuracy", "mcc", "auc")


@dataclass(frozen=True, slots=True)
class Prediction:
    """A system's answer to one question; `error` is why there is none, which counts as wrong.

    `seconds` is None if calls came from the request cache; `steps` and `stop` are None if the system takes no steps.
    `margin`, the greatest log p(retrieve) - log p(parametric) of its decisions, is None if it made none or if the
    server does not return log-probabilities.
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
    margin: float | None = None

    def correct(self, match: Match) -> bool:
        """Whether the answer is correct."""
        return self.em if match == "exact" else self.contains


def prediction_of(trace: Trace, golds: Sequence[str]) -> Prediction:
    """The answer in a trace of graphs/deeprag/system.py or graphs/deeprag/baselines.py, scored against the golds."""
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
        margin=decision_margin(result.get("steps", [])),
    )


def decision_margin(steps: Sequence[Mapping[str, Any]]) -> float | None:
    """The greatest log p(retrieve) - log p(parametric) of the steps, in nats: a question is known if all are below 0.

    An opening that is not among the alternatives that the server returns has LOWEST. None if no decision was the
    model's own, or if one has no log-probabilities.
    """
    decisions = [decision for step in steps if (decision := step.get("decision"))]
    logprobs = [(decision["log_p_retrieve"], decision["log_p_parametric"]) for decision in decisions]
    if not logprobs or (None, None) in logprobs:
        return None
    lowest = [[LOWEST if logprob is None else float(logprob) for logprob in pair] for pair in logprobs]
    return max(retrieve - parametric for retrieve, parametric in lowest)


def measure_all(
    runs: Sequence[SystemRun], predictions: Mapping[str, Sequence[Prediction]], match: Match
) -> dict[str, dict[str, Any]]:
    """The results of all systems; the knowledge boundary where `cot` is one of them."""
    cot = predictions.get("cot")
    results = {}
    for run in runs:
        answers = predictions[run.name]
        agreement = boundary(answers, cot, match) if cot and run.name not in NO_RETRIEVAL else None
        head = {"run": run.manifest()["run"], "model": run.model_name()}
        results[run.name] = {**head, **measure(answers, match), "boundary": agreement}
    return results


def measure(predictions: Sequence[Prediction], match: Match) -> dict[str, Any]:
    """The measures of one system; EM, containment and F1 in percent with 95 % bootstrap intervals over questions.

    Retrievals, steps and seconds are means over the answered questions; None if there are none.
    """
    answered = [prediction for prediction in predictions if prediction.error is None]
    correct = [prediction.retrievals for prediction in answered if prediction.correct(match)]
    incorrect = [prediction.retrievals for prediction in answered if not prediction.correct(match)]
    return {
        "n": len(predictions),
        "failed": len(predictions) - len(answered),
        **{
            name: percent_score([getattr(prediction, name) for prediction in predictions])
            for name in ("em", "contains", "f1")
        },
        "retrievals": {
            "all": mean_known([*correct, *incorrect]),
            "correct": mean_known(correct),
            "incorrect": mean_known(incorrect),
        },
        "seconds": mean_known([prediction.seconds for prediction in answered]),
        "timed": sum(prediction.seconds is not None for prediction in answered),
        "steps": mean_known([prediction.steps for prediction in answered]),
        "stops": count_reasons(_stop_reason(prediction.stop) for prediction in answered),
        "well_formed": sum(prediction.well_formed for prediction in answered),
        "errors": count_reasons(prediction.error for prediction in predictions),
    }


def _stop_reason(stop: str | None) -> str | None:
    return stop if stop in (None, "", "terminate", "max_steps") else "a role failed"


def boundary(predictions: Sequence[Prediction], cot: Sequence[Prediction], match: Match) -> dict[str, Any]:
    """Agreement of "answered without retrieval" with "the CoT answer is correct", over the answered questions.

    `auc` is the area under the ROC curve of the decisions' margin (ours): 1 if every question that CoT answers has a
    smaller margin than every other one, 0.5 for chance, whatever the threshold; over `auc_n` questions with a margin.
    F1, balanced accuracy, MCC and AUC are None if the CoT answers are all correct or all incorrect.
    """
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef, roc_auc_score

    rows = [
        (thought.correct(match), prediction)
        for prediction, thought in zip(predictions, cot, strict=True)
        if prediction.error is None
    ]
    known, assumed_known = [right for right, _ in rows], [not prediction.retrievals for _, prediction in rows]
    margins = [(right, -prediction.margin) for right, prediction in rows if prediction.margin is not None]
    ranked = len({right for right, _ in margins}) == 2
    both = len(set(known)) == 2
    return {
        "n": len(rows),
        "known": sum(known),
        "assumed_known": sum(assumed_known),
        "f1": float(f1_score(known, assumed_known, zero_division=0)) if both else None,
        "accuracy": float(accuracy_score(known, assumed_known)) if rows else None,
        "balanced_accuracy": float(balanced_accuracy_score(known, assumed_known)) if both else None,
        "mcc": float(matthews_corrcoef(known, assumed_known)) if both else None,
        "auc": float(roc_auc_score(*zip(*margins, strict=True))) if ranked else None,
        "auc_n": len(margins),
    }


def tables(systems: Mapping[str, Mapping[str, Any]], match: Match) -> list[Table]:
    """Answers and retrievals; and the knowledge boundary, if CoT was evaluated."""
    scores = {"EM": "em", **({"contains": "contains"} if match == "contains" else {}), "F1": "f1"}
    answers = Table(box=SIMPLE)
    answers.add_column("system", no_wrap=True)
    for heading in (*scores, "retrievals\nall / correct / incorrect", "s per\nquestion"):
        answers.add_column(heading)
    for name, result in systems.items():
        cells = [score_cell(result[score]) for score in scores.values()]
        retrievals = " / ".join(number_cell(value, 2) for value in result["retrievals"].values())
        answers.add_row(name, *cells, retrievals, number_cell(result["seconds"], 2))
    agreement = Table("knowledge boundary", "F1", "accuracy", "balanced accuracy", "MCC", "AUC", box=SIMPLE)
    for name, result in systems.items():
        if result["boundary"]:
            agreement.add_row(name, *(number_cell(result["boundary"][score], 3) for score in BOUNDARY))
    return [answers, agreement] if agreement.row_count else [answers]


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the conditions, the tables, and what failed or was not checked."""
    say = plain_printer(console)
    settings, systems = report["settings"], report["systems"]
    models = {TRAINED if name == TRAINED else "model": result["model"] for name, result in systems.items()}
    say(
        f"{'; '.join(f'{name} {model}' for name, model in models.items())}; {settings['questions']}, "
        f"n={report['questions']}{sample_order(settings)}; k={settings['k']}, T={settings['max_steps']}, "
        f"at most {settings['in_flight']} requests in flight"
    )
    print_tables(tables(systems, settings["match"]), systems, "question", console)
    for line in (*unusable_lines(report, "asked"), *failure_lines(systems, "question")):
        say(line)
    if TRAINED in systems and not report["overlap_checked"]:
        say(overlap_line("question"))
    say(f"numbers, answers and figure: {report['out']}")


def write_results(
    report: Mapping[str, Any], questions: Sequence[Question], predictions: Mapping[str, Sequence[Prediction]], out: Path
) -> None:
    """Write evaluation.json, predictions.jsonl and retrievals.png."""

    def fields(row: Question) -> dict[str, Any]:
        return {"id": row.id, "question": row.question, "golds": row.golds}

    write_report(report, "predictions.jsonl", result_lines(questions, fields, predictions), out)
    settings = report["settings"]
    title = f"{settings['questions'].stem}, n = {len(questions)}"
    plot(report["systems"], settings["match"], title, out / "retrievals.png")


def plot(systems: Mapping[str, Mapping[str, Any]], match: Match, title: str, file: Path) -> None:
    """Accuracy against mean retrievals, one point per system with its 95 % interval (figure 4 of the paper).

    Points with about as many retrievals (several systems never retrieve) are shifted to the right of each other.
    """
    score = "em" if match == "exact" else "contains"
    y_label = "exact match, %" if match == "exact" else "answers that contain a gold or are in one, %"
    answered = {name: result for name, result in systems.items() if result["retrievals"]["all"] is not None}
    shift = 0.015 * max([1.0, *(result["retrievals"]["all"] for result in answered.values())])
    neighbors: Counter[int] = Counter()
    with figure(file, title, (7, 4.5), ("mean retrievals per question", y_label)) as axes:
        for name, result in answered.items():
            near = round(result["retrievals"]["all"] / (5 * shift))
            x = result["retrievals"]["all"] + shift * neighbors[near]
            neighbors[near] += 1
            y, low, high = (result[score][end] for end in ("value", "low", "high"))
            marker = "s" if name in FORCED else "o"
            axes.errorbar(x, y, [[y - low], [high - y]], fmt=marker, elinewidth=1, capsize=2, label=name)
        axes.set_ylim(bottom=0)


def read_questions(path: Path, options: SampleOptions) -> Iterator[Question | BadRecord]:
    """All questions of a file, in its order. Raises InputError."""

    def question_in(record: Record) -> Question:
        return Question(record.id, record.data["question"], require_golds(record.data), record.source)

    return read_rows(path, options, question_in, "question", required=["question"])
