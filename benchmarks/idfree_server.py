"""Latency of the IDfree-PL server with and without an embedding, for devices that ask at once.

    python benchmarks/idfree_server.py                         (64 devices, a random encoder of MiniLM's size)
    python benchmarks/idfree_server.py --model run/cloud --devices 64 --rounds 40

Each device is a thread that sends one request after another over HTTP, each on a connection of its own, and alternates
between requests with a fresh embedding and without: both kinds meet the same load. The table has the median and the
95th percentile of each kind over the requests after the first round. Without --model the server has a random encoder
of all-MiniLM-L6-v2's size, which takes as long as a trained one.
"""

from __future__ import annotations

import argparse
import os
import platform
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from agentsys.trainers.idfree.device import Device, FloatArray, Parameters, send
from agentsys.trainers.idfree.queries import ServeOptions
from agentsys.trainers.idfree.server import Model, make_app, make_server, open_socket

KINDS = ("with", "without")
TEXT = "The plot is thin, the songs are good, and the ending made the whole row laugh. "


@dataclass(frozen=True)
class Info:
    """A classifier with MiniLM's width."""

    width: int = 384
    task: str = "classify"
    design: str = "beta"
    n_tokens: int = 1
    labels: tuple[str, ...] = ("0", "1")
    spread: float = 0.5
    prior_first: float = 2.0
    prior_second: float = 5.0
    model: str = "0" * 64


class RandomEncoder:
    """A BERT with random weights; the embedding follows the text, without one the prior's mean does."""

    def __init__(self, layers: int, tokens: int, width: int) -> None:
        from transformers import BertConfig, BertModel

        self.info = Info(width)
        config = BertConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32, intermediate_size=4 * width
        )
        self.network, self.tokens = BertModel(config, add_pooling_layer=False).eval(), tokens
        self.head = torch.nn.Linear(width, 2)

    @torch.no_grad()
    def classify(self, texts: Sequence[str], embeddings: FloatArray | None = None) -> FloatArray:
        """(texts, 2) probabilities; token ids are the characters' codes."""
        codes = [[ord(char) % 256 + 1 for char in text[: self.tokens].ljust(self.tokens)] for text in texts]
        words = self.network.get_input_embeddings()(torch.tensor(codes))
        if embeddings is None:
            embeddings = np.full((len(texts), 1, self.info.width), 2 / 7, np.float32)
        hidden = self.network(inputs_embeds=torch.cat([words, torch.from_numpy(embeddings)], 1)).last_hidden_state
        probabilities: FloatArray = self.head(hidden[:, -1]).softmax(-1).numpy()
        return probabilities

    def complete(
        self, texts: Sequence[str], embeddings: FloatArray | None = None, max_new_tokens: int = 15
    ) -> list[str]:
        """A classifier completes nothing."""
        raise NotImplementedError


def load(options: argparse.Namespace) -> Model:
    """The model of --model, or a random one."""
    if options.model is None:
        return RandomEncoder(options.layers, options.tokens, options.width)
    from agentsys.trainers.idfree.backbone import load_model

    return load_model(options.model)


def ask_in_turn(server: str, model: Model, number: int, rounds: int, start: threading.Barrier) -> list[list[float]]:
    """Seconds of one device's requests, by kind; devices of even number begin with an embedding."""
    info = model.info
    shape = (info.n_tokens, info.width)
    first, second = (np.full(shape, one, np.float32) for one in (info.prior_first, info.prior_second))
    device = Device(Parameters("beta" if info.design == "beta" else "gauss", first, second, info.model), seed=number)
    path = "/v1/completions" if info.task == "generate" else "/v1/classify"
    seconds: list[list[float]] = [[], []]
    start.wait()
    for turn in range(2 * rounds):
        kind = (turn + number) % 2
        body = device.request(TEXT) if kind == 0 else {"text": TEXT}
        before = time.perf_counter()
        send(server, path, body)
        seconds[kind].append(time.perf_counter() - before)
    return seconds


def measure(server: str, model: Model, devices: int, rounds: int) -> list[list[float]]:
    """Seconds of all requests but each device's first of a kind, by kind."""
    start = threading.Barrier(devices)
    with ThreadPoolExecutor(devices) as pool:
        asked = [pool.submit(ask_in_turn, server, model, number, rounds, start) for number in range(devices)]
        results = [one.result() for one in asked]
    return [[value for result in results for value in result[kind][1:]] for kind in range(2)]


def print_table(seconds: Sequence[Sequence[float]], devices: int) -> None:
    """Median and 95th percentile in milliseconds, and the ratio of the medians."""
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads, {devices} devices")
    print("| embedding | requests | p50 ms | p95 ms |\n|---|---|---|---|")
    for kind, values in zip(KINDS, seconds, strict=True):
        middle, high = (1000 * np.quantile(values, share) for share in (0.5, 0.95))
        print(f"| {kind} | {len(values):,} | {middle:.1f} | {high:.1f} |")
    ratio = np.median(seconds[0]) / np.median(seconds[1])
    print(f"p50 with an embedding over p50 without: {ratio:.3f}")


def main() -> None:
    """Start the server in a thread, let the devices ask, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder `cloud` of a run; default: a random encoder")
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20, help="requests of each kind and device, and one more")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    model, settings = load(options), ServeOptions(port=0)
    listener = open_socket(settings.host, 0)
    server = make_server(make_app(model, settings), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    seconds = measure(f"http://127.0.0.1:{listener.getsockname()[1]}", model, options.devices, options.rounds + 1)
    print_table(seconds, options.devices)
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
