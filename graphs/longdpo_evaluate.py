"""Evaluate long responses as LongDPO does (Ping et al. 2025, tables 1 and 6): S_l and S_q on LongBench-Write.

    python graphs/longdpo_evaluate.py --requests longbench_write_en.jsonl --model vllm:BASE --trained vllm:STUDENT \\
        --judge-model http://judge:8000/v1 --out eval
    python graphs/longdpo_evaluate.py --requests longbench_write_en.jsonl --responses runs/longdpo --out eval

Systems: model, trained, and one for each --responses, named after its file or folder. Each that asks a model is a
collect run in a folder of its own under --out, with its own request cache: weights change under one name. Stopped, the
same command goes on where it was. S_l is 100 for the required length and falls on both sides
(agentsys/metrics/lengths.py), S_q is the mean of six dimensions (graphs/longdpo/writing.py), both 0 to 100.

What is missing is left out, counted and said, and never replaced by a value: a request without a length has no S_l, a
response without a usable judgement no S_q, a request that a system failed at neither (the next run tries it again).

--out gets evaluation.json, scores.jsonl (a request a line) and lengths.png. Exit codes: 0; 1 an endpoint failed; 2 bad
configuration; 3 a request cannot be used, a system gave no response, or one has no judgement; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import orjson
import typer
from rich.console import Console

from agentsys.collect import Options
from agentsys.collect.fingerprint import context_models
from agentsys.commands import command, knob, run_app
from agentsys.evaluation.report import plainly, write_report
from agentsys.evaluation.run import Place, check_folder, collected
from agentsys.evaluation.sample import Sample, check_overlap, sampled
from agentsys.graphs.longdpo.measures import Scored, measure, plot, scored, sized, tables
from agentsys.graphs.longdpo.writing import (
    EMPTY,
    Request,
    Response,
    WritingContext,
    graph,
    read_requests,
    read_responses,
    response_of,
)
from agentsys.records import InputError


@dataclass(frozen=True)
class Requests(Sample):
    """What is asked for."""

    panel: ClassVar[str] = "Requests"
    requests: Path | None = knob(None, "requests: prompt and perhaps length in words; .jsonl, .parquet, ...")
    field: list[str] = knob((), "field and column, as prompt=query; may be repeated")
    id_field: str = knob("id", "column that holds the request's id; without it the id is a digest of the record")
    limit: int | None = knob(None, "take only the first so many requests")
    shuffle: bool = knob(False, "take them in an order that --seed decides")
    seed: int = knob(0, "seed of the shuffle")


@dataclass(frozen=True)
class Compared:
    """Who writes, and who judges."""

    panel: ClassVar[str] = "Systems"
    model: str = knob("", "model spec of the system `model`: the base model, say")
    trained: str = knob("", "model spec of the system `trained`")
    trained_on: list[Path] = knob((), "collect run it was trained on: no request may be in it; may be repeated")
    responses: list[Path] = knob((), "file of prompt and response, or folder of a collect run; may be repeated")
    judge_model: str = knob("", "model spec of the judge; empty: no S_q")
    max_tokens: int = knob(32768, "tokens of a response at most")

    def contexts(self) -> dict[str, WritingContext]:
        """The context of each system that writes. Raises ValueError for a bad knob."""
        specs = {"model": self.model, "trained": self.trained}
        judge: dict[str, Any] = {"quality_model": self.judge_model, "judge": bool(self.judge_model)}
        return {name: WritingContext(model=s, max_tokens=self.max_tokens, **judge) for name, s in specs.items() if s}

    def given(self) -> dict[str, Path]:
        """The place of each system whose responses are there, by its name. Raises InputError."""
        found: dict[str, Path] = {}
        for path in self.responses:
            name = path.resolve().name if path.is_dir() else path.stem
            if name in found or name in self.contexts():
                raise InputError(f"--responses {path}: two systems would be called {name}; rename the file or folder")
            found[name] = path
        return found


@dataclass(frozen=True)
class Job:
    """One system: the run to make (None where there is nothing to ask), and the responses that are there already."""

    name: str
    folder: Path
    context: WritingContext | None
    given: list[Response] | None = None
    source: str = ""

    def records(self, rows: Sequence[Request]) -> list[dict[str, str]]:
        """The run's records: requests, or given responses that hold something to judge."""
        if self.context is None:
            return []
        if self.given is None:
            return [{"id": row.id, "prompt": row.prompt} for row in rows]
        texts = [(row, (response.text or "")) for row, response in zip(rows, self.given, strict=True)]
        return [{"id": row.id, "prompt": row.prompt, "given": text} for row, text in texts if text.strip()]

    def responses(self, rows: Sequence[Request], options: Options) -> list[Response]:
        """All of them, asked for where they are not there yet. Raises what `collected` raises."""
        found: dict[str, Response] = {}
        if records := self.records(rows):
            traces = collected(graph, records, self.folder, self.context, options)
            found = {trace.id: response_of(trace) for trace in traces}
        if self.given is None:
            return [found[row.id] for row in rows]
        return [self._judged(said, found.get(row.id)) for row, said in zip(rows, self.given, strict=True)]

    def _judged(self, given: Response, found: Response | None) -> Response:
        if self.context is None or given.text is None:
            return given
        if found is None or not given.text.strip():
            return replace(given, unjudged=EMPTY)
        return replace(given, grades=found.grades, unjudged=found.error or found.unjudged)


