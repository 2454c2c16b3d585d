"""Evaluate a model on PunchBench's questions: zero-shot, few-shot, after thinking, and by SC-CoQ's chains.

    python graphs/punchbench_evaluate.py --benchmark runs/punchbench/benchmark --model vllm:Qwen/Qwen2.5-VL-7B-Instruct
    python graphs/punchbench_evaluate.py --benchmark runs/punchbench/benchmark --pictures withheld --model embedded

Every question is asked with its picture shown, withheld, and exchanged for another pair's; each is a collect run in its
own folder under --out: rerun the same command to resume. --out gets evaluation.json and predictions.jsonl. Exit codes:
0; 1 an endpoint failed; 2 bad configuration; 3 a pair failed; 130 interrupted.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import typer

from agentsys.collect.pictures import PictureOptions
from agentsys.commands import command, knob, run_app
from agentsys.console import Console
from agentsys.display import show
from agentsys.evaluation.report import REPORT_VERSION
from agentsys.evaluation.run import OutputOptions, SystemRun, collect_systems
from agentsys.graphs.punchbench import measures
from agentsys.graphs.punchbench.answering import AnswerContext, graph
from agentsys.graphs.punchbench.measures import PICTURES, Pair, Results
from agentsys.graphs.punchbench.tasks import read_items, seeded
from agentsys.knobs import split_names
from agentsys.pictures.picture import LONGEST_SIDE
from agentsys.records import InputError


@dataclass(frozen=True)
class QuestionOptions:
    """The questions."""

    panel: ClassVar[str] = "Questions"
    benchmark: Path | None = knob(None, "folder of task files, which collect punchbench writes: RUN/benchmark")
    limit: int | None = knob(None, "use LIMIT pairs, drawn with the seed")
    seed: int = knob(0, "seed of --limit")
    pictures: str = knob("shown,withheld,shuffled", f"what is done with the pictures: {', '.join(PICTURES)}")
    image_size: int = knob(LONGEST_SIDE, "longest side in pixels to which pictures are shrunk")
    runs: int = knob(1, "ask so many times, with other seeds, and average; the paper: 4")

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        for name, value in (("limit", self.limit), ("runs", self.runs)):
            if value is not None and value < 1:
                raise InputError(f"--{name} {value}: at least 1 is needed")
        if unknown := [name for name in split_names(self.pictures) if name not in PICTURES]:
            raise InputError(f"--pictures: there is no '{unknown[0]}'; there are {', '.join(PICTURES)}")

    def sample(self, pairs: list[Pair]) -> list[Pair]:
        """The pairs to ask about."""
        if self.limit is None or self.limit >= len(pairs):
            return pairs
        return sorted(seeded("pairs", str(self.seed)).sample(pairs, self.limit), key=lambda pair: pair.id)


def main(questions: QuestionOptions, context: AnswerContext, run: OutputOptions) -> None:
    """Answer PunchBench's questions by each strategy; accuracies with intervals, with and without the picture."""
    if questions.benchmark is None:
        raise InputError("--benchmark: name a folder of task files, such as runs/punchbench/benchmark")
    everything = measures.group_pairs(read_items(questions.benchmark))
    pairs = questions.sample(everything)
    if len({pair.image for pair in everything}) < 2:
        raise InputError(f"--benchmark {questions.benchmark}: questions on one picture only; two pairs are needed")
    out = run.folder("punchbench-eval")
    strategies = context.strategy_names
    shots = context.shots if "few_shot" in strategies else 0
    options = PictureOptions(images=questions.benchmark, image_size=questions.image_size)
    names = [name for name in PICTURES if name in split_names(questions.pictures)]
    runs = [
        SystemRun(
            f"{name}-{number}", graph, context, measures.make_records(pairs, everything, name, shots, number),
            out / f"{name}-{number}", options,
        )
        for name in names
        for number in range(1, questions.runs + 1)
    ]  # fmt: skip
    by_id = {pair.id: pair for pair in pairs}
    results: dict[str, Results] = {name: Results() for name in names}
    for system, traces in collect_systems(runs, run, out, "pair", ["questions"]):
        measures.add_traces(results[system.name.partition("-")[0]], traces, by_id, strategies)
    report: dict[str, Any] = {
        "version": REPORT_VERSION,
        "out": str(out),
        "settings": {name: value for group in (questions, context, run) for name, value in asdict(group).items()},
        "pairs": len(pairs),
        "systems": {name: measures.measure_run(results[name], strategies, by_id) for name in names},
        "image_tokens": None,
    }
    if {"shown", "withheld"} <= {*names}:
        report["image_tokens"] = measures.image_tokens(results["shown"].replies, results["withheld"].replies)
    measures.write_results(report, {name: results[name].scored for name in names}, out)
    measures.print_report(report, Console())
    show(f"numbers and predictions: {out}")
    raise typer.Exit(3 if any(results[name].errors for name in names) else 0)


app = command(main, name="evaluate punchbench")

if __name__ == "__main__":
    sys.exit(run_app(app))
