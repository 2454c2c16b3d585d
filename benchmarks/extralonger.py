"""Speed and memory of Extralonger beside the separate-attention control, over sensors and horizons.

    python benchmarks/extralonger.py                                    (the whole table: hours on two cores)
    python benchmarks/extralonger.py --sensors 21 170 --steps 12 288 --out table.json
    python benchmarks/extralonger.py --models extralonger --sensors 307 --steps 2016 --batch 16

Each cell is a child process with an address space of --limit GiB, so that a cell that does not fit ends alone and says
so. It trains at least 5 steps of --batch windows after one that is not counted, scaled to 1,000 windows, then forecasts
batches. The windows are views of one series of random values. Both models have the layers of `--size`, from the same
code; peak memory is that of the process above what it was before the model, on a GPU that of its allocator. Attention
memory is that of the score matrices of one layer in float32, as the papers file counts it (section 3.3): what attention
without the fused kernel must store.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agentsys.trainers.traffic.config import SIZES, ExtralongerConfig, Shape
from agentsys.trainers.traffic.control import SeparateAttention
from agentsys.trainers.traffic.fit import masked_loss
from agentsys.trainers.traffic.model import Extralonger
from agentsys.trainers.traffic.series import Series
from agentsys.trainers.traffic.splits import Windows, make_windows

GIB = 2**30
MODELS = ("extralonger", "separate")
LONGEST = 17_856
"""Steps of the series of PEMS04 that the windows are cut from."""


def score_bytes(model: str, shape: Shape, config: ExtralongerConfig, batch: int) -> int:
    """Bytes of the score matrices of one layer in float32."""
    t, n, d, h = shape.steps_in, shape.sensors, config.dim, config.heads
    separate = h * (n * t**2 + t * n**2)
    unified = 2 * h * t**2 + (1 if t % 2 else 2) * d**2 + h * n**2
    return 4 * batch * (separate if model == "separate" else unified)


def make_data(sensors: int, steps: int) -> Windows:
    """Views of a random series with 5-minute steps."""
    values = np.random.default_rng(0).gamma(2, 50, (max(LONGEST, 3 * steps), sensors, 1)).astype(np.float32)
    times = np.datetime64("2018-01-01T00:00:00", "s") + np.arange(len(values)) * np.timedelta64(300, "s")
    return make_windows(Series(values, times, 300, tuple(map(str, range(sensors)))), steps, steps, len(values))


def batches(windows: Windows, size: int, device: str) -> Iterator[tuple[torch.Tensor, ...]]:
    """Random windows, without end: scaled values, times, target, mask."""
    order = torch.Generator().manual_seed(0)
    while True:
        origins = windows.origins[torch.randint(len(windows), (size,), generator=order)]
        x, y, mask, time_in, time_out = (part.to(device) for part in windows.batch(origins))
        yield (x[..., :1] - 100) / 70, time_in, time_out, y, mask


class Peak:
    """Peak memory of the process in bytes, sampled from /proc, since it was made."""

    def __init__(self) -> None:
        self.highest, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self._now()
        self.thread.start()

    @staticmethod
    def _now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _watch(self) -> None:
        while not self.ended.wait(0.01):
            self.highest = max(self.highest, self._now())

    def stop(self) -> int:
        """Bytes above those at the beginning."""
        self.ended.set()
        self.thread.join()
        return max(0, self.highest - self.before)


def measure(args: argparse.Namespace, model_name: str, sensors: int, steps: int) -> dict[str, Any]:
    """One cell, in this process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    shape = Shape(sensors, steps, steps, 288)
    config = SIZES[args.size]
    stream = batches(make_data(sensors, steps), args.batch, device)
    peak = Peak()
    mask = torch.rand(sensors, sensors) < 4 / sensors
    mask = mask | mask.T | torch.eye(sensors, dtype=torch.bool)
    fused = args.kernel == "fused"
    model = (
        Extralonger(shape, mask, config, fused)
        if model_name == "extralonger"
        else SeparateAttention(shape, config, fused)
    )
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def autocast() -> Any:
        return torch.autocast(device, torch.bfloat16, enabled=args.bf16)

    def train_step() -> None:
        x, time_in, time_out, y, seen = next(stream)
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            forecast = model(x, time_in, time_out)
        masked_loss(forecast.float() * 70 + 100, y, seen, "huber").backward()
        optimizer.step()

    def forecast_step() -> None:
        x, time_in, time_out, *_ = next(stream)
        with torch.no_grad(), autocast():
            model(x, time_in, time_out)

    train_seconds = time_steps(train_step, args.least, device)
    forecast_seconds = time_steps(forecast_step, args.least, device)
    used = peak.stop()
    return {
        "train_s_per_1000_windows": train_seconds / args.batch * 1000,
        "forecast_ms_per_window": forecast_seconds / args.batch * 1000,
        "peak_gib": (torch.cuda.max_memory_allocated() if device == "cuda" else used) / GIB,
        "attention_gib": score_bytes(model_name, shape, config, args.batch) / GIB,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


def time_steps(step: Any, least: int, device: str) -> float:
    """Mean seconds of at least `least` steps and at least a second, after one that is not counted."""
    step()
    _wait(device)
    count, started = 0, time.perf_counter()
    while count < least or time.perf_counter() - started < 1:
        step()
        _wait(device)
        count += 1
    return (time.perf_counter() - started) / count


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def run_cell(args: argparse.Namespace, model: str, sensors: int, steps: int) -> dict[str, Any]:
    """One cell in a child process; `failure` says why there are no numbers."""
    options = ["--size", args.size, "--batch", args.batch, "--least", args.least, "--limit", args.limit]
    options += ["--kernel", args.kernel, "--threads", args.threads, *(["--bf16"] if args.bf16 else [])]
    command = [sys.executable, __file__, "--cell", model, sensors, steps, *options]
    cell: dict[str, Any] = {"model": model, "sensors": sensors, "steps": steps}
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        return cell | {"failure": f"over {args.timeout:g} s"}
    if done.returncode == 0:
        return cell | json.loads(done.stdout.splitlines()[-1])
    errors = done.stderr.lower()
    memory = done.returncode == -9 or any(text in errors for text in ("memory", "bad_alloc"))
    reason = done.stderr.strip().splitlines()[-1][:80] if done.stderr.strip() else f"exit code {done.returncode}"
    return cell | {"failure": f"does not fit {args.limit:g} GiB" if memory else reason}


def limit_memory(gib: float) -> None:
    """Bound this process's memory: on a CPU its data segment, on a GPU the allocator's share."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))
    else:
        resource.setrlimit(resource.RLIMIT_AS, (int(gib * GIB), int(gib * GIB)))


def show_pair(args: argparse.Namespace, cells: list[dict[str, Any]]) -> str:
    """A line of the table: the models' numbers of one size, and their ratio."""
    parts = [f"{cells[0]['sensors']:>4} {cells[0]['steps']:>5}"]
    for cell in cells:
        if "failure" in cell:
            parts.append(f"{cell['failure']:>47}")
            continue
        values = (cell[name] for name in ("train_s_per_1000_windows", "forecast_ms_per_window", "peak_gib"))
        train, forecast, peak = values
        parts.append(f"{train:>12.1f} {forecast:>12.2f} {peak:>9.2f} {cell['attention_gib']:>11.3f}")
    if len(cells) == 2:
        shape = Shape(cells[0]["sensors"], cells[0]["steps"], cells[0]["steps"], 288)
        scores = [score_bytes(cell["model"], shape, SIZES[args.size], args.batch) for cell in cells]
        ratio = "-"
        if not any("failure" in cell for cell in cells):
            ratio = f"{cells[1]['train_s_per_1000_windows'] / cells[0]['train_s_per_1000_windows']:.1f}"
        parts.append(f"{ratio:>6} {scores[1] / scores[0]:>8.1f}")
    return " | ".join(parts)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sensors", nargs="+", type=int, default=[21, 170, 307])
    parser.add_argument("--steps", nargs="+", type=int, default=[12, 48, 288, 2016], help="T = O")
    parser.add_argument("--size", choices=list(SIZES), default="pems04", help="widths of both models")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--least", type=int, default=5, help="steps of a cell, at least")
    parser.add_argument("--kernel", choices=("fused", "plain"), default="fused", help="attention kernel of both models")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--limit", type=float, default=16.0, help="memory of a cell in GiB")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds of a cell")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file for all cells")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.cell:
        limit_memory(args.limit)
        print(json.dumps(measure(args, args.cell[0], int(args.cell[1]), int(args.cell[2]))))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {args.threads} threads"
    print(
        f"{device}, torch {torch.__version__}, Python {platform.python_version()}; size {args.size}, batch {args.batch}"
    )
    print(f"{args.kernel} attention, {'bfloat16' if args.bf16 else 'float32'}, at most {args.limit:g} GiB per cell")
    names = "".join(f" | {model:^47}" for model in args.models)
    columns = f"{'s/1000 train':>12} {'ms/forecast':>12} {'peak GiB':>9} {'scores GiB':>11}"
    print(f"{'':10}{names}" + (" | separate / ours" if len(args.models) == 2 else ""))
    print(
        f"{'N':>4} {'T = O':>5}"
        + f" | {columns}" * len(args.models)
        + (f" | {'time':>6} {'scores':>8}" if len(args.models) == 2 else "")
    )
    cells: list[dict[str, Any]] = []
    for sensors in args.sensors:
        for steps in args.steps:
            pair = [run_cell(args, model, sensors, steps) for model in args.models]
            cells += pair
            print(show_pair(args, pair), flush=True)
            if args.out:
                args.out.write_text(json.dumps({"device": device, "options": vars(args), "cells": cells}, default=str))


if __name__ == "__main__":
    main()
