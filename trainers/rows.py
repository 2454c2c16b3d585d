"""Make rows, the training examples: the targets of traces as token ids, filtered, and split by input.

    python trainers/rows.py runs/drt --student qwen2.5-coder-0.5b --out rows

writes `rows/<kind>/train.parquet` and `validation.parquet` for each kind of target in the traces: `sft` and `sft-plain`
(composed, tokenized once with the student's template), `role` (one call, the engine's ids), `step` (a preference pair,
the engine's ids), `prm` (a solution with labels at the ends of its steps, the engine's ids) and `vision` (one call that
shows pictures, for a vision student). `trainers/teacher.py` adds a teacher's top-k to rows. Rows depend on targets
only, never on the systems that made them. docs/training.md describes every column.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar, Final

import typer

from agentsys.commands import command, knob, run_app
from agentsys.config import save_config
from agentsys.progress import Progress
from agentsys.targets import COMPOSED, TargetError, check_target
from agentsys.traces import Target, Trace, read_traces, shards
from agentsys.trainers.loading import TrainerError, load_tokenizer, tokenizer_digest
from agentsys.trainers.output import check_folder
from agentsys.trainers.row_balance import ClassBalance
from agentsys.trainers.row_files import Row
from agentsys.trainers.row_filter import Filters, RowFilter
from agentsys.trainers.row_split import FEWEST_INPUTS, InputSplit
from agentsys.trainers.row_writer import RowWriter
from agentsys.trainers.tokenize_rows import RowTokenizer, TokenizerMismatch, lineage
from agentsys.trainers.vision_rows import VISION, check_student, keep_pictures, shown_call, vision_columns

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetOptions:
    """Which targets become rows, and for which student."""

    panel: ClassVar[str] = "Rows"
    student: str = knob(
        "qwen2.5-coder-0.5b", "student whose tokenizer and template are used: folder, catalog or hub name"
    )
    out: Path = knob(Path("rows"), "output folder")
    role: list[str] = knob((), "take `role` targets of this role only; repeatable")
    retokenize: bool = knob(
        False,
        "make rows from texts where the ids are missing or of another tokenizer",
        old_name="retokenise",
    )


@dataclass
class Report:
    """Rows and tokens by kind and split, and dropped targets by kind and reason."""

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    classes: Counter[float] = field(default_factory=Counter)
    """Step rows by the class of what they prefer, the score `choice`."""
    closes_thoughts: bool = False
    """Whether the student's template opens a thought, which composed and re-tokenized rows close."""

    def drop(self, trace: Trace, kind: str, reason: str) -> None:
        """Count a target that does not become a row."""
        self.dropped[kind, reason] += 1
        _LOG.debug("record %s: no %s row: %s", trace.id, kind, reason)


def rows_of(trace: Trace, row_tokenizer: RowTokenizer) -> Iterator[Row]:
    """One row per target of a trace. Raises TrainerError; TokenizerMismatch is one."""
    for number, target in enumerate(trace.targets):
        yield row_of(trace, number, target, row_tokenizer)


def row_of(trace: Trace, number: int, target: Target, row_tokenizer: RowTokenizer) -> Row:
    """The row of one target of a trace. Raises TrainerError; TokenizerMismatch is one."""
    try:
        check_target(target, trace.calls, trace.tree)
    except TargetError as err:
        raise TrainerError(f"record {trace.id}: {err}") from None
    row = {
        "id": f"{trace.run}/{trace.id}#{number}",
        "kind": target.kind,
        "source": trace.source,
        "input": _input_digest(trace),
        "lineage": json.dumps(lineage(target, trace), ensure_ascii=False),
        "scores": json.dumps(dict(target.scores)),
        "user": None,
    }
    if call := shown_call(target, trace):
        return row | {"kind": VISION} | vision_columns(target, trace, call)
    columns = {"step": _step_columns, "prm": _prm_columns}.get(target.kind, _text_columns)
    return row | columns(target, trace, row_tokenizer)


def _text_columns(target: Target, trace: Trace, row_tokenizer: RowTokenizer) -> Row:
    tokenize = row_tokenizer.tokenize_composed if target.kind in COMPOSED else row_tokenizer.tokenize_role
    tokens = tokenize(target, trace)
    begin = tokens.learned.index(1) if 1 in tokens.learned else len(tokens.ids)
    decode = row_tokenizer.tokenizer.decode
    return {
        "input_ids": tokens.ids,
        "loss_mask": tokens.learned,
        "prompt": decode(tokens.ids[:begin]),
        "text": decode(tokens.ids[begin:], skip_special_tokens=True),
        "ids_source": tokens.source,
    }


