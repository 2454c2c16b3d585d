"""CRAT: translation whose unknown terms are looked up, collected in a knowledge graph and judged before use.

"A Multi-Agent Framework for Causality-Enhanced Reflective and Retrieval-Augmented Translation with Large Language
Models" (Chen, Meng, Zhang, Zhang, Zhou 2024, arXiv 2410.21067).

Reading order:

    system.py            the agents, the nodes and the graph
    state.py             replies of the roles, the graph's state, the options
    terms.py             sentences, term spans, glosses and term matching: text work without a model
    document.py          which decision on a term holds in which sentence; what goes into the knowledge graph
    transkg.py           the knowledge graph, TransKG; transkg_figure.py draws it
    retrieval.py         external knowledge: term sources and an LLM as a source
    judge.py             the causal judge: relevance, invariance, counterfactual
    candidates.py        candidates of a term: made from items, ranked, shown to prompts
    targets.py           training targets
    measures.py          figures over the traces of a run
"""

from __future__ import annotations

from agentsys.graphs.crat.system import CRAT, Context, builder, graph

__all__ = ["CRAT", "Context", "builder", "graph"]
