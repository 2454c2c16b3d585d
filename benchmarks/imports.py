"""Time that importing agentsys adds to importing langgraph and langchain-core: medians over fresh interpreters.

langchain-core loads its parts lazily; the comparison imports BaseChatModel, which every graph with a model needs.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata

RUNS = 7
CASES = {
    "python -c pass": "pass",
    "langgraph and langchain-core": "import langgraph.graph; from langchain_core.language_models import BaseChatModel",
    "agentsys": "import agentsys",
    "agentsys.graphs.drt.system": "import agentsys.graphs.drt.system",
}


def measure_seconds(code: str) -> float:
    """Return the wall time of one interpreter from start to end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table. The cases alternate, so that a busy moment of the machine affects all of them."""
    for code in CASES.values():
        measure_seconds(code)  # writes byte code and warms the file cache
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(RUNS):
        for name, code in CASES.items():
            times[name].append(measure_seconds(code))
    median = {name: statistics.median(values) for name, values in times.items()}
    base, frameworks = median["python -c pass"], median["langgraph and langchain-core"]
    print(f"{'import':<32}{'median s':>9}{'min s':>8}{'max s':>8}")
    for name, values in times.items():
        print(f"{name:<32}{median[name]:>9.3f}{min(values):>8.3f}{max(values):>8.3f}")
    graph = "agentsys.graphs.drt.system"
    differences = [
        ours - other for ours, other in zip(times[graph], times["langgraph and langchain-core"], strict=True)
    ]
    print(f"agentsys adds {median['agentsys'] - base:.3f} s to an interpreter;", end=" ")
    print(f"{graph} adds {median[graph] - frameworks:.3f} s to the frameworks", end=" ")
    print(f"(differences within a round: {min(differences):.3f} to {max(differences):.3f} s)")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("langgraph", "langchain-core"))
    load = f", load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    print(
        f"conditions: {RUNS} rounds, warm; Python {platform.python_version()}, {versions}; {os.cpu_count()} CPUs{load}"
    )


if __name__ == "__main__":
    main()
