"""How many of the step pairs are true: ways to make them from a simulated policy whose truth is known.

    python benchmarks/pair_noise.py [--questions 300] [--policies 0.8x4 0.6x4 0.8x6 0.87x4]

A simulated solution has K steps. After right steps only, a step is right with probability a; after a wrong one all are
wrong, and the answer is right by luck in 5 % of the cases. So a step's truth is known: a pair is true if its chosen
step is right and its rejected step is wrong. A policy a x K solves a question with a probability of about a^K; a step
is one of six right or six wrong texts. A call writes one step, or the rest of a solution. No model is used: what is
compared is how steps are labeled and selected.

  tree                Monte Carlo tree search and pairs with the defaults of `agentsys collect maths`
  tree, old defaults  the same with two rollouts and any margin
  binary search       like OmegaPRM: the first wrong step of a wrong solution, by binary search with rollouts from its
                      prefixes; the pair's chosen step begins a rollout that was right
  Step-DPO            the first wrong step of a wrong solution as an annotator names it, who errs by one step in a share
                      of the cases; the chosen step begins one of 20 solutions from that prefix that were right

The last two take new wrong solutions until they have made as many calls for a question as the tree.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agentsys.collect.statistics import wilson_interval
from agentsys.graphs.maths.problem import SolutionProblem
from agentsys.graphs.maths.search import Context, grown
from agentsys.graphs.maths.solver import Completion, Path, Solver, SolverContext, Step
from agentsys.graphs.maths.targets import step_pairs
from agentsys.metrics.maths import Verdict
from agentsys.search import Node, grow_tree, walk

LUCK = 0.05
"""Probability of a right answer after a wrong step."""
TEXTS = 6
"""Different right steps, and different wrong ones, after a prefix."""

ANSWER, WRONG = "17", "4"

Texts = tuple[str, ...]
"""A solution: a text per step, which begins with + if the step is right and with - if it is wrong."""


class Pair(NamedTuple):
    """A preference pair of steps: the last texts of two solutions with the same prefix."""

    chosen: str
    rejected: str

    @property
    def true(self) -> bool:
        return self.chosen.startswith("+") and self.rejected.startswith("-")


@dataclass
class Writer:
    """The simulated policy for one question. Calls of one key are written once, in any order."""

    accuracy: float
    steps: int
    seed: str
    calls: int = 0

    def step(self, prefix: Texts, key: str) -> str:
        """The next step after a prefix; the last one has an answer."""
        chance = random.Random(f"{self.seed}/{key}/{len(prefix)}")
        right = all(text.startswith("+") for text in prefix) and chance.random() < self.accuracy
        text = f"{'+' if right else '-'}{chance.randrange(TEXTS)}"
        if len(prefix) + 1 < self.steps:
            return text
        return f"{text} \\boxed{{{ANSWER if right or chance.random() < LUCK else WRONG}}}"

    def rest(self, prefix: Texts, key: str) -> tuple[Texts, bool]:
        """A whole solution with this prefix, and whether its answer is right."""
        self.calls += 1
        whole = prefix
        while len(whole) < self.steps:
            whole = (*whole, self.step(whole, key))
        return whole, f"\\boxed{{{ANSWER}}}" in whole[-1]


@dataclass(frozen=True)
class SimulatedSolver(Solver):
    """The policy of the tree search: the product's search and pairs over the simulated texts."""

    writer: Writer = field(default_factory=lambda: Writer(1.0, 1, ""))

    async def write_step(self, question: str, context: SolverContext, path: Path, key: str, limit: int | None) -> Step:
        self.writer.calls += 1
        text = self.writer.step(texts_of(path), key)
        final = len(path) + 1 == self.writer.steps
        return Step(text, final, key, (), False, 1.0, 1)

    async def complete(  # type: ignore[override]
        self, question: str, context: SolverContext, path: Path, key: str, reference: str
    ) -> Completion:
        whole, right = self.writer.rest(texts_of(path), key)
        rest = whole[len(path) :]
        text = rest[0] + "".join(f" Step {len(path) + i}{step}" for i, step in enumerate(rest[1:], 2))
        return Completion(key, text, text, (), Verdict(right, "", "maths"), 1)


def texts_of(path: Path) -> Texts:
    """The texts of a path of the search."""
    return tuple(step.text for step in path)


def search_tree(writer: Writer, context: Context) -> list[Pair]:
    """Pairs of the product's tree search."""
    root: Node[Path] = Node.root(())
    problem = SolutionProblem(SimulatedSolver(writer=writer), "", ANSWER, context, context.step_limits)
    asyncio.run(grow_tree(root, problem, context.search_settings, grown(root, problem, context)))
    text_by_key = {node.step["call"]: node.state[-1].text for node in walk(root) if node.state}
    return [
        Pair(*(text_by_key[str(side[1].call)] for side in (pair.segments, pair.rejected or ())))
        for pair in step_pairs(root, context.margin)
    ]


