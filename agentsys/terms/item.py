"""A term in a text, and one piece of knowledge about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentsys.knowledge.passages import KnowledgeError

Kind = Literal["polysemy", "proper", "acronym", "new", "domain", "low_conf"]


Origin = Literal["internal", "external"]


@dataclass(frozen=True, slots=True)
class Term:
    """A span that threatens the translation: characters `start` to `end` of sentence number `sentence`, from 0."""

    surface: str
    kind: Kind
    start: int
    end: int
    sentence: int


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of knowledge about a term: a translation, a meaning, or both.

    `term` is the term as the source writes it; `target` a translation, "" where the source only explains; `meaning` a
    gloss, "" where it only translates; `evidence` the text that says so; `source` where that stands: "terms.csv:12",
    "tm.tmx:PubMed_1:3", "passage:p17", "model", "context".
    """

    term: str
    target: str
    meaning: str
    evidence: str
    source: str
    origin: Origin = "external"


def needs(*modules: str) -> None:
    """Raise a KnowledgeError that names the extra if one of the modules is not installed."""
    from importlib.util import find_spec

    if missing := [module for module in modules if find_spec(module) is None]:
        raise KnowledgeError(f"{missing[0]} is not installed; pip install 'agentsys[knowledge]'")
