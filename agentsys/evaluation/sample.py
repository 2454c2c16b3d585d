"""What the evaluations share: which records are asked about, which runs they may not be in, the runs, the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from agentsys.collect import Options
from agentsys.metrics.answers import normalized
from agentsys.records import BadRecord, InputError, Record, check_seed, read_records, shuffled
from agentsys.traces import Trace, read_traces, shards

if TYPE_CHECKING:
    pass

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its right answers, and its place in the file."""

    id: str
    question: str
    golds: list[str]
    at: str


class Sample:
    """For the options that name a file of records: which of them, by which fields."""

    field: list[str]
    id_field: str
    limit: int | None
    shuffle: bool
    seed: int

    def options(self) -> Options:
        """How they are read. Raises InputError."""
        from agentsys.collect import RunOptions  # a graph that reads traces needs no command line

        return RunOptions(
            field=list(self.field), id_field=self.id_field, limit=self.limit, shuffle=self.shuffle, seed=self.seed
        ).runner()


def read_rows(
    path: Path, options: Options, row_of: Callable[[Record], T], what: str, required: Sequence[str] = ()
) -> Iterator[T | BadRecord]:
    """All records of a file in its order, as rows; `what` one is called. A ValueError of `row_of` says why one is bad.

    Of records with one id the first counts. Raises InputError.
    """
    seen: set[str] = set()
    for record in read_records(path, fields=options.fields, id_field=options.id_field, required=required):
        if isinstance(record, BadRecord):
            yield record
            continue
        try:
            row = row_of(record)
        except ValueError as err:
            yield BadRecord(record.source, str(err))
            continue
        if record.id in seen:
            yield BadRecord(record.source, f"duplicate: two {what}s have the id {record.id}")
            continue
        seen.add(record.id)
        yield row


def sampled(
    file: Path, read: Callable[[Path, Options], Iterable[T | BadRecord]], options: Options, what: str
) -> tuple[list[T], list[BadRecord]]:
    """The records of a file to ask about, and those that cannot be used; `what` one is called. Raises InputError."""
    found = read(file, options)
    return drawn(found, file, what, limit=options.limit, shuffle=options.shuffle, seed=options.seed)


def drawn(
    found: Iterable[T | BadRecord], file: Path, what: str, *, limit: int | None, shuffle: bool, seed: int
) -> tuple[list[T], list[BadRecord]]:
    """The first `limit` of what was read from a file, and what of it cannot be used. Raises InputError for none.

    Also for a seed that no report could hold.
    """
    check_seed(seed)
    sample = list(islice(shuffled(found, seed=seed) if shuffle else found, limit))
    rows = [row for row in sample if not isinstance(row, BadRecord)]
    unusable = [row for row in sample if isinstance(row, BadRecord)]
    if not rows:
        why = unusable[0].reason if unusable else "empty file"
        raise InputError(f"--{what}s {file}: no {what} to use: {why}")
    return rows, unusable


def traces_over(folder: Path, field: str, what: str, option: str) -> Iterator[Trace]:
    """The traces of a run whose records have text in a field. Raises InputError, which names the option."""
    if not shards(folder):
        raise InputError(f"{option} {folder}: no traces there; name the --out folder of a collect run")
    for trace in read_traces(folder):
        if not isinstance(trace.input.get(field), str):
            raise InputError(f"{option} {folder}: its records have no {field}; name a run over {what}s")
        yield trace


def check_overlap(texts: Mapping[str, str], runs: Sequence[Path], field: str, what: str) -> None:
    """Raises InputError where a run has a record with the id of one of the sample, or with its normalized text.

    `texts` are the sample's by id.
    """
    same = {normalized(text): name for name, text in texts.items()}
    for folder in runs:
        met: dict[str, str] = {}
        for trace in traces_over(folder, field, what, "--trained-on"):
            if trace.id in texts:
                met[trace.id] = f"id {trace.id}: {texts[trace.id]}"
            elif (name := same.get(normalized(trace.input[field]))) is not None:
                met[name] = f"the same words, {name}: {texts[name]}"
        if met:
            first = next(iter(met.values()))
            raise InputError(
                f"--{what}s: {len(met)} of {len(texts)} are in {folder} too ({first[:100]}); evaluate on {what}s that "
                "no model was trained on"
            )
