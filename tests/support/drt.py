"""DRT with scripted models: the replies of a whole run, and a runner that takes one sentence through the graph."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentsys.collect import RunOptions, collect
from agentsys.graphs.drt.system import DRT, Context, graph
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from agentsys.traces import Call, Trace, load
from tests.support.shards import shard_lines
from tests.support.toys import evaluation, thought_with_marks, write_lines

TEXT = "The lamp shone like a small moon."
TEXTS = ["第一次的译文", "第二次的译文", "第三次的译文", "第四次的译文", "第五次的译文"]
KEYWORDS = '{"keywords": [{"word": "like", "translation": "像"}, {"word": "sun", "translation": "太阳"}]}'
Rule = dict[str, Any]


def script_rules(scores: Sequence[int] = (), texts: Sequence[str] = TEXTS, *first: Rule) -> list[Rule]:
    """Replies of a whole run: a score and a text for each round. The rules in `first` come before."""
    rounds: list[Rule] = []
    for k, text in enumerate(texts):
        rounds.append({"role": "draft" if k == 0 else "refiner", "key": f"refine/{k}" if k else "*", "replies": [text]})
        rounds.append({"role": "advisor", "key": f"advise/{k}", "replies": [advice(k)]})
    scored = [
        {"role": "evaluator", "key": f"evaluate/{k}", "replies": [evaluation(score)]} for k, score in enumerate(scores)
    ]
    thoughts = [
        {"role": "narrator", "key": f"narrate{'#' * bool(n)}{n or ''}", "replies": [thought_with_marks(n + 2)]}
        for n in range(3)
    ]
    return [*first, {"role": "keywords", "replies": [KEYWORDS]}, *rounds, *scored, *thoughts]


def advice(k: int) -> str:
    """The advisor's reply in round k, which quotes words of every text and proposes others."""
    return f'advice {k}: "译文" is stiff; write "翻译{k}" instead.'


def small_rules() -> list[Rule]:
    """Replies of the roles that only a run with --profile small has, in addition to `script_rules`."""
    versions = [{"lead": f"Version {i}:", "judgement": "It is good."} for i in range(1, 3)]
    thought = {"keywords": "I start.", "versions": versions, "decision": "I keep"}
    return [
        *({"role": "candidate", "key": f"candidate/{k}", "replies": [TEXTS[k]]} for k in range(1, len(TEXTS))),
        {"role": "contrast", "replies": ["It reads better."]},
        {"role": "rewriter", "replies": [TEXTS[1]]},
        {"role": "short_narrator", "replies": [json.dumps(thought)]},
    ]


def comparer_rules(*verdicts: tuple[str, str]) -> list[Rule]:
    """For each round, the replies to (old, new) and to (new, old)."""
    return [
        {"role": "comparer", "key": f"compare/{k}/{order}", "replies": [json.dumps({"reason": "so", "better": better})]}
        for k, verdict in enumerate(verdicts, 1)
        for order, better in enumerate(verdict)
    ]


class Runner:
    """Takes one sentence through DRT and returns its trace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0

    def __call__(
        self, replies: list[Rule], kind: str = "", drt: Any = graph, context: type[Context] = Context, **knobs: Any
    ) -> Trace:
        """Run `drt` with these replies; `kind` names a class of this module in place of ScriptedChatModel."""
        self.runs += 1
        script = write_lines(self.folder / f"replies{self.runs}.jsonl", replies)
        spec = f"langchain:{__name__}:{kind}?script={script}" if kind else f"scripted:{script}"
        out = self.folder / f"run{self.runs}"
        collect(
            drt,
            [{"id": "r", "text": TEXT}],
            out,
            context=context(spec, **{"max_rounds": 3, **knobs}),
            options=RunOptions(no_cache=True),
        )
        lines = [*shard_lines(out), *(out / "failed.jsonl").read_bytes().splitlines()]
        [line] = lines
        return load(line)


def result_of(trace: Trace) -> dict[str, Any]:
    """The result of a record that did not fail."""
    assert trace.result is not None, trace.reason
    return trace.result


def call_of(trace: Trace, key: str) -> Call:
    """The call with this key."""
    return next(call for call in trace.calls if call.key == key)


def compile_drt(system: DRT) -> Any:
    """The compiled graph of a changed system."""
    return system.builder().compile(name="drt")


class FromFile(ScriptedChatModel):
    """A scripted model that a model spec can name."""

    def __init__(self, script: str, **settings: Any) -> None:
        plain = ScriptedChatModel.from_file(script, {})
        super().__init__(respond=plain.respond, revision=plain.revision, **settings)


class Meeting(FromFile):
    """Answers a comparison only once a second one is in flight."""

    waiting: list[asyncio.Event] = []  # noqa: RUF012 (pydantic copies it)

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        if kwargs["role"] == "comparer":
            if self.waiting:
                self.waiting.pop().set()
            else:
                self.waiting.append(event := asyncio.Event())
                await asyncio.wait_for(event.wait(), 20)
        return await super().complete(messages, **kwargs)


class Unsure(FromFile):
    """Reports the number of a score as one token; another first digit, 7, is half as likely as the one written."""

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        before, place, rest = reply.text.partition('"score": ')
        if kwargs["role"] == "evaluator":
            number = rest.removesuffix("}")
            reply.top_tokens = [[before], [place], [number, f"7{number[1:]}"], ["}"]]
            reply.top_logprobs = [[0.0], [0.0], [math.log(2 / 3), math.log(1 / 3)], [0.0]]
        return reply
