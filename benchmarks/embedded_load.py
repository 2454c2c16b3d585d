"""The embedded engine on an idle machine and beside busy processes, with its choice of threads and with all cores.

    python benchmarks/embedded_load.py                 # the default model; minutes
    python benchmarks/embedded_load.py --busy 0,1,2 --rounds 5

Each cell is an engine that starts under its condition. "all cores" sets LLAMA_ARG_THREADS, so that the engine does not
look at the load. The rates are the engine's own, of one request at a time, as medians of --rounds rounds. Prompts are
new each time, so that nothing comes from the prefix cache. What else runs on the machine counts as load: the first line
has the load average.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from rich.table import Table

from agentsys.console import Console
from agentsys.display import say, show
from agentsys.models import load_model
from agentsys.models.chat import AgentChatModel
from agentsys.models.embedded import leave_at_once

WORDS = "river house stone wind night bread green carry slowly under window letter old quiet table winter run paper"


async def measure(spec: str, rounds: int, prompt_words: int, tokens: int) -> list[tuple[float, float]]:
    """(prompt tokens per second, generated tokens per second) of each round, after one that warms up."""
    model = load_model(spec)
    assert isinstance(model, AgentChatModel)
    rates: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        rng = random.Random(number)
        text = " ".join(rng.choice(WORDS.split()) for _ in range(prompt_words))
        message = {"role": "user", "content": f"{text}\nWrite a long story with these words."}
        reply = await model.complete([message], sampling={"max_tokens": tokens, "temperature": 0.0})
        read = reply.prompt_tokens - (reply.cached_tokens or 0)
        times = reply.measured
        rates.append((read / times["prompt_seconds"], reply.completion_tokens / times["generation_seconds"]))
    await model.aclose()
    return rates[1:]


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes of this user that compute all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_child(arguments: argparse.Namespace, threads: str) -> list[tuple[float, float]]:
    """Measure in a process of its own, whose engine has `threads` ("": it chooses)."""
    command = [sys.executable, __file__, "--child", "--model", arguments.model]
    for name in ("rounds", "words", "tokens"):
        command += [f"--{name}", str(getattr(arguments, name))]
    result = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "LLAMA_ARG_THREADS": threads}
    )
    return [(float(read), float(generated)) for read, generated in json.loads(result.stdout)]


def main() -> None:
    """Print the table, or in a child process the rates as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--busy", default="0,1", help="numbers of busy processes, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=150, help="words of a prompt")
    parser.add_argument("--tokens", type=int, default=48, help="tokens to generate")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        show(json.dumps(asyncio.run(measure(arguments.model, arguments.rounds, arguments.words, arguments.tokens))))
        leave_at_once(0)
        return
    cores = os.cpu_count() or 1
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    say(f"{cores} cores{load}; {arguments.model}, one request at a time")
    table = Table("busy processes", "threads", "prompt tokens/s", "generated tokens/s", "generated, each round")
    for count in map(int, arguments.busy.split(",")):
        for name, threads in (("chosen", ""), ("all cores", str(cores))):
            with busy_processes(count):
                rates = run_child(arguments, threads)
            medians = [f"{median(values):.1f}" for values in zip(*rates, strict=True)]
            table.add_row(str(count), name, *medians, " ".join(f"{generated:.1f}" for _, generated in rates))
    Console().print(table)


if __name__ == "__main__":
    main()
