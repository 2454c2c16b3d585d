"""Monte Carlo tree search on problems with known answers, compared with a plain sequential implementation."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsys.models.errors import EndpointDown, ModelError
from agentsys.search import MCTS, PUCT, UCB, UCT, Child, Limits, Node, SelectionRule, tree_to_json, walk

Path = tuple[int, ...]
RULES: list[SelectionRule] = [UCB(0.7), PUCT(), UCT(0.9)]


def random_value(path: Path, seed: int) -> float:
    """Return a value in 0..1 that depends only on the path and the seed."""
    return random.Random(f"{seed}:{path}").random()


@dataclass
class Game:
    """Every node has `width` steps down to `depth`; a seed fixes the values, and the arm `best` has the highest."""

    width: int = 3
    depth: int = 3
    seed: int = 0
    best: int | None = None
    failing: frozenset[Path] = frozenset()
    delays: random.Random | None = None
    expansions: list[Path] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
        self.expansions.append(node.state)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(self.delays.random() / 300 if self.delays else 0)
        self.running -= 1
        if node.state in self.failing:
            raise ModelError(f"no reply at {node.state}")
        return [Child((*node.state, i), 0.0, {"tokens": 10}, prior=1 / n) for i in range(min(n, self.width))]

    async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
        await asyncio.sleep(self.delays.random() / 300 if self.delays else 0)
        return [self.value(node.state) for node in nodes]

    def value(self, path: Path) -> float:
        if self.best is None:
            return random_value(path, self.seed)
        noise = 0.4 * (random_value(path, self.seed) - 0.5)
        return (0.7 if path[0] == self.best else 0.45) + noise

    def is_terminal(self, node: Node[Path]) -> bool:
        return len(node.state) >= self.depth


async def search(
    game: Game, rule: SelectionRule, simulations: int, parallel: int = 1, virtual_loss: float = 0.0, **limits: int
) -> Node[Path]:
    root: Node[Path] = Node.root(())
    all_limits = Limits(simulations, limits.pop("width", game.width), limits.pop("depth", 9), **limits)
    await MCTS(game, rule, all_limits, parallel=parallel, virtual_loss=virtual_loss).run(root)
    return root


def textbook_search(game: Game, rule: SelectionRule, simulations: int) -> dict[Path, tuple[int, float]]:
    """Return visits and totals of a sequential loop: select, expand, back up."""
    visits: dict[Path, int] = {(): 0}
    totals: dict[Path, float] = {(): 0.0}
    children: dict[Path, list[Path]] = {(): [(i,) for i in range(game.width)]}
    for path in children[()]:
        visits[path], totals[path] = 0, 0.0
    for _ in range(simulations):
        path: Path = ()
        while children.get(path):
            scores = []
            for child in children[path]:
                mean = totals[child] / visits[child] if visits[child] else game.value(child)
                scores.append(rule(visits[path], visits[child], mean, 1 / game.width))
            path = children[path][scores.index(max(scores))]
        if len(path) < game.depth:
            children[path] = [(*path, i) for i in range(game.width)]
            for child in children[path]:
                visits[child], totals[child] = 0, 0.0
        value = game.value(path)
        for end in range(len(path) + 1):
            visits[path[:end]] += 1
            totals[path[:end]] += value
    return {path: (visits[path], totals[path]) for path in visits}


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4), st.integers(0, 60), st.sampled_from(RULES))
@settings(max_examples=60, deadline=None)
async def test_one_simulation_at_a_time_equals_the_textbook_search(
    seed: int, width: int, depth: int, simulations: int, rule: SelectionRule
) -> None:
    game = Game(width, depth, seed)
    root = await search(game, rule, simulations)
    ours = {node.state: (node.visits, node.total) for node in walk(root)}
    assert ours == textbook_search(game, rule, simulations)


@given(
    st.integers(0, 1000), st.integers(1, 6), st.integers(0, 50), st.sampled_from(RULES),
    st.frozensets(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
async def test_no_visit_and_no_virtual_loss_is_lost_or_counted_twice(
    seed: int, parallel: int, simulations: int, rule: SelectionRule, failing: frozenset[Path]
) -> None:
    """Only simulations whose leaf failed are not among the visits, and no value below a dead node is."""
    root = await search(Game(seed=seed, failing=failing), rule, simulations, parallel)
    failed = sum(node.outcome == "failed" for node in walk(root))
    assert (
        root.visits == simulations if not failed else simulations - 3 * parallel * failed <= root.visits < simulations
    )
    for node in walk(root):
        assert node.in_progress == 0
        assert not node.dead or (node.visits, node.total) == (0, 0)
        below = sum(child.visits for child in node.children)
        ended = node.visits - below  # simulations whose leaf this was
        assert ended >= 0
        total = sum(child.total for child in node.children) + ended * node.value
        assert math.isclose(node.total, total, abs_tol=1e-9)
        if node.outcome == "expanded" and node.parent is not None and parallel == 1:
            assert ended == 1


async def test_equal_steps_all_count_against_the_token_limit() -> None:
    """A step that was generated three times is one child, and counts three times against a limit on tokens."""

    class Same(Game):
        async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
            return [Child((*node.state, 0), 0.0, {"tokens": 10}) for _ in range(n)]

    root = await search(Same(width=3, depth=9), UCT(), 50, tokens=60)
    assert [node.depth for node in walk(root)] == [0, 1, 2] and root.children[0].step["copies"] == 3


async def test_the_best_arm_gets_the_visits_and_the_mean_converges() -> None:
    for rule in (UCT(0.3), UCB(0.15), PUCT(c_init=0.6)):
        for seed in range(3):
            game = Game(width=4, depth=3, seed=seed, best=2)
            root = await search(game, rule, 400, parallel=4)
            visits = [child.visits for child in root.children]
            assert visits.index(max(visits)) == 2, rule
            assert visits[2] > 200, rule
    few, many = [await search(Game(width=2, depth=3, seed=5), UCT(0.3), n) for n in (40, 4000)]
    best = max(random_value((i, j, k), 5) for i in (0, 1) for j in (0, 1) for k in (0, 1))
    assert abs(many.q - best) < 0.02 < abs(few.q - best)


@pytest.mark.parametrize("virtual_loss", [0.0, 0.3])
@pytest.mark.parametrize("parallel", [2, 5])
async def test_the_tree_does_not_depend_on_timing(parallel: int, virtual_loss: float) -> None:
    trees = []
    for delays in (None, *map(random.Random, range(4))):
        game = Game(width=3, depth=4, seed=1, failing=frozenset({(0,), (1, 2)}), delays=delays)
        trees.append(tree_to_json(await search(game, PUCT(), 40, parallel, virtual_loss)))
        assert 1 < game.most_running <= parallel
        assert len(game.expansions) == len(set(game.expansions)), "no node is expanded twice"
    assert all(tree == trees[0] for tree in trees)
    assert {"failed", "expanded", "open"} <= {node["outcome"] for node in trees[0]}
    assert {"visits", "value", "q"} <= set(trees[0][0])


async def test_virtual_loss_keeps_simulations_apart() -> None:
    """Without it, all parallel simulations would select the same leaf."""
    apart, together = Game(seed=3), Game(seed=3)
    for game, loss in ((apart, 0.0), (together, 99.0)):
        await MCTS(game, UCB(0.1), Limits(4, 3, 9), parallel=4, virtual_loss=loss).run(Node.root(()))
    assert len(apart.expansions) == 1 + 3
    assert len(together.expansions) == 1 + 1


async def test_limits() -> None:
    root = await search(Game(width=5, depth=9), UCT(), 50, width=2, depth=2)
    assert max(node.depth for node in walk(root)) == 2
    assert max(len(node.children) for node in walk(root)) == 2
    assert {node.outcome for node in walk(root) if node.depth == 2} <= {"end", "open"}
    root = await search(Game(width=2), UCT(), 50, tokens=60)
    assert sum(1 for node in walk(root)) - 1 == 6, "ten tokens per step"
    slow = Game(width=2, depth=9, delays=random.Random(0))
    root = Node.root(())
    await MCTS(slow, UCT(), Limits(10_000, 2, 9, seconds=0.05)).run(root)
    assert 0 < root.visits < 10_000


async def test_a_deeper_search_continues_below_the_depth_limit() -> None:
    root: Node[Path] = Node.root(())
    for depth in (1, 2, 3):
        await MCTS(Game(width=2, depth=3), UCT(), Limits(20, 2, depth)).run(root)
        assert max(node.depth for node in walk(root)) == depth
    assert {node.outcome for node in walk(root) if node.visits and node.depth == 3} == {"end"}


async def test_equal_children_are_merged() -> None:
    class Twins(Game):
        async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
            same = Child((*node.state, 0), 0.0, {"tokens": 1}, prior=0.25)
            return [same, Child((*node.state, 1), prior=0.5), same]

    root = await search(Twins(depth=1), PUCT(), 3)
    assert [(c.state, c.prior, c.step.get("copies")) for c in root.children] == [((0,), 0.5, 2), ((1,), 0.5, None)]


async def test_a_search_can_be_continued() -> None:
    uninterrupted = await search(Game(seed=8), UCT(), 30)
    root: Node[Path] = Node.root(())
    for _ in range(3):
        await MCTS(Game(seed=8), UCT(), Limits(10, 3, 9)).run(root)
    assert tree_to_json(root) == tree_to_json(uninterrupted)


async def test_a_failed_evaluation_ends_its_branch() -> None:
    class Half(Game):
        async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
            values = await super().evaluate(nodes)
            return [ModelError("no score"), *values[1:]]

    root = await search(Half(), UCT(), 20)
    assert [child.outcome == "failed" for child in root.children] == [True, False, False]
    assert root.children[0].visits == 0 and root.children[0].error == "no score"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fails", ["expand", "every step", "every evaluation"])
async def test_a_node_whose_steps_all_failed_gets_no_further_visit(rule: SelectionRule, fails: str) -> None:
    """However high its own value is: the simulation that expanded it is backed up nowhere."""

    class Barren(Game):
        async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
            if node.state == (0,) and fails == "expand":
                raise ModelError("no step")
            steps = await super().expand(node, n)
            if node.state == (0,) and fails == "every step":
                return [Child(None, error=ModelError("truncated")) for _ in steps]
            return steps

        async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
            if fails == "every evaluation" and nodes[0].depth == 2 and nodes[0].state[0] == 0:
                return [ModelError("no score") for _ in nodes]
            return [1.0 if node.state == (0,) else 0.1 for node in nodes]

    root = await search(Barren(), rule, 20)
    first, *others = root.children
    assert (first.visits, first.dead) == (0, True) and not root.dead
    assert sum(child.visits for child in others) == 19 and all(not child.dead for child in others)
    assert root.visits == 19 and root.q == pytest.approx(0.1), "the 1.0 of the dead child is in no mean"


@pytest.mark.parametrize("parallel", [1, 3])
async def test_the_values_of_a_leaf_that_fails_later_leave_its_ancestors(parallel: int) -> None:
    """A leaf at the depth limit was visited often before a deeper search finds that no step follows it."""

    class Late(Game):
        async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
            return [0.9 if node.state[0] == 0 else 0.2 for node in nodes]

    root: Node[Path] = Node.root(())
    game = Late(width=2, depth=3, failing=frozenset({(0,)}))
    await MCTS(game, UCT(0.1), Limits(10, 2, 1), parallel=parallel).run(root)
    assert root.children[0].visits > 5 and root.q > 0.7
    await MCTS(game, UCT(0.1), Limits(6, 2, 2), parallel=parallel).run(root)
    assert root.children[0].outcome == "failed" and root.children[0].visits == 0
    assert root.visits == root.children[1].visits > 0 and root.q == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5], "returned 1 values for the 3 steps after root; return one per node"),
        ([0.5] * 4, "returned 4 values for the 3 steps after root"),
        ([0.5, math.nan, 0.5], "returned nan for root:1; a value V is a finite number"),
        ([0.5, 0.5, -math.inf], "returned -inf for root:2"),
    ],
)
async def test_unusable_values_are_refused(values: list[float], message: str) -> None:
    class Broken(Game):
        async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
            return values

    with pytest.raises(ValueError, match=message):
        await search(Broken(), UCT(), 5)


async def test_an_endpoint_that_is_down_leaves_no_virtual_loss() -> None:
    class Down(Game):
        async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
            if len(node.state) == 2:
                raise EndpointDown("no server is reachable")
            return await super().expand(node, n)

    root: Node[Path] = Node.root(())
    with pytest.raises(EndpointDown):
        await MCTS(Down(), UCT(), Limits(50, 3, 9), parallel=3).run(root)
    assert all(node.in_progress == 0 for node in walk(root))
