"""The bulk runner: `collect(graph, records, out)` takes records through a graph into traces. See docs/collect.md.

The package can itself be called: `from agentsys import collect` and `from agentsys.collect import collect` give the
same function.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

from agentsys.collect.options import RunOptions
from agentsys.collect.runner import acollect, collect
from agentsys.collect.summary import Summary
from agentsys.traces import RunFolderError

__all__ = ["RunFolderError", "RunOptions", "Summary", "acollect", "collect"]


class CallableModule(ModuleType):
    """This package, which is also its function `collect`."""

    __call__ = staticmethod(collect)
    acollect = staticmethod(acollect)
    collect = staticmethod(collect)
    __signature__ = inspect.signature(collect)  # inspect takes the first parameter for `self`


sys.modules[__name__].__class__ = CallableModule
