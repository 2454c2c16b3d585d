"""CRAT: translation whose unknown terms are looked up, put into a knowledge graph, judged, and only then used."""

from __future__ import annotations

from agentsys.graphs.crat.system import CRAT, Context, builder, graph

__all__ = ["CRAT", "Context", "builder", "graph"]
