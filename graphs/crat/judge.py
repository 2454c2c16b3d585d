"""CRAT's knowledge about a term: retrieval from sources, and the causality-enhanced judge.

The judge looks at each candidate (Chen et al. 2024): is it relevant; does the concept stay the same when the term is
replaced by it and the sentence is translated back by someone who does not see the source; what would become of the
sentence with the strongest rival in its place, of those that came so far. Where nothing is accepted there is one more
retrieval, under other names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

from agentsys.graphs.crat.state import (
    UNPLACED,
    Candidate,
    Counterfactual,
    Decision,
    Invariance,
    Knobs,
    Names,
    Relevance,
    Senses,
)
from agentsys.graphs.crat.terms import has_term
from agentsys.knowledge.passages import KnowledgeError
from agentsys.metrics.terms import folded
from agentsys.models.errors import ModelError
from agentsys.roles import Role
from agentsys.search import settled
from agentsys.systems import System, ask
from agentsys.terms.item import Item
from agentsys.terms.sources import TermSource, load_sources

EVIDENCE = 600
"""Characters of a meaning, and of evidence, that a prompt shows: both sides of a long pair of a translation memory."""


@dataclass(frozen=True)
class Judge(System):
    """The roles behind retrieval and judgement. `sources` are objects with `look_up`, besides those of the context."""

    informant: Role[Senses] = Role("crat/informant", Senses, sampling={"temperature": 0.3, "max_tokens": 400})
    searcher: Role[Names] = Role("crat/searcher", Names, sampling={"temperature": 0.3, "max_tokens": 150})
    relevance: Role[Relevance] = Role("crat/relevance", Relevance, sampling={"temperature": 0.0, "max_tokens": 200})
    substituter: Role[str] = Role("crat/substituter", sampling={"temperature": 0.0, "max_tokens": 600})
    back: Role[str] = Role("crat/back", sampling={"temperature": 0.0, "max_tokens": 600})
    invariance: Role[Invariance] = Role("crat/invariance", Invariance, sampling={"temperature": 0.0, "max_tokens": 200})
    counterfactual: Role[Counterfactual] = Role(
        "crat/counterfactual", Counterfactual, sampling={"temperature": 0.0, "max_tokens": 250}
    )
    sources: tuple[TermSource, ...] = ()

    async def opened(self, context: Knobs) -> list[TermSource]:
        """All sources of a run. Raises ValueError for a spec that cannot be used."""
        if not context.specs:
            return list(self.sources)
        languages = (context.source_language, context.target_language)
        return [*self.sources, *await asyncio.to_thread(load_sources, context.specs, *languages)]

    async def retrieve(
        self, context: Knobs, text: str, terms: Sequence[str], keys: Sequence[str]
    ) -> tuple[list[list[Item]], list[str]]:
        """For each term of a sentence what the sources and the informant know, and what failed.

        The best of each source comes first, then the second of each. `keys` tell the terms' calls apart. Raises
        KnowledgeError for a source that does not answer for each term.
        """
        if not terms:
            return [], []
        sources = await self.opened(context)
        work: list[Awaitable[Any]] = [_looked_up(source, terms, text) for source in sources]
        asked = terms if context.informed else []
        work += [self._told(context, text, term, key, []) for term, key in zip(asked, keys, strict=False)]
        found = await settled(*work)
        faults = [str(result) for result in found if isinstance(result, ModelError)]
        known = [result for result in found[: len(sources)] if not isinstance(result, ModelError)]
        told = [[] if isinstance(result, ModelError) else result for result in found[len(sources) :]]
        columns = [[looked[i] for looked in known] + ([told[i]] if told else []) for i in range(len(terms))]
        return [_interleaved(lists) for lists in columns], faults

    async def _told(
        self, context: Knobs, text: str, term: str, key: str, refused: Sequence[dict[str, str]]
    ) -> list[Item]:
        """What the informant says of a term, besides what was refused. Raises RoleError."""
        inputs = {"text": text, "term": term, "refused": list(refused), **context.languages}
        senses = (await ask(context, self.informant, key=f"inform/{key}", **inputs)).value.senses
        return [
            Item(term, sense.translation.strip(), sense.meaning.strip(), "", "model")
            for sense in senses
            if sense.translation.strip()
        ]

    async def decide(self, context: Knobs, text: str, decision: Decision, facts: Sequence[str]) -> Decision:
        """Judge a term's candidates in a sentence; with nothing accepted, look once more. Raises no RoleError.

        Candidates that are rejected already stay so.
        """
        if not context.judge:
            return decision
        before = [candidate for candidate in decision["candidates"] if candidate["rejected_by"]]
        due = [candidate for candidate in decision["candidates"] if not candidate["rejected_by"]]
        judged = await self._judge_all(context, text, decision, due[: context.candidates], facts, len(before))
        first, rest = [*before, *judged], due[context.candidates :]
        decision = {**decision, "candidates": [*first, *rest]}
        if not context.again or accepted(decision):
            return _with_last_choice(decision)
        if len(rest) < context.candidates:  # else what was left over is the whole second round
            decision, fresh = await self._with_more(context, text, decision)
            rest = [*rest, *fresh]
        more = await self._judge_all(context, text, decision, rest[: context.candidates], facts, len(first))
        return _with_last_choice({**decision, "candidates": [*first, *more, *rest[context.candidates :]]})

    async def _with_more(self, context: Knobs, text: str, decision: Decision) -> tuple[Decision, list[Candidate]]:
        """The decision after a further retrieval, and the candidates that this brought and that were not known."""
        items, faults = await self._look_again(context, text, decision)
        known = {_identity(candidate["item"]) for candidate in decision["candidates"]}
        fresh = [candidate for candidate in candidates_of(items) if _identity(candidate["item"]) not in known]
        return {**decision, "retrievals": 2, "faults": [*decision["faults"], *faults]}, fresh

    async def _look_again(self, context: Knobs, text: str, decision: Decision) -> tuple[list[Item], list[str]]:
        """The further retrieval: the informant hears what was refused and why, the sources hear other names."""
        term, key = decision["surface"], f"{_key(decision)}/again"
        refused = [
            {**shown(candidate["item"]), "reason": candidate["reasons"].get(candidate["rejected_by"], "")}
            for candidate in decision["candidates"]
            if candidate["rejected_by"] not in ("", UNPLACED)
        ]
        work: list[Awaitable[list[Item]]] = [self._under_other_names(context, text, term, key)]
        if context.informed:
            work.append(self._told(context, text, term, key, refused))
        found = await settled(*work)
        known = [items for items in found if not isinstance(items, ModelError)]
        return _interleaved(known), [str(error) for error in found if isinstance(error, ModelError)]

    async def _under_other_names(self, context: Knobs, text: str, term: str, key: str) -> list[Item]:
        """What the sources know of a term's expansion, dictionary form or synonyms. Raises RoleError."""
        sources = await self.opened(context)
        if not sources:
            return []
        answer = await ask(context, self.searcher, key=f"search/{key}", text=text, term=term, **context.languages)
        other = dict.fromkeys(map(str.strip, answer.value.names))
        names = [name for name in other if name and folded(name) != folded(term)]
        if not names:
            return []
        looked = await settled(*(_looked_up(source, names, text) for source in sources))
        lists = [items for result in looked if not isinstance(result, ModelError) for items in result]
        return [replace(item, term=term) for item in _interleaved(lists)]

    async def _judge_all(
        self,
        context: Knobs,
        text: str,
        decision: Decision,
        candidates: Sequence[Candidate],
        facts: Sequence[str],
        begin: int,
    ) -> list[Candidate]:
        """The candidates with their verdicts; the first that passes every check is accepted.

        All take each check side by side. The rivals of check 3 are those that passed both others. `begin` is the number
        of the first, for the keys.
        """
        keys = [f"judge/{_key(decision)}/{begin + i}" for i in range(len(candidates))]
        about = {"text": text, "term": decision["surface"], **context.languages}
        checks = (self.relevant(context, about, c, facts, key) for c, key in zip(candidates, keys, strict=True))
        looked = [_sound(result, c) for result, c in zip(await settled(*checks), candidates, strict=True)]
        ways = (self._there_and_back(context, about, c, key) for c, key in zip(looked, keys, strict=True))
        kept = [_sound(result, c) for result, c in zip(await settled(*ways), looked, strict=True)]
        rivals = _rivals(kept)
        against = (
            self._against(context, about, c, kept[rivals[i]] if i in rivals else None, key)
            for i, (c, key) in enumerate(zip(kept, keys, strict=True))
        )
        compared = [_sound(result, c) for result, c in zip(await settled(*against), kept, strict=True)]
        return _first_accepted(_outdone(compared, rivals))

    async def relevant(
        self, context: Knobs, about: dict[str, str], candidate: Candidate, facts: Sequence[str], key: str
    ) -> Candidate:
        """Check 1: relevance. The candidate with its verdict. Raises RoleError."""
        inputs = {"entry": shown(candidate["item"]), "facts": list(facts), **about}
        verdict = (await ask(context, self.relevance, key=f"{key}/relevance", **inputs)).value
        reasons = {**candidate["reasons"], "relevance": verdict.reason}
        rejected = "" if verdict.relevant else "relevance"
        return {**candidate, "relevant": verdict.relevant, "reasons": reasons, "rejected_by": rejected}

    async def _there_and_back(self, context: Knobs, about: dict[str, str], candidate: Candidate, key: str) -> Candidate:
        """Check 2: substitution, back-translation without sight of the source, and the concept's invariance.

        Only a relevant candidate takes it. Where the translation lacks it there is nothing to bring back: it is put
        aside, to be the last choice. Raises RoleError.
        """
        if candidate["rejected_by"]:
            return candidate
        entry = shown(candidate["item"])
        there = (await ask(context, self.substituter, key=f"{key}/substitute", entry=entry, **about)).value
        if entry["target"] and not has_term(entry["target"], there):
            reasons = {**candidate["reasons"], UNPLACED: "the sentence was translated without it"}
            return {**candidate, "substituted": there, "reasons": reasons, "rejected_by": UNPLACED}
        back = (await ask(context, self.back, key=f"{key}/back", translation=there, **context.languages)).value
        asked = {"back_translation": back, "meaning": entry["meaning"], **about}
        verdict = (await ask(context, self.invariance, key=f"{key}/invariance", **asked)).value
        return {
            **candidate,
            "substituted": there,
            "back_translation": back,
            "invariant": verdict.same,
            "reasons": {**candidate["reasons"], "invariance": verdict.reason},
            "rejected_by": "" if verdict.same else "invariance",
        }

    async def _against(
        self, context: Knobs, about: dict[str, str], candidate: Candidate, rival: Candidate | None, key: str
    ) -> Candidate:
        """Check 3: would the sentence say something else with the rival, and which of the two fits it better?

        What the verdict leads to depends on the rival's (`_outdone`). Without a rival there is nothing to ask. Raises
        RoleError.
        """
        if rival is None:
            return candidate
        entries = {"entry": shown(candidate["item"]), "rival": shown(rival["item"])}
        verdict = (await ask(context, self.counterfactual, key=f"{key}/counterfactual", **entries, **about)).value
        return {
            **candidate,
            "rival": name_of(rival["item"]),
            "counterfactual": {"changes": verdict.changes, "better": verdict.better},
            "reasons": {**candidate["reasons"], "counterfactual": verdict.reason},
        }


