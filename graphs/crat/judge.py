"""CRAT's causality-enhanced judge (third agent).

For each candidate (Chen et al. 2024): is it relevant; does the concept stay the same when the candidate replaces the
term and the sentence is back-translated by a role that does not see the source; what would the sentence say with the
strongest rival in its place, of the candidates retrieved so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentsys.graphs.crat.candidates import (
    accept_first,
    find_rivals,
    item_name,
    prompt_entry,
    reject_failed,
    reject_outdone,
)
from agentsys.graphs.crat.state import UNPLACED, Candidate, Counterfactual, Invariance, Knobs, Relevance
from agentsys.graphs.crat.terms import has_term
from agentsys.roles import Role
from agentsys.search import settled
from agentsys.systems import System, ask


@dataclass(frozen=True)
class CausalJudge(System):
    """The roles of the judge's three checks."""

    relevance: Role[Relevance] = Role("crat/relevance", Relevance, sampling={"temperature": 0.0, "max_tokens": 200})
    substituter: Role[str] = Role("crat/substituter", sampling={"temperature": 0.0, "max_tokens": 600})
    back_translator: Role[str] = Role("crat/back_translator", sampling={"temperature": 0.0, "max_tokens": 600})
    invariance: Role[Invariance] = Role("crat/invariance", Invariance, sampling={"temperature": 0.0, "max_tokens": 200})
    counterfactual: Role[Counterfactual] = Role(
        "crat/counterfactual", Counterfactual, sampling={"temperature": 0.0, "max_tokens": 250}
    )

    async def judge_candidates(
        self,
        context: Knobs,
        inputs: dict[str, str],
        candidates: Sequence[Candidate],
        facts: Sequence[str],
        keys: Sequence[str],
    ) -> list[Candidate]:
        """The candidates with their verdicts; the first that passes every check is accepted. Raises no RoleError.

        All candidates take each check concurrently. The rivals of check 3 are those that passed checks 1 and 2.
        `inputs` are the sentence, the term and the languages; `facts` the term's internal knowledge.
        """
        checks = (self.check_relevance(context, inputs, c, facts, key) for c, key in zip(candidates, keys, strict=True))
        relevant = [reject_failed(result, c) for result, c in zip(await settled(*checks), candidates, strict=True)]
        round_trips = (self._check_invariance(context, inputs, c, key) for c, key in zip(relevant, keys, strict=True))
        invariant = [reject_failed(result, c) for result, c in zip(await settled(*round_trips), relevant, strict=True)]
        rivals = find_rivals(invariant)
        comparisons = (
            self._compare_with_rival(context, inputs, c, invariant[rivals[i]] if i in rivals else None, key)
            for i, (c, key) in enumerate(zip(invariant, keys, strict=True))
        )
        compared = [reject_failed(result, c) for result, c in zip(await settled(*comparisons), invariant, strict=True)]
        return accept_first(reject_outdone(compared, rivals))

    async def check_relevance(
        self, context: Knobs, inputs: dict[str, str], candidate: Candidate, facts: Sequence[str], key: str
    ) -> Candidate:
        """Check 1, relevance: the candidate with its verdict. Raises RoleError."""
        entry = prompt_entry(candidate["item"])
        verdict = (
            await ask(context, self.relevance, key=f"{key}/relevance", entry=entry, facts=list(facts), **inputs)
        ).value
        reasons = {**candidate["reasons"], "relevance": verdict.reason}
        rejected_by = "" if verdict.relevant else "relevance"
        return {**candidate, "relevant": verdict.relevant, "reasons": reasons, "rejected_by": rejected_by}

    async def _check_invariance(
        self, context: Knobs, inputs: dict[str, str], candidate: Candidate, key: str
    ) -> Candidate:
        """Check 2, causal invariance: substitution, back-translation without the source, comparison of the concept.

        Only for relevant candidates. If the substituted translation lacks the candidate, back-translation would test
        nothing: the candidate is put aside as the last choice. Raises RoleError.
        """
        if candidate["rejected_by"]:
            return candidate
        entry = prompt_entry(candidate["item"])
        translation = (await ask(context, self.substituter, key=f"{key}/substitute", entry=entry, **inputs)).value
        if entry["target"] and not has_term(entry["target"], translation):
            reasons = {**candidate["reasons"], UNPLACED: "the sentence was translated without it"}
            return {**candidate, "substituted": translation, "reasons": reasons, "rejected_by": UNPLACED}
        back_translation = (
            await ask(context, self.back_translator, key=f"{key}/back", translation=translation, **context.languages)
        ).value
        versions = {"back_translation": back_translation, "meaning": entry["meaning"], **inputs}
        verdict = (await ask(context, self.invariance, key=f"{key}/invariance", **versions)).value
        return {
            **candidate,
            "substituted": translation,
            "back_translation": back_translation,
            "invariant": verdict.same,
            "reasons": {**candidate["reasons"], "invariance": verdict.reason},
            "rejected_by": "" if verdict.same else "invariance",
        }

    async def _compare_with_rival(
        self, context: Knobs, inputs: dict[str, str], candidate: Candidate, rival: Candidate | None, key: str
    ) -> Candidate:
        """Check 3, counterfactual: does the rival change what the sentence says, and which of the two fits?

        `reject_outdone` combines both rivals' verdicts. Without a rival no call is made. Raises RoleError.
        """
        if rival is None:
            return candidate
        entries = {"entry": prompt_entry(candidate["item"]), "rival": prompt_entry(rival["item"])}
        verdict = (await ask(context, self.counterfactual, key=f"{key}/counterfactual", **entries, **inputs)).value
        return {
            **candidate,
            "rival": item_name(rival["item"]),
            "counterfactual": {"changes": verdict.changes, "better": verdict.better},
            "reasons": {**candidate["reasons"], "counterfactual": verdict.reason},
        }
