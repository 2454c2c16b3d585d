"""DRT: long-thought translation data from a translator, an advisor and an evaluator.

"DRT: Deep Reasoning Translation via Long Chain-of-Thought" (Wang, Meng, Liang, Zhou; Findings of ACL 2025, arXiv
2412.17498).

Reading order: mine.py (stage A, section 2.1), state.py (the trace P(s), the replies), system.py (stages B and C,
sections 2.2 and 2.3), targets.py (training data). The command is graphs/drt_collect.py.
"""

from __future__ import annotations

from agentsys.graphs.drt.system import DRT, Context, builder, graph

__all__ = ["DRT", "Context", "builder", "graph"]
