"""Rows of a Wikipedia dump, in the form of the data set `wikimedia/wikipedia`, as page records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentsys.terms.wikipedia import page_language, page_links, page_paragraphs


def is_dump_row(data: Mapping[str, Any]) -> bool:
    """Whether a row is {"id", "url", "title", "text"} and not a page record, which has `paragraphs`."""
    return "text" in data and "paragraphs" not in data


def page_id(lang: str, number: str) -> str:
    """The id of a page; each language numbers its own pages."""
    return f"{lang}/{number}"


def to_page(data: Mapping[str, Any], number: str) -> dict[str, Any]:
    """The page record of a row: its paragraphs without headings and lists, and its links by title (`langlinks`).

    Raises ValueError, which names the fix, for a row that cannot be used.
    """
    if not isinstance(data["text"], str):
        raise ValueError("field 'text' is not a text; give the page's text, a paragraph per line")
    lang = page_language(data)
    return {
        "id": page_id(lang, number),
        "lang": lang,
        "title": data.get("title"),
        "paragraphs": page_paragraphs(data["text"]),
        "langlinks": page_links(data),
    }
