"""The bulk runner: `collect(graph, records, out)` takes records through a graph into traces. See docs/collect.md."""

from agentsys.collect.options import RunOptions
from agentsys.collect.runner import Summary, acollect, collect
from agentsys.collect.store import RunFolderError

__all__ = ["RunFolderError", "RunOptions", "Summary", "acollect", "collect"]
