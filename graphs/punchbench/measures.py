"""The evaluation: records of pairs with their questions, accuracies by strategy, and what the picture is worth.

The same questions are asked with the picture shown, withheld, and exchanged for that of another pair. What remains of
the accuracy without the right picture is a shortcut.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

from rich.table import Table

from agentsys.evaluation.report import count_reasons, number_cell, plain_printer, reason_lines, write_report
from agentsys.graphs.punchbench.chains import OTHER, Strategy, conversation_of
from agentsys.graphs.punchbench.state import CAPTION_TYPES
from agentsys.graphs.punchbench.tasks import FILES, Item, seeded
from agentsys.metrics.agreement import mcnemar_p, wilson_interval
from agentsys.traces import Trace

Pictures = Literal["shown", "withheld", "shuffled"]
PICTURES: Final[tuple[Pictures, ...]] = ("shown", "withheld", "shuffled")


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair P_i^x with its questions by task/format, in the order of FILES."""

    id: str
    pair: str
    caption_type: str
    image: str
    questions: Mapping[str, Item]


def group_pairs(items: Iterable[Item]) -> list[Pair]:
    """The pairs that the items are of, in the order of their ids."""
    order = {file: number for number, file in enumerate(FILES)}
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        groups[item.pair, item.caption_type].append(item)
    return [
        Pair(
            f"{pair}/{kind}", pair, kind, group[0].image,
            {f"{i.task}/{i.format}": i for i in sorted(group, key=lambda i: order[i.task, i.format])},
        )
        for (pair, kind), group in sorted(groups.items())
    ]  # fmt: skip


def make_records(
    pairs: Sequence[Pair], everything: Sequence[Pair], pictures: Pictures, shots: int, run: int = 1
) -> list[dict[str, Any]]:
    """The records of an evaluation: questions, pictures as paths, a question of another pair, exemplars.

    `everything` is where the other pair and the exemplars are drawn from, seeded by the record's id: never of the same
    pair, and never with its picture. `shots` is 0 without few-shot.
    """
    swapped = _swap_images(everything)
    records = []
    for pair in pairs:
        others = [p for p in everything if p.pair != pair.pair and p.image != pair.image]
        rng = seeded(pair.id)
        record: dict[str, Any] = {"id": pair.id if run == 1 else f"{pair.id} (run {run})"}
        record["questions"] = {name: _question(item) for name, item in pair.questions.items()}
        reasoning = [p for p in others if "reasoning/yes_no" in p.questions]
        if reasoning and "perception/yes_no" in pair.questions:
            other = rng.choice(reasoning)
            record["questions"][OTHER] = {**_question(other.questions["reasoning/yes_no"]), "image": "other"}
            record["other_image"] = other.image
        if shots:
            record |= _exemplars(pair, others, shots, rng)
        record["image"] = swapped[pair.image] if pictures == "shuffled" else pair.image
        if pictures == "withheld":
            for name in ("image", "other_image", "exemplar_images"):
                record.pop(name, None)
        records.append(record)
    return records


def _question(item: Item) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("task", "format", "caption", "sentence", "options", "answer")}


def _exemplars(pair: Pair, others: Sequence[Pair], shots: int, rng: Any) -> dict[str, Any]:
    """Answered questions of other pairs for each question of a pair, and the list of their pictures."""
    images: dict[str, int] = {}
    exemplars: dict[str, list[dict[str, Any]]] = {}
    for name in pair.questions:
        answered = [p for p in others if name in p.questions and p.questions[name].answer]
        drawn = rng.sample(answered, min(shots, len(answered)))
        exemplars[name] = [
            {"question": _question(p.questions[name]), "image": images.setdefault(p.image, len(images))} for p in drawn
        ]
    return {"exemplars": exemplars, "exemplar_images": list(images)}


def _swap_images(pairs: Sequence[Pair]) -> dict[str, str]:
    """Another picture for each one: the next in a seeded order."""
    images = sorted({pair.image for pair in pairs})
    seeded("shuffled pictures").shuffle(images)
    return dict(zip(images, [*images[1:], *images[:1]], strict=True))


