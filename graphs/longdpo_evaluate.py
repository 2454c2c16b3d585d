"""Evaluate long responses as LongDPO does (Ping et al. 2025, tables 1 and 6): S_l and S_q on LongBench-Write.

    python graphs/longdpo_evaluate.py --requests longbench_write_en.jsonl --model vllm:BASE --trained vllm:STUDENT \\
        --judge-model http://judge:8000/v1 --out eval
    python graphs/longdpo_evaluate.py --requests longbench_write_en.jsonl --responses runs/longdpo --out eval

Systems: model, trained, and one per --responses, named after its file or folder. Each that calls a model is a collect
run in its own folder under --out, with its own request cache (two models may be served under one name): rerun the same
command to resume. S_l is 100 for the required length and falls on both sides (agentsys/metrics/lengths.py), S_q is the
mean of six dimensions (graphs/longdpo/longbench_write.py), both from 0 to 100.

Missing values are left out and counted, never replaced: a request without a length has no S_l, a response without a
usable judgment no S_q, a request at which a system failed neither (the next run retries it).

--out gets evaluation.json, scores.jsonl (one request per line) and lengths.png. Exit codes: 0; 1 an endpoint failed; 2
bad configuration; 3 a request cannot be used, a system gave no response, or one has no judgment; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import typer

from agentsys.commands import command, knob, run_app
from agentsys.console import Console
from agentsys.evaluation.report import check_installed, exit_code, report_head
from agentsys.evaluation.run import OutputOptions, collect_systems
from agentsys.evaluation.sample import SampleOptions, check_overlap, read_sample
from agentsys.graphs.longdpo import measures
from agentsys.graphs.longdpo.longbench_write import LongBenchWriteContext
from agentsys.graphs.longdpo.requests import Request, read_requests, read_responses
from agentsys.graphs.longdpo.writers import Writer
from agentsys.records import InputError
from agentsys.view.command import show_page


@dataclass(frozen=True)
class RequestFile:
    """The test set."""

    panel: ClassVar[str] = "Requests"
    requests: Path | None = knob(None, "requests with prompt and, optionally, length in words; .jsonl, .parquet, ...")


@dataclass(frozen=True)
class SystemOptions:
    """The systems to compare, and their judge."""

    panel: ClassVar[str] = "Systems"
    model: str = knob("", "model spec of the system `model`, such as the base model")
    trained: str = knob("", "model spec of the system `trained`")
    trained_on: list[Path] = knob((), "collect run that it was trained on; no request may be in it; may be repeated")
    responses: list[Path] = knob((), "file of prompt and response, or folder of a collect run; may be repeated")
    judge_model: str = knob("", "model spec of the judge; empty: no S_q")
    max_tokens: int = knob(32768, "token limit of a response")

    def writers(self, requests: Sequence[Request], out: Path) -> list[Writer]:
        """The systems in the order in which they run. Raises InputError, and ValueError for a bad option."""
        specs = {name: spec for name, spec in (("model", self.model), ("trained", self.trained)) if spec}
        judge: dict[str, Any] = {"quality_model": self.judge_model, "judge": bool(self.judge_model)}
        writers = {
            name: Writer.of_model(
                name, LongBenchWriteContext(model=spec, max_tokens=self.max_tokens, **judge), requests, out / name
            )
            for name, spec in specs.items()
        }
        judging = LongBenchWriteContext(model=self.judge_model) if self.judge_model else None
        for name, path in self.response_paths(writers).items():
            responses = read_responses(path, requests)
            writers[name] = Writer.of_responses(name, judging, requests, out / name, responses, str(path))
        if not writers:
            raise InputError("no system to evaluate: name --model, --trained or --responses")
        return list(writers.values())

    def response_paths(self, others: Iterable[str]) -> dict[str, Path]:
        """The files and folders of existing responses by system name. Raises InputError for a name used twice."""
        paths: dict[str, Path] = {}
        for path in self.responses:
            name = path.resolve().name if path.is_dir() else path.stem
            if name in paths or name in others:
                raise InputError(f"--responses {path}: two systems would be called {name}; rename the file or folder")
            paths[name] = path
        return paths


def main(requests: RequestFile, sample: SampleOptions, systems: SystemOptions, run: OutputOptions) -> None:
    """Score long responses: how well they keep the required length (S_l), and their quality for a judge (S_q).

    Compares the base model, the trained model and existing responses, such as those of LongDPO's search. Rerun the same
    command to resume.
    """
    check_installed({"matplotlib": "matplotlib"}, "pip install matplotlib")
    test = read_sample(requests.requests, read_requests, sample, "request")
    check_overlap({row.id: row.prompt for row in test.rows}, systems.trained_on, "prompt", "request")
    out = run.folder(f"longdpo-eval-{test.file.stem}")
    writers = systems.writers(test.rows, out)
    runs = collect_systems([writer.run for writer in writers], run, out, "request", ["prompt", "existing_response"])
    scores = {}
    for writer, (_, traces) in zip(writers, runs, strict=True):
        responses = writer.responses(test.rows, traces)
        scores[writer.run.name] = [measures.score_response(*pair) for pair in zip(test.rows, responses, strict=True)]
    report = {
        **report_head(test, "request", out, requests, sample, systems, run),
        "requests": len(test.rows),
        "without_length": sum(not row.length for row in test.rows),
        "overlap_checked": bool(systems.trained_on),
        "systems": {w.run.name: {**w.conditions(), **measures.measure(scores[w.run.name])} for w in writers},
    }
    measures.write_results(report, test.rows, scores, out)
    measures.print_report(report, Console())
    show_page(out)
    raise typer.Exit(exit_code(report, "failed", "unjudged"))


app = command(main, name="evaluate longdpo")

if __name__ == "__main__":
    sys.exit(run_app(app))
