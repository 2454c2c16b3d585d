"""Chat models connected to fake servers, and a fake server of each dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentsys.models.chat import EndpointChatModel
from agentsys.models.endpoint import Endpoint
from agentsys.models.engines import RemoteEngine
from tests.support.chats import QUICK
from tests.support.servers import FakeServer, write_model_folder

Start = Callable[..., Awaitable[FakeServer]]

MODES = ("openai", "llamacpp", "vllm")


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., EndpointChatModel]]:
    """`connect(server, ...)` returns a model for servers, with quick retries; closes its connections afterwards."""
    endpoints: list[Endpoint] = []

    def make(*servers: FakeServer, sampling: dict[str, Any] | None = None, **settings: Any) -> EndpointChatModel:
        settings = {"retry": QUICK, **settings}
        endpoints.append(Endpoint([server.address for server in servers], **settings))
        return EndpointChatModel(engine=RemoteEngine(endpoints[-1]), sampling=sampling or {})

    yield make
    for endpoint in endpoints:
        await endpoint.aclose()


@pytest.fixture(params=MODES)
async def mode(request: pytest.FixtureRequest, start_server: Start, tmp_path: Path) -> FakeServer:
    """A server of each kind: chat mode for "openai", token mode for the two others."""
    root = str(write_model_folder(tmp_path / "toy-model")) if request.param == "vllm" else None
    return await start_server(dialect=request.param, root=root)
