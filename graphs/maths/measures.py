"""The measures of the maths evaluation: accuracy, majority, pass@k, accuracy with equal tokens; tables and figure.

Equal tokens: the solutions of a system are in order, and each has the number of completion tokens written by then,
including judgments and failed replies. With a budget B only the solutions up to B tokens count, for best-of-n and for
tree search alike. Of these `best` takes the answer of the solution with the highest score, `vote` the answer of most
solutions; `any` is whether one of them is correct, an upper bound that needs the reference answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE
from rich.table import Table

from agentsys.console import Console
from agentsys.evaluation import sample
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
from agentsys.graphs.maths.state import Solution, question_of
from agentsys.metrics.maths import reference_of
from agentsys.records import BadRecord, Record
from agentsys.search import SearchName
from agentsys.traces import Trace

TREES: Final[Mapping[str, SearchName]] = {
    "tree": "mcts", "beam": "beam", "dvts": "dvts", "rebase": "rebase", "uniform-cost": "uniform-cost",
}  # fmt: skip
"""Systems that search a tree, and their searches."""
DEFAULT: Final = ("greedy", "samples", "tree")
SYSTEMS: Final = ("greedy", "samples", *TREES)
SIMULATIONS: Final = 1024
"""More than a budget allows: a search ends when its tokens are used up or nothing is left to expand."""

Solutions = Sequence[Solution]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The solutions of a system for one question; `error` is why there are none, which counts as wrong.

    `tokens` and `prompt_tokens` are sums over all calls; `seconds` is None if calls came from the request cache.
    """

    solutions: Solutions = ()
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float | None = None
    error: str | None = None


def prediction_of(trace: Trace) -> Prediction:
    """The solutions in a trace of graphs/maths/search.py or graphs/maths/samples.py."""
    result = trace.result or {}
    return Prediction(
        solutions=result.get("solutions", result.get("finds", ())),
        tokens=sum(call.completion_tokens for call in trace.calls),
        prompt_tokens=sum(call.prompt_tokens for call in trace.calls),
        seconds=seconds_of(trace),
        error=trace.reason if trace.result is None else None,
    )


