"""Calls per second and peak memory of collect with a picture per record, beside a plain load generator.

    python benchmarks/pictures.py [--records 512] [--in-flight 64] [--latency 0.5] [--kilobytes 300] [--repeats 3]

A server in another process takes `latency` seconds for a chat completion, however many it has. collect reads each
record's own JPEG, checks it, keeps it in the run's folder, and sends it as base64. The load generator posts bodies that
are ready in memory, in the same number at a time. Both are measured in turn, in processes of their own; start-up is not
counted. The peak memory is that of collect's process, imports included.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NotRequired

import orjson
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agentsys.collect import RunOptions, collect
from agentsys.pictures import PictureInput
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.systems import BaseContext, System, ask, role_options, sequence_graph

try:
    from benchmarks.loopback import Protocol
except ImportError:  # run as a script, whose folder is on the path
    from loopback import Protocol  # type: ignore[no-redef]

REPLY = {
    "choices": [{"message": {"content": "a drawing"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 800, "completion_tokens": 2},
}


class Input(TypedDict):
    """A picture and its caption."""

    image: PictureInput
    caption: str


class State(TypedDict):
    """The picture, its caption and a description."""

    image: Any
    caption: str
    description: NotRequired[str]


@dataclass(frozen=True)
class Describer(System):
    """One role."""

    describer: Role[str] = Role(Prompt.parse("# user\n# image image\nDescribe: {{ caption }}", "describer"))

    async def describe(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Make one call."""
        inputs = {"image": state["image"], "caption": state["caption"]}
        return {"description": (await ask(runtime.context, self.describer, key="describe", **inputs)).value}


@dataclass(frozen=True)
@role_options(Describer)
class Context(BaseContext):
    """The model."""


class Server:
    """Answers every request after the latency."""

    log: Any = None
    settings = SimpleNamespace(folder="/nowhere")

    def __init__(self, latency: float) -> None:
        self.latency = latency

    def handle(self, body: bytes, send: Callable[[Any], None]) -> None:
        """Send the reply later."""
        asyncio.get_running_loop().call_later(self.latency, send, REPLY)


def serve(latency: float, ready: Connection) -> None:
    """Run the server process; sends its port when it listens."""
    import uvloop

    async def main() -> None:
        engine: Any = Server(latency)
        server = await asyncio.get_running_loop().create_server(lambda: Protocol(engine), "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


@contextmanager
def serving(latency: float) -> Iterator[str]:
    """Start the server process and yield its URL."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe()
    process = spawn.Process(target=serve, args=(latency, sender), daemon=True)
    process.start()
    sender.close()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}"
    finally:
        process.terminate()
        process.join()


def write_pictures(folder: Path, count: int, kilobytes: int) -> Path:
    """Write JPEG files of about this size, each with a comment of its own, and the file of their records."""
    import numpy as np
    from PIL import Image, ImageFilter

    pixels = np.random.default_rng(0).integers(0, 256, (768, 1024, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1))
    sizes = {}
    for quality in range(10, 100, 5):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        sizes[abs(len(out.getvalue()) - kilobytes * 1000)] = out.getvalue()
    data = sizes[min(sizes)]
    lines = []
    for number in range(count):
        comment = f"picture {number}".encode()
        segment = b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment
        (folder / f"{number}.jpg").write_bytes(data[:2] + segment + data[2:])
        lines.append(orjson.dumps({"id": str(number), "image": f"{number}.jpg", "caption": f"caption {number}"}))
    path = folder / "records.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def run_collect(url: str, records: Path, width: int) -> dict[str, float]:
    """Run collect over the records."""
    system = Describer()
    graph = sequence_graph(system.describe, state=State, context=Context, input=Input, output=State)
    with tempfile.TemporaryDirectory(dir=records.parent) as folder:
        options = RunOptions(in_flight=width, cache=Path(folder) / "cache.sqlite")
        started = time.perf_counter()
        context = Context(model=f"{url}/v1")
        summary = collect(
            graph.compile(name="pictures"), records, Path(folder) / "out", context=context, options=options
        )
        seconds = time.perf_counter() - started
    assert summary.kept == summary.calls, summary
    return {"calls": summary.calls, "seconds": seconds, "peak_mb": peak_mb()}


def run_generator(url: str, records: Path, width: int) -> dict[str, float]:
    """Post bodies that are ready."""
    bodies = []
    for line in records.read_bytes().splitlines():
        record = orjson.loads(line)
        data = base64.b64encode((records.parent / record["image"]).read_bytes()).decode()
        block = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
        content = [block, {"type": "text", "text": f"Describe: {record['caption']}"}]
        bodies.append(orjson.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}))

    async def main() -> float:
        import aiohttp

        waiting = iter(bodies)

        async def work(session: aiohttp.ClientSession) -> None:
            for body in waiting:
                async with session.post(f"{url}/v1/chat/completions", data=body) as answer:
                    orjson.loads(await answer.read())

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            started = time.perf_counter()
            await asyncio.gather(*(work(session) for _ in range(width)))
            return time.perf_counter() - started

    import uvloop

    return {"calls": len(bodies), "seconds": uvloop.run(main()), "peak_mb": peak_mb()}


def peak_mb() -> int:
    """Return the peak memory of this process in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def run_side(side: str, url: str, records: Path, width: int) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--url", url, "--file", str(records)]
    done = subprocess.run([*command, "--in-flight", str(width)], stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=512)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--kilobytes", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=["collect", "generator"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run = run_collect if args.side == "collect" else run_generator
        print(json.dumps(run(args.url, args.file, args.in_flight)))
        return
    with tempfile.TemporaryDirectory() as folder, serving(args.latency) as url:
        records = write_pictures(Path(folder), args.records, args.kilobytes)
        size = (records.parent / "0.jpg").stat().st_size
        print(
            f"{args.records} records, a JPEG of {size:,} bytes each, {args.latency} s per call, {args.in_flight} in "
            f"flight; {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
        )
        print("| repeat | collect calls/s | generator calls/s | ratio | collect's peak MB |\n|---|---|---|---|---|")
        ratios = []
        for repeat in range(args.repeats):
            order = ("collect", "generator") if repeat % 2 == 0 else ("generator", "collect")
            results = {side: run_side(side, url, records, args.in_flight) for side in order}
            rates = {side: result["calls"] / result["seconds"] for side, result in results.items()}
            ratios.append(rates["collect"] / rates["generator"])
            rate = f"{rates['collect']:.1f} | {rates['generator']:.1f} | {ratios[-1]:.3f}"
            print(f"| {repeat + 1} | {rate} | {results['collect']['peak_mb']} |", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
