"""LongDPO: a long response written step by step; each step is the best consistent candidate of several.

"LongDPO: Unlock Better Long-form Generation Abilities for LLMs via Critique-augmented Stepwise Information" (Ping et
al. 2025).

Read in this order: state.py, system.py (roles and one layer, a graph), judge.py, memory.py, search.py (tree search, the
graph that is collected), targets.py (pairs); then the evaluation: longbench_write.py, requests.py, writers.py,
measures.py. Commands: graphs/longdpo_collect.py, graphs/longdpo_evaluate.py.
"""

from __future__ import annotations

from agentsys.graphs.longdpo.system import Context, LongDPO, builder, graph

__all__ = ["Context", "LongDPO", "builder", "graph"]
