"""Terms in a text, and items of knowledge about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentsys.installation import install_command
from agentsys.knowledge.passages import KnowledgeError

Kind = Literal["polysemy", "proper", "acronym", "new", "domain", "low_conf"]


Origin = Literal["internal", "external"]


@dataclass(frozen=True, slots=True)
class Term:
    """A span that is hard to translate: characters `start` to `end` of sentence number `sentence`, from 0."""

    surface: str
    kind: Kind
    start: int
    end: int
    sentence: int


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of knowledge about a term: a translation, a meaning, or both.

    `term` is the term as the source writes it; `target` a translation, "" if the source only explains; `meaning` a
    gloss, "" if it only translates; `evidence` the supporting text; `source` its location: "terms.csv:12",
    "tm.tmx:PubMed_1:3", "passage:p17", "model", "context".
    """

    term: str
    target: str
    meaning: str
    evidence: str
    source: str
    origin: Origin = "external"


def require_modules(*modules: str) -> None:
    """Raise a KnowledgeError that names the extra to install if one of the modules is missing."""
    from importlib.util import find_spec

    if missing := [module for module in modules if find_spec(module) is None]:
        raise KnowledgeError(f"{missing[0]} is not installed; {install_command('knowledge')}")
