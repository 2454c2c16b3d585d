"""The bulk runner: `collect(graph, records, out)` takes records through a graph into traces. See docs/collect.md."""

from agentsys.collect.runner import Options, Summary, acollect, collect
from agentsys.collect.store import RunFolderError

__all__ = ["Options", "RunFolderError", "Summary", "acollect", "collect"]
