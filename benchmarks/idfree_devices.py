"""IDfree-PL: all devices in one batched pass, against a loop over users in the same process, at an equal result.

    python benchmarks/idfree_devices.py
    python benchmarks/idfree_devices.py --model folder --users 20 --steps 4

The loop trains one user after the other and computes the whole input, text and embedding, in each step, as a device of
the released code does. The batched pass is measured with keys and values of the texts reused, and without (whole
inputs too). All start from the same parameters and draw the same embeddings; the largest difference of any parameter is
printed beside the times. Times include the reading of the texts' keys and values.
"""

from __future__ import annotations

import platform
import time
from typing import Annotated, Literal

import numpy as np
import torch
import typer

from agentsys.trainers.idfree.backbone import load_backbone
from agentsys.trainers.idfree.data import Examples
from agentsys.trainers.idfree.designs import Design
from agentsys.trainers.idfree.devices import MOST_USERS, Devices, train_devices
from agentsys.trainers.idfree.options import FitOptions

WORDS = ("the", "a", "my", "old", "new", "small", "red", "blue", "good", "bad", "film", "song", "book", "meal", "trip")


def main(
    model: Annotated[str, typer.Option(help="encoder or decoder: folder, catalog or hub name")] = "all-MiniLM-L6-v2",
    users: Annotated[int, typer.Option(help="users")] = 200,
    texts: Annotated[int, typer.Option(help="texts per user; each is used steps x 8 / texts times")] = 8,
    words: Annotated[int, typer.Option(help="words per text, about a token each")] = 40,
    steps: Annotated[int, typer.Option(help="optimizer steps of each user, with 8 texts each")] = 20,
    design: Annotated[Literal["beta", "gauss"], typer.Option(help="family of distributions")] = "gauss",
    threads: Annotated[int, typer.Option(help="threads of torch")] = 2,
) -> None:
    """Time the three ways and compare their parameters."""
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    backbone = load_backbone(model, "classify", 1, 2, max_length=words + 2)
    tokens = backbone.tokenize([" ".join(random.choice(WORDS, words)) for _ in range(users * texts)], words + 2)
    train = Examples(np.arange(users * texts), random.integers(0, 2, users * texts), np.arange(users).repeat(texts))
    nothing = train.take(np.zeros(0, np.int64))
    family = Design(design, "classify", 1, backbone.width, 1.0)
    options = FitOptions(device_steps=steps, micro_batch=256)

    def run(whole: bool, group: int) -> tuple[float, Devices]:
        backbone.whole = whole
        started = time.perf_counter()
        devices = train_devices(backbone, tokens, train, nothing, range(users), family, options, group=group)
        return time.perf_counter() - started, devices

    ways = {
        "batched, keys and values reused": run(False, MOST_USERS),
        "batched, whole inputs": run(True, MOST_USERS),
        "loop over users, whole inputs": run(True, 1),
    }
    loop_seconds, loop = ways["loop over users, whole inputs"]
    print(f"{users} users, {texts} texts of {words} words each, {steps} steps of 8 texts, {model}, {design},")
    print(f"{threads} threads, {platform.machine()}, torch {torch.__version__}\n")
    print("| way | seconds | times as fast as the loop | largest difference |")
    print("|---|---|---|---|")
    for name, (seconds, devices) in ways.items():
        pairs = ((devices.first, loop.first), (devices.second, loop.second))
        difference = max(float((one - other).abs().max()) for one, other in pairs)
        print(f"| {name} | {seconds:.1f} | {loop_seconds / seconds:.1f} | {difference:.1e} |")


if __name__ == "__main__":
    typer.run(main)