def _step_columns(target: Target, trace: Trace, row_tokenizer: RowTokenizer) -> Row:
    pair = row_tokenizer.tokenize_step(target, trace)
    decode = row_tokenizer.tokenizer.decode
    return {
        "prompt_ids": pair.prompt_ids,
        "chosen_ids": pair.chosen_ids,
        "rejected_ids": pair.rejected_ids,
        "prompt": decode(pair.prompt_ids),
        "text": decode(pair.chosen_ids, skip_special_tokens=True),
        "rejected": decode(pair.rejected_ids, skip_special_tokens=True),
        "margin": float(target.scores.get("margin", 0.0)),
        "ids_source": pair.source,
    }


def user_of(trace: Trace) -> str:
    """The record's user, for rows that a student is personalized with; "" without one.

    Rows have a number in its place, which is written down nowhere else.
    """
    user = trace.input.get("user")
    return "" if user is None else str(user)


def _prm_columns(target: Target, trace: Trace, row_tokenizer: RowTokenizer) -> Row:
    solution = row_tokenizer.tokenize_prm(target, trace)
    decode = row_tokenizer.tokenizer.decode
    return {
        "input_ids": solution.ids,
        "step_ends": [solution.ends[label.segment - 1] for label in target.labels],
        "step_labels": [float(label.share) for label in target.labels],
        "step_visits": [label.visits for label in target.labels],
        "prompt": decode(solution.ids[: solution.begin]),
        "text": decode(solution.ids[solution.begin :], skip_special_tokens=True),
        "ids_source": "engine",
    }


