"""Tree search in asyncio: best-first, exhaustive and Monte Carlo search over problems whose steps are model calls."""

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