def jobs(compared: Compared, rows: Sequence[Request], out: Path) -> list[Job]:
    """The systems in the order in which they run. Raises InputError, SpecError and ValueError before any call."""
    writing = [Job(name, out / name, context) for name, context in compared.contexts().items()]
    judge = None
    if compared.judge_model:
        judge = WritingContext(model=compared.judge_model)
    places = compared.given().items()
    given = [Job(name, out / name, judge, read_responses(path, rows), str(path)) for name, path in places]
    found = [*writing, *given]
    if not found:
        raise InputError("no system to evaluate: name --model, --trained or --responses")
    for job in found:
        context_models(job.context)
        check_folder(job.folder, job.records(rows), ["prompt", "given"], "request")
    return found


def evaluate(test: Requests, compared: Compared, place: Place) -> dict[str, Any]:
    """Read, check, ask and measure; what evaluation.json holds. Raises what a user can mend, and `collect`'s errors."""
    if find_spec("matplotlib") is None:
        raise InputError("matplotlib is not installed: pip install matplotlib")
    if test.requests is None:
        raise InputError("--requests: name a file of requests (prompt, length), .jsonl or .parquet, say")
    rows, unusable = sampled(test.requests, read_requests, test.options(), "request")
    check_overlap({row.id: row.prompt for row in rows}, compared.trained_on, "prompt", "request")
    sha256 = hashlib.sha256(test.requests.read_bytes()).hexdigest()
    out = place.out or Path("runs") / f"longdpo-eval-{test.requests.stem}"
    systems = jobs(compared, rows, out)
    runs = [place.runner(job.folder) for job in systems]
    found: dict[str, list[Scored]] = {}
    for job, options in zip(systems, runs, strict=True):
        print(f"{job.name} ({len(found) + 1} of {len(systems)})", file=sys.stderr)
        said = job.responses(rows, options)
        found[job.name] = [scored(row, response) for row, response in zip(rows, said, strict=True)]
    report = {
        "version": 1,
        "out": str(out),
        "settings": {**asdict(test), **asdict(compared), **asdict(place)},
        "requests_sha256": sha256,
        "requests": len(rows),
        "without_length": sum(not row.length for row in rows),
        "unusable": [asdict(row) for row in unusable],
        "overlap_checked": bool(compared.trained_on),
        "systems": {job.name: {**_about(job), **measure(found[job.name])} for job in systems},
    }
    _write(report, rows, found, out)
    return report


