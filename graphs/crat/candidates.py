"""Candidates of a term: made from items of knowledge, ranked, and shown to prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any, Final

from agentsys.graphs.crat.state import UNPLACED, Candidate, Decision
from agentsys.metrics.terms import normalize_text
from agentsys.models.errors import ModelError
from agentsys.terms.item import Item

SHOWN_CHARACTERS: Final = 600
"""Characters of a meaning, and of evidence, that a prompt shows: both sides of a long translation-memory pair."""


def make_candidates(items: Sequence[Item]) -> list[Candidate]:
    """Candidates of items: equal translations are merged, items without a translation come last.

    Of merged items, the first with a meaning represents all.
    """
    groups: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda item: not item.target.strip()):
        groups.setdefault(content_key(asdict(item)), []).append(item)
    return [
        blank_candidate(
            asdict(next((item for item in group if item.meaning.strip()), group[0])),
            list(dict.fromkeys(item.source for item in group)),
        )
        for group in groups.values()
    ]


def blank_candidate(item: dict[str, Any], sources: list[str]) -> Candidate:
    """A candidate without verdicts."""
    return Candidate(
        item=item, sources=sources, relevant=None, substituted="", back_translation="", invariant=None, rival="",
        counterfactual=None, reasons={}, accepted=False, rejected_by="",
    )  # fmt: skip


def content_key(item: dict[str, Any]) -> str:
    """Equal for items with the same translation, or without one with the same meaning."""
    target = normalize_text(item["target"]).replace(" ", "")
    return f"={target}" if target else f":{normalize_text(item['meaning'])}"


def interleave(lists: Sequence[Sequence[Item]]) -> list[Item]:
    """The first item of each list, then the second of each; items without content are left out."""
    items = (item for row in zip_longest(*lists) for item in row if item is not None)
    return [item for item in items if item.target.strip() or item.meaning.strip()]


def accepted_candidate(decision: Decision) -> Candidate | None:
    """The accepted candidate of a term, None if there is none."""
    return next((candidate for candidate in decision["candidates"] if candidate["accepted"]), None)


def prompt_entry(item: dict[str, Any]) -> dict[str, str]:
    """The fields of an item that a prompt shows, each in one line and of limited length."""
    return {name: " ".join(str(item[name]).split())[:SHOWN_CHARACTERS] for name in ("target", "meaning", "evidence")}


def item_name(item: dict[str, Any]) -> str:
    """How a verdict refers to an item: its translation, else its explanation."""
    return next((text for text in prompt_entry(item).values() if text), "")


def find_rivals(candidates: Sequence[Candidate]) -> dict[int, int]:
    """For each candidate that is not rejected the strongest other one: the first, in the order of the sources."""
    remaining = [i for i, candidate in enumerate(candidates) if not candidate["rejected_by"]]
    return {i: next(other for other in remaining if other != i) for i in remaining if len(remaining) > 1}


def reject_outdone(candidates: Sequence[Candidate], rivals: Mapping[int, int]) -> list[Candidate]:
    """Reject candidates whose rival is better and has not lost (or failed) its own comparison.

    Two candidates that each lose to the other both pass, so one passes wherever a comparison could be made.
    """
    losers = {i for i in rivals if (candidates[i]["counterfactual"] or {}).get("better") == "rival"}
    winners = {i for i in rivals if i not in losers and not candidates[i]["rejected_by"]}
    return [
        {**candidate, "rejected_by": "counterfactual"} if i in losers and rivals[i] in winners else candidate
        for i, candidate in enumerate(candidates)
    ]


def accept_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Accept the first candidate that is not rejected; those that passed after it are rejected by "a better one"."""
    first = next((i for i, candidate in enumerate(candidates) if not candidate["rejected_by"]), None)
    return [
        candidate
        if candidate["rejected_by"]
        else {**candidate, "accepted": i == first, "rejected_by": "" if i == first else "a better one"}
        for i, candidate in enumerate(candidates)
    ]


def accept_last_choice(decision: Decision) -> Decision:
    """Where no candidate could be back-translated, accept the first that was put aside: no verdict is against it.

    Where one was back-translated and failed, accepting a candidate that was not would be a guess.
    """
    candidates = decision["candidates"]
    back_translated = any(candidate["back_translation"] for candidate in candidates)
    last = next((i for i, candidate in enumerate(candidates) if candidate["rejected_by"] == UNPLACED), None)
    if last is None or back_translated:
        return decision
    choice: Candidate = {**candidates[last], "accepted": True, "rejected_by": ""}
    return {**decision, "candidates": [*candidates[:last], choice, *candidates[last + 1 :]]}


def reject_failed(result: Candidate | ModelError, candidate: Candidate) -> Candidate:
    """The judged candidate; one whose check failed is rejected with the error as its reason."""
    if not isinstance(result, ModelError):
        return result
    return {**candidate, "reasons": {**candidate["reasons"], "error": str(result)}, "rejected_by": "failed call"}