async def _looked_up(source: TermSource, terms: Sequence[str], text: str) -> list[list[Item]]:
    """What a source knows. Raises KnowledgeError where that is not a list for each term."""
    found: Any = await source.look_up(terms, text)
    if not isinstance(found, list | tuple) or len(found) != len(terms):
        given = len(found) if isinstance(found, list | tuple) else type(found).__name__
        raise KnowledgeError(
            f"source {source.name}: look_up gives a list of items for each term, an empty one where it knows nothing; "
            f"for {len(terms)} it gave {given}"
        )
    return list(found)


def candidates_of(items: Sequence[Item]) -> list[Candidate]:
    """Items as candidates: those with the same translation are one, what only explains comes after translations.

    Of those that are one, the first with a meaning stands for all.
    """
    grouped: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda item: not item.target.strip()):
        grouped.setdefault(_identity(asdict(item)), []).append(item)
    return [
        blank(
            asdict(next((item for item in same if item.meaning.strip()), same[0])),
            list(dict.fromkeys(item.source for item in same)),
        )
        for same in grouped.values()
    ]


def blank(item: dict[str, Any], sources: list[str]) -> Candidate:
    """A candidate that nobody has judged."""
    return Candidate(
        item=item, sources=sources, relevant=None, substituted="", back_translation="", invariant=None, rival="",
        counterfactual=None, reasons={}, accepted=False, rejected_by="",
    )  # fmt: skip


