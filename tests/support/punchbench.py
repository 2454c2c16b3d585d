"""PunchBench in tests: a scripted model for the builder, pairs with their pictures, items."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentsys.graphs.punchbench.tasks import Format, Item, Task
from agentsys.models.scripted import ScriptedChatModel
from agentsys.pictures import is_reference

CAPTION = "What a lovely quiet evening at home with the neighbours"
GIVEN = {
    "synonymous": "Such a charming silent night indoors beside the people next door",
    "antonymous": "What an awful loud evening at home with the neighbours",
    "distractor": "A man at a window holds both of his ears",
    "reasoning": "The man praises silence while a drum kit can be seen through the wall.",
    "distractor_reasoning": "The man has lost his hat and looks for it behind the sofa.",
}
"""What a record may have of its pair."""
STATEMENTS = {
    "correct": "A punchline: he praises silence beside a drum kit.",
    "wrong": ["No punchline: he sits beside a silent kit.", "A punchline: the hat is far too large.",
              "A punchline: nobody is at home this time."],
}  # fmt: skip

Respond = Callable[[str, str], str | None]
"""(role, key of the call) -> reply, None for the usual one."""


def usual_reply(role: str, key: str) -> str:
    """A reply that passes the builder's checks, for a pair with a punchline."""
    if role in ("filter_judge", "punchline_judge"):
        is_yes = key.startswith(("synonymous", "filter/picture", "filter/caption"))
        return json.dumps({"answer": "Yes" if is_yes else "No"})
    return {
        "splitter": json.dumps({"contradict": False, "first": "", "second": ""}),
        "substituter": GIVEN["synonymous"],
        "inverter": GIVEN["antonymous"],
        "captioner": GIVEN["distractor"],
        "explainer": GIVEN["reasoning"],
        "misexplainer": GIVEN["distractor_reasoning"],
        "optioner": json.dumps(STATEMENTS),
    }[role]


class BuilderModel(ScriptedChatModel):
    """Replies of `respond`, else the usual ones; remembers (role, key, whether it saw a picture)."""

    seen: list[tuple[str, str, bool]] = []  # noqa: RUF012 (pydantic copies it)

    @classmethod
    def of(cls, respond: Respond = lambda role, key: None) -> BuilderModel:
        """Return a model with these replies."""
        model = cls(respond=lambda messages, call: "", seen=[])

        def answer(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
            blocks = [b for m in messages if isinstance(m["content"], list) for b in m["content"]]
            model.seen.append((call["role"], call["key"], any(map(is_reference, blocks))))
            reply = respond(call["role"], call["key"])
            return usual_reply(call["role"], call["key"]) if reply is None else reply

        model.respond = answer
        return model


def pair(number: int = 0, **fields: Any) -> dict[str, Any]:
    """A record of a pair with a punchline."""
    from tests.support.images import png

    return {"id": f"pair-{number}", "image": png(number), "caption": CAPTION, "label": 1, **fields}


def item(number: int, task: Task = "perception", format: Format = "yes_no", **fields: Any) -> Item:
    """An item of the pair with this number."""
    defaults: dict[str, Any] = {
        "id": f"pair-{number}/o/{task}/{format}", "pair": f"pair-{number}", "caption_type": "o", "task": task,
        "format": format, "image": "images/a.png", "caption": f"caption {number}", "sentence": "", "options": [],
        "answer": "Yes",
    }  # fmt: skip
    return Item(**{**defaults, **fields})
