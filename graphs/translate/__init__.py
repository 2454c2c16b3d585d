"""The evaluation of translation systems, side by side on the same sentences. Only this folder imports other papers'.

Read in this order: system.py (one translation and its scores by a judge, a graph), rows.py (test pairs and their
translations), systems.py (the compared systems), measures.py (metrics), report.py (results and tables); options.py and
leaks.py belong to the command, graphs/translate_evaluate.py.
"""

from __future__ import annotations

from agentsys.graphs.translate.system import Context, Translate, builder, graph

__all__ = ["Context", "Translate", "builder", "graph"]
