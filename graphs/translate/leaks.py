"""What the term lists and sources of an evaluation hold, and which test sentences they leak."""

from __future__ import annotations

from collections.abc import Sequence

from agentsys.graphs.translate.rows import Pair
from agentsys.knobs import split_names


def term_source_lines(terms: str, sources: str, languages: tuple[str, str]) -> list[str]:
    """A line for each file of the term lists and sources: its entries, and what of it was not used."""
    from agentsys.terms.sources import source_summary

    specs = [f"terms:{name}" for name in split_names(terms)] + split_names(sources)
    return source_summary(list(dict.fromkeys(specs)), *languages)


def leak_lines(sources: str, pairs: Sequence[Pair], languages: tuple[str, str]) -> list[str]:
    """A line for each memory among the sources that has sentences of the test, hence their translations."""
    from agentsys.terms.sources import TranslationMemory, load_sources

    specs = [spec for spec in split_names(sources) if spec.startswith("tmx:")]
    lines = []
    for memory in load_sources(specs, *languages) if specs else ():
        if isinstance(memory, TranslationMemory) and (count := sum(memory.contains(pair.text) for pair in pairs)):
            lines.append(f"{memory.name} has {count} of the sentences and leaks their translations; remove them")
    return lines