def _about(job: Job) -> dict[str, Any]:
    """The run, who wrote with which sampling, and who judged."""
    about: dict[str, Any] = {"run": None, "writer": job.source, "sampling": None, "judge": None}
    file = job.folder / "manifest.json"
    if job.context is None or not file.exists():
        return about
    manifest = orjson.loads(file.read_bytes())
    prints = manifest["fingerprint"]
    about["run"] = manifest["run"]
    models = prints["models"]
    foreign = {"name": "of another integration", "sampling": {}}
    if job.given is None:
        writer = models.get("writer_model", foreign)
        limit = {"max_tokens": job.context.max_tokens}
        about["writer"] = writer["name"]
        about["sampling"] = {**prints["roles"]["writer"]["sampling"], **limit, **writer["sampling"]}
    about["judge"] = models.get("quality_model", foreign)["name"] if job.context.judge else None
    return about


def _write(
    report: Mapping[str, Any], rows: Sequence[Request], found: Mapping[str, Sequence[Scored]], out: Path
) -> None:
    """evaluation.json, scores.jsonl and lengths.png."""
    lines = (
        {
            "id": row.id,
            "prompt": row.prompt,
            "length": row.length or None,
            "systems": {name: asdict(scores[i]) for name, scores in found.items()},
        }
        for i, row in enumerate(rows)
    )
    write_report(report, "scores.jsonl", lines, out)
    title = f"{report['settings']['requests'].stem}, n = {len(rows) - report['without_length']}"
    points = {name: sized(scores) for name, scores in found.items()}
    plot(points, title, out / "lengths.png")


def show(report: Mapping[str, Any], console: Console) -> None:
    """The conditions, the tables, and what is missing."""
    say = plainly(console)
    settings, found = report["settings"], report["systems"]
    order = f", shuffled with seed {settings['seed']}" if settings["shuffle"] else ""
    say(f"{settings['requests']}, n={report['requests']}{order}")
    for name, about in found.items():
        sampling = ", ".join(f"{key} {value}" for key, value in (about["sampling"] or {}).items())
        judge = f"judge {about['judge']}" if about["judge"] else "no judge"
        say("; ".join(filter(None, [f"{name}: {about['writer']}", sampling, judge])))
    for table in tables(found):
        console.print(table)
    say("in brackets 95 % intervals; average: the plain mean of the buckets that are there, as in the paper")
    for line in _missing(report):
        say(line)
    say(f"numbers, scores and plot: {report['out']}")


def _missing(report: Mapping[str, Any]) -> Iterator[str]:
    """What is not in the means, and why."""
    for entry in report["unusable"][:5]:
        yield f"not asked: {entry['source']}: {entry['reason']}"
    if report["without_length"]:
        yield f"{report['without_length']} of {report['requests']} requests name no length: no S_l, in no bucket"
    for name, about in report["systems"].items():
        written = about["n"] - about["failed"]
        if about["cut_known"]:
            yield f"{name}: {about['cut']} of {about['cut_known']} responses cut off at a token limit"
        if about["failed"]:
            yield f"{name}: no response to {about['failed']} of {about['n']} requests, which are left out:"
            yield from (f"  {count} x {reason}" for reason, count in list(about["errors"].items())[:5])
        if about["unjudged"]:
            yield f"{name}: {written - about['judged']} of {written} responses without a judgement, left out of S_q:"
            yield from (f"  {count} x {reason}" for reason, count in list(about["unjudged"].items())[:5])
    if "trained" in report["systems"] and not report["overlap_checked"]:
        yield "not checked: whether the model was trained on these requests; --trained-on RUN checks it"


def main(requests: Requests, compared: Compared, run: Place) -> None:
    """Score long responses: how well they keep the required length (S_l), and how good a judge finds them (S_q).

    The base model, the trained model and responses that are there already (of LongDPO's search, say) side by side.
    Stopped, the same command goes on where it was.
    """
    report = evaluate(requests, compared, run)
    show(report, Console())
    if report["unusable"] or any(about["failed"] or about["unjudged"] for about in report["systems"].values()):
        raise typer.Exit(3)


if __name__ == "__main__":
    sys.exit(run_app(command(main)))
