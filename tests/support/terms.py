"""Term files for tests, and the sources that are loaded from them."""

from __future__ import annotations

from pathlib import Path

from agentsys.terms.lists import TermList
from agentsys.terms.sources import TermSource, load_sources


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write a text and return its path."""
    path.write_bytes(text.encode(encoding))
    return path


def load(spec: str, source: str = "English", target: str = "Chinese") -> TermSource:
    """Load one source."""
    [term_source] = load_sources([spec], source, target)
    return term_source


def load_list(path: Path, source: str = "English", target: str = "Chinese", query: str = "") -> TermList:
    """Load a term list."""
    term_list = load(f"terms:{path}{query}", source, target)
    assert isinstance(term_list, TermList)
    return term_list


async def targets(source: TermSource, term: str, sentence: str = "") -> list[str]:
    """Return the translations of a term."""
    [items] = await source.look_up([term], sentence or term)
    return [item.target for item in items]


def tmx(*units: dict[str, str], head: str = "", tags: str = "") -> str:
    """Return a TMX file with units {language code: text}."""
    body = "".join(
        f'<tu tuid="D:{i}"{tags}>'
        + "".join(f'<tuv xml:lang="{code}"><seg>{text}</seg></tuv>' for code, text in unit.items())
        + "</tu>"
        for i, unit in enumerate(units)
    )
    return f'<?xml version="1.0"?>{head}<tmx version="1.4"><header srclang="en"/><body>{body}</body></tmx>'
