"""The records that an evaluation runs on: read, sampled, and checked against the runs that a model was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from agentsys.collect.options import RecordOptions
from agentsys.metrics.answers import normalize_answer
from agentsys.records import BadRecord, InputError, Record, read_records, shuffled
from agentsys.traces import Trace, read_traces, shards

T = TypeVar("T")


@dataclass(frozen=True)
class SampleOptions(RecordOptions):
    """Which records of the test file an evaluation uses. Raises InputError for a bad value."""

    panel: ClassVar[str] = "Sample"


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its gold answers, and its location ("dev.jsonl:12")."""

    id: str
    question: str
    golds: list[str]
    source: str


@dataclass(frozen=True, slots=True)
class Sample(Generic[T]):
    """The rows of a test file to evaluate on, the records of the sample that cannot be used, and the file's digest."""

    file: Path
    rows: list[T]
    unusable: list[BadRecord]
    sha256: str


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hex. Raises InputError for what is no file: a folder, a pattern, a data set."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}; an evaluation reads one file: name it") from None


def read_rows(
    path: str | Path, options: SampleOptions, row_of: Callable[[Record], T], noun: str, required: Sequence[str] = ()
) -> Iterator[T | BadRecord]:
    """Read all records of a file as rows, in its order; a ValueError of `row_of` makes its record unusable.

    Of several records with the same id the first is used. Raises InputError for a file that cannot be read.
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
            yield BadRecord(record.source, f"duplicate: two {noun}s have the id {record.id}")
            continue
        seen.add(record.id)
        yield row


def read_sample(
    file: str | Path | None,
    read: Callable[[Path, SampleOptions], Iterable[T | BadRecord]],
    options: SampleOptions,
    noun: str,
) -> Sample[T]:
    """Read and sample a test file. Raises InputError if none is named, if it cannot be read or has no usable row."""
    if file is None:
        raise InputError(f"--{noun}s: name a file of {noun}s, such as {noun}s.jsonl")
    return sample_rows(read(Path(file), options), file, options, noun)


def sample_rows(rows: Iterable[T | BadRecord], file: str | Path, options: SampleOptions, noun: str) -> Sample[T]:
    """The first `limit` rows of a file, shuffled if the options say so. Raises InputError if none is usable."""
    ordered = shuffled(rows, seed=options.seed) if options.shuffle else rows
    sample = list(islice(ordered, options.limit))
    usable = [row for row in sample if not isinstance(row, BadRecord)]
    unusable = [row for row in sample if isinstance(row, BadRecord)]
    if not usable:
        reason = unusable[0].reason if unusable else "empty file"
        raise InputError(f"--{noun}s {file}: no {noun} to use: {reason}")
    return Sample(Path(file), usable, unusable, file_sha256(file))


def text_in(record: Mapping[str, Any], field: str) -> str:
    """The text in a field of a record. Raises ValueError if there is none."""
    if not isinstance(text := record.get(field), str):
        raise ValueError(f"no text in the field {field}")
    return text


def read_run(folder: str | Path, option: str) -> Iterator[Trace]:
    """The traces of a collect run. Raises InputError, which names the option, for a folder without any."""
    if not shards(folder):
        raise InputError(f"{option} {folder}: no traces there; name the --out folder of a collect run")
    return read_traces(folder)


def check_overlap(
    texts: Mapping[str, str],
    runs: Sequence[str | Path],
    field: str,
    noun: str,
    *,
    text_of: Callable[[Mapping[str, Any]], str] | None = None,
    normalize: Callable[[str], str] = normalize_answer,
    match_ids: bool = True,
) -> None:
    """Raises InputError if a run that a model was trained on has a record of the sample, or no such texts.

    `texts` are the sample's by id. The text of a run's record is in `field`, or what `text_of` returns (a ValueError
    means none). Two records are the same if their normalized texts are equal or, with `match_ids`, their ids.
    """
    ids_by_text = {normalize(text): name for name, text in texts.items()}
    for folder in runs:
        shared: dict[str, str] = {}
        for trace in read_run(folder, "--trained-on"):
            try:
                text = normalize(text_of(trace.input) if text_of else text_in(trace.input, field))
            except ValueError:
                raise InputError(
                    f"--trained-on {folder}: its records have no {field}; name a run over {noun}s"
                ) from None
            if match_ids and trace.id in texts:
                shared[trace.id] = f"id {trace.id}: {texts[trace.id]}"
            elif (name := ids_by_text.get(text)) is not None:
                shared[name] = f"same text, {name}: {texts[name]}"
        if shared:
            example = next(iter(shared.values()))
            raise InputError(
                f"--{noun}s: {len(shared)} of {len(texts)} are also in {folder} ({example[:100]}); evaluate on {noun}s "
                "that the model was not trained on"
            )
