"""DeepRAG: a question answered step by step, each step from memory or from passages, as the model decides.

"DeepRAG: Thinking to Retrieve Step by Step for Large Language Models" (Guan et al. 2025, arXiv 2502.01142).

Reading order: narrative.py (the text protocol, section 3.2), system.py (the decision process, sections 3.1 and 3.2),
search.py (binary tree search, stages I and II, sections 3.3 and 3.4), targets.py (training data), baselines.py and
measures.py (evaluation, section 4). The commands are graphs/deeprag_collect.py and graphs/deeprag_evaluate.py.
"""

from __future__ import annotations

from agentsys.graphs.deeprag.system import Context, DeepRAG, builder, graph

__all__ = ["Context", "DeepRAG", "builder", "graph"]
