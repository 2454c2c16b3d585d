"""RAGtrans: translation with unstructured knowledge, a document in any language."""

from __future__ import annotations

from agentsys.graphs.ragtrans.system import Context, RAGtrans, builder, graph

__all__ = ["Context", "RAGtrans", "builder", "graph"]
