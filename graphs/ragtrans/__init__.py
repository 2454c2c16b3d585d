"""RAGtrans: translation with unstructured knowledge, a document in any language.

"Retrieval-Augmented Machine Translation with Unstructured Knowledge" (Wang, Meng, Zhang, Zhou; Findings of EMNLP 2025,
arXiv 2412.04342).

Reading order:

    system.py            the graph `ragtrans`: find a document, translate
    state.py             replies and state of `ragtrans`
    targets.py           training targets of both graphs
    tasks.py             the graph `ragtrans_tasks`: CSC's tasks CLIC, SKET and CLRD as targets
    documents.py         paragraphs, truncation, leaks of a reference, MMR
    corpus.py            pages and translation memories, from which the benchmark is built
    samples.py           the benchmark's records and the tasks' records
    benchmark.py         writing and reading the benchmark's files
    mix.py               the tasks' records, mixed by weight
    measures.py          figures over the traces of a run
"""

from __future__ import annotations

from agentsys.graphs.ragtrans.system import Context, RAGtrans, builder, graph

__all__ = ["Context", "RAGtrans", "builder", "graph"]