def search_binary(writer: Writer, budget: int, rollouts: int) -> list[Pair]:
    """OmegaPRM's way: of a wrong solution, the first step after which no rollout is right, by binary search."""
    pairs: list[Pair] = []
    for number in range(budget):
        if writer.calls >= budget:
            break
        wrong, right = writer.rest((), f"binary/{number}")
        if right:
            continue
        low, high = 0, len(wrong)  # after `low` steps a solution is known to reach a right answer, after `high` none
        successes: list[Texts] = []
        while high - low > 1 or (not low and not successes):
            middle = (low + high) // 2
            tries = [writer.rest(wrong[:middle], f"binary/{number}/{middle}/{i}") for i in range(rollouts)]
            good = [whole for whole, is_right in tries if is_right]
            if good:
                low, successes = middle, good
            elif middle == 0:
                break
            else:
                high = middle
        chosen = next((whole[low] for whole in successes if whole[low] != wrong[low]), None)
        if chosen and high == low + 1:
            pairs.append(Pair(chosen, wrong[low]))
    return pairs


def annotate_first_error(writer: Writer, budget: int, error: float, continuations: int = 20) -> list[Pair]:
    """Step-DPO's way: an annotator names the first wrong step; the chosen one begins a right continuation before it."""
    pairs: list[Pair] = []
    for number in range(budget):
        if writer.calls >= budget:
            break
        wrong, right = writer.rest((), f"annotated/{number}")
        if right:
            continue
        chance = random.Random(f"{writer.seed}/annotator/{number}")
        first = next((i for i, text in enumerate(wrong) if text.startswith("-")), 0)
        if chance.random() < error:
            first = min(max(first + chance.choice((-1, 1)), 0), len(wrong) - 1)
        tries = [writer.rest(wrong[:first], f"annotated/{number}/{i}") for i in range(continuations)]
        chosen = next((whole[first] for whole, is_right in tries if is_right and whole[first] != wrong[first]), None)
        if chosen:
            pairs.append(Pair(chosen, wrong[first]))
    return pairs


class Row(NamedTuple):
    """What one way made of all questions."""

    name: str
    pairs: Sequence[Pair]
    calls: int


def compare(accuracy: float, steps: int, questions: int, settings: argparse.Namespace) -> list[Row]:
    """Run all ways on the same questions."""
    new = Context(simulations=settings.simulations)
    old = Context(simulations=settings.simulations, rollouts=2, margin=0.0)
    ways: dict[str, Callable[[Writer, int], list[Pair]]] = {
        "tree": lambda writer, budget: search_tree(writer, new),
        "tree, old defaults": lambda writer, budget: search_tree(writer, old),
        "binary search": lambda writer, budget: search_binary(writer, budget, settings.tries),
        f"Step-DPO, annotator errs in {settings.error:.0%}": lambda writer, budget: annotate_first_error(
            writer, budget, settings.error
        ),
    }
    made = {name: Row(name, [], 0) for name in ways}
    for question in range(questions):
        budget = 0
        for name, way in ways.items():
            writer = Writer(accuracy, steps, f"{accuracy}/{steps}/{question}")
            pairs = way(writer, budget)
            budget = budget or writer.calls  # the calls of the first one, the tree
            made[name] = Row(name, [*made[name].pairs, *pairs], made[name].calls + writer.calls)
    return list(made.values())


def print_row(policy: str, solved: float, row: Row, questions: int) -> None:
    """Print a row of the table."""
    true = sum(pair.true for pair in row.pairs)
    low, high = wilson_interval(true, len(row.pairs))
    share = f"{100 * true / len(row.pairs):.0f} ({100 * low:.0f}-{100 * high:.0f})" if row.pairs else "-"
    cost = f"{row.calls / true:.0f}" if true else "-"
    print(
        f"| {policy} | {100 * solved:.0f} | {row.name} | {len(row.pairs):,} | {share} | "
        f"{row.calls / questions:.0f} | {cost} |"
    )


def parse_policy(text: str) -> tuple[float, int]:
    """The accuracy of a step and the number of steps, from a text such as 0.8x4."""
    accuracy, _, steps = text.partition("x")
    return float(accuracy), int(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--policies", type=parse_policy, nargs="+", metavar="AxK",
                        default=[(0.8, 4), (0.6, 4), (0.8, 6), (0.87, 4)])  # fmt: skip
    parser.add_argument("--simulations", type=int, default=16)
    parser.add_argument("--tries", type=int, default=8, help="rollouts per prefix of the binary search")
    parser.add_argument("--error", type=float, default=0.1, help="share of first wrong steps that the annotator misses")
    args = parser.parse_args()
    print(
        f"{args.questions} simulated questions per policy, {args.simulations} simulations, luck {LUCK:.0%}; "
        "95 % intervals (Wilson)\n"
        "| a x K | solved, % | pairs by | pairs | true, % | calls per question | calls per true pair |\n"
        "|---|---|---|---|---|---|---|"
    )
    for accuracy, steps in args.policies:
        writer = Writer(accuracy, steps, f"solve rate of {accuracy} {steps}")
        solved = sum(writer.rest((), str(i))[1] for i in range(4000)) / 4000
        for row in compare(accuracy, steps, args.questions, args):
            print_row(f"{accuracy:g} x {steps}", solved, row, args.questions)


if __name__ == "__main__":
    main()
