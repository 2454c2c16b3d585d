"""Tree search in plain asyncio: nodes, and searches over a problem that expands them."""

from __future__ import annotations

from agentsys.search.best_first import Child, Problem, best_first, exhaustive
from agentsys.search.mcts import MCTS, PUCT, UCB, UCT, Limits, MCTSProblem, SelectionRule
from agentsys.search.tree import Node, settled, tree_to_json, walk

__all__ = [
    "MCTS",
    "PUCT",
    "UCB",
    "UCT",
    "Child",
    "Limits",
    "MCTSProblem",
    "Node",
    "Problem",
    "SelectionRule",
    "best_first",
    "exhaustive",
    "settled",
    "tree_to_json",
    "walk",
]  # fmt: skip
