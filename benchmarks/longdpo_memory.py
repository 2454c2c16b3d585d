"""LongDPO's memory on planted contradictions: how many reach the judge, and how many calls that costs.

    python benchmarks/longdpo_memory.py --embedding all-MiniLM-L6-v2 [--judge embedded]

The file beside this one has ten passages of about 350 words, each the length of one step, with six facts that an
earlier step stated. For each fact there is a sentence that agrees with it, and one that contradicts it: 60 planted
steps with one contradiction each, and 10 clean ones.

Recall is the share of contradictions whose fact and chunk are among the pairs that the memory gives to the judge; the
chunk is the one that holds most of the sentence. Needless calls are pairs without a contradiction, per clean step.
With --judge the pairs are judged: contradictions that were found, and the share of needless calls that the judge takes
for contradictions, by each of which a sound step would be excluded.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from statistics import fmean
from typing import Any

from agentsys.graphs.longdpo.memory import Fact, SimilarPair, find_similar_pairs, split_evenly
from agentsys.graphs.longdpo.system import Context, LongDPO
from agentsys.knowledge.embedders import Embedder, make_embedder
from agentsys.roles import RoleError
from agentsys.systems import ask

TEXTS = Path(__file__).with_suffix(".txt")
"""Passages below a line `# title`; a fact's place is `[[agreeing sentence||contradicting sentence||fact]]`."""
TOKENS_PER_WORD = 1.35
PLACE = re.compile(r"\[\[(.+?)\|\|(.+?)\|\|(.+?)\]\]")


@dataclass(frozen=True)
class Step:
    """A candidate step, and its contradiction: the number of the fact, and the sentence (-1 and "": none)."""

    facts: Sequence[Fact]
    text: str
    fact: int = -1
    sentence: str = ""

    def chunks(self, size: int) -> list[str]:
        """The chunks that the memory compares."""
        return split_evenly(self.text, round(TOKENS_PER_WORD * len(self.text.split())), size)

    def contradicting_pair(self, size: int) -> tuple[str, str]:
        """The fact and the chunk that holds most of the sentence."""

        def overlap(chunk: str) -> int:
            return SequenceMatcher(None, chunk, self.sentence, autojunk=False).find_longest_match().size

        return self.facts[self.fact].statement, max(self.chunks(size), key=overlap)


def read_steps(file: Path) -> list[Step]:
    """The clean step of each passage, and its planted ones."""
    steps = []
    for passage in re.split(r"^# .*\n", file.read_text(), flags=re.MULTILINE)[1:]:
        places = PLACE.findall(passage)
        facts = [Fact(statement, "unsure", "", "") for _, _, statement in places]
        steps.append(Step(facts, _fill(passage, -1)))
        steps += [Step(facts, _fill(passage, i), i, place[1]) for i, place in enumerate(places)]
    return steps


def _fill(passage: str, planted: int) -> str:
    """The passage with agreeing sentences, except for one place."""
    places = iter(range(passage.count("[[")))
    return PLACE.sub(lambda match: match[2] if next(places) == planted else match[1], passage).strip()


class RememberingEmbedder:
    """An embedding model that embeds each text once, for all rules."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder, self.name = embedder, embedder.name
        self.vectors: dict[str, Any] = {}

    async def embed(self, texts: Sequence[str]) -> Any:
        """See Embedder."""
        new = [text for text in dict.fromkeys(texts) if text not in self.vectors]
        self.vectors |= dict(zip(new, await self.embedder.embed(new) if new else (), strict=True))
        return [self.vectors[text] for text in texts]


class Judge:
    """The role that judges pairs; each pair is judged once."""

    def __init__(self, spec: str) -> None:
        self.context = Context(spec)
        self.verdicts: dict[tuple[str, str], asyncio.Task[bool | None]] = {}

    async def contradicts(self, pair: SimilarPair) -> bool | None:
        """The verdict; None where the role gave no usable reply."""
        key = (pair.fact.statement, pair.chunk)
        if key not in self.verdicts:
            self.verdicts[key] = asyncio.create_task(self._ask(len(self.verdicts), *key))
        return await self.verdicts[key]

    async def _ask(self, number: int, fact: str, chunk: str) -> bool | None:
        try:
            role = LongDPO().contradiction
            return (await ask(self.context, role, key=str(number), fact=fact, chunk=chunk)).value.contradicts
        except RoleError:
            return None


async def measure(
    steps: Sequence[Step], embedder: Embedder, nearest: int, threshold: float, size: int, judge: Judge | None
) -> list[str]:
    """The cells of a row: recall, needless calls; with a judge what it found, and its false alarms."""
    clean, planted = [step for step in steps if step.fact < 0], [step for step in steps if step.fact >= 0]

    async def pairs_of(step: Step) -> list[SimilarPair]:
        return await find_similar_pairs(step.facts, step.chunks(size), embedder, nearest, threshold)

    targets = [
        [pair for pair in await pairs_of(step) if (pair.fact.statement, pair.chunk) == step.contradicting_pair(size)]
        for step in planted
    ]
    needless = [await pairs_of(step) for step in clean]
    found = [pairs for pairs in targets if pairs]
    cells = [f"{len(found)} of {len(planted)}", f"{fmean(map(len, needless)):.1f}"]
    if judge is None:
        return [*cells, "-", "-"]
    right = await asyncio.gather(*(judge.contradicts(pairs[0]) for pairs in found))
    alarms = await asyncio.gather(*(judge.contradicts(pair) for pairs in needless for pair in pairs))
    share = f"{sum(map(bool, alarms)) / len(alarms):.2f} of {len(alarms)}" if alarms else "-"
    return [*cells, f"{sum(map(bool, right))} of {len(planted)}", share]


async def compare(args: argparse.Namespace) -> None:
    """Print a row per embedding model and rule."""
    steps, judge = read_steps(TEXTS), Judge(args.judge) if args.judge else None
    contradictions = sum(step.fact >= 0 for step in steps)
    words = fmean(len(step.text.split()) for step in steps)
    print(f"{contradictions} planted contradictions, {len(steps) - contradictions} clean steps of {words:.0f} words,")
    print(f"chunks of {args.chunk_tokens} tokens; judge {args.judge or 'none'}; Python {platform.python_version()},")
    print(f"{os.cpu_count()} cores")
    print("| embedding | checked | recall | needless calls per clean step | found by the judge | false alarms |")
    print("|---|---|---|---|---|---|")
    rules: list[tuple[str, int, Any]] = [(f"nearest {m}", m, 0.0) for m in args.nearest]
    rules += [(f"cosine > {threshold:g}", 0, threshold) for threshold in args.similarity]
    for spec in args.embedding:
        embedder = RememberingEmbedder(make_embedder(spec))
        for name, nearest, threshold in rules:
            cells = await measure(steps, embedder, nearest, threshold, args.chunk_tokens, judge)
            print(f"| {embedder.name} | {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedding", nargs="+", default=["all-MiniLM-L6-v2"])
    parser.add_argument("--nearest", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--similarity", nargs="*", type=float, default=[0.8])
    parser.add_argument("--chunk-tokens", type=int, default=128)
    parser.add_argument("--judge", default="", help="model spec of the contradiction judge; empty: retrieval only")
    asyncio.run(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