@dataclass(frozen=True, slots=True)
class Scored:
    """A prediction: None for `right` without a gold answer or a judgment; the tokens are those of its last call."""

    pair: str
    caption_type: str
    strategy: Strategy
    question: str
    answer: str
    right: bool | None
    is_parsed: bool


@dataclass
class Results:
    """Predictions, reasons of failed records, and replies by record and key, for one way of showing the pictures."""

    scored: list[Scored] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    replies: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def add_traces(
    results: Results, traces: Iterable[Trace], pairs: Mapping[str, Pair], strategies: Sequence[Strategy]
) -> None:
    """Add the traces of a run. The questions of a failed record count as wrong."""
    for trace in traces:
        pair = pairs[trace.id.partition(" (run ")[0]]
        result = trace.result or {}
        if trace.outcome == "failed":
            results.errors.append(trace.reason or "")
        found = {(p["strategy"], p["question"]): p for p in result.get("predictions") or ()}
        for strategy in strategies:
            for name, item in pair.questions.items():
                prediction = found.get((strategy, name)) or {"answer": "", "right": False if item.answer else None}
                results.scored.append(
                    Scored(
                        trace.id, pair.caption_type, strategy, name, str(prediction["answer"]), prediction["right"],
                        bool(prediction["answer"]),
                    )
                )  # fmt: skip
        results.replies |= {f"{trace.id}: {reply['key']}": reply for reply in result.get("replies") or ()}


def accuracy(scored: Sequence[Scored]) -> dict[str, Any] | None:
    """{"value", "low", "high", "n"} in percent with a 95 % interval; None if nothing could be scored."""
    rights = [one.right for one in scored if one.right is not None]
    if not rights:
        return None
    low, high = wilson_interval(sum(rights), len(rights))
    return {"value": 100 * sum(rights) / len(rights), "low": 100 * low, "high": 100 * high, "n": len(rights)}