def accepted(decision: Decision) -> Candidate | None:
    """The accepted candidate of a term."""
    return next((candidate for candidate in decision["candidates"] if candidate["accepted"]), None)


def shown(item: dict[str, Any]) -> dict[str, str]:
    """What a prompt shows of an item."""
    return {name: " ".join(str(item[name]).split())[:EVIDENCE] for name in ("target", "meaning", "evidence")}


def name_of(item: dict[str, Any]) -> str:
    """How a verdict calls an item: its translation, else its explanation."""
    return next((text for text in shown(item).values() if text), "")


def _identity(item: dict[str, Any]) -> str:
    target = folded(item["target"]).replace(" ", "")
    return f"={target}" if target else f":{folded(item['meaning'])}"


def _rivals(candidates: Sequence[Candidate]) -> dict[int, int]:
    """For each candidate that is not rejected yet the strongest other one: the first, in the order of the sources."""
    there = [i for i, candidate in enumerate(candidates) if not candidate["rejected_by"]]
    return {i: next(other for other in there if other != i) for i in there if len(there) > 1}


def _outdone(candidates: Sequence[Candidate], rivals: Mapping[int, int]) -> list[Candidate]:
    """The candidates, those rejected whose rival is better and has not lost (or failed) its own comparison.

    So two that each lose to the other both pass, and something passes wherever a comparison could be made.
    """
    lost = {i for i in rivals if (candidates[i]["counterfactual"] or {}).get("better") == "rival"}
    standing = {i for i in rivals if i not in lost and not candidates[i]["rejected_by"]}
    return [
        {**candidate, "rejected_by": "counterfactual"} if i in lost and rivals[i] in standing else candidate
        for i, candidate in enumerate(candidates)
    ]


