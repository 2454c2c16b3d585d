"""CRAT's external knowledge about terms: term sources, and an LLM that is asked as a source (second agent)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentsys.graphs.crat.candidates import content_key, interleave, make_candidates, prompt_entry
from agentsys.graphs.crat.state import UNPLACED, Candidate, Decision, Knobs, Names, Senses
from agentsys.knowledge.passages import KnowledgeError
from agentsys.metrics.terms import normalize_text
from agentsys.models.errors import ModelError
from agentsys.roles import Role
from agentsys.search import settled
from agentsys.systems import System, ask
from agentsys.terms.item import Item
from agentsys.terms.sources import TermSource, load_sources


@dataclass(frozen=True)
class Retrieval(System):
    """The roles behind retrieval. `sources` are objects with `look_up`, in addition to the context's."""

    llm_source: Role[Senses] = Role("crat/llm_source", Senses, sampling={"temperature": 0.3, "max_tokens": 400})
    query_expander: Role[Names] = Role("crat/query_expander", Names, sampling={"temperature": 0.3, "max_tokens": 150})
    sources: tuple[TermSource, ...] = ()

    async def open_sources(self, context: Knobs) -> list[TermSource]:
        """All sources of a run. Raises ValueError for a spec that cannot be used."""
        if not context.specs:
            return list(self.sources)
        languages = (context.source_language, context.target_language)
        return [*self.sources, *await asyncio.to_thread(load_sources, context.specs, *languages)]

    async def retrieve(
        self, context: Knobs, text: str, terms: Sequence[str], keys: Sequence[str]
    ) -> tuple[list[list[Item]], list[str]]:
        """For each term of a sentence the items of the sources and of the LLM; and the errors of failed calls.

        The best of each source comes first, then the second of each. `keys` distinguish the terms' calls. Raises
        KnowledgeError for a source that does not return a list for each term.
        """
        if not terms:
            return [], []
        sources = await self.open_sources(context)
        work: list[Awaitable[Any]] = [_look_up(source, terms, text) for source in sources]
        llm_terms = terms if context.llm_source else []
        work += [self._ask_llm(context, text, term, key, []) for term, key in zip(llm_terms, keys, strict=False)]
        results = await settled(*work)
        faults = [str(result) for result in results if isinstance(result, ModelError)]
        source_items = [result for result in results[: len(sources)] if not isinstance(result, ModelError)]
        llm_items = [[] if isinstance(result, ModelError) else result for result in results[len(sources) :]]
        columns = [[items[i] for items in source_items] + llm_items[i : i + 1] for i in range(len(terms))]
        return [interleave(lists) for lists in columns], faults

    async def retrieve_more(
        self, context: Knobs, text: str, decision: Decision, key: str
    ) -> tuple[Decision, list[Candidate]]:
        """The second retrieval for a term: the decision with its errors, and the new candidates.

        The LLM is shown what was rejected and why, the sources are asked for other names.
        """
        rejected = [
            {**prompt_entry(candidate["item"]), "reason": candidate["reasons"].get(candidate["rejected_by"], "")}
            for candidate in decision["candidates"]
            if candidate["rejected_by"] not in ("", UNPLACED)
        ]
        term = decision["surface"]
        work: list[Awaitable[list[Item]]] = [self._look_up_other_names(context, text, term, key)]
        if context.llm_source:
            work.append(self._ask_llm(context, text, term, key, rejected))
        results = await settled(*work)
        items = interleave([result for result in results if not isinstance(result, ModelError)])
        faults = [str(error) for error in results if isinstance(error, ModelError)]
        old_keys = {content_key(candidate["item"]) for candidate in decision["candidates"]}
        new = [candidate for candidate in make_candidates(items) if content_key(candidate["item"]) not in old_keys]
        return {**decision, "retrievals": 2, "faults": [*decision["faults"], *faults]}, new

    async def _ask_llm(
        self, context: Knobs, text: str, term: str, key: str, rejected: Sequence[dict[str, str]]
    ) -> list[Item]:
        """The senses of a term by the LLM, other than the rejected ones. Raises RoleError."""
        inputs = {"text": text, "term": term, "refused": list(rejected), **context.languages}
        senses = (await ask(context, self.llm_source, key=f"inform/{key}", **inputs)).value.senses
        return [
            Item(term, sense.translation.strip(), sense.meaning.strip(), "", "model")
            for sense in senses
            if sense.translation.strip()
        ]

    async def _look_up_other_names(self, context: Knobs, text: str, term: str, key: str) -> list[Item]:
        """Items of the sources for a term's expansion, dictionary form or synonyms. Raises RoleError."""
        sources = await self.open_sources(context)
        if not sources:
            return []
        answer = await ask(context, self.query_expander, key=f"search/{key}", text=text, term=term, **context.languages)
        stripped = dict.fromkeys(map(str.strip, answer.value.names))
        names = [name for name in stripped if name and normalize_text(name) != normalize_text(term)]
        if not names:
            return []
        results = await settled(*(_look_up(source, names, text) for source in sources))
        lists = [items for result in results if not isinstance(result, ModelError) for items in result]
        return [replace(item, term=term) for item in interleave(lists)]


async def _look_up(source: TermSource, terms: Sequence[str], text: str) -> list[list[Item]]:
    """The items of a source for each term. Raises KnowledgeError where it does not return a list of them for each."""
    lists: Any = await source.look_up(terms, text)
    if not isinstance(lists, list | tuple) or len(lists) != len(terms):
        count = len(lists) if isinstance(lists, list | tuple) else type(lists).__name__
        raise KnowledgeError(
            f"source {source.name}: look_up must return a list of items for each term, an empty one for an unknown "
            f"term; expected {len(terms)} lists, got {count}"
        )
    for term, items in zip(terms, lists, strict=True):
        values = items if isinstance(items, list | tuple) else [items]
        if values is not items or not all(isinstance(item, Item) for item in values):
            kind = type(next((item for item in values if not isinstance(item, Item)), items)).__name__
            raise KnowledgeError(
                f"source {source.name}: look_up must return lists of agentsys.terms.item.Item; for '{term}' there is "
                f"an object of type {kind}"
            )
    return list(lists)