def measure_run(results: Results, strategies: Sequence[Strategy], pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """The results of one run: accuracies by strategy, question and caption type, McNemar's p, bias, cost."""
    by_strategy: dict[str, Any] = {}
    for strategy in strategies:
        own = [one for one in results.scored if one.strategy == strategy]
        by_strategy[strategy] = {
            "questions": {name: _measure_question(own, results.scored, name, strategy) for name in _names(own)},
            **_cost(strategy, own, results.replies, pairs),
        }
    return {
        "strategies": by_strategy,
        "n": len({one.pair for one in results.scored}),
        "failed": len(results.errors),
        "errors": count_reasons(results.errors),
    }


def _names(scored: Sequence[Scored]) -> list[str]:
    present = {one.question for one in scored}
    return [f"{task}/{format}" for task, format in FILES if f"{task}/{format}" in present]


def _measure_question(own: Sequence[Scored], scored: Sequence[Scored], name: str, strategy: Strategy) -> dict[str, Any]:
    rows = [one for one in own if one.question == name]
    kinds = {kind: accuracy([one for one in rows if one.caption_type == kind]) for kind in CAPTION_TYPES}
    base = {one.pair: one.right for one in scored if one.question == name and one.strategy == "zero_shot"}
    pairs = [(one.right, base[one.pair]) for one in rows if base.get(one.pair) is not None and one.right is not None]
    better, worse = sum(a > b for a, b in pairs if b is not None), sum(a < b for a, b in pairs if b is not None)
    return {
        "accuracy": accuracy(rows),
        "by_caption_type": kinds,
        "unparsed": sum(not one.is_parsed for one in rows),
        "answers": dict(sorted(Counter(one.answer for one in rows if len(one.answer) < 4).items())),
        "mcnemar_p": mcnemar_p(better, worse) if pairs and strategy != "zero_shot" else None,
    }


def _cost(
    strategy: Strategy, own: Sequence[Scored], replies: Mapping[str, Mapping[str, Any]], pairs: Mapping[str, Pair]
) -> dict[str, Any]:
    """Calls that a strategy needs, as if it ran alone, and their tokens."""
    keys: dict[str, None] = {}
    for one in own:
        questions = pairs[one.pair.partition(" (run ")[0]].questions
        for others in ([*questions, OTHER], list(questions)):
            conversation = conversation_of(strategy, one.question, others)
            if f"{one.pair}: {conversation.key}" in replies:
                keys |= {f"{one.pair}: {c.key}": None for c in (*conversation.earlier, conversation)}
                break
    made = [replies[key] for key in keys if key in replies]
    prompt = sum(reply["prompt_tokens"] for reply in made)
    return {"calls": len(made), "prompt_tokens": prompt, "completion_tokens": sum(r["completion_tokens"] for r in made)}


def image_tokens(shown: Mapping[str, Mapping[str, Any]], withheld: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Mean prompt tokens that a zero-shot call has more with its picture than without; None without both runs."""
    differences = [
        reply["prompt_tokens"] - withheld[key]["prompt_tokens"]
        for key, reply in shown.items()
        if key in withheld and reply["mode"] == "plain" and len(reply["questions"]) == 1
        and reply["questions"] != [OTHER] and reply["prompt_tokens"] and withheld[key]["prompt_tokens"]
    ]  # fmt: skip
    return fmean(differences) if differences else None


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of accuracies and of cost, for each run."""
    for name, run in report["systems"].items():
        table = Table(
            "strategy", "question", "accuracy, 95 %", *CAPTION_TYPES.values(), "p", "unparsed", title=f"pictures {name}"
        )
        for strategy, result in run["strategies"].items():
            for question, measured in result["questions"].items():
                cells = [_cell(measured["by_caption_type"][kind]) for kind in CAPTION_TYPES]
                p = number_cell(measured["mcnemar_p"], 3)
                table.add_row(strategy, question, _cell(measured["accuracy"]), *cells, p, str(measured["unparsed"]))
        yield table
        cost = Table("strategy", "calls", "prompt tokens", "completion tokens", title=f"cost, pictures {name}")
        for strategy, result in run["strategies"].items():
            numbers = (result["calls"], result["prompt_tokens"], result["completion_tokens"])
            cost.add_row(strategy, *(f"{number:,}" for number in numbers))
        yield cost


def _cell(score: Mapping[str, float] | None) -> str:
    return f"{score['value']:.1f} ({score['low']:.1f}-{score['high']:.1f})" if score else "-"


def print_report(report: Mapping[str, Any], console: Any) -> None:
    """Print the tables, failures, position bias and image tokens."""
    say = plain_printer(console)
    for table in tables(report):
        console.print(table)
    for name, run in report["systems"].items():
        if run["failed"]:
            say(f"pictures {name}: {run['failed']} of {run['n']} pairs failed, and count as wrong:")
            for line in reason_lines(run["errors"]):
                say(line)
        for strategy, result in run["strategies"].items():
            for question, measured in result["questions"].items():
                if measured["answers"] and "generation" not in question:
                    counts = ", ".join(f"{answer or 'none'} {n}" for answer, n in measured["answers"].items())
                    say(f"answers, pictures {name}, {strategy}, {question}: {counts}")
    if report["image_tokens"] is not None:
        say(f"tokens of a picture: {report['image_tokens']:.0f} per zero-shot call, by the difference of the prompts")


def write_results(report: Mapping[str, Any], scored: Mapping[str, Sequence[Scored]], out: str | Path) -> None:
    """Write evaluation.json and predictions.jsonl, one line per run, strategy and question."""
    rows = (
        {"pictures": name, "pair": one.pair, "strategy": one.strategy, "question": one.question, "answer": one.answer,
         "right": one.right}
        for name, of_run in scored.items()
        for one in of_run
    )  # fmt: skip
    write_report(report, "predictions.jsonl", rows, out)
