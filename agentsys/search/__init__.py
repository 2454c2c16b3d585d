"""Tree search in asyncio over problems whose steps are model calls: best-first, exhaustive, Monte Carlo, by level."""

from __future__ import annotations

from agentsys.search.best_first import Child, Problem, best_first, exhaustive
from agentsys.search.expansion import StepProblem
from agentsys.search.levels import balanced, beam, continue_all, diverse_beams, grow_levels
from agentsys.search.mcts import MCTS, PUCT, UCB, UCT, Limits, MCTSProblem, SelectionRule
from agentsys.search.named import SEARCHES, SearchName, SearchSettings, grow_tree
from agentsys.search.rewards import process_rewards, tally
from agentsys.search.tree import Node, settled, tree_to_json, walk

__all__ = [
    "MCTS",
    "PUCT",
    "SEARCHES",
    "UCB",
    "UCT",
    "Child",
    "Limits",
    "MCTSProblem",
    "Node",
    "Problem",
    "SearchName",
    "SearchSettings",
    "SelectionRule",
    "StepProblem",
    "balanced",
    "beam",
    "best_first",
    "continue_all",
    "diverse_beams",
    "exhaustive",
    "grow_levels",
    "grow_tree",
    "process_rewards",
    "settled",
    "tally",
    "tree_to_json",
    "walk",
]  # fmt: skip
