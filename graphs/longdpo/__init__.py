"""LongDPO: a long response written step by step; each step is the best consistent candidate of several."""

from __future__ import annotations

from agentsys.graphs.longdpo.system import Context, LongDPO, builder, graph

__all__ = ["Context", "LongDPO", "builder", "graph"]
