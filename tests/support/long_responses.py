"""A scripted world for LongDPO's evaluation: requests, how many words each model writes, and the judge's grades."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from agentsys.graphs.longdpo.longbench_write import DIMENSIONS
from agentsys.models.errors import ModelError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from tests.support.evaluations import read_lines

REQUESTS: list[dict[str, Any]] = [
    {"id": "tea", "prompt": "Praise tea in 100 words.", "type": "Forum", "length": 100},
    {"id": "bee", "prompt": "Describe a bee in 400 words.", "type": "Science", "length": 400},
    {"id": "ship", "prompt": "A report on a ship, 1000 words.", "type": "News", "length": 1000},
    {"id": "war", "prompt": "An anti-war novel of 5000 words.", "type": "Fiction", "length": 5000},
    {"id": "free", "prompt": "Write whatever you like.", "type": "Forum"},
]
WORDS = {
    "base": {"tea": 100, "bee": 200, "ship": 2000, "war": 2500, "free": 10},
    "student": {"tea": 100, "bee": 400, "ship": 1000, "war": 5000, "free": 10},
}
"""How many words each model writes."""
GRADES = {"tea": [5] * 6, "bee": [5, 4, 3, 2, 1, 3], "ship": [4] * 6, "war": [3, 3, 6, 3, 3, 3], "free": [3] * 6}
"""The judge's grades; the novel's third is out of range."""
CALLS: list[str] = []
"""A line for every call."""
PROMPTS: list[str] = []
"""The messages of every call."""
FAILING: set[str] = set()
"""Roles that fail at the request about the bee."""
SILENT: set[str] = set()
"""Keys of the writer's calls with an empty reply."""


class Author(ScriptedChatModel):
    """Writes as many words as WORDS says; the report on the ship is truncated."""

    def __init__(self, **settings: Any) -> None:
        name = settings.get("name_in_traces", "base")
        super().__init__(respond=partial(respond, name), revision="1", **settings)

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        truncated = kwargs["role"] == "writer" and "a ship" in str(messages)
        return replace(reply, finish="length") if truncated else reply


def respond(writer: str, messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
    """The role's reply to the request in the messages."""
    text = "\n".join(str(message["content"]) for message in messages)
    request = next(row["id"] for row in REQUESTS if row["prompt"] in text)
    CALLS.append(f"{writer} {request} {call['key']}")
    PROMPTS.append(text)
    if call["role"] in FAILING and request == "bee":
        raise ModelError("the model fell over")
    if call["role"] == "writer":
        return "" if call["key"] in SILENT else "word " * WORDS[writer][request]
    return json.dumps({"analysis": "x", **dict(zip(DIMENSIONS, GRADES[request], strict=True))})


MODEL = f"langchain:{__name__}:Author"
STUDENT = f"{MODEL}?name_in_traces=student"
BOTH = ["--model", MODEL, "--judge-model", MODEL]


def scores(out: Path) -> dict[str, dict[str, Any]]:
    """The systems' scores of each request, from scores.jsonl."""
    return {line["id"]: line["systems"] for line in read_lines(out / "scores.jsonl")}
