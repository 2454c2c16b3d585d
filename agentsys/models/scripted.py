"""A deterministic chat model that reads its replies from a file: for tests, and to try a graph without a model.

The file is JSON Lines; each line is a rule {"role": "advisor", "key": "advise/*", "replies": ["..."]}. `role` and
`key` are shell patterns and may be omitted. The first rule that matches a call applies; the call's seed picks one of
its replies, so that the same call always gets the same reply.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from agentsys.models.chat import AgentChatModel
from agentsys.models.errors import ModelError, SpecError
from agentsys.models.thinking import split_reply
from agentsys.models.wire import Reply

Respond = Callable[[Sequence[Mapping[str, Any]], dict[str, Any]], str]
"""(messages, the call's {"role", "key", "seed"}) -> text of the reply."""


class ScriptedChatModel(AgentChatModel):
    """Replies from a function or a file of rules; each call takes `seconds`."""

    respond: Respond
    name_in_traces: str = "scripted"
    revision: str | None = None
    seconds: float = 0.0

    @classmethod
    def from_file(cls, path: str, sampling: dict[str, Any]) -> ScriptedChatModel:
        """Read the rules of a file. Raises SpecError if the file cannot be read or a line is not a rule."""
        try:
            content = Path(path).read_bytes()
            entries = [orjson.loads(line) for line in content.splitlines() if line.strip()]
            rules = [(e.get("role", "*"), e.get("key", "*"), list(e["replies"])) for e in entries]
        except OSError as err:
            raise SpecError(f"scripted:{path}: {err.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise SpecError(
                f'scripted:{path}: not a rule: {err}; write lines like {{"role": "drt/*", "replies": ["..."]}}'
            ) from None

        def respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
            for role, key, replies in rules:
                if fnmatch.fnmatchcase(call["role"], role) and fnmatch.fnmatchcase(call["key"], key):
                    return str(replies[(call["seed"] or 0) % len(replies)])
            raise ModelError(f"scripted:{path} has no rule for role {call['role']} with key {call['key']}")

        return cls(respond=respond, revision=hashlib.sha256(content).hexdigest()[:16], sampling=sampling)

    @property
    def _llm_type(self) -> str:
        return "agentsys-scripted"

    async def identity(self) -> dict[str, Any]:
        """See AgentChatModel.identity; the revision of a file of rules is its digest."""
        return {"name": self.name_in_traces, "revision": self.revision}

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        """See AgentChatModel.complete."""
        if self.seconds:
            await asyncio.sleep(self.seconds)
        call = {"role": kwargs.get("role", ""), "key": kwargs.get("key", ""), "seed": kwargs.get("seed")}
        text = self.respond(messages, call)
        reply = Reply(text, "stop", sum(len(str(m["content"]).split()) for m in messages), len(text.split()))
        await split_reply(reply, messages)
        return reply
