"""Peak memory of a long run: records through a real LangGraph graph, each with one call of a scripted model.

    python benchmarks/memory.py [--records 200000]

The records are read from a JSONL file, the request cache is on, and every record is kept. The peak is that of the whole
process, imports included.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path
from typing import TypedDict

import orjson
from langgraph.graph import END, START, StateGraph

from agentsys.collect import RunOptions, collect
from agentsys.models.scripted import ScriptedChatModel
from agentsys.prompt import Prompt
from agentsys.roles import Role

GREETER: Role[str] = Role(Prompt.parse("# user\nGreet {{ text }}", "greeter"))
MODEL = ScriptedChatModel(respond=lambda messages, call: "good day")


class State(TypedDict, total=False):
    text: str
    reply: str


async def greet(state: State) -> State:
    """Make one call."""
    return {"reply": await GREETER(MODEL, key="greet", text=state["text"])}


def peak_mb() -> int:
    """Return the peak memory of this process in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    args = parser.parse_args()
    builder = StateGraph(State)
    builder.add_node("greet", greet)
    builder.add_edge(START, "greet")
    builder.add_edge("greet", END)
    graph = builder.compile(name="memory")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        with path.open("wb") as file:
            for i in range(args.records):
                text = f"The {i}th lamp shone like a small and lonely moon."
                file.write(orjson.dumps({"id": f"record-{i}", "text": text}) + b"\n")
        before, started = peak_mb(), time.perf_counter()
        summary = collect(graph, path, Path(folder) / "out", options=RunOptions(cache=Path(folder) / "cache.sqlite"))
        seconds = time.perf_counter() - started
    assert (summary.kept, summary.calls) == (args.records, args.records), summary
    print(f"{args.records:,} records and calls, {seconds:.0f} s, Python {platform.python_version()}")
    print(f"peak: {before} MB before the run, {peak_mb()} MB at its end")


if __name__ == "__main__":
    main()
