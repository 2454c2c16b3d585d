"""A scripted model behind the real server of IDfree-PL, and devices for it. Needs fastapi."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agentsys.trainers.idfree.device import Device, FloatArray, Parameters, save_parameters
from agentsys.trainers.idfree.queries import ServeOptions
from agentsys.trainers.idfree.server import make_app, make_server, open_socket

MODEL = "a1" * 32
WIDTH = 6


@dataclass(frozen=True)
class Info:
    task: str = "classify"
    design: str = "beta"
    n_tokens: int = 1
    width: int = WIDTH
    labels: tuple[str, ...] = ("bad", "good")
    spread: float = 0.5
    prior_first: float = 2.0
    prior_second: float = 5.0
    model: str = MODEL


@dataclass
class ScriptedModel:
    """Answers with the mean of the embedding, 0 without one; notes the size of each batch.

    It waits for its gate, which is `open` from the start or not.
    """

    info: Info = field(default_factory=Info)
    open: bool = True
    sizes: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if self.open:
            self.gate.set()

    def _values(self, texts: Sequence[str], embeddings: FloatArray | None) -> list[float]:
        self.gate.wait(300)
        self.sizes.append(len(texts))
        if "break" in texts:
            raise RuntimeError("a defect of the model")
        return [0.0] * len(texts) if embeddings is None else embeddings.mean((1, 2)).tolist()

    def classify(self, texts: Sequence[str], embeddings: FloatArray | None = None) -> FloatArray:
        return np.array([[1 - value, value] for value in self._values(texts, embeddings)], np.float32)

    def complete(
        self, texts: Sequence[str], embeddings: FloatArray | None = None, max_new_tokens: int = 15
    ) -> list[str]:
        values = self._values(texts, embeddings)
        return [f"{text} {value:.4f} {max_new_tokens}" for text, value in zip(texts, values, strict=True)]


@contextmanager
def serve(model: ScriptedModel, **options: Any) -> Iterator[str]:
    """The address of a running server."""
    settings = ServeOptions(port=0, **options)
    listener = open_socket(settings.host, 0)
    server = make_server(make_app(model, settings), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        model.gate.set()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def make_device(number: int) -> Device:
    ones = np.full((1, WIDTH), 2 + number / 100, np.float32)
    return Device(Parameters("beta", ones, ones, MODEL), seed=number)


def write_demo_device(path: Path) -> Path:
    """A parameter file whose draws are near 0.98, so that every answer is "good"."""
    first, second = np.full((1, WIDTH), 50, np.float32), np.ones((1, WIDTH), np.float32)
    save_parameters(path, Parameters("beta", first, second, MODEL))
    return path
