"""Peak memory and time of the distillation loss, chunked and plain, by vocabulary and length.

    python benchmarks/chunked_loss.py [--device cuda] [--dtype bfloat16] [--vocabularies 32000 151936]

One forward and backward pass of forward KL from a top 32 mixed with cross-entropy, with gradients for the hidden states
and the head. Each number is from its own process; memory is the peak that the pass adds to the inputs (hidden states,
head, the teacher's top k): resident set on the CPU, allocated memory on a GPU. Time is the median of --repeats passes
after a first one. Rows:
  plain        losses.plain_divergence: all logits at once, autograd
  checkpoint   the plain loss in chunks, each under torch.utils.checkpoint: logits are computed twice
  chunked      losses.divergence_from_topk: the gradient of a chunk is computed with its loss
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agentsys.trainers.losses import CHUNK, Divergence, divergence_from_topk, plain_divergence

TOP_K = 32
WAYS = ("plain", "checkpoint", "chunked")


class Case(NamedTuple):
    """The inputs of the loss; see losses.divergence_from_topk."""

    hidden: Tensor
    head: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    tail: Tensor
    labels: Tensor


def loss_of(way: str, chunk: int, case: Case) -> Tensor:
    """The loss, computed in one of WAYS."""
    hidden, head, ids, logprobs, tail, labels = case
    divergence, half = Divergence("forward_kl"), 0.5
    if way == "chunked":
        arguments = (hidden, head, ids, logprobs, tail, divergence)
        return divergence_from_topk(*arguments, weight=half, labels=labels, ce_weight=half, chunk=chunk).loss

    def part(rows: slice) -> Tensor:
        arguments = (hidden[rows], head, ids[rows], logprobs[rows], tail[rows], divergence)
        return plain_divergence(*arguments, weight=half, labels=labels[rows], ce_weight=half).loss

    if way == "plain":
        return part(slice(None))
    parts = [slice(start, start + chunk) for start in range(0, len(hidden), chunk)]
    return torch.stack([checkpoint(part, rows, use_reentrant=False) for rows in parts]).sum()


def resident(name: str) -> int:
    """Memory of this process in bytes: VmRSS is now, VmHWM the peak since the last `reset_peak` (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def reset_peak() -> None:
    """Reset the peak, so that the memory for making the inputs does not count."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def measure(case: argparse.Namespace) -> dict[str, float]:
    """Peak bytes and seconds of one way at one size, in this process."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    hidden = torch.randn(case.length, case.hidden, dtype=dtype, device=case.device).requires_grad_()
    head = torch.empty(case.vocabulary, case.hidden, dtype=dtype, device=case.device)
    head.normal_(std=case.hidden**-0.5).requires_grad_()
    first = torch.randint(case.vocabulary, (case.length, 1), dtype=torch.int32, device=case.device)
    ids = (first + 7 * torch.arange(TOP_K, dtype=torch.int32, device=case.device)) % case.vocabulary
    logprobs = (torch.randn(case.length, TOP_K, device=case.device) * 2).log_softmax(-1) - 0.05
    tail = 1 - logprobs.exp().sum(1)
    labels = torch.randint(case.vocabulary, (case.length,), device=case.device)

    def run() -> None:
        hidden.grad = head.grad = None
        tensors = Case(hidden, head, ids, logprobs.half(), tail, labels)
        loss_of(case.way, case.chunk, tensors).backward()

    return timed(run, case.device, case.repeats)


def timed(run: Callable[[], None], device: str, repeats: int) -> dict[str, float]:
    """The peak that the first pass adds, and the median time of the other passes."""
    on_gpu = device == "cuda"
    (torch.cuda.reset_peak_memory_stats if on_gpu else reset_peak)()
    before = torch.cuda.memory_allocated() if on_gpu else resident("VmRSS")
    run()
    peak = (torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")) - before
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {"bytes": peak, "seconds": statistics.median(seconds)}


def in_own_process(options: argparse.Namespace, **case: Any) -> dict[str, float] | None:
    """Measure in a new process. Returns None if the process failed (out of memory)."""
    shared = {name: getattr(options, name) for name in ("device", "dtype", "hidden", "repeats")}
    arguments = [f"--{name}={value}" for name, value in (shared | case).items()]
    done = subprocess.run(
        [sys.executable, __file__, "--one", *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    return dict(json.loads(done.stdout)) if done.returncode == 0 else None


def conditions(options: argparse.Namespace) -> str:
    """The conditions of the measurement, in one line."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"torch {torch.__version__}, {device}, {platform.machine()}, {options.dtype}, hidden {options.hidden}, "
        f"k = {TOP_K}, head trained, median of {options.repeats}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="type of hidden states and head"
    )
    parser.add_argument("--hidden", type=int, default=896, help="size of a hidden state (896: Qwen2.5 0.5B)")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 151_936], help="tokens")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048], help="positions")
    parser.add_argument("--chunks", type=int, nargs="+", default=[CHUNK], help="positions per chunk")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    for name, kind in (("way", str), ("vocabulary", int), ("length", int), ("chunk", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    print(f"{conditions(options)}\n")
    print("| vocabulary | positions | loss | chunk | peak MB | of plain | seconds | of plain |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|")
    for vocabulary in options.vocabularies:
        for length in options.lengths:
            print_rows(options, vocabulary, length)


def print_rows(options: argparse.Namespace, vocabulary: int, length: int) -> None:
    """Print the rows of one size."""
    plain: dict[str, float] | None = None
    for way in WAYS:
        for chunk in options.chunks if way != "plain" else [length]:
            result = in_own_process(options, way=way, vocabulary=vocabulary, length=length, chunk=chunk)
            plain = result if way == "plain" else plain
            cells = ["out of memory", "", "", ""]
            if result is not None:
                base = plain or {name: float("nan") for name in result}
                ratios = {name: result[name] / base[name] for name in result}
                megabytes, seconds = f"{result['bytes'] / 1e6:,.0f}", f"{result['seconds']:.3f}"
                cells = [megabytes, f"{ratios['bytes']:.2f}", seconds, f"{ratios['seconds']:.2f}"]
            size = "all" if way == "plain" else str(chunk)
            print(f"| {vocabulary:,} | {length:,} | {way} | {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
