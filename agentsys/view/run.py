"""A run's part of the page: its head, an index of its records, and the records in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agentsys.collect.manifest import read_manifest
from agentsys.collect.run_report import make_report, refused_inputs
from agentsys.collect.statistics import Section
from agentsys.traces import Trace
from agentsys.view.page import PIECE_BYTES, Pieces, to_json
from agentsys.view.records import (
    Columns,
    FindVocabulary,
    append_row,
    empty_columns,
    index_row,
    record_data,
    refused_data,
    refused_row,
)  # fmt: skip

INDEX_ROWS: Final = 10_000
"""Records of one piece of the index."""
INDEX_CHARS: Final = 60_000_000
"""Characters of texts in the index of a run, over which the length of each text is chosen."""
TEXT_CHARS: Final = (200, 5_000)
"""Shortest and longest beginning of a text that the index has, which the filter searches."""


@dataclass
class RunData:
    """What is read of a run: columns of all records, for comparisons, and the head of the page."""

    name: str
    head: dict[str, Any] = field(default_factory=dict)
    columns: Columns = field(default_factory=empty_columns)


@dataclass
class _Writer:
    """Writes the records of a run into pieces, and remembers in which piece each is."""

    name: str
    pieces: Pieces
    find_vocabulary: FindVocabulary
    rows: Mapping[tuple[str, str], Mapping[int, Any]]
    text_chars: int
    data: RunData
    places: list[int] = field(default_factory=list)
    _records: list[bytes] = field(default_factory=list)
    _bytes: int = 0
    _piece: int = 0

    def add(self, trace: Trace) -> None:
        """Write a finished record."""
        row = index_row(trace, self.text_chars)
        self._add(row, record_data(trace, self.find_vocabulary, self.rows.get((trace.run, trace.id), {})))

    def add_refused(self, entry: Mapping[str, Any]) -> None:
        """Write an input that failed before any call."""
        self._add(refused_row(entry, self.text_chars), refused_data(entry))

    def _add(self, row: list[Any], record: Mapping[str, Any]) -> None:
        append_row(self.data.columns, row)
        self._records.append(b'"%d":' % len(self.places) + to_json(record))
        self.places.append(self._piece)
        self._bytes += len(self._records[-1])
        if self._bytes >= PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the records since the last piece as one."""
        if self._records:
            self.pieces.add(f"{self.name}-{self._piece}", b"{" + b",".join(self._records) + b"}")
            self._records, self._bytes, self._piece = [], 0, self._piece + 1

    def write_index(self) -> int:
        """Write the columns in pieces of INDEX_ROWS records, and return their number."""
        count = 0
        for start in range(0, len(self.places), INDEX_ROWS):
            rows = slice(start, start + INDEX_ROWS)
            columns = {name: values[rows] for name, values in self.data.columns.items()}
            self.pieces.add(f"{self.name}-index-{count}", to_json({**columns, "place": self.places[rows]}))
            count += 1
        return count


def read_run(
    folder: Path,
    name: str,
    pieces: Pieces,
    find_vocabulary: FindVocabulary,
    rows: Mapping[tuple[str, str], Mapping[int, Any]] | None = None,
) -> RunData:
    """Read a run into pieces called `name`-... and return its head. `rows`: see `read_rows`.

    Raises what `make_report` raises: RunFolderError for a damaged folder and for one without records.
    """
    manifest = read_manifest(folder)
    data = RunData(name)
    writer = _Writer(name, pieces, find_vocabulary, rows or {}, text_chars(finished_records(manifest)), data)
    report = make_report(folder, each=writer.add)
    for entry in refused_inputs(folder):
        writer.add_refused(entry)
    writer.flush()
    data.head = {
        **describe_run(folder, name, manifest),
        "records": len(writer.places),
        "indexes": writer.write_index(),
        "text_chars": writer.text_chars,
        "sections": [section_data(section) for section in report.sections],
    }
    return data


def finished_records(manifest: Mapping[str, Any]) -> int:
    """The finished records of a run: kept, dropped and failed ones."""
    return int(sum((manifest.get("counts") or {}).values()))


def text_chars(records: int) -> int:
    """Characters of each text in the index of so many records."""
    shortest, longest = TEXT_CHARS
    return min(max(INDEX_CHARS // (2 * max(records, 1)), shortest), longest)


def describe_run(folder: Path, name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the head of a page says of a run: its folder, system, settings and graph."""
    fingerprint = manifest.get("fingerprint") or {}
    return {
        "name": name,
        "folder": folder.resolve().name,
        "run": manifest.get("run"),
        "system": fingerprint.get("system") or "",
        "counts": manifest.get("counts") or {},
        "totals": manifest.get("totals") or {},
        "topology": fingerprint.get("topology"),
        "settings": {name: fingerprint.get(name) for name in ("models", "knobs", "roles", "input")},
    }


def section_data(section: Section) -> dict[str, Any]:
    """A table of the run's report as JSON."""
    return {"title": section.title, "columns": section.columns, "rows": section.rows, "note": section.note}


def read_rows(folder: Path) -> dict[tuple[str, str], dict[int, Any]]:
    """Training rows of `agentsys rows` by (run, record) and number of the target: kind, file, tokens, learned tokens.

    Other Parquet files are left out. Raises OSError for what cannot be read.
    """
    import pyarrow.parquet as pq

    rows: dict[tuple[str, str], dict[int, Any]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        if not {"id", "kind", "lineage"} <= {*pq.read_schema(file).names}:
            continue
        for batch in pq.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                lineage = json.loads(row["lineage"] or "{}")
                number = row["id"].rpartition("#")[2]
                if "trace" in lineage and number.isdecimal():
                    records = rows.setdefault((lineage.get("run", ""), lineage["trace"]), {})
                    records[int(number)] = dict(_row_facts(row, file))
    return rows


def _row_facts(row: Mapping[str, Any], file: Path) -> Iterator[tuple[str, Any]]:
    yield from (("kind", row["kind"]), ("file", f"{file.parent.name}/{file.name}"), ("id", row["id"]))
    if "input_ids" in row:
        yield from (("tokens", len(row["input_ids"])), ("learned_tokens", sum(row["loss_mask"])))
    else:
        yield from (("prompt_tokens", len(row["prompt_ids"])), ("chosen_tokens", len(row["chosen_ids"])))
        yield "rejected_tokens", len(row["rejected_ids"])
