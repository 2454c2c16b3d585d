"""Which entries CRAT's judge accepts: correct ones against entries of another term, check by check.

    python benchmarks/crat_trust.py --pairs all.en-zh.tmx --terms terms.csv [--limit 20] [--model embedded]

The sentences are those of a test set that have a listed term and whose reference has one of its translations. The
judge gets two candidates for the term, in random order: that translation, and one of another term of the list; neither
has a meaning. Both take the checks as in CRAT (one round, no relations). The last row counts the accepted candidates;
accepting the first candidate without a judge would be right in half of the cases.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentsys.graphs.crat.candidates import accepted_candidate, make_candidates
from agentsys.graphs.crat.state import Decision
from agentsys.graphs.crat.system import CRAT, Context
from agentsys.graphs.translate.rows import Columns, Pair, read_pairs, with_terms
from agentsys.metrics.terms import KnownTerm, normalize_text, rendering
from agentsys.terms.item import Item

SHOWN = ("rejected_by", "substituted", "back_translation", "reasons")


def sample_cases(pairs: Sequence[Pair], limit: int, rng: random.Random) -> list[tuple[str, str, str, list[str]]]:
    """(sentence, term, right translation, both translations in random order), each term once."""
    usable = [(pair, term, right) for pair in pairs for term in pair.terms for right in reference_terms(pair, term)[:1]]
    rng.shuffle(usable)
    first = {normalize_text(term.source): (pair, term, right) for pair, term, right in reversed(usable)}
    cases = []
    for pair, term, right in list(first.values())[:limit]:
        others = [
            other
            for _, other_term, other in first.values()
            if normalize_text(other_term.source) not in normalize_text(pair.text)
        ]
        wrong = [other for other in others if other not in term.targets]
        if wrong:
            cases.append((pair.text, term.source, right, rng.sample([right, rng.choice(wrong)], 2)))
    return cases


def reference_terms(pair: Pair, term: KnownTerm) -> list[str]:
    """The term's translations that occur in a reference."""
    return [target for target in term.targets if any(rendering(text, [target]) for text in pair.references)]


async def judge(context: Context, number: int, text: str, term: str, targets: Sequence[str]) -> Decision:
    """The judge's decision on a term with these translations."""
    items = [Item(term, target, "", "", "list") for target in targets]
    decision = Decision(
        surface=term, kind="domain", node="", sentence=number, number=0, candidates=make_candidates(items),
        retrievals=1, reused=False, faults=[],
    )  # fmt: skip
    return await CRAT().decide(context, text, decision, [])


def report(results: Sequence[tuple[str, Decision]]) -> None:
    """Print how many right and wrong candidates were left after each check."""
    print("| left after | right | wrong |\n|---|---|---|")
    rejections: set[str] = {"failed call"}
    for check in ("relevance", "substitution", "invariance", "counterfactual"):
        rejections.add(check)
        counts = {True: 0, False: 0}
        for right, decision in results:
            for candidate in decision["candidates"]:
                counts[candidate["item"]["target"] == right] += candidate["rejected_by"] not in rejections
        print(f"| {check} | {counts[True]} / {len(results)} | {counts[False]} / {len(results)} |")
    targets: list[Any] = [(c and c["item"]["target"]) for c in (accepted_candidate(d) for _, d in results)]
    right_count = sum(target == right for target, (right, _) in zip(targets, results, strict=True))
    wrong_count = len(results) - right_count - targets.count(None)
    print(f"| accepted | {right_count} / {len(results)} | {wrong_count} / {len(results)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--terms", required=True)
    parser.add_argument("--languages", nargs=2, default=("English", "Chinese"))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print each candidate with its verdicts")
    args = parser.parse_args()
    languages = tuple(args.languages)
    pairs = with_terms(
        [pair for pair in read_pairs(args.pairs, Columns(), languages) if isinstance(pair, Pair)],
        args.terms.split(","),
        languages,
    )
    context = Context(args.model, source_language=languages[0], target_language=languages[1], retrieve_again=False)
    cases = sample_cases(pairs, args.limit, random.Random(args.seed))

    async def work() -> list[Decision]:
        work = (judge(context, i, text, term, targets) for i, (text, term, _, targets) in enumerate(cases))
        return list(await asyncio.gather(*work))

    started = time.perf_counter()
    decisions = asyncio.run(work())
    seconds = time.perf_counter() - started
    print(f"{args.model}, {len(cases)} terms of {args.pairs.name}, seed {args.seed}, {seconds:.0f} s")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}")
    for (text, term, right, _), decision in zip(cases, decisions, strict=True):
        for candidate in decision["candidates"] if args.show else []:
            label = "right" if candidate["item"]["target"] == right else "wrong"
            verdicts = {name: candidate[name] for name in SHOWN}  # type: ignore[literal-required]
            print(f"{label}: {term} = {candidate['item']['target']} in: {text}\n    {verdicts}")
    report([(case[2], decision) for case, decision in zip(cases, decisions, strict=True)])


if __name__ == "__main__":
    main()
