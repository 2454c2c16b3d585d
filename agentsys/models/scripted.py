"""A deterministic chat model whose replies stand in a file: for tests and for trying a graph without a model.

The file is JSON Lines; each line is a rule {"role": "advisor", "key": "advise/*", "replies": ["..."]}. `role` and
`key` are shell patterns and may be left out. The first rule that fits a call gives its reply: of several, the one that
the call's seed picks, so that the same call always gets the same reply.
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
from agentsys.models.wire import Reply

Respond = Callable[[Sequence[Mapping[str, Any]], dict[str, Any]], str]
"""Messages and the call's {"role", "key", "seed"} -> reply."""


class ScriptedChatModel(AgentChatModel):
    """Replies from a function or a file of rules; `seconds` is how long each call takes."""

    respond: Respond
    name_in_traces: str = "scripted"
    revision: str | None = None
    seconds: float = 0.0

    @classmethod
    def from_file(cls, path: str, sampling: dict[str, Any]) -> ScriptedChatModel:
        """Read the rules. Raises SpecError if the file is missing or a line is no rule."""
        try:
            text = Path(path).read_bytes()
            rules = [orjson.loads(line) for line in text.splitlines() if line.strip()]
            replies = [(r.get("role", "*"), r.get("key", "*"), list(r["replies"])) for r in rules]
        except OSError as err:
            raise SpecError(f"scripted:{path}: {err.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise SpecError(
                f"scripted:{path}: a line is no rule like {{'role': 'drt/*', 'replies': ['...']}}: {err}"
            ) from None

        def respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
            for role, key, choices in replies:
                if fnmatch.fnmatchcase(call["role"], role) and fnmatch.fnmatchcase(call["key"], key):
                    return str(choices[(call["seed"] or 0) % len(choices)])
            raise ModelError(f"scripted:{path} has no rule for role {call['role']} with key {call['key']}")

        return cls(respond=respond, revision=hashlib.sha256(text).hexdigest()[:16], sampling=sampling)

    @property
    def _llm_type(self) -> str:
        return "agentsys-scripted"

    async def identity(self) -> dict[str, Any]:
        """{"name", "revision"}; the revision of a file is its digest."""
        return {"name": self.name_in_traces, "revision": self.revision}

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        """See AgentChatModel.complete."""
        if self.seconds:
            await asyncio.sleep(self.seconds)
        call = {"role": kwargs.get("role", ""), "key": kwargs.get("key", ""), "seed": kwargs.get("seed")}
        text = self.respond(messages, call)
        return Reply(text, "stop", sum(len(str(m["content"]).split()) for m in messages), len(text.split()))
