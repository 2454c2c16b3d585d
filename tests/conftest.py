"""Fixtures that several test files share, and what holds for every test: no network, one thread per engine."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock

from tests.support.extras import skip_without
from tests.support.servers import FakeServer

NETWORK_LOG = Path(tempfile.mkdtemp(prefix="agentsys-tests-")) / "network.log"
OFFLINE = Path(__file__).parent / "support" / "offline"


def go_offline() -> None:
    """Refuse the network to this process and its Python children, and tell hub clients not to try it."""
    NETWORK_LOG.touch()
    atexit.register(shutil.rmtree, NETWORK_LOG.parent, ignore_errors=True)
    os.environ |= {"AGENTSYS_TEST_NETWORK_LOG": str(NETWORK_LOG), "HF_HUB_OFFLINE": "1"}
    os.environ |= {"LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGSMITH_TRACING": "false"}
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}  # else it asks a public address for its own
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")]))
    if not hasattr(sys.modules.get("sitecustomize"), "refuse_network"):  # xdist's workers have it from PYTHONPATH
        sys.modules.pop("sitecustomize", None)
        sys.path.insert(0, str(OFFLINE))
        import_module("sitecustomize")
        sys.path.remove(str(OFFLINE))


def compute_with_one_thread() -> None:
    """Under pytest-xdist an engine or a trainer has one thread: several workers that each want all cores slow each
    other down many times over."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ |= {"LLAMA_ARG_THREADS": "1", "OMP_NUM_THREADS": "1"}


def receive_interrupts() -> None:
    """A shell without job control starts `pytest &` with SIGINT ignored, which child processes would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


go_offline()
compute_with_one_thread()
receive_interrupts()
hypothesis.settings.register_profile("busy", suppress_health_check=[hypothesis.HealthCheck.too_slow], deadline=None)
hypothesis.settings.load_profile("busy")  # a worker that waits for its core is not a slow strategy


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers per core: much of the time is waiting, for servers and for child processes."""
    return min(2 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4, 8)


LONGEST = ("studio/", "agentsys/models/test_engines.py", "test_benchmarks.py", "trainers/", "agentsys/collect/")
"""The files of tests that take longest. They begin first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files by LONGEST; within one the order stays."""
    folder = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(folder).as_posix()
        return next((i for i, prefix in enumerate(LONGEST) if name.startswith(prefix)), len(LONGEST))

    items.sort(key=rank)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.needs("maths")` skips a test where the extra is not installed."""
    skip_without(*(extra for mark in item.iter_markers("needs") for extra in mark.args))


@pytest.fixture(autouse=True)
def loopback_only() -> Iterator[None]:
    """Fails a test that tried to reach a network outside loopback, whatever became of the attempt."""
    yield
    if attempts := NETWORK_LOG.read_text(encoding="utf-8"):
        NETWORK_LOG.write_text("", encoding="utf-8")
        pytest.fail(f"a network outside loopback was tried:\n{attempts}")


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


@pytest.fixture(scope="session")
def qwen_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Qwen's tokenizer and chat template, read once from the GGUF file (15 s) for all workers."""
    skip_without("train", "weights-small")
    worker = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp().parent if worker else tmp_path_factory.getbasetemp()
    folder = base / "qwen"
    with FileLock(base / "qwen.lock"):
        if not folder.exists():
            from transformers import AutoTokenizer

            from agentsys.models.weights import find

            weights = find("qwen2.5-coder-0.5b")
            part = base / "qwen.part"
            AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(part)
            (part / "config.json").write_text('{"model_type": "qwen2"}')
            part.rename(folder)
    return folder
