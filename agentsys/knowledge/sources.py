"""Where passages come from: record files, and folders of text. What cannot be used is a BadRecord, never an end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

from agentsys.knowledge.manifest import Settings
from agentsys.knowledge.passages import KnowledgeError, Passage
from agentsys.records import BadRecord, Record, read_records
from agentsys.text.words import windows

_SUFFIXES: Final = (".md", ".txt")
_HEADING: Final = re.compile(r"^ {0,3}#{1,6}[ \t]+(\S.*?)[ \t#]*$", re.MULTILINE)

Source = str | Path | Iterable[Mapping[str, Any]]
Document = tuple[str, Passage]
"""Where a text comes from ("a.jsonl:12"), and the text as one passage."""


def read_documents(source: Source, fields: Mapping[str, str] | None = None) -> Iterator[Document | BadRecord]:
    """The texts of a record file (agentsys.records), of a folder of .txt and .md files, or of an iterable of mappings.

    A record needs a `text`; `id` and `title` are taken if there, and everything else is kept as meta. A file's id is
    its path in the folder, its title the first Markdown heading or the file's name. Raises KnowledgeError or InputError
    if the source cannot be read or holds nothing at all.
    """
    if isinstance(source, str | Path) and Path(source).is_dir():
        found = _folder(Path(source))
    else:
        found = (_document(record) for record in read_records(source, fields=fields, required=("text",)))
    first = next(found, None)
    if first is None:
        what = "no .txt or .md file" if isinstance(source, str | Path) and Path(source).is_dir() else "no record"
        raise KnowledgeError(f"{source if isinstance(source, str | Path) else 'passages'}: {what} in it; give passages")
    return chain([first], found)


def _document(record: Record | BadRecord) -> Document | BadRecord:
    if isinstance(record, BadRecord):
        return record
    title = record.data.get("title")
    if not isinstance(title, str | None):
        return BadRecord(record.source, f"field 'title' is of type {type(title).__name__}; make it a string")
    meta = {name: value for name, value in record.data.items() if name not in ("id", "title", "text")}
    return record.source, Passage(record.id, record.data["text"], title or "", meta)


def _folder(folder: Path) -> Iterator[Document | BadRecord]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            yield _file(path, path.relative_to(folder).as_posix())


def _file(path: Path, name: str) -> Document | BadRecord:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as err:
        return BadRecord(str(path), f"cannot be read: {err.strerror}")
    except UnicodeDecodeError as err:
        return BadRecord(str(path), f"byte {err.start + 1} is not UTF-8; convert the file to UTF-8")
    if not text.strip():
        return BadRecord(str(path), "the file is empty; fill it in or remove it")
    heading = _HEADING.search(text) if path.suffix.lower() == ".md" else None
    return str(path), Passage(name, text, heading[1] if heading else path.stem)


def chunks(document: Passage, settings: Settings) -> list[Passage]:
    """The document itself, or its chunks with ids `<id>#<number>` and the document's id in their meta."""
    if not settings.chunk_words:
        return [document]
    meta = {**document.meta, "document": document.id}
    texts = windows(document.text, settings.chunk_words, settings.overlap_words)
    return [Passage(f"{document.id}#{i}", text, document.title, meta) for i, text in enumerate(texts)]
