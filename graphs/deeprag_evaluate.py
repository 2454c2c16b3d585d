"""Evaluate DeepRAG against simpler systems (Guan et al. 2025, tables 1 to 3 and figure 4).

    python graphs/deeprag_evaluate.py --questions dev.jsonl --index index --out eval --limit 100 --shuffle
    python graphs/deeprag_evaluate.py --questions dev.jsonl --index index --trained vllm:DIR --trained-on runs/deeprag

Systems: direct (the answer only), cot (chain of thought), cot_retrieve (chain of thought over the passages retrieved
for the question), always and never (DeepRAG with every sub-query retrieved, or none), deeprag (prompted, with a worked
example) and, with --trained, deeprag_trained (without the example). Each is a collect run in its own folder under
--out: rerun the same command to resume. The embedded engine is loaded once for all systems; a `vllm:` model is started
again for each.

A question at which a system fails counts as wrong, is reported, and is retried by the next run. Its retrievals and
seconds are unknown and left out. Seconds are the wall time of a question while others are in flight. DeepRAG's variants
make many identical calls, so each system has its own request cache; with a shared --cache, cached calls are not timed.

--out gets evaluation.json, predictions.jsonl (one question per line) and retrievals.png. Exit codes: 0; 1 an endpoint
failed; 2 bad configuration; 3 a question cannot be used, or a system failed at one; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import typer

from agentsys.commands import command, knob, run_app
from agentsys.console import Console
from agentsys.evaluation.report import check_installed, exit_code, report_head
from agentsys.evaluation.run import OutputOptions, SystemRun, choose_systems, collect_systems
from agentsys.evaluation.sample import Question, SampleOptions, check_overlap, read_sample
from agentsys.graphs import deeprag
from agentsys.graphs.deeprag import baselines, measures
from agentsys.graphs.deeprag.measures import BASELINES, NO_INDEX, SYSTEMS, TRAINED
from agentsys.installation import install_command
from agentsys.knowledge.context import with_index
from agentsys.metrics.answers import Match
from agentsys.models.spec import DEFAULT_SPEC
from agentsys.records import InputError
from agentsys.view.command import show_page


@dataclass(frozen=True)
class QuestionFile:
    """The test set."""

    panel: ClassVar[str] = "Questions"
    questions: Path | None = knob(None, "questions with answer, answers or answer_aliases: .jsonl, .parquet, ...")


@dataclass(frozen=True)
class SystemOptions:
    """The systems to compare, and their settings."""

    panel: ClassVar[str] = "Systems"
    systems: str = knob("", f"systems to compare, separated by commas: {', '.join(SYSTEMS)}; default: all")
    model: str = knob(DEFAULT_SPEC, "model spec of every system except deeprag_trained")
    trained: str = knob("", "model spec of the trained model, for the system deeprag_trained")
    trained_on: list[Path] = knob((), "collect run that it was trained on; no question may be in it; may be repeated")
    index: str = knob(
        "", "index folder that `python -m agentsys.knowledge build` wrote, or the address of a search server"
    )
    retriever: Literal["", "bm25", "dense", "hybrid"] = knob("", "retriever of the index; empty: the best it has")
    k: int = knob(3, "passages per retrieval")
    max_steps: int = knob(6, "T: number of sub-queries after which the final answer is forced")
    match: Match = knob("exact", "correct answers: SQuAD-normalized exact match, or one contains the other")

    def runs(self, questions: Sequence[Question], out: Path) -> list[SystemRun]:
        """The systems in the order in which they run. Raises InputError, KnowledgeError and ValueError."""
        names = choose_systems(self.systems, SYSTEMS if self.trained or self.systems else SYSTEMS[:-1])
        if TRAINED in names and not self.trained:
            raise InputError(f"--systems {TRAINED}: name its model with --trained")
        if self.trained and TRAINED not in names:
            raise InputError(f"--trained is the model of {TRAINED}; add it to --systems")
        if not self.index and (retrieving := [name for name in names if name not in NO_INDEX]):
            raise InputError(
                f"--index: {', '.join(retrieving)} need one; name the folder of an index, or use "
                f"--systems {','.join(NO_INDEX)}"
            )
        records = [{"id": row.id, "question": row.question, "answers": row.golds} for row in questions]
        return [SystemRun(name, *self._system(name), records, out / name) for name in names]

    def _system(self, name: str) -> tuple[Any, Any]:
        index = {} if name in NO_INDEX else {"index": self.index, "retriever": self.retriever, "k": self.k}
        options: dict[str, Any] = {"model": self.trained if name == TRAINED else self.model, **index}
        if name in BASELINES:
            context: Any = baselines.BaselineContext(**options | {"strategy": name})
        else:
            decisions = {"always": "retrieve", "never": "parametric"}.get(name, "model")
            options |= {"decisions": decisions, "example": name != TRAINED, "max_steps": self.max_steps}
            context = deeprag.Context(**options)
        return baselines.graph if name in BASELINES else deeprag.graph, with_index(context) if index else context


def main(questions: QuestionFile, sample: SampleOptions, systems: SystemOptions, run: OutputOptions) -> None:
    """Compare DeepRAG with simpler systems on the same questions: answers, retrievals and seconds.

    EM and F1 have 95 % bootstrap intervals. Rerun the same command to resume.
    """
    check_installed({"sklearn": "scikit-learn", "matplotlib": "matplotlib"}, install_command("knowledge"))
    test = read_sample(questions.questions, measures.read_questions, sample, "question")
    check_overlap({row.id: row.question for row in test.rows}, systems.trained_on, "question", "question")
    out = run.folder(f"deeprag-eval-{test.file.stem}")
    runs = systems.runs(test.rows, out)
    golds = {row.id: row.golds for row in test.rows}
    predictions = {}
    for system, traces in collect_systems(runs, run, out, "question", ["question"]):
        by_id = {trace.id: measures.prediction_of(trace, golds[trace.id]) for trace in traces}
        predictions[system.name] = [by_id[row.id] for row in test.rows]
    report = {
        **report_head(test, "question", out, questions, sample, systems, run),
        "questions": len(test.rows),
        "overlap_checked": bool(systems.trained_on),
        "systems": measures.measure_all(runs, predictions, systems.match),
    }
    report["settings"]["index_digest"] = next((r.context.index_digest for r in runs if r.context.index), "")
    measures.write_results(report, test.rows, predictions, out)
    measures.print_report(report, Console())
    show_page(out)
    raise typer.Exit(exit_code(report, "failed"))


app = command(main, name="evaluate deeprag")

if __name__ == "__main__":
    sys.exit(run_app(app))
