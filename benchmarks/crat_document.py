"""CRAT on a document: concurrent sentences against sentences one by one, with a model of fixed latency.

    python benchmarks/crat_document.py [--sentences 31] [--latency 0.2] [--slots 1 8 64]

The replies are scripted and take the latency each; at most `slots` calls are in flight. Each sentence has two terms,
one of them shared with other sentences; each term has two candidates, one of which fails a check, and every tenth term
needs a second retrieval. Every fifth translation lacks a term and is repaired. Rows:
  one by one    each sentence as its own record, one after the other: shared terms are judged again
  document      the sentences as one document; the ideal is max(critical path, calls x latency / slots). The critical
                path is 7 calls (identify, retrieve, relevance, substitution, back-translation, invariance, translate),
                5 more for a second retrieval and the checks of its candidates, 1 for a repair
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from agentsys.graphs.crat.system import Context, graph
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply


def term(number: int) -> str:
    return f"Zor{'abcdefghij'[number // 10]}{'abcdefghij'[number % 10]}n"


def document(count: int) -> list[str]:
    """Sentences with one term of their own and one that three neighbors share."""
    return [f"The {term(i)} met the {term(60 + i // 3)} at noon." for i in range(count)]


def respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
    """The reply of each role, from the request alone."""
    request, role = str(messages[-1]["content"]), call["role"]
    names = re.findall(r"Zor\w\wn", request)
    hard = any(name.endswith("jn") for name in names[-1:])
    replies: dict[str, Any] = {
        "identifier": {"terms": [{"term": name, "kind": "proper"} for name in names]},
        "kg_constructor": {"relations": [{"term": names[0], "relation": "met", "object": names[-1]}]} if names else {},
        "llm_source": {"senses": [{"meaning": m, "translation": f"{m}译{names[-1]}"} for m in "甲乙"]} if names else {},
        "relevance": {"here": "so", "entry": "so", "relevant": True},
        "invariance": {"first": "so", "last": "so", "same": "乙" in request and not (hard and "再" not in request)},
        "counterfactual": {"reason": "so", "changes": True, "better": "entry"},
    }
    if role == "llm_source" and "do not fit" in request:
        replies[role] = {"senses": [{"meaning": "乙再", "translation": f"乙再译{names[-1]}"}]}
    if role == "translator":
        targets = re.findall(r" = (\S+)", request)
        return "".join(targets[1:] if int(call["key"].split("/")[1].split("#")[0]) % 5 == 0 else targets) + "。"
    if role == "repairer":
        return (
            "".join(re.findall(r"^- (.*)$", request, re.MULTILINE)) + request.split("Translation: ")[1].split("\n")[0]
        )
    rendered = "".join(re.findall(r"rendered as: (.*)", request))
    texts = {"substituter": rendered, "back_translator": request, "glosser": "noon = 中午"}
    return texts.get(role) or json.dumps(replies[role])


class Slow(ScriptedChatModel):
    """At most `slots` concurrent calls, each of which takes the latency."""

    slots: Any
    calls: int = 0

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        async with self.slots:
            self.calls += 1
            return await super().complete(messages, **kwargs)


def measure(texts: Sequence[str], latency: float, slots: int, *, together: bool) -> tuple[float, int, dict[str, Any]]:
    """Wall seconds, number of calls and the (last) result."""
    import agentsys.systems

    async def work() -> tuple[float, int, dict[str, Any]]:
        model = Slow(respond=respond, seconds=latency, slots=asyncio.Semaphore(slots))
        agentsys.systems.load_model = lambda *spec, **settings: model  # type: ignore[assignment]
        started, result = time.perf_counter(), {}
        for record in [{"sentences": list(texts)}] if together else [{"text": text} for text in texts]:
            result = await graph.ainvoke(record, context=Context())  # type: ignore[call-overload]
        return time.perf_counter() - started, model.calls, result

    return asyncio.run(work())


def critical_path(result: Mapping[str, Any]) -> int:
    """Calls in the longest chain: a sentence's own calls after the slowest decision on its terms."""
    longest = 0
    for sentence, rendered in zip(result["document"], result["rendered"], strict=True):
        nodes = {mention["node"] for mention in sentence["mentions"]}
        more_retrievals = max(d["retrievals"] - 1 for d in result["decisions"] if d["node"] in nodes)
        longest = max(longest, 7 + 5 * more_retrievals + rendered["repaired"])
    return longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=31)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that each call takes")
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 64, 1024], help="calls in flight")
    args = parser.parse_args()
    texts = document(args.sentences)
    measure(texts[:2], 0.0, 64, together=True)  # imports
    print(
        f"{args.sentences} sentences, {args.latency:g} s per call; Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}"
    )
    print("| | slots | calls | wall s | ideal s | times faster |\n|---|---|---|---|---|---|")
    alone, calls, _ = measure(texts, args.latency, max(args.slots), together=False)
    print(f"| one by one | {max(args.slots)} | {calls} | {alone:.2f} | | 1 |")
    for slots in args.slots:
        wall, calls, result = measure(texts, args.latency, slots, together=True)
        ideal = args.latency * max(critical_path(result), calls / slots)
        print(f"| document | {slots} | {calls} | {wall:.2f} | {ideal:.2f} | {alone / wall:.1f} |")


if __name__ == "__main__":
    main()
