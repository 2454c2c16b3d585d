"""Tree search in plain asyncio: nodes, and searches over a problem that expands them."""

from __future__ import annotations

from agentsys.search.best_first import Child, Problem, best_first, whole_tree
from agentsys.search.mcts import MCTS, PUCT, UCB, UCT, Limits, Rule, Stepwise
from agentsys.search.tree import Node, record, settled, walk

__all__ = [
    "MCTS", "PUCT", "UCB", "UCT", "Child", "Limits", "Node", "Problem", "Rule", "Stepwise", "best_first", "record",
    "settled", "walk", "whole_tree",
]  # fmt: skip
