"""A process reward model on a server: what is sent, what is read, and replies that cannot be used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from agentsys.models.errors import ModelError, SpecError
from agentsys.models.reward import is_reward_spec, load_reward_model


@asynccontextmanager
async def pooling(data: Any, seen: list[dict[str, Any]]) -> AsyncIterator[str]:
    """A server that answers every request at /pooling with this data."""

    async def answer(request: web.Request) -> web.Response:
        seen.append(await request.json())
        return web.json_response({"data": [{"data": data}]})

    app = web.Application()
    app.router.add_post("/pooling", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


async def test_a_server_scores_the_last_token() -> None:
    seen: list[dict[str, Any]] = []
    async with pooling([[0.9], [0.25]], seen) as url:
        assert await load_reward_model(f"prm:{url}#my-prm").score([[1, 2], [3, 4, 5]]) == [0.25, 0.25]
        assert await load_reward_model(f"prm:{url}/v1").score([[6]]) == [0.25]
    assert sorted(body["input"] for body in seen) == [[1, 2], [3, 4, 5], [6]]
    assert {body["task"] for body in seen} == {"token_classify"}
    assert [body.get("model") for body in seen] == ["my-prm", "my-prm", None]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "has no number per token; serve a token classifier"),
        ("none", "has no number per token"),
        ([[0.5], [2.5]], "has 2.5 for a token; a probability is from 0 to 1"),
    ],
)
async def test_other_replies_are_errors(data: Any, message: str) -> None:
    async with pooling(data, []) as url:
        with pytest.raises(ModelError, match=message):
            await load_reward_model(f"prm:{url}").score([[1]])


async def test_in_studio_a_server_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.models.spec.served_to_browsers", lambda: True)
    with pytest.raises(SpecError, match="in Studio, http://elsewhere:1 is not allowed"):
        load_reward_model("prm:http://elsewhere:1")


def test_specs() -> None:
    assert is_reward_spec("prm:folder") and not is_reward_spec("judge")
