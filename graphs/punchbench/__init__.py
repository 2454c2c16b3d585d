"""PunchBench: questions on the punchlines of image-caption pairs, and the simple-to-complex chain of questions.

"PunchBench: Benchmarking MLLMs in Multimodal Punchline Comprehension" (Ouyang et al. 2025, ACL 2025, arXiv 2412.11906).

Reading order: state.py (a pair and what is made of it), system.py (the builder, section 3), checks.py (what an item
must meet), tasks.py (the six task files), shortcuts.py (what can be answered without the picture), page.py (questions
for people), chains.py (SC-CoQ, section 4), answering.py (its graph), measures.py (evaluation, section 5). The commands
are graphs/punchbench_collect.py, graphs/punchbench_annotate.py and graphs/punchbench_evaluate.py.
"""

from __future__ import annotations

from agentsys.graphs.punchbench.system import Context, PunchBench, builder, graph

__all__ = ["Context", "PunchBench", "builder", "graph"]
