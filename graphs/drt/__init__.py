"""DRT: long-thought translation data from a translator, an advisor and an evaluator.

"DRT: Deep Reasoning Translation via Long Chain-of-Thought" (Wang et al., Findings of ACL 2025, arXiv 2412.17498).

Reading order: mine.py (stage A, section 2.1), system.py (stages B and C, sections 2.2 and 2.3).
"""

from __future__ import annotations

from agentsys.graphs.drt.system import DRT, Context, builder, graph

__all__ = ["DRT", "Context", "builder", "graph"]
