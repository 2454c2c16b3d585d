"""Stepwise maths: tree search over the steps of a solution with a checkable answer; step pairs."""

from __future__ import annotations

from agentsys.graphs.maths.search import Context, Maths, builder, graph

__all__ = ["Context", "Maths", "builder", "graph"]