def pass_at_k(n: int, right: int, k: int) -> float:
    """The unbiased probability that one of k samples out of n is right: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021).

    Raises ValueError unless 0 <= right <= n and 1 <= k <= n.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples with {right} right: needs 0 <= right <= n and 1 <= k <= n")
    return 1 - comb(n - right, k) / comb(n, k)


def best(solutions: Solutions) -> bool:
    """Whether the answer with the highest score is right; among ties the first, one without an answer last."""
    if not solutions:
        return False
    return max(solutions, key=lambda solution: (solution["score"], bool(solution["answer"])))["right"]


def vote(solutions: Solutions) -> bool:
    """Whether the answer of most solutions is right; among ties the first."""
    votes = Counter(solution["group"] for solution in solutions if solution["answer"])
    if not votes:
        return False
    chosen = votes.most_common(1)[0][0]
    return next(solution["right"] for solution in solutions if solution["group"] == chosen)


def covered(solutions: Solutions) -> bool:
    """Whether any solution is right."""
    return any(solution["right"] for solution in solutions)


CHOICES: Final[Mapping[str, Callable[[Solutions], bool]]] = {"best": best, "vote": vote, "any": covered}


def within(solutions: Solutions, budget: int) -> Solutions:
    """The solutions within a budget of completion tokens."""
    return [solution for solution in solutions if solution["tokens"] <= budget]


def budgets_of(greatest: int) -> list[int]:
    """The budgets to report: a sixteenth, an eighth, a quarter, a half, and all of the greatest one."""
    return sorted({max(1, greatest // part) for part in (1, 2, 4, 8, 16)})


def measure_all(
    runs: Sequence[SystemRun], predictions: Mapping[str, Sequence[Prediction]], samples: int, budget: int
) -> dict[str, Any]:
    """The results of all systems, and how each tree search compares with best-of-n if that is among them."""
    sample_counts = {"greedy": 1, "samples": samples}
    results = {}
    for run in runs:
        budgets = () if run.name == "greedy" else budgets_of(budget)
        head = {"run": run.manifest()["run"], "model": run.model_name()}
        results[run.name] = {**head, **measure(predictions[run.name], sample_counts.get(run.name, 0), budgets)}
    rivals = [name for name in TREES if name in predictions and "samples" in predictions]
    gaps = {name: difference(predictions[name], predictions["samples"], budget) for name in rivals}
    return {"systems": results, "minus_best_of_n": gaps}


def measure(predictions: Sequence[Prediction], samples: int, budgets: Sequence[int]) -> dict[str, Any]:
    """The measures of one system, with 95 % bootstrap intervals over questions.

    `samples` is n of majority@n and pass@k, 0 for none; `budgets` are those of `at`, in completion tokens.
    """
    answered = [prediction for prediction in predictions if prediction.error is None]
    result: dict[str, Any] = {
        "n": len(predictions),
        "failed": len(predictions) - len(answered),
        "solutions": mean_known([len(prediction.solutions) for prediction in answered]),
        "tokens": mean_known([prediction.tokens for prediction in answered]),
        "prompt_tokens": mean_known([prediction.prompt_tokens for prediction in answered]),
        "seconds": mean_known([prediction.seconds for prediction in answered]),
        "compared": dict(Counter(one["how"] for prediction in answered for one in prediction.solutions)),
        "errors": count_reasons(prediction.error for prediction in predictions),
    }
    if samples:
        first = [prediction.solutions[:samples] for prediction in predictions]
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < samples] + [samples]
        result["majority"] = percent_score([vote(solutions) for solutions in first])
        result["pass"] = {str(k): percent_score([_pass_of(solutions, k) for solutions in first]) for k in ks}
    if budgets:
        result["at"] = {
            str(budget): {
                name: percent_score([choose(within(prediction.solutions, budget)) for prediction in predictions])
                for name, choose in CHOICES.items()
            }
            for budget in budgets
        }
    return result


def _pass_of(solutions: Solutions, k: int) -> float:
    right = sum(solution["right"] for solution in solutions)
    return pass_at_k(len(solutions), right, k) if solutions else 0.0


def difference(first: Sequence[Prediction], second: Sequence[Prediction], budget: int) -> dict[str, dict[str, float]]:
    """How much more often the first system is right on the same questions, in points with its interval, by choice."""
    pairs = [
        (within(one.solutions, budget), within(other.solutions, budget))
        for one, other in zip(first, second, strict=True)
    ]
    return {
        name: percent_score([choose(one) - choose(other) for one, other in pairs]) for name, choose in CHOICES.items()
    }


def tables(systems: Mapping[str, Mapping[str, Any]], samples: int) -> list[Table]:
    """Accuracy without a token limit, and with equal tokens."""
    unlimited = Table("", "correct, %", "solutions", "completion tokens", "prompt tokens", "s per question", box=SIMPLE)
    for name, result in systems.items():
        scores = {"greedy": result["pass"]["1"]} if name == "greedy" else {}
        if name == "samples":
            scores = {f"majority@{samples}": result["majority"]}
            scores |= {f"pass@{k}": score for k, score in result["pass"].items()}
        if name in TREES:
            scores = {f"{name}, best": list(result["at"].values())[-1]["best"]}
        costs = [number_cell(result[cost], 1) for cost in ("solutions", "tokens", "prompt_tokens", "seconds")]
        for label, score in scores.items():
            unlimited.add_row(label, score_cell(score), *costs)
    equal = Table("completion tokens", title="with equal tokens: correct, %", box=SIMPLE)
    by_system = {name: result["at"] for name, result in systems.items() if "at" in result}
    for name in by_system:
        for choice in CHOICES:
            equal.add_column(f"{_LABELS.get(name, name)}\n{choice}")
    for budget in next(iter(by_system.values()), {}):
        cells = [score_cell(at[budget][choice]) for at in by_system.values() for choice in CHOICES]
        equal.add_row(f"{int(budget):,}", *cells)
    return [unlimited, equal] if by_system else [unlimited]


_LABELS: Final = {"samples": "best-of-n", "tree": "tree search"}


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the conditions, the tables, and what failed or was not checked."""
    say = plain_printer(console)
    settings, systems = report["settings"], report["systems"]
    say(
        f"{next(iter(systems.values()))['model']}; {settings['questions']}, n={report['questions']}"
        f"{sample_order(settings)}; {_scorer(settings)}; "
        f"{settings['budget']:,} tokens per question; tree: width {settings['width']}, depth {settings['depth']}"
    )
    print_tables(tables(systems, settings["samples"]), systems, "question", console)
    for name, gaps in report["minus_best_of_n"].items():
        texts = [f"{one} {gap['value']:+.1f} ({gap['low']:+.1f} to {gap['high']:+.1f})" for one, gap in gaps.items()]
        label = _LABELS.get(name, name)
        say(f"{label} minus best-of-n with {settings['budget']:,} tokens, in points: {', '.join(texts)}")
    for line in unusable_lines(report, "asked"):
        say(line)
    for name, result in systems.items():
        if count := result["compared"].get("text"):
            say(f"{name}: {count} answers could not be parsed as mathematics and were compared as text")
    for line in failure_lines(systems, "question"):
        say(line)
    if not report["overlap_checked"]:
        say(overlap_line("question"))
    say(f"numbers, solutions and figure: {report['out']}")


