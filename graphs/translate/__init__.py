"""Systems that translate, side by side: one translation of a text, and how a judge model scores it."""

from __future__ import annotations

from agentsys.graphs.translate.system import Context, Translate, builder, graph

__all__ = ["Context", "Translate", "builder", "graph"]