def _input_digest(trace: Trace) -> str:
    """A digest of the record's content without its id and its user, ignoring case and whitespace."""
    content = {
        name: " ".join(value.casefold().split()) if isinstance(value, str) else value
        for name, value in trace.input.items()
        if name not in ("id", "user")
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_rows(
    runs: Iterable[str | Path],
    options: TargetOptions,
    filters: Filters,
    watch: Callable[[int], None] = lambda traces: None,
) -> Report:
    """Write the rows of all kept traces. Raises TrainerError.

    Files appear when all rows are written, and replace those of an earlier run. A target that cannot be tokenized is
    counted with its reason. `watch` is called with the number of traces read so far.
    """
    folders = [Path(run) for run in runs]
    _check_runs(folders)
    _check_roles(folders, options.role)
    check_folder(Path(options.out))
    tokenizer = load_tokenizer(options.student)
    row_tokenizer, row_filter, report = RowTokenizer(tokenizer, options.retokenize), RowFilter(filters), Report()
    make = partial(_make_row, row_tokenizer=row_tokenizer, runs=folders, options=options)
    split, classes = InputSplit(filters.validation, filters.seed), ClassBalance(filters.balance)
    mismatches: list[TokenizerMismatch] = []
    with RowWriter(options.out, tokenizer_digest(tokenizer)) as writer:
        targets = _targets(_kept_traces(folders, watch), options.role, by_margin=filters.per_input > 0)
        for row in classes.choose(_usable_rows(targets, make, row_filter, report, mismatches)):
            writer.write(row, split.split_of(row))
        if mismatches and not writer.rows:
            raise mismatches[0]
        if not writer.rows:
            raise TrainerError(f"no rows: {_join_reasons(report) or 'no kept trace has a target'}")
        writer.move(split.inputs_to_move())
    save_config(options.out)
    report.closes_thoughts = row_tokenizer.closes_thoughts
    report.rows, report.tokens, report.classes = +writer.rows, +writer.tokens, classes.counts
    if classes.surplus:
        report.dropped["step", "more than the rarest class has (--balance)"] = classes.surplus
    return report


def _make_row(
    trace: Trace,
    number: int,
    target: Target,
    *,
    row_tokenizer: RowTokenizer,
    runs: Sequence[Path],
    options: TargetOptions,
) -> Row:
    """The row of a target; that of a call which shows pictures has their files. Raises TrainerError."""
    row = row_of(trace, number, target, row_tokenizer)
    if row["kind"] != VISION:
        return row
    check_student(options.student)
    return keep_pictures(row, runs, options.out)


def _usable_rows(
    targets: Iterable[tuple[Trace, int, Target]],
    make: Callable[[Trace, int, Target], Row],
    row_filter: RowFilter,
    report: Report,
    mismatches: list[TokenizerMismatch],
) -> Iterator[Row]:
    """The rows of targets that pass the filters; the others are counted in `report`."""
    users: dict[str, int] = {}
    for trace, number, target in targets:
        try:
            row = make(trace, number, target)
        except TokenizerMismatch as err:
            mismatches.append(err)
            report.drop(trace, target.kind, "token ids of another tokenizer, or none (--retokenize)")
        except TrainerError as err:
            report.drop(trace, target.kind, str(err).partition(": ")[2] or str(err))
        else:
            if user := user_of(trace):
                row["user"] = users.setdefault(user, len(users))
            if reason := row_filter.drop_reason(row):
                report.drop(trace, target.kind, reason)
            else:
                yield row


def _targets(traces: Iterable[Trace], roles: Sequence[str], *, by_margin: bool) -> Iterator[tuple[Trace, int, Target]]:
    """The targets of kept traces with their numbers; of kind `role` only those of `roles`, if any are named.

    `by_margin`: those of a trace in the order of their margins, the largest first.
    """
    for trace in traces:
        role_by_call = {call.key: call.role for call in trace.calls}
        targets = list(enumerate(trace.targets))
        if by_margin:
            targets.sort(key=lambda pair: -pair[1].scores.get("margin", 0.0))
        for number, target in targets:
            authors = {role_by_call.get(segment.call) for segment in target.segments if segment.call}
            if target.kind != "role" or not roles or authors & set(roles):
                yield trace, number, target


def _check_runs(runs: Sequence[Path]) -> None:
    for run in runs:
        if not shards(run):
            missing = "has no traces-*.jsonl" if run.is_dir() else "is no folder"
            raise TrainerError(f"{run} {missing}; name the output folder of a collect run")


def _check_roles(runs: Sequence[Path], names: Sequence[str]) -> None:
    if not names:
        return
    roles = {call.role for trace in _kept_traces(runs) for call in trace.calls}
    if unknown := [name for name in names if name not in roles]:
        raise TrainerError(f"--role {unknown[0]}: no such role in the runs; use {', '.join(sorted(roles)) or 'none'}")


def _kept_traces(runs: Iterable[Path], watch: Callable[[int], None] = lambda count: None) -> Iterator[Trace]:
    """The kept traces of the runs; `watch` is called with the number of all that were read."""
    for count, trace in enumerate(chain.from_iterable(map(read_traces, runs)), 1):
        watch(count)
        if trace.outcome == "kept":
            yield trace


def count_traces(runs: Iterable[Path]) -> int | None:
    """The finished records of the runs, as their manifests have them; None if one is missing or damaged."""
    try:
        counts = [json.loads((run / "manifest.json").read_bytes())["counts"] for run in runs]
        return sum(int(count["kept"]) + int(count["dropped"]) for count in counts)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _join_reasons(report: Report) -> str:
    return "; ".join(f"{count} {kind}: {reason}" for (kind, reason), count in report.dropped.items())


def print_report(report: Report, out: str | Path) -> None:
    """Print a table of the rows, and one line per reason for dropping some."""
    from rich.table import Table

    from agentsys.console import Console

    table = Table("kind", "split", "rows", "tokens", title=f"rows in {out}")
    for (kind, split), count in sorted(report.rows.items()):
        table.add_row(kind, split, f"{count:,}", f"{report.tokens[kind, split]:,}")
    console = Console()
    console.print(table)
    if report.classes:
        shares = ", ".join(f"{count:,} of choice {choice:g}" for choice, count in sorted(report.classes.items()))
        console.print(f"classes of step rows: {shares} (--balance keeps as many of each)", highlight=False)
    for (kind, reason), count in sorted(report.dropped.items()):
        console.print(f"dropped {count:,} {kind}: {reason}", highlight=False)
    if report.closes_thoughts:
        console.print(
            "the student's template opens a thought before each answer: rows close it, as thinking=off does; ask "
            "the trained student with ?thinking=off",
            highlight=False,
        )
    for kind in sorted({kind for kind, _ in report.rows} - {kind for kind, split in report.rows if split != "train"}):
        few = f"a kind needs rows of {FEWEST_INPUTS} inputs, and --validation above 0"
        console.print(f"{kind} has no validation rows: {few}", highlight=False)


Runs = Annotated[list[Path], typer.Argument(help="output folders of collect runs")]


def main(runs: Runs, options: TargetOptions, filters: Filters) -> None:
    """Make training rows from the traces of collect runs."""
    with Progress("traces", count_traces(runs)) as progress:
        report = make_rows(runs, options, filters, progress.update)
    print_report(report, options.out)


app = command(main, name="rows")

if __name__ == "__main__":
    sys.exit(run_app(app))