def _scorer(settings: Mapping[str, Any]) -> str:
    """What scored the solutions."""
    if settings["value"] != "judge":
        return f"scored by {settings['value']}"
    return f"judge: {settings['judge_model'] or 'the model itself'}"


def write_results(
    report: Mapping[str, Any], questions: Sequence[Question], predictions: Mapping[str, Sequence[Prediction]], out: Path
) -> None:
    """Write evaluation.json, predictions.jsonl and tokens.png."""

    def fields(row: Question) -> dict[str, Any]:
        return {"id": row.id, "question": row.question, "reference": row.golds[0]}

    write_report(report, "predictions.jsonl", result_lines(questions, fields, predictions), out)
    title = f"{report['settings']['questions'].stem}, n = {len(questions)}"
    plot(report["systems"], title, out / "tokens.png")


def plot(systems: Mapping[str, Mapping[str, Any]], title: str, file: Path) -> None:
    """Accuracy against completion tokens per question; the band is the 95 % interval of `best`."""
    with figure(file, title, (7, 4.5), ("completion tokens per question", "correct answers, %")) as axes:
        for color, (name, result) in enumerate(systems.items()):
            if name == "greedy" and result["tokens"] is not None:
                axes.plot(result["tokens"], result["pass"]["1"]["value"], "ks", label="greedy")
            if "at" not in result:
                continue
            x = [int(budget) for budget in result["at"]]
            for choice, style in zip(CHOICES, ("-", "--", ":"), strict=True):
                scores = [at[choice] for at in result["at"].values()]
                y = [score["value"] for score in scores]
                axes.plot(x, y, style, marker=".", color=f"C{color}", label=f"{_LABELS.get(name, name)}: {choice}")
                if choice == "best":
                    low, high = ([score[end] for score in scores] for end in ("low", "high"))
                    axes.fill_between(x, low, high, color=f"C{color}", alpha=0.12)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 100)


def read_questions(path: Path, options: SampleOptions) -> Iterator[Question | BadRecord]:
    """All questions of a file with their references, in its order. Raises InputError."""

    def question_in(record: Record) -> Question:
        return Question(record.id, question_of(record.data), [reference_of(record.data)], record.source)

    return read_rows(path, options, question_in, "question")


def check_overlap(questions: Sequence[Question], runs: Sequence[Path]) -> None:
    """Raises InputError if a run has a question of the sample: the same text except for case and white space.

    Signs count (2-1 is not 21). Ids do not: in two files of maths questions they are often just line numbers.
    """
    texts = {row.id: row.question for row in questions}
    sample.check_overlap(texts, runs, "question", "question", text_of=question_of, normalize=_fold, match_ids=False)


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())
