"""Retrieval: passages on disk, found by their words (BM25), by meaning (dense), or both (hybrid)."""

from agentsys.knowledge.build import Built, build_index
from agentsys.knowledge.embedders import Embedder
from agentsys.knowledge.index import index_digest, load_retriever, open_retriever
from agentsys.knowledge.manifest import Settings
from agentsys.knowledge.passages import Hit, KnowledgeError, Passage, Retriever

__all__ = [
    "Built",
    "Embedder",
    "Hit",
    "KnowledgeError",
    "Passage",
    "Retriever",
    "Settings",
    "build_index",
    "index_digest",
    "load_retriever",
    "open_retriever",
]
