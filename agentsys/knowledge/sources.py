"""Reads the documents of an index from record files and folders of text. An unusable one becomes a BadRecord."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

from agentsys.inputs.count import count_records
from agentsys.knowledge.manifest import IndexSettings
from agentsys.knowledge.passages import KnowledgeError, Passage
from agentsys.records import BadRecord, Record, read_records
from agentsys.text.words import windows

_SUFFIXES: Final = (".md", ".txt")
_HEADING: Final = re.compile(r"^ {0,3}#{1,6}[ \t]+(\S.*?)[ \t#]*$", re.MULTILINE)

Source = str | Path | Iterable[Mapping[str, Any]]
Document = tuple[str, Passage]
"""The location of a text ("a.jsonl:12"), and the text as one passage."""


def read_documents(source: Source, fields: Mapping[str, str] | None = None) -> Iterator[Document | BadRecord]:
    """Read the texts of a record file (agentsys.records), a folder of .txt and .md files, or an iterable of mappings.

    A record needs a `text`; `id` and `title` are optional, and all other fields are kept as meta. A file's id is its
    path in the folder, its title the first Markdown heading or the file's name. Raises KnowledgeError or InputError if
    the source cannot be read or is empty.
    """
    if isinstance(source, str | Path) and Path(source).is_dir():
        documents = _read_folder(Path(source))
    else:
        documents = (_to_document(record) for record in read_records(source, fields=fields, required=("text",)))
    first = next(documents, None)
    if first is None:
        missing = "no .txt or .md file" if isinstance(source, str | Path) and Path(source).is_dir() else "no records"
        raise KnowledgeError(f"{source if isinstance(source, str | Path) else 'passages'}: {missing}; give passages")
    return chain([first], documents)


def count_documents(source: Source) -> int | None:
    """How many documents a source has; None if counting them is expensive or impossible."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        return sum(1 for _ in _text_files(Path(source)))
    return count_records(source)


def _to_document(record: Record | BadRecord) -> Document | BadRecord:
    if isinstance(record, BadRecord):
        return record
    title = record.data.get("title")
    if not isinstance(title, str | None):
        return BadRecord(record.source, f"field 'title' is of type {type(title).__name__}; make it a string")
    meta = {name: value for name, value in record.data.items() if name not in ("id", "title", "text")}
    return record.source, Passage(record.id, record.data["text"], title or "", meta)


def _read_folder(folder: Path) -> Iterator[Document | BadRecord]:
    for path in sorted(_text_files(folder)):
        yield _read_file(path, path.relative_to(folder).as_posix())


def _text_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())


def _read_file(path: Path, name: str) -> Document | BadRecord:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as err:
        return BadRecord(str(path), f"cannot be read: {err.strerror}")
    except UnicodeDecodeError as err:
        return BadRecord(str(path), f"byte {err.start + 1} is not UTF-8; convert the file to UTF-8")
    if not text.strip():
        return BadRecord(str(path), "the file is empty; remove it or add text")
    heading = _HEADING.search(text) if path.suffix.lower() == ".md" else None
    return str(path), Passage(name, text, heading[1] if heading else path.stem)


def split_document(document: Passage, settings: IndexSettings) -> list[Passage]:
    """Return the document itself, or its chunks with ids `<id>#<number>` and the document's id in their meta."""
    if not settings.chunk_words:
        return [document]
    meta = {**document.meta, "document": document.id}
    texts = windows(document.text, settings.chunk_words, settings.overlap_words)
    return [Passage(f"{document.id}#{i}", text, document.title, meta) for i, text in enumerate(texts)]
