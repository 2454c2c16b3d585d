"""LongDPO's critique: is a rewritten step better than the original, for a program that counts and for another judge?

    python benchmarks/longdpo_critique.py --model embedded [--judge SPEC] [--critic SPEC] [--second-judge SPEC]

Each of the twelve requests in longdpo_entries.jsonl asks for a text in entries, with items that some of them must
contain. The writer writes several first steps, the judge chooses the best, and that one is rewritten with critiques
whatever its value. In a run the rewritten step counts only if the same judge prefers it: "accepted". The program
(graphs/longdpo/entries.py) and the second judge have no part in the choice. All scores are from 1 to 5.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import orjson

from agentsys.evaluation.report import mean_score
from agentsys.graphs.longdpo.entries import score_step
from agentsys.graphs.longdpo.state import Candidate, State, drop_repeated
from agentsys.graphs.longdpo.system import Context, LongDPO
from agentsys.models.errors import ModelError
from agentsys.search import settled

REQUESTS = Path(__file__).with_name("longdpo_entries.jsonl")


@dataclass(frozen=True)
class Rewriting:
    """A choice and its rewritten step, each by scorer: judge, program, and second judge if there is one."""

    before: dict[str, float]
    after: dict[str, float]

    @property
    def accepted(self) -> bool:
        """Whether a run would take the rewritten step."""
        return self.after["judge"] > self.before["judge"]


async def rewrite(context: Context, second: Context | None, request: dict[str, Any]) -> Rewriting | str:
    """A choice of a request's first layer, rewritten; or why there is none."""
    longdpo, state = LongDPO(), cast(State, {**request, "layers": []})
    keys = [f"{request['id']}/{i}" for i in range(context.width)]
    steps = await settled(*(longdpo.write_step(state, context, [], key) for key in keys))
    written = drop_repeated([step for step in steps if not isinstance(step, ModelError)])
    judged = await settled(*(longdpo.evaluate_step(state, context, [], step) for step in written))
    candidates = [step for step in judged if not isinstance(step, ModelError)]
    if not candidates:
        return "no candidate with a judgment"
    chosen = max(candidates, key=lambda step: step["value"])
    try:
        step = await longdpo.rewrite_step(state, context, [], [], candidates, chosen)
        if step is None:
            return "no better sibling or no critique"
        both = [await _scores(state, second, one) for one in (chosen, step)]
    except ModelError as err:
        return str(err)
    return Rewriting(*both)


async def _scores(state: State, second: Context | None, step: Candidate) -> dict[str, float]:
    """A step's value for its judge, for the program, and for a second judge if there is one."""
    scores = {"judge": step["value"], "program": fmean(score_step(state, step["text"], step["final"]).values())}
    if second:
        key = f"{step['key']}/second"
        scores["second judge"] = (await LongDPO().evaluate_step(state, second, [], {**step, "key": key}))["value"]
    return scores


def print_table(results: Sequence[Rewriting]) -> None:
    """Means before and after by scorer, with the 95 % interval of the difference, for all and for the accepted."""
    print("| rewritten steps | scored by | before | after | difference | better, equal, worse |")
    print("|---|---|---|---|---|---|")
    for name, group in (("all", results), ("accepted", [one for one in results if one.accepted])):
        for scorer in group[0].before if group else ():
            before, after = [one.before[scorer] for one in group], [one.after[scorer] for one in group]
            differences = [b - a for a, b in zip(before, after, strict=True)]
            mean = mean_score(differences)
            interval = f"{mean['value']:+.2f} ({mean['low']:+.2f} to {mean['high']:+.2f})"
            counts = [
                sum(d > 0 for d in differences),
                sum(d == 0 for d in differences),
                sum(d < 0 for d in differences),
            ]
            cells = f"{fmean(before):.2f} | {fmean(after):.2f} | {interval} | {', '.join(map(str, counts))}"
            print(f"| {name}, n={len(group)} | {scorer} | {cells} |")


async def compare(args: argparse.Namespace) -> None:
    """Rewrite a step of each request and print the table."""
    requests = [orjson.loads(line) for line in REQUESTS.read_bytes().splitlines()][: args.limit]
    context = Context(
        args.model, grader_model=args.judge, critic_model=args.critic, width=args.width, step_tokens=args.step_tokens,
        choice_seed=args.seed,
    )  # fmt: skip
    second = Context(args.second_judge) if args.second_judge else None
    results = await asyncio.gather(*(rewrite(context, second, request) for request in requests))
    models = f"writer {args.model}, judge {args.judge or args.model}, critic {args.critic or args.model}"
    print(f"{models}, second judge {args.second_judge or 'none'}; {len(requests)} requests, width {args.width},")
    print(f"{args.step_tokens} tokens per step, seed {args.seed}; Python {platform.python_version()},")
    print(f"{os.cpu_count()} cores")
    print_table([one for one in results if isinstance(one, Rewriting)])
    for request, reason in zip(requests, results, strict=True):
        if isinstance(reason, str):
            print(f"{request['id']}: not rewritten: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="model spec of the writer, and of the others by default")
    parser.add_argument("--judge", default="")
    parser.add_argument("--critic", default="")
    parser.add_argument("--second-judge", default="")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--step-tokens", type=int, default=512)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
