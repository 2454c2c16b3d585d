"""Runs for tests of the viewer: records that could break a page, trees, refinements; and a real browser."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, collect
from agentsys.graphs.drt.system import Context
from agentsys.graphs.drt.system import graph as drt_graph
from agentsys.graphs.longdpo.search import SearchContext
from agentsys.graphs.longdpo.search import graph as longdpo_graph
from agentsys.models.scripted import ScriptedChatModel
from agentsys.prompt import Prompt
from agentsys.roles import Role
from tests.support.toys import RULES, one_node, sentences, write_lines

HOSTILE = {
    "script": "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">",
    "end of script": "</script><!-- <script> ]]> {{ STYLE }}",
    "emoji": "a family \U0001f468\u200d\U0001f469\u200d\U0001f467 and a flag \U0001f1f3\U0001f1f5",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202ereversed\u202c",
    "control": "bell\x07 escape\x1b[31m null\x00 line\u2028separator",
    "large": "abcdefghi " * 100_000,
    "prototype": "__proto__",
}
"""Texts that a page must show as they are."""

ROLE = Role(Prompt.parse("# user\nRepeat {{ text }}", "parrot"))


def hostile_run(folder: Path, cache: Path) -> Path:
    """A run with a kept record for each of HOSTILE, a dropped one, a failed one, and an input that was refused."""
    model = ScriptedChatModel(respond=lambda messages, call: messages[-1]["content"].removeprefix("Repeat "))

    async def node(state: dict[str, Any]) -> dict[str, Any]:
        if state["text"] == "fail":
            raise ValueError("<b>failed</b> on purpose")
        answer = await ROLE(model, key="repeat", text=state["text"])
        dropped = "too <i>plain</i>" if state["text"] == "drop" else None
        return {"reply": answer, "dropped": dropped}

    more = {"__proto__": {"polluted": True}}
    records: list[Any] = [{"id": name, "text": text, "more": more} for name, text in HOSTILE.items()]
    records += [{"id": "plain", "text": "drop"}, {"id": "broken", "text": "fail"}, {"id": "empty"}]
    collect(one_node(node), records, folder, options=RunOptions(cache=cache))
    return folder


def refined_run(folder: Path, cache: Path, count: int = 6, **knobs: Any) -> Path:
    """A scripted DRT run: kept, dropped and failed records, replies requested again."""
    script = write_lines(folder.parent / f"{folder.name}.rules.jsonl", RULES)
    context = Context(model=f"scripted:{script}", **{"max_rounds": 3, **knobs})
    collect(drt_graph, sentences(count, unusable=4), folder, context=context, options=RunOptions(cache=cache))
    return folder


def searched_run(folder: Path, cache: Path) -> Path:
    """A LongDPO run with search trees and preference pairs."""
    log = folder.parent / f"{folder.name}.log"
    context = SearchContext(
        model=f"langchain:tests.support.toys:TreeChatModel?log={log}", width=2, depth=2, simulations=4, weights="stated"
    )
    records = [{"id": f"r{i}", "prompt": f"Request {i}", "length": 300} for i in range(2)]
    collect(longdpo_graph, records, folder, context=context, options=RunOptions(cache=cache))
    return folder


def find_chromium() -> str | None:
    """The browser that the tests use: $AGENTSYS_CHROMIUM, or Debian's package."""
    return os.environ.get("AGENTSYS_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless Chromium that Playwright drives. Without one the test is skipped, or fails if CI needs it."""
    path = find_chromium()
    if os.environ.get("AGENTSYS_NEEDS_BROWSER"):
        assert path is not None, "there is no Chromium, which $AGENTSYS_NEEDS_BROWSER asks for"
    elif path is None:
        pytest.skip("no Chromium: apt install chromium, or set AGENTSYS_CHROMIUM")
    else:
        pytest.importorskip("playwright.sync_api", reason="needs the extra 'test' (playwright)")
    playwright_api = import_module("playwright.sync_api")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def serve_in_thread(folder: Path, find_vocabulary: Any) -> Iterator[str]:
    """The live page of a run, served by this process on a free port; yields its address."""
    from aiohttp import web

    from agentsys.view.live import HOST, make_app

    loop = asyncio.new_event_loop()
    runner = web.AppRunner(make_app(folder, find_vocabulary), access_log=None)
    threading.Thread(target=loop.run_forever, daemon=True).start()  # a browser's test has a loop in this thread

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, HOST, 0).start()
        return int(runner.addresses[0][1])

    yield f"http://{HOST}:{asyncio.run_coroutine_threadsafe(start(), loop).result()}/"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
