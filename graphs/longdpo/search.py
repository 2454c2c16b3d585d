"""LongDPO's tree search: before a layer commits, Monte Carlo simulations look ahead below its candidates.

`expand` writes candidates after the exact ids of a node's path and `evaluate` asks the judge, both with the methods of
graphs/longdpo/system.py. Candidates that contradict the memory are excluded before simulations are spent below them.
With `simulations` 0 a layer takes the best of its candidates, as the released code does (its back-propagation is
commented out). The trace holds the tree; layers, pairs and memory are those of the graph.

The paper's baseline, DPO on whole responses, comes from the same trees: `pairs` "outcome".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, NotRequired, cast

from langgraph.graph import StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.longdpo import state
from agentsys.graphs.longdpo.memory import Fact
from agentsys.graphs.longdpo.state import Candidate, Input, Layer, Path, drop_repeated, facts_of
from agentsys.graphs.longdpo.system import Context, LongDPO
from agentsys.graphs.longdpo.targets import finish_response, outcome_pair
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.search import MCTS, UCB, Child, Limits, Node, settled, tree_to_json
from agentsys.systems import System, knob, sequence_graph

LOWEST = 1.0
"""The lowest value of the judge's scale, assumed for a simulation in progress (virtual loss)."""


class Output(state.Output):
    """The layer graph's output, and the search tree."""

    tree: NotRequired[list[dict[str, Any]]]


class State(Output):
    """Input and output."""

    length: NotRequired[int]
    entries: NotRequired[dict[str, Any] | None]


@dataclass(frozen=True)
class SearchContext(Context):
    """The options of the layers, and those of the search."""

    simulations: int = knob(
        0,
        "Monte Carlo simulations per layer; 0: take the best of its candidates",
        old_name="descents",
        highest_in_studio=256,
    )
    lookahead: int = knob(
        2, "how many layers below the last committed step a simulation may reach", highest_in_studio=16
    )
    alpha: float = knob(
        0.5, "weight of UCB's exploration term (the paper does not report its value)", highest_in_studio=1000
    )
    parallel: int = knob(4, "parallel simulations per tree", old_name="at_once", highest_in_studio=16)
    pairs: Literal["step", "outcome"] = knob(
        "step", "a pair of steps per layer (step), or of whole responses per request (outcome, the baseline)"
    )

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(simulations=0, lookahead=1, parallel=1, alpha=0)
        if self.simulations and self.lookahead == 1:
            raise ValueError(
                f"simulations: {self.simulations} with lookahead 1 can write nothing below a layer's candidates; set "
                "lookahead to 2 or more, or simulations to 0"
            )


PAPER: Final[dict[str, Any]] = {
    "width": 4,
    "depth": 4,
    "weights": "stated",
    "nearest": 0,
    "similarity": 0.8,
    "embedding": "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
    "eta": 2.5,
    "rejected": "random",
    "simulations": 16,
    "lookahead": 4,
}
"""The options of --profile paper: all parts of the method at work, with the published values. The paper reports no
number of simulations; 16 is ours, and the look-ahead is the whole depth."""


@dataclass
class WritingProblem:
    """The response to one request as a search problem: a node's state is s_1 .. s_t."""

    longdpo: LongDPO
    request: Any
    context: SearchContext
    judged: dict[str, Candidate] = field(default_factory=dict)
    """The candidates with their scores, by key."""
    expansions: int = 0

    async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
        """n candidates after the path's exact ids; equal texts are one. Raises ModelError if no call succeeds."""
        self.expansions += 1
        keys = [f"{node.id}/{i}" for i in range(n)]
        results = await settled(*(self.longdpo.write_step(self.request, self.context, node.state, key) for key in keys))
        steps = drop_repeated([step for step in results if not isinstance(step, ModelError)])
        errors = [result for result in results if isinstance(result, ModelError)]
        if errors and not steps:
            raise errors[0]
        return [Child((*node.state, step), step=_tree_step(step)) for step in steps]

    async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
        """The judge's values."""
        work = (self.longdpo.evaluate_step(self.request, self.context, n.state[:-1], n.state[-1]) for n in nodes)
        results = await settled(*work)
        self.judged |= {step["key"]: step for step in results if not isinstance(step, ModelError)}
        return [step if isinstance(step, ModelError) else step["value"] for step in results]

    def is_terminal(self, node: Node[Path]) -> bool:
        """Whether the model ended its turn."""
        return bool(node.state) and node.state[-1]["final"]

    def is_exhausted(self, node: Node[Path], depth: int) -> bool:
        """Whether all steps below a node and down to a depth are written, except below dead nodes.

        Further simulations write nothing: they visit the same leaves again, which changes the mean values only.
        """
        if node.dead:
            return True
        if node.outcome == "open":
            return node.depth >= depth or self.is_terminal(node)
        return all(self.is_exhausted(child, depth) for child in node.children)

    async def exclude_inconsistent(self, node: Node[Path], facts: Sequence[Fact]) -> None:
        """Exclude the children of a node that contradict a fact. Raises ModelError if a check fails for good."""
        children = [child for child in node.children if child.state[-1]["key"] in self.judged]
        steps = [self.judged[child.state[-1]["key"]] for child in children]
        results = await settled(*(self.longdpo.check_step(self.context, facts, step) for step in steps))
        for child, step in zip(children, results, strict=True):
            if isinstance(step, ModelError):
                raise step
            self.judged[step["key"]] = step
            if (fact := step["contradicts"]) is not None:
                child.outcome, child.error = "excluded", f"contradicts the memory: {fact}"

    def candidate(self, node: Node[Path]) -> Candidate:
        """A node's step with the judge's scores and the search's statistics."""
        return {**self.judged[node.state[-1]["key"]], "q": node.q, "visits": node.visits}


