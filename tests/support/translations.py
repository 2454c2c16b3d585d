"""A scripted world for the evaluation of translations: pairs, what each translator says, and the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentsys.models.errors import ModelError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply

FLU = {"source": "flu", "targets": ["流感", "流行性感冒"]}
PAIRS: list[dict[str, Any]] = [
    {
        "id": "a1",
        "text": "The flu spreads.",
        "trans": ["流感在传播。", "流感正在蔓延。"],
        "document": "a",
        "terms": [FLU],
    },
    {"id": "a2", "text": "Stop the flu.", "trans": "阻止流感。", "document": "a", "terms": [FLU]},
    {"id": "b1", "text": "Soybean sprouts?", "trans": "黃豆芽？", "document": "b", "mentions": [["黃豆芽", "大豆芽"]]},
    {"id": "b2", "text": "The flu again.", "trans": "又是流感。", "document": "b", "terms": [FLU]},
]
TRANSLATIONS = {
    "plain": {"a1": "流感在传播。", "a2": "阻止流行性感冒。", "b1": "黄豆芽？", "b2": "又是感冒。"},
    "student": {"a1": "流感正在蔓延。", "a2": "阻止流感。", "b1": "豆子？", "b2": "又是流感。"},
    "crat": {"a1": "这种流感在传播。", "a2": "停止流感。", "b1": "黄豆芽呢？", "b2": "流感又来了。"},
}
"""Each translator's translation of a sentence."""
REPLIES = {
    "grf": '{"score": 80}',
    "grb": '{"score": 70}',
    "gea": '{"reason": "stiff", "score": 60}',
    "glosser": "flu = 流感",
    "kg_constructor": '{"relations": []}',
    "llm_source": '{"senses": [{"meaning": "a disease", "translation": "流感"}]}',
    "relevance": '{"here": "a disease", "entry": "a disease", "relevant": true}',
    "substituter": "流感",
    "back_translator": "flu",
    "invariance": '{"first": "a disease", "last": "a disease", "same": true}',
    "mqm": '{"errors": []}',
    "document": '{"reason": "it reads as one text", "score": 75}',
    "counterfactual": '{"reason": "none", "changes": false, "better": "entry"}',
}
CALLS: list[str] = []
"""A line for every call."""
FAILING: set[str] = set()
"""Roles that fail at the sentence a2."""
TRUNCATED: set[str] = set()
"""Roles whose reply to b1 ends at the token limit."""


class Translator(ScriptedChatModel):
    """Knows the sentences above."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(respond=respond, revision="1", **settings)

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        truncated = CALLS[-1].startswith("b1 ") and kwargs["role"] in TRUNCATED
        return replace(reply, finish="length") if truncated else reply


def respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
    """The role's reply to the last sentence in the messages."""
    text, role = "\n".join(str(message["content"]) for message in messages), call["role"]
    pair = max(PAIRS, key=lambda pair: text.rfind(pair["text"]))
    CALLS.append(f"{pair['id']} {role} {call['key']}")
    if role in FAILING and pair["id"] == "a2":
        raise ModelError("the model fell over")
    if role == "identifier":
        terms = [{"term": "flu", "kind": "domain"}] if "flu" in pair["text"] else []
        return json.dumps({"terms": terms})
    if role == "preference":
        return json.dumps({"reason": "so", "better": preferred(text, pair)})
    if role == "student":
        return f"<thought>Hmm.</thought><output>{TRANSLATIONS['student'][pair['id']]}</output>"
    if role == "translator":
        return TRANSLATIONS["crat" if "/" in call["key"] else "plain"][pair["id"]]
    return REPLIES[role]


def preferred(text: str, pair: Mapping[str, Any]) -> str:
    """The judge prefers a translation that is a reference; of two others, or two references, the first one it sees."""
    first, second = text.rpartition("First translation:\n")[2].split("\n\nSecond translation:\n")
    return "second" if second.strip() in pair["trans"] and first.strip() not in pair["trans"] else "first"


MODEL = f"langchain:{__name__}:Translator"
