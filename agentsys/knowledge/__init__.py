"""Retrieval: indexes of passages on disk, searched by words (BM25), by meaning (dense), or both (hybrid)."""

from agentsys.knowledge.build import BuildResult, build_index
from agentsys.knowledge.embedders import Embedder
from agentsys.knowledge.index import index_digest, load_retriever, open_retriever
from agentsys.knowledge.manifest import IndexSettings
from agentsys.knowledge.passages import Hit, KnowledgeError, Passage, Retriever

__all__ = [
    "BuildResult",
    "Embedder",
    "Hit",
    "IndexSettings",
    "KnowledgeError",
    "Passage",
    "Retriever",
    "build_index",
    "index_digest",
    "load_retriever",
    "open_retriever",
]
