"""Evaluate a model on maths questions: accuracy, pass@k, and best-of-n against tree search with equal tokens.

    python graphs/maths_evaluate.py --questions gsm8k_test.jsonl --model http://host:8000/v1 --limit 200 --shuffle
    python graphs/maths_evaluate.py --questions math500.jsonl --model vllm:student/model --trained-on runs/maths-step

Systems: greedy (one solution at temperature 0), samples (n solutions, then as many as the budget allows: majority@n,
pass@k, best-of-n), tree (Monte Carlo tree search with the same prompt and sampling), and other searches: beam, dvts,
rebase and uniform-cost. All but greedy have --budget completion tokens per question, judgments included. None sees the
reference answer: all use the same judge, which is the model itself unless --judge-model names another, or the process
reward model of --value. Each is a collect run in its own folder under --out: rerun the
same command to resume.

A question at which a system fails counts as wrong, is reported, and is retried by the next run.

--out gets evaluation.json, predictions.jsonl (one question per line) and tokens.png. Exit codes: 0; 1 an endpoint
failed; 2 bad configuration; 3 a question cannot be used, or a system failed at one; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import typer

from agentsys.commands import command, knob, run_app
from agentsys.console import Console
from agentsys.evaluation.report import check_installed, exit_code, report_head
from agentsys.evaluation.run import OutputOptions, SystemRun, choose_systems, collect_systems
from agentsys.evaluation.sample import Question, SampleOptions, read_sample
from agentsys.graphs.maths import measures, samples, search
from agentsys.graphs.maths.measures import DEFAULT, SIMULATIONS, SYSTEMS, TREES
from agentsys.installation import install_command
from agentsys.metrics import maths
from agentsys.models.reward import is_reward_spec, load_reward_model
from agentsys.models.spec import DEFAULT_SPEC, split_spec
from agentsys.records import InputError
from agentsys.view.command import show_page


@dataclass(frozen=True)
class QuestionFile:
    """The test set."""

    panel: ClassVar[str] = "Questions"
    questions: Path | None = knob(None, "questions with their answers (GSM8K, MATH): .jsonl, .parquet, ...")


@dataclass(frozen=True)
class SystemOptions:
    """The systems to compare, and their settings."""

    panel: ClassVar[str] = "Systems"
    systems: str = knob(
        "", f"systems to compare, separated by commas: {', '.join(SYSTEMS)}; default: {', '.join(DEFAULT)}"
    )
    model: str = knob(DEFAULT_SPEC, "model spec")
    judge_model: str = knob("", "model spec of the judge; empty: the model itself")
    value: str = knob("judge", "what scores solutions and steps: judge, or prm:FOLDER or prm:URL")
    trained_on: list[Path] = knob((), "collect run that it was trained on; no question may be in it; may be repeated")
    samples: int = knob(8, "n of majority@n and pass@k")
    budget: int = knob(4096, "completion tokens per question for best-of-n and tree search")
    solution_tokens: int = knob(1024, "token limit of a solution; a truncated one counts as wrong")
    step_tokens: int = knob(256, "tree: token limit of a step")
    width: int = knob(4, "tree: candidate steps per prefix")
    depth: int = knob(8, "tree: maximum number of steps")
    explore: float = knob(1.0, "tree: c_init of PUCT")

    def runs(self, questions: Sequence[Question], out: Path) -> list[SystemRun]:
        """The systems in the order in which they run. Raises InputError and ValueError."""
        names = choose_systems(self.systems or ",".join(DEFAULT), SYSTEMS)
        if self.budget < 1:
            raise InputError(f"--budget {self.budget}: at least 1 is needed")
        check_sampling("--model", self.model)
        check_sampling("--judge-model", self.judge_model)
        base: dict[str, Any] = {"model": self.model, "solution_tokens": self.solution_tokens}
        judged: dict[str, Any] = {**base, "judge_model": self.judge_model, "budget": self.budget, "value": self.value}
        tree = {name: getattr(self, name) for name in ("samples", "step_tokens", "width", "depth", "explore")}
        systems: dict[str, tuple[Any, Any]] = {
            "greedy": (samples.graph, samples.SamplesContext(greedy=True, samples=1, **base)),
            "samples": (samples.graph, samples.SamplesContext(samples=self.samples, **judged)),
        }
        for name in TREES:
            context = search.Context(search=TREES[name], simulations=SIMULATIONS, **judged, **tree)
            systems[name] = (search.graph, context)
        records = [{"id": row.id, "question": row.question, "answer": row.golds[0]} for row in questions]
        return [SystemRun(name, *systems[name], records, out / name) for name in names]


def check_sampling(option: str, spec: str) -> None:
    """Raises InputError if a spec would override the roles: greedy decoding, a step's tokens, the judge's one token."""
    settings = split_spec(spec)[1]
    if name := next((name for name in ("temperature", "max_tokens") if name in settings), ""):
        raise InputError(
            f"{option}: {name} cannot be set here, the roles set it; remove {name}={settings[name]} from the spec"
        )


def main(questions: QuestionFile, sample: SampleOptions, systems: SystemOptions, run: OutputOptions) -> None:
    """Compare one solution, many solutions and tree search on maths questions.

    Accuracies have 95 % bootstrap intervals. Rerun the same command to resume.
    """
    maths.check_installed()
    if is_reward_spec(systems.value):
        load_reward_model(systems.value)
    check_installed({"matplotlib": "matplotlib"}, install_command("maths"))
    test = read_sample(questions.questions, measures.read_questions, sample, "question")
    measures.check_overlap(test.rows, systems.trained_on)
    out = run.folder(f"maths-eval-{test.file.stem}")
    runs = systems.runs(test.rows, out)
    predictions = {}
    for system, traces in collect_systems(runs, run, out, "question", ["question", "answer"]):
        by_id = {trace.id: measures.prediction_of(trace) for trace in traces}
        predictions[system.name] = [by_id[row.id] for row in test.rows]
    report = {
        **report_head(test, "question", out, questions, sample, systems, run),
        "questions": len(test.rows),
        "overlap_checked": bool(systems.trained_on),
        **measures.measure_all(runs, predictions, systems.samples, systems.budget),
    }
    measures.write_results(report, test.rows, predictions, out)
    measures.print_report(report, Console())
    show_page(out)
    raise typer.Exit(exit_code(report, "failed"))


app = command(main, name="evaluate maths")

if __name__ == "__main__":
    sys.exit(run_app(app))