def _tree_step(step: Candidate) -> dict[str, Any]:
    """What the trace's tree records of a step."""
    return {"call": step["key"], "tokens": len(step["ids"])}


@dataclass(frozen=True)
class LongDPOSearch(System):
    """The search over LongDPO's layers. `LongDPOSearch(LongDPO(judge=Role(...)))` replaces a role."""

    longdpo: LongDPO = LongDPO()

    async def search(self, state: State, runtime: Runtime[SearchContext]) -> dict[str, Any]:
        """Layer after layer until the response ends, no candidate is left, or `depth` is reached."""
        context = runtime.context
        problem = WritingProblem(self.longdpo, state, context)
        root: Node[Path] = Node.root(())
        node, layers, stop = root, list[Layer](), ""
        while not stop:
            chosen, stop = await self._add_layer(problem, node, layers)
            if chosen is not None:
                node = chosen
                stop = "end" if problem.is_terminal(node) else "depth" if len(layers) >= context.depth else stop
        result = finish_response(layers, stop)
        if context.pairs == "outcome":
            pair = outcome_pair(root, context.depth)
            no_pair = None if pair else f"no pair of whole responses ({stop})"
            result |= {"targets": [asdict(pair)] if pair else [], "dropped": no_pair}
        return {**result, "layers": layers, "stop": stop, "tree": tree_to_json(root)}

    async def _add_layer(
        self, problem: WritingProblem, node: Node[Path], layers: list[Layer]
    ) -> tuple[Node[Path] | None, str]:
        """Adds the layer; returns the node of the chosen step, or None, and why the layers stop, or ""."""
        try:
            simulations = await self._simulate(problem, node, facts_of(layers))
            chosen, stop = await self._commit_layer(problem, node, layers)
        except EndpointDown:
            raise
        except ModelError as err:  # the layers before it keep their pairs
            return None, str(err)
        if chosen is not None:
            layers[-1] = cast(Layer, layers[-1] | simulations)
        return chosen, stop

    async def _simulate(self, problem: WritingProblem, node: Node[Path], facts: Sequence[Fact]) -> dict[str, Any]:
        """Writes and judges the candidates of a layer, and simulates below those that contradict no fact.

        Returns what the layer records. Raises ModelError if a check against the memory fails for good.
        """
        context = problem.context
        limits = Limits(0, context.width, min(context.depth, node.depth + context.lookahead))
        rule = UCB(context.alpha)
        search = MCTS(problem, rule, limits, parallel=context.parallel, virtual_loss=LOWEST)
        await search.run(node)
        if not context.simulations:
            return {}
        await problem.exclude_inconsistent(node, facts)
        before = problem.expansions
        search.limits = replace(limits, simulations=context.simulations)
        await search.run(node)
        return {"expansions": problem.expansions - before, "saturated": problem.is_exhausted(node, limits.depth)}

    async def _commit_layer(
        self, problem: WritingProblem, node: Node[Path], layers: list[Layer]
    ) -> tuple[Node[Path] | None, str]:
        """The node of the best consistent candidate, whose layer is added, or None; and why the layers stop, or "".

        Steps below which every look-ahead call failed are candidates only if there are no others.
        """
        judged = [child for child in node.children if child.state[-1]["key"] in problem.judged]
        if not judged:
            return None, f"no candidate: {node.error or 'no judgment'}"
        live = [child for child in judged if not child.dead]
        children = [child for child in judged if child in live or child.outcome == "excluded"] if live else judged
        context, facts, request = problem.context, facts_of(layers), problem.request
        candidates = [problem.candidate(child) for child in children]
        candidates, chosen = await self.longdpo.choose_consistent(context, facts, candidates)
        if chosen is None:
            return None, "every candidate contradicts the memory"
        next_node = children[chosen]
        if better := await self.longdpo.improve_step(
            request, context, node.state, facts, candidates, candidates[chosen]
        ):
            chosen, candidates = len(candidates), [*candidates, better]
            next_node = node.add((*node.state, better), step=_tree_step(better))
            next_node.value = better["value"]
        layer, stop = await self.longdpo.commit_step(request, context, node.state, candidates, chosen)
        layers.append(layer)
        return next_node, stop

    def builder(self) -> StateGraph[State, SearchContext, Input, Output]:
        """One node: the whole search."""
        return sequence_graph(self.search, state=State, context=SearchContext, input=Input, output=Output)


builder = LongDPOSearch().builder()
graph = builder.compile(name="longdpo_search")
