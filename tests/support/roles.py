"""Two roles, scripted models that remember their requests, and a recorder around calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BaseModel, Field

from agentsys.models.cache import RequestCache
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from agentsys.prompt import Prompt
from agentsys.recorder import Recorder, current
from agentsys.roles import Role


class Verdict(BaseModel):
    """The judge's output."""

    reason: str
    score: Annotated[int, Field(ge=0, le=100)]


GREETER: Role[str] = Role(Prompt.parse("# system\nBe kind.\n# user\nGreet {{ name }}", "greeter"))
JUDGE: Role[Verdict] = Role(Prompt.parse("# user\nJudge {{ text }}", "judge"), Verdict)
GOOD = '{"reason": "smooth", "score": 88}'


class Script:
    """Returns the replies in order, then the last one again; remembers the requests and calls."""

    def __init__(self, *replies: str) -> None:
        self.replies = list(replies)
        self.requests: list[list[tuple[str, Any]]] = []
        self.calls: list[dict[str, Any]] = []

    def __call__(self, messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        self.requests.append([(message["role"], message["content"]) for message in messages])
        self.calls.append(call)
        return self.replies[min(len(self.requests), len(self.replies)) - 1]


def scripted(*replies: str, **settings: Any) -> tuple[ScriptedChatModel, Script]:
    """A scripted model with these replies, and its script."""
    script = Script(*replies)
    return ScriptedChatModel(respond=script, **settings), script


class TruncatedChatModel(ScriptedChatModel):
    """Every reply ends at the token limit."""

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        reply.finish = "length"
        return reply


@contextmanager
def recording(record: str = "r1", cache: RequestCache | None = None) -> Iterator[Recorder]:
    """Record the calls made inside, as those of one record."""
    recorder = Recorder(record, cache)
    token = current.set(recorder)
    try:
        yield recorder
    finally:
        current.reset(token)