def _first_accepted(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, the first that is not rejected accepted, and the others that are not behind it."""
    first = next((i for i, candidate in enumerate(candidates) if not candidate["rejected_by"]), None)
    return [
        candidate
        if candidate["rejected_by"]
        else {**candidate, "accepted": i == first, "rejected_by": "" if i == first else "a better one"}
        for i, candidate in enumerate(candidates)
    ]


def _with_last_choice(decision: Decision) -> Decision:
    """Where no candidate could be tried, the first that was put aside is accepted: nothing speaks against it.

    Where one was tried and came back as something else, trusting one that was not would be a guess.
    """
    candidates = decision["candidates"]
    tried = any(candidate["back_translation"] for candidate in candidates)
    last = next((i for i, candidate in enumerate(candidates) if candidate["rejected_by"] == UNPLACED), None)
    if last is None or tried:
        return decision
    chosen: Candidate = {**candidates[last], "accepted": True, "rejected_by": ""}
    return {**decision, "candidates": [*candidates[:last], chosen, *candidates[last + 1 :]]}


def _interleaved(lists: Sequence[Sequence[Item]]) -> list[Item]:
    """The first of each list, then the second of each; what says nothing is left out."""
    items = (item for row in zip_longest(*lists) for item in row if item is not None)
    return [item for item in items if item.target.strip() or item.meaning.strip()]


def _sound(result: Candidate | ModelError, candidate: Candidate) -> Candidate:
    """The candidate with its verdicts; one whose judge gave none is rejected with that reason."""
    if not isinstance(result, ModelError):
        return result
    return {**candidate, "reasons": {**candidate["reasons"], "error": str(result)}, "rejected_by": "failed call"}


def _key(decision: Decision) -> str:
    return f"{decision['sentence']}/{decision['number']}"
