"""DeepRAG: a question answered step by step, each step from memory or from passages, as the model decides."""

from __future__ import annotations

from agentsys.graphs.deeprag.system import Context, DeepRAG, builder, graph

__all__ = ["Context", "DeepRAG", "builder", "graph"]
