"""LongDPO's tree search: before each layer commits, Monte Carlo simulations look ahead below its candidates.

The search problem's steps and values are those of graphs/longdpo/system.py: `expand` writes candidates after the
exact ids of a node's path, `evaluate` is the judge. With `simulations` 0 a layer is the best of its candidates, as the
released code does it (its back-propagation is commented out). The tree is in the trace; layers, pairs and memory are
the graph's.

The baseline of the paper, DPO on whole responses, comes from the same trees: `pairs` "outcome".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.longdpo import state
from agentsys.graphs.longdpo.state import Candidate, Input, Layer
from agentsys.graphs.longdpo.system import Context, LongDPO, distinct, facts_of, text_of
from agentsys.graphs.longdpo.targets import near_equal, response_of
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.search import MCTS, UCB, Child, Limits, Node, settled, tree_to_json, walk
from agentsys.systems import System, knob
from agentsys.traces import Segment, Target

Path = tuple[Candidate, ...]
LOWEST = 1.0
"""The least value on the judge's scale: what a simulation under way is taken to have."""


class Output(state.Output):
    """The graph's output, and the search tree."""

    tree: NotRequired[list[dict[str, Any]]]


class State(Output):
    """The request and what came of it."""

    length: NotRequired[int]


@dataclass(frozen=True)
class SearchContext(Context):
    """The graph's knobs, and those of the search."""

    simulations: int = knob(0, "Monte Carlo simulations before a layer commits; 0: the best of its candidates")
    lookahead: int = knob(2, "layers below the committed step that a simulation may reach")
    alpha: float = knob(0.5, "weight of UCB's bonus (the paper does not tell its own)")
    parallel: int = knob(4, "simulations of one tree under way at once")
    pairs: Literal["step", "outcome"] = knob("step", "a pair of steps a layer, or one of whole responses (baseline)")

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(simulations=0, lookahead=1, parallel=1, alpha=0)


@dataclass
class Writing:
    """The response to one request as a search problem: a node's state is s_1 .. s_t."""

    system: LongDPO
    request: Any
    context: SearchContext
    valued: dict[str, Candidate] = field(default_factory=dict)
    """The candidates with their scores, by key."""

    async def expand(self, node: Node[Path], n: int) -> Sequence[Child]:
        """n candidates after the path's exact ids; equal texts are one. Raises ModelError if none could be written."""
        keys = [f"{node.id}/{i}" for i in range(n)]
        written = await settled(*(self.system.write(self.request, self.context, node.state, key) for key in keys))
        steps = distinct([step for step in written if not isinstance(step, ModelError)])
        failed = [step for step in written if isinstance(step, ModelError)]
        if failed and not steps:
            raise failed[0]
        about = [{"call": step["key"], "tokens": len(step["ids"])} for step in steps]
        return [Child((*node.state, step), step=told) for step, told in zip(steps, about, strict=True)]

    async def evaluate(self, nodes: Sequence[Node[Path]]) -> Sequence[float | ModelError]:
        """The judge's values."""
        work = (self.system.evaluate(self.request, self.context, n.state[:-1], n.state[-1]) for n in nodes)
        found = await settled(*work)
        self.valued |= {step["key"]: step for step in found if not isinstance(step, ModelError)}
        return [step if isinstance(step, ModelError) else step["value"] for step in found]

    def is_terminal(self, node: Node[Path]) -> bool:
        """Whether the model ended its turn."""
        return bool(node.state) and node.state[-1]["final"]


