"""Pages of a Wikipedia dump as the data set `wikimedia/wikipedia` has them, and the links between their languages.

A page is {"id", "url", "title", "text"}. The text has a paragraph or a heading per line, without markup; the language
is a field `lang`, or the host of the url. That data set has no links between languages: they are a page's field
`langlinks`, {"zh": "title"}, or a file of its own with the columns id, lang and title.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentsys.records import BadRecord, InputError, read_records

MIN_PARAGRAPH: Final = 80
"""A line of this many characters is a paragraph, however it ends; a shorter one needs the end of a sentence."""

_HOST: Final = re.compile(r"https?://([a-z][a-z0-9-]*)\.(?:m\.)?wikipedia\.org/")
_CLOSING: Final = "\"'”’»)）」』]】"
_NO_END: Final = ",;:、，；："
_BRACKET: Final = re.compile(r"\s*[(（][^()（）]*[)）]$")


class Langlink(NamedTuple):
    """A link from a page to the same page in another language, by its title there."""

    id: str
    lang: str
    title: str


def page_language(page: Mapping[str, Any]) -> str:
    """The code of a page's language, "" if neither `lang` nor `url` has it."""
    if lang := str(page.get("lang") or "").strip():
        return lang
    host = _HOST.match(str(page.get("url") or ""))
    return host[1] if host else ""


def page_paragraphs(text: str) -> list[str]:
    """The paragraphs of a page's text, without its headings and the lines of its lists."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if _is_paragraph(line)]


def _is_paragraph(line: str) -> bool:
    end = line.rstrip(_CLOSING)[-1:]
    return len(line) >= MIN_PARAGRAPH or (end not in _NO_END and unicodedata.category(end) == "Po" if end else False)


def page_links(page: Mapping[str, Any]) -> dict[str, str]:
    """Language -> title of a page's field `langlinks`. Raises ValueError, which names the fix, for another form."""
    links = page.get("langlinks") or {}
    if not isinstance(links, Mapping) or not all(isinstance(title, str | None) for title in links.values()):
        raise ValueError("field 'langlinks' is not a mapping from languages to titles, such as {'zh': '...'}")
    # A Parquet file has every language in every row, as null where there is no link.
    return {str(lang): clean_title(title) for lang, title in links.items() if title and clean_title(title)}


def clean_title(title: str) -> str:
    """A title as pages have it: composed accents, spaces for underscores."""
    return unicodedata.normalize("NFC", " ".join(title.replace("_", " ").split()))


def bare_title(title: str) -> str:
    """A title without what distinguishes it from equal ones: "Rush" for "Rush (band)"."""
    return _BRACKET.sub("", title) or title


def read_langlinks(path: str | Path) -> Iterator[Langlink | BadRecord]:
    """Read a file of links: JSONL, CSV, TSV or Parquet with `id`, `lang` and `title`, one row per link.

    Raises InputError for a file that cannot be read, and at its end for one without any link.
    """
    count, reason = 0, "it is empty"
    for record in read_records(path, required=("lang", "title")):
        fault = record.reason if isinstance(record, BadRecord) else ""
        if not isinstance(record, BadRecord):
            if str(record.data.get("id") or "").strip():
                count += 1
                yield Langlink(record.id.strip(), record.data["lang"].strip(), clean_title(record.data["title"]))
                continue
            fault = "no field 'id', which is that of the page in the language of the pages"
        reason = fault
        yield BadRecord(record.source, fault)
    if not count:
        raise InputError(f"{path}: no link between languages ({reason}); give rows with id, lang and title")
