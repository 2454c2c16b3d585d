"""Stepwise maths: tree search over the steps of a solution with a checkable answer, and preference pairs of steps.

The pairs follow "Step-DPO: Step-wise Preference Optimization for Long-chain Reasoning of LLMs" (Lai et al. 2024, arXiv
2406.18629) or "Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning" (MCTS-DPO; Xie et al. 2024,
arXiv 2405.00451).

Read in this order: state.py, solver.py (roles), problem.py (search problem), search.py (system, graph), targets.py
(pairs), solutions.py (whole solutions), samples.py (baselines), measures.py (evaluation). Commands:
graphs/maths_collect.py, graphs/maths_evaluate.py.
"""

from __future__ import annotations

from agentsys.graphs.maths.search import Context, Maths, builder, graph

__all__ = ["Context", "Maths", "builder", "graph"]
