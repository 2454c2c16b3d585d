"""CRAT's scripted world: replies of all roles, custom sources, and views of a result."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentsys.graphs.crat.retrieval import Retrieval
from agentsys.graphs.crat.system import CRAT
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from agentsys.terms.item import Item

SENTENCE = "The bank near Scotia was steep."
SHORE, MONEY = ("the land beside a river", "河岸"), ("a company that keeps money", "银行")
DOCUMENT = [
    "Scotia lies by the sea.",
    "Nothing grows on the hill.",
    "The bank was steep.",
    "In Scotia the bank lends money.",
]

Runner = Callable[..., Any]


@dataclass
class Script:
    """A scripted world: each role's reply follows from these fields and from the request.

    `irrelevant` holds (word of the sentence, translation), `unplaced` translations that the substituter leaves out,
    `changed` those whose concept is lost in back-translation, `rivals` (entry, rival) where the rival is better;
    `translations` maps a sentence to the translator's reply. Calls whose key matches `broken` return no JSON.
    """

    terms: Sequence[tuple[str, str]] = (("bank", "polysemy"), ("Scotia", "proper"))
    senses: Mapping[str, Sequence[tuple[str, str]]] = field(
        default_factory=lambda: {"bank": [MONEY, SHORE], "Scotia": [("a place", "斯科舍")]}
    )
    more: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    relations: Sequence[tuple[str, str, str]] = (("bank", "is near", "Scotia"), ("river", "is", "wet"))
    irrelevant: set[tuple[str, str]] = field(default_factory=lambda: {("steep", "银行")})
    unplaced: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    rivals: set[tuple[str, str]] = field(default_factory=set)
    names: Sequence[str] = ()
    translations: Mapping[str, str] = field(default_factory=dict)
    repaired: str = ""
    broken: str = "-"
    calls: list[tuple[str, str, str]] = field(default_factory=list)

    def __call__(self, messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        role, key, last = call["role"], call["key"], str(messages[-1]["content"])
        self.calls.append((role, key, last))
        if re.fullmatch(self.broken, key):
            return "no JSON"
        return str(getattr(self, role)(last))

    def identifier(self, request: str) -> str:
        text = request.casefold()
        terms = [{"term": t, "kind": k} for t, k in self.terms if t.casefold() in text or t == "Atlantis"]
        return json.dumps({"terms": terms})

    def glosser(self, request: str) -> str:
        return "steep = 陡"

    def kg_constructor(self, request: str) -> str:
        return json.dumps(
            {"relations": [dict(zip(("term", "relation", "object"), r, strict=True)) for r in self.relations]}
        )

    def llm_source(self, request: str) -> str:
        term = read_line(request, "Term")
        senses = self.more.get(term, ()) if "do not fit" in request else self.senses.get(term, ())
        return json.dumps({"senses": [{"meaning": m, "translation": t} for m, t in senses or [("nothing", " ")]]})

    def query_expander(self, request: str) -> str:
        return json.dumps({"names": list(self.names)})

    def relevance(self, request: str) -> str:
        target = read_line(request, "Entry").split(" - ")[0]
        wrong = any(word in read_line(request, "Sentence") and target == other for word, other in self.irrelevant)
        return json.dumps({"here": "the word", "entry": target, "relevant": not wrong})

    def substituter(self, request: str) -> str:
        [target] = re.findall(r"rendered as[^:]*: (.+)", request)
        return "句子没有它。" if target in self.unplaced else f"句子用{target}。"

    def back_translator(self, request: str) -> str:
        return f"back from {request}"

    def invariance(self, request: str) -> str:
        changed = any(f"用{target}。" in request for target in self.changed)
        return json.dumps({"first": "the word", "last": "lost" if changed else "kept", "same": not changed})

    def counterfactual(self, request: str) -> str:
        entry, rival = (read_line(request, name).split(" - ")[0] for name in ("Entry", "Rival"))
        better = "rival" if (entry, rival) in self.rivals else "entry"
        return json.dumps({"reason": f"{entry} or {rival}", "changes": True, "better": better})

    def translator(self, request: str) -> str:
        targets = "".join(re.findall(r" = (\S+)", request))
        return self.translations.get(read_line(request, "Sentence"), f"译文{targets}。")

    def repairer(self, request: str) -> str:
        return self.repaired

    def keys(self, role: str) -> list[str]:
        return sorted(key for name, key, _ in self.calls if name == role)

    def request(self, key: str) -> str:
        return next(request for _, call_key, request in self.calls if call_key == key)


def read_line(request: str, name: str) -> str:
    """The rest of the first line of a request that starts with `name`."""
    return next(row for row in request.splitlines() if row.startswith(f"{name}: ")).removeprefix(f"{name}: ")


def document_script(**more: Any) -> Script:
    """Two sentences share Scotia, two share "bank", with another meaning in the last."""
    return Script(irrelevant={("steep", "银行"), ("lends", "河岸")}, **more)


class Lists:
    """A custom source."""

    name = "lists"

    def __init__(self, **items: Sequence[Item]) -> None:
        self.items, self.lookups = items, list[tuple[str, ...]]()

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        self.lookups.append(tuple(terms))
        return [list(self.items.get(term, ())) for term in terms]


def with_source(source: Any) -> Any:
    return CRAT(retrieval=Retrieval(sources=(source,))).builder().compile(name="crat")


def make_item(term: str, target: str, meaning: str = "") -> Item:
    return Item(term, target, meaning, f"{term} = {target}", "list:1")


def find_decision(result: Mapping[str, Any], surface: str, sentence: int = 0) -> dict[str, Any]:
    return next(d for d in result["decisions"] if (d["surface"], d["sentence"]) == (surface, sentence))


def verdicts(decision: Mapping[str, Any]) -> dict[str, str]:
    return {c["item"]["target"]: "accepted" if c["accepted"] else c["rejected_by"] for c in decision["candidates"]}


class Unsure(ScriptedChatModel):
    """Each character is a token; `odds` are the probabilities of a gloss's characters, all others are certain."""

    odds: dict[str, float]
    ids: bool = True

    async def token_ids(self, text: str) -> list[int] | None:
        return [ord(char) for char in text] if self.ids else None

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        if kwargs["role"] == "glosser":
            reply.logprobs = [math.log(self.odds.get(char, 1.0)) for char in reply.text]
            if self.ids:
                reply.prompt_ids, reply.ids = [0], [ord(char) for char in reply.text]
            else:
                reply.top_tokens = [[char] for char in reply.text]
                reply.top_logprobs = [[logprob] for logprob in reply.logprobs]
        return reply