@dataclass(frozen=True)
class LongDPOSearch(System):
    """The search and its layers. `LongDPOSearch(LongDPO(judge=Role(...)))` replaces a role."""

    layers: LongDPO = LongDPO()

    async def search(self, state: State, runtime: Runtime[SearchContext]) -> dict[str, Any]:
        """Layer after layer until the response ends, no candidate is left, or `depth` is reached."""
        context = runtime.context
        problem = Writing(self.layers, state, context)
        root: Node[Path] = Node.root(())
        node, layers, stop = root, list[Layer](), ""
        while not stop:
            reach = min(context.depth, node.depth + context.lookahead)
            limits = Limits(context.simulations, context.width, reach)
            await MCTS(problem, UCB(context.alpha), limits, parallel=context.parallel, virtual_loss=LOWEST).run(node)
            chosen, stop = await self._commit(problem, node, layers)
            if chosen is not None:
                node = chosen
                stop = "end" if problem.is_terminal(node) else "depth" if len(layers) >= context.depth else stop
        result = response_of(layers, stop)
        if context.pairs == "outcome":
            pair = outcome_preference(root, context)
            no_pair = None if pair else f"no pair of whole responses ({stop})"
            result |= {"targets": [asdict(pair)] if pair else [], "dropped": no_pair}
        return {**result, "layers": layers, "stop": stop, "tree": tree_to_json(root)}

    async def _commit(self, problem: Writing, node: Node[Path], layers: list[Layer]) -> tuple[Node[Path] | None, str]:
        """The node of the chosen step or None, and what ends the layers, if anything does. Adds the layer.

        Steps after which looking ahead could write nothing are candidates where there are no others.
        """
        judged = [child for child in node.children if child.state[-1]["key"] in problem.valued]
        sound = [child for child in judged if not child.dead] or judged
        if not sound:
            return None, f"no candidate: {node.error or 'no judgement'}"
        candidates = [_measured(problem, child) for child in sound]
        try:
            return await self._decide(problem, node, layers, sound, candidates)
        except EndpointDown:
            raise
        except ModelError as err:  # the layers before it keep their pairs
            return None, str(err)

    async def _decide(
        self, problem: Writing, node: Node[Path], layers: list[Layer], sound: list[Node[Path]],
        candidates: list[Candidate],
    ) -> tuple[Node[Path] | None, str]:  # fmt: skip
        context, facts = problem.context, facts_of(layers)
        candidates, chosen = await self.layers.choose(context, facts, candidates)
        if chosen is None:
            return None, "every candidate contradicts the memory"
        following = sound[chosen]
        given = (problem.request, context, node.state, facts, candidates, candidates[chosen])
        if better := await self.layers.improve(*given):
            chosen, candidates = len(candidates), [*candidates, better]
            following = node.add((*node.state, better), step={"call": better["key"], "tokens": len(better["ids"])})
            following.value = better["value"]
        layer, stop = await self.layers.commit(problem.request, context, node.state, candidates, chosen)
        layers.append(layer)
        return following, stop

    def builder(self) -> StateGraph[State, SearchContext, Input, Output]:
        """One node: the calls of many trees share one client, and nothing waits for the slowest."""
        builder = StateGraph(State, context_schema=SearchContext, input_schema=Input, output_schema=Output)
        builder.add_node("search", self.search)
        builder.add_edge(START, "search")
        builder.add_edge("search", END)
        return builder


def outcome_preference(root: Node[Path], context: SearchContext) -> Target | None:
    """The outcome-DPO baseline: of the tree's whole responses the best against the worst, by the mean of their values.

    Whole are those that the model ended and those at the depth limit. None where all are worth the same, and where the
    two are nearly one text.
    """
    whole = [node for node in walk(root) if node.state and node.outcome != "failed" and _is_whole(node, context)]
    if not whole:
        return None
    ranked = sorted(whole, key=_worth)
    best, worst = ranked[-1], ranked[0]
    if _worth(best) == _worth(worst) or near_equal(text_of(best.state), text_of(worst.state)):
        return None
    sent = Segment("user", False, prompt=root.children[0].step["call"])
    chosen, rejected = (
        tuple(Segment("assistant", True, call=step["key"]) for step in node.state) for node in (best, worst)
    )
    scores = {"chosen": _worth(best), "rejected": _worth(worst), "margin": _worth(best) - _worth(worst)}
    return Target("step", (sent, *chosen), (sent, *rejected), scores=scores)


def _is_whole(node: Node[Path], context: SearchContext) -> bool:
    return node.state[-1]["final"] or node.depth == context.depth


def _worth(node: Node[Path]) -> float:
    """What a response is worth: the mean value of its steps, 1-5."""
    return fmean(step.value for step in node.path[1:])


def _measured(problem: Writing, node: Node[Path]) -> Candidate:
    """A child's step with what the search found of it."""
    step = problem.valued[node.state[-1]["key"]]
    return {**step, "q": node.q, "visits": node.visits}


builder = LongDPOSearch().builder()
graph = builder.compile(name="longdpo_search")
