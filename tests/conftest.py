"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import FakeServer


@pytest.fixture
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the user's cache folder (not for tests that need the user's weights)."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AGENTSYS_CACHE", str(folder))
    return folder


@pytest.fixture
async def start_server() -> AsyncIterator[Callable[..., Awaitable[FakeServer]]]:
    """`await start_server(dialect="vllm")` starts one more server in the test's loop."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> FakeServer:
            return await stack.enter_async_context(FakeServer(**settings))

        yield start


@pytest.fixture
async def server(start_server: Callable[..., Awaitable[FakeServer]]) -> FakeServer:
    """A server of no special kind (set `server.dialect` before the first request for another one)."""
    return await start_server()


COMET = """
def download_model(name):
    if name == "gone":
        raise FileNotFoundError("no such model: gone")
    return name
class Model:
    scores = []
    def predict(self, data, batch_size, gpus):
        self.scores = [0.25 if pair["mt"] == pair["ref"] else 0.75 for pair in data]
        print("noise on stdout")
        return self
def load_from_checkpoint(path):
    return Model()
"""


@pytest.fixture
def comet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for unbabel-comet (and torch) that the subprocess imports; its file can be rewritten."""
    folder = tmp_path / "comet_path"
    folder.mkdir()
    (folder / "comet.py").write_text(COMET)
    (folder / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: False)\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / "comet.py"
