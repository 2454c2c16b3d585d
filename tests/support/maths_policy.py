"""A scripted policy and judge for stepwise maths, on token ids where a letter is a token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply

EOS = 0
QUESTION = "What is 3 times 4, plus 5?"
RECORD = {"id": "r", "question": QUESTION, "answer": "3*4=<<3*4=12>>12\n#### 17"}

RIGHT = "Step 1: good 3*4=12.\n\nStep 2: good 12+5=17, so \\boxed{17}"
SLIP = "Step 1: good 3*4=12.\n\nStep 2: 12+5=18, so \\boxed{18}"
WRONG = "Step 1: bad 3*4=7.\n\nStep 2: 7+5=12, so \\boxed{12}"
HOPELESS = "Step 1: bad 3+4=7.\n\nStep 2: 7+5=12, so \\boxed{12}"

Author = Callable[[str, str, int], str]
"""The solution so far, the call's key, its seed -> the whole rest of the solution."""


class Policy(ScriptedChatModel):
    """Writes the rest of the solution that its author gives, up to a stop string, whose ids it keeps.

    The judge says Yes to a solution with "good" in it. `calls` holds every call: key, ids continued, messages.
    """

    author: Any = None
    delays: Any = None
    returns_ids: bool = True
    calls: list[tuple[str, list[int], str]] = []  # noqa: RUF012

    def __init__(self, **settings: Any) -> None:
        super().__init__(respond=lambda messages, call: "", **settings)

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        if self.delays is not None:
            await asyncio.sleep(self.delays.random() / 200)
        text = "\n".join(str(message["content"]) for message in messages)
        prefix = kwargs.get("continue_ids") or []
        self.calls.append((kwargs["key"], prefix, text))
        if kwargs["role"] == "judge":
            word = "Yes" if "good" in str(messages[-1]["content"]) else "No"
            return Reply(word, "stop", 1, 1)
        rest = self.author("".join(map(chr, prefix)), kwargs["key"], kwargs.get("seed") or 0)
        return self._reply(rest, prefix, self.settings(kwargs["sampling"]))

    def _reply(self, rest: str, prefix: list[int], sampling: Mapping[str, Any]) -> Reply:
        """The rest up to a stop string or the token limit."""
        ends = [(rest.find(stop), stop) for stop in sampling.get("stop", ()) if stop in rest]
        end, stop = min(ends, default=(len(rest), ""))
        ids = [*map(ord, rest[:end] + stop), *([] if stop else [EOS])]
        reply = Reply(rest[:end], "stop", 1, len(ids), [1, *prefix], ids, int(not stop), [-0.5] * len(ids))
        if len(ids) > sampling["max_tokens"]:
            ids = ids[: sampling["max_tokens"]]
            reply = Reply("".join(map(chr, ids)), "length", 1, len(ids), [1, *prefix], ids, 0, [-0.5] * len(ids))
        return reply if self.returns_ids else replace(reply, ids=None, stop_ids=0, prompt_ids=None)


def pupil(prefix: str, key: str, seed: int) -> str:
    """After the right first step every second child or rollout slips; after a wrong one none is right."""
    number = int(key.split("#")[0].rpartition("/")[2])
    if not prefix:
        return [RIGHT, WRONG, HOPELESS, RIGHT][number % 4]
    for whole in ([RIGHT, SLIP] if number % 2 == 0 else [SLIP, RIGHT]) + [WRONG, HOPELESS]:
        if whole.startswith(prefix):
            return whole[len(prefix) :]
    raise AssertionError(prefix)


def find_node(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The node of a result's tree with this id."""
    node: dict[str, Any] = next(node for node in result["tree"] if node["id"] == name)
    return node
