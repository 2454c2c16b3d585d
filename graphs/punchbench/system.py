"""PunchBench's builder: from an image-caption pair to captions, distractors and options, each checked (section 3).

One node is one step of the paper, and asks one or two roles. An item that fails its checks is made again, and after
`tries` times it is dropped with the reason. The pair goes on without it: tasks.py makes the questions that its items
allow. What the input has is used as it is, and no model is asked for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.punchbench import checks
from agentsys.graphs.punchbench.state import (
    CaptionType,
    Fault,
    Input,
    Options,
    Output,
    Parts,
    State,
    Statements,
    Verdict,
    captions_of,
)
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.roles import Role
from agentsys.systems import BaseContext, System, ask, knob, role_options
from agentsys.text.words import words

FILTERS: Final = (
    (
        "ethics",
        "Does the picture or the caption offend against ethics: hatred, cruelty, sexual or private content?",
        "No",
    ),
    ("picture", "Is the picture clearly visible?", "Yes"),
    ("caption", "Is the caption well written, and does it belong to the picture?", "Yes"),
)
"""The three questions of the filter in their order, with the answer that keeps a pair (section 3.1)."""
FAULTS: Final = ("caption_faults", "distractor_faults", "reasoning_faults", "sentence_faults", "option_faults")
WRITING: Final = {"temperature": 0.9, "max_tokens": 300}
JUDGING: Final = {"temperature": 0.0, "max_tokens": 40}


@dataclass(frozen=True)
class PunchBench(System):
    """The roles and nodes of the builder. `PunchBench(captioner=Role("my.md"))` replaces a role."""

    filter_judge: Role[Verdict] = Role("punchbench/filter_judge", Verdict, sampling=JUDGING)
    splitter: Role[Parts] = Role("punchbench/splitter", Parts, sampling={"temperature": 0.0, "max_tokens": 500})
    substituter: Role[str] = Role("punchbench/substituter", sampling=WRITING)
    inverter: Role[str] = Role("punchbench/inverter", sampling=WRITING)
    punchline_judge: Role[Verdict] = Role("punchbench/punchline_judge", Verdict, sampling=JUDGING)
    captioner: Role[str] = Role("punchbench/captioner", sampling=WRITING)
    explainer: Role[str] = Role("punchbench/explainer", sampling=WRITING)
    misexplainer: Role[str] = Role("punchbench/misexplainer", sampling=WRITING)
    optioner: Role[Statements] = Role(
        "punchbench/optioner", Statements, sampling={"temperature": 0.9, "max_tokens": 800}
    )

    async def filter(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Drop a pair that one of the three questions refuses, or whose caption is too long. Raises ModelError."""
        context = runtime.context
        if len(state["caption"]) > checks.MAX_CAPTION:
            length = f"{len(state['caption']):,} characters, and {checks.MAX_CAPTION:,} are allowed"
            return _NOTHING | {"dropped": f"filter: the caption has {length}"}
        for name, question, keep in FILTERS if context.filter else ():
            inputs = {"image": state["image"], "caption": state["caption"], "question": question}
            verdict = await ask(context, self.filter_judge, key=f"filter/{name}", **inputs)
            if verdict.value.answer != keep:
                return _NOTHING | {"dropped": f"filter: {name}"}
        return _NOTHING

    async def label(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The label of the pair by its field or its votes; a pair without a valid one is dropped."""
        try:
            label = checks.find_label(state, runtime.context.min_votes, runtime.context.min_agreement)
        except ValueError as err:
            return {"dropped": f"label: {err}"}
        return {"has_punchline": bool(label)}

    async def split(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The two parts of a caption that contradict each other, if it has such; else none. Raises ModelError."""
        if state.get("synonymous") and state.get("antonymous"):
            return {"parts": []}
        answer = await ask(runtime.context, self.splitter, key="split", caption=state["caption"])
        parts = [answer.value.first, answer.value.second]
        is_split = answer.value.contradict and not checks.parts_fault(state["caption"], parts)
        return {"parts": parts if is_split else []}

    async def rewrite(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The synonymous caption, which keeps the label, and the antonymous one, which has the other label.

        Words are substituted for the first, and the meaning is inverted for the second. Of a caption in two parts, one
        part is substituted and the other inverted, the other way around for the antonymous. A judge, who sees picture
        and caption and not which of the two it is, says whether there is a punchline.
        """
        caption, label = state["caption"], int(state["has_punchline"])
        first, second = state.get("parts") or (caption, "")
        plans = {
            "synonymous": ((self.substituter, first), (self.inverter, second), label),
            "antonymous": ((self.inverter, first), (self.substituter, second), 1 - label),
        }

        async def make(kind: str) -> tuple[str, list[Fault]]:
            if given := _text_in(state, kind):
                return given, _faults(f"{kind}_caption", _same_fault(given, caption))
            one, other, wanted = plans[kind]

            async def write(key: str) -> str:
                texts = [
                    (await ask(runtime.context, role, key=f"{key}/{role.name}", caption=text)).value
                    for role, text in (one, other)
                    if text
                ]
                return " ".join(texts)

            return await self._make(
                runtime.context, state, f"{kind}_caption", write, lambda text: _same_fault(text, caption), wanted=wanted
            )

        (synonymous, faults), (antonymous, more) = await asyncio.gather(make("synonymous"), make("antonymous"))
        made = {"synonymous_caption": synonymous, "antonymous_caption": antonymous}
        return {**made, "caption_faults": [*faults, *more]}

    async def distract(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The distractor caption C^d: what the picture shows, without a punchline, written from the picture alone."""
        caption = state["caption"]

        def check(text: str) -> str:
            return checks.options_fault([caption, text], runtime.context.max_length_ratio)

        if given := _text_in(state, "distractor"):
            return {"distractor_caption": given, "distractor_faults": _faults("distractor_caption", check(given))}

        async def write(key: str) -> str:
            inputs = {"image": state["image"], "words": str(len(words(caption)))}
            return (await ask(runtime.context, self.captioner, key=key, **inputs)).value

        text, faults = await self._make(runtime.context, state, "distractor_caption", write, check, wanted=0)
        return {"distractor_caption": text, "distractor_faults": faults}

    async def explain(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The reasoning R^a, a sentence that explains the punchline; nothing for a pair without one."""
        if not state["has_punchline"]:
            return {"reasoning_sentence": ""}

        def check(text: str) -> str:
            run = runtime.context.quoted_words
            is_quoted = checks.quotes(text, state["caption"], run)
            return f"the reasoning quotes {run} words of the caption" if is_quoted else ""

        if given := _text_in(state, "reasoning"):
            return {"reasoning_sentence": given, "reasoning_faults": _faults("reasoning_sentence", check(given))}

        async def write(key: str) -> str:
            inputs = {"image": state["image"], "caption": state["caption"]}
            return (await ask(runtime.context, self.explainer, key=key, **inputs)).value

        text, faults = await self._make(runtime.context, state, "reasoning_sentence", write, check)
        return {"reasoning_sentence": text, "reasoning_faults": faults}

    async def misexplain(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The distractor reasoning R^d: a sentence that sounds like an explanation of the punchline and is none."""
        reasoning, context = state.get("reasoning_sentence", ""), runtime.context
        if not reasoning or state.get("reasoning_faults"):
            return {"distractor_sentence": ""}

        def check(text: str) -> str:
            if checks.quotes(text, state["caption"], context.quoted_words):
                return f"the reasoning quotes {context.quoted_words} words of the caption"
            return checks.options_fault([reasoning, text], context.max_length_ratio)

        if given := _text_in(state, "distractor_reasoning"):
            return {"distractor_sentence": given, "sentence_faults": _faults("distractor_sentence", check(given))}

        async def write(key: str) -> str:
            inputs = {"caption": state["caption"], "reasoning": reasoning}
            return (await ask(context, self.misexplainer, key=key, **inputs)).value

        text, faults = await self._make(context, state, "distractor_sentence", write, check)
        return {"distractor_sentence": text, "sentence_faults": faults}

    async def write_options(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The four statements of the multi-option question of each caption, from C^x and C^d."""
        context = runtime.context
        distractor = "" if state.get("distractor_faults") else state.get("distractor_caption", "")
        usable = without_faulty(state)

        async def make(kind: CaptionType, caption: str, label: int) -> tuple[Options | None, list[Fault]]:
            reason = ""
            for attempt in range(context.tries):
                inputs = {"caption": caption, "distractor": distractor, "label": label}
                try:
                    answer = await ask(context, self.optioner, key=f"options/{kind}/{attempt}", **inputs)
                except EndpointDown:
                    raise
                except ModelError as err:
                    reason = str(err)
                    continue
                statements = answer.value
                reason = checks.options_fault([statements.correct, *statements.wrong], context.max_length_ratio)
                if not reason:
                    return Options(correct=statements.correct, wrong=statements.wrong), []
            return None, [Fault(item=f"options_{kind}", reason=reason)]

        if not distractor:
            return {"options": {}, "option_faults": [Fault(item="options", reason="there is no distractor caption")]}
        kinds = captions_of(usable)
        made = await asyncio.gather(*(make(kind, caption, label) for kind, (caption, label) in kinds.items()))
        options = {kind: options for kind, (options, _) in zip(kinds, made, strict=True) if options is not None}
        return {"options": options, "option_faults": [fault for _, faults in made for fault in faults]}

    async def _make(
        self,
        context: Context,
        state: State,
        item: str,
        write: Callable[[str], Any],
        check: Callable[[str], str],
        wanted: int | None = None,
    ) -> tuple[str, list[Fault]]:
        """The first text that passes its checks, or "" and the reason of the last one.

        With `wanted`, a judge who sees picture and text must find a punchline (1) or none (0).
        """
        reason = ""
        for attempt in range(context.tries):
            key = f"{item}/{attempt}"
            try:
                text = str(await write(key))
                reason = check(text)
                if not reason and wanted is not None:
                    inputs = {"image": state["image"], "caption": text}
                    verdict = await ask(context, self.punchline_judge, key=f"{key}/judge", **inputs)
                    found = verdict.value.answer == "Yes"
                    reason = "" if found == bool(wanted) else _JUDGED[found]
            except EndpointDown:
                raise
            except ModelError as err:
                reason = str(err)
            if not reason:
                return text, []
        return "", [Fault(item=item, reason=reason)]

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """filter -> label -> (split -> rewrite, distract, explain -> misexplain) -> write_options."""
        graph = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        nodes = (
            self.filter, self.label, self.split, self.rewrite, self.distract, self.explain, self.misexplain,
            self.write_options,
        )  # fmt: skip
        for node in nodes:
            graph.add_node(node.__name__, node)
        graph.add_edge(START, "filter")
        graph.add_conditional_edges("filter", lambda s: END if s.get("dropped") else "label", ["label", END])
        graph.add_conditional_edges(
            "label",
            lambda s: END if s.get("dropped") else ["split", "distract", "explain"],
            ["split", "distract", "explain", END],
        )
        graph.add_edge("split", "rewrite")
        graph.add_edge("explain", "misexplain")
        graph.add_edge(["rewrite", "distract", "misexplain"], "write_options")
        graph.add_edge("write_options", END)
        return graph


_NOTHING: Final[dict[str, Any]] = {
    "dropped": "",
    "options": {},
    **{name: [] for name in FAULTS},
}
"""What a pair has at first: a thread of Studio keeps the values of the pair before."""
_JUDGED: Final = {True: "the judge finds a punchline", False: "the judge finds no punchline"}


def _text_in(state: Mapping[str, Any], name: str) -> str:
    """A text of the input; "" without one."""
    value = state.get(name)
    return value.strip() if isinstance(value, str) else ""


def _faults(item: str, reason: str) -> list[Fault]:
    return [Fault(item=item, reason=reason)] if reason else []


def _same_fault(text: str, caption: str) -> str:
    return "it repeats the caption" if words(text) == words(caption) else ""


def without_faulty(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair without the items that failed their checks."""
    faulty = {fault["item"] for name in FAULTS for fault in pair.get(name) or ()}
    return {name: value for name, value in pair.items() if name not in faulty}


@dataclass(frozen=True)
@role_options(PunchBench)
class Context(BaseContext):
    """Models, prompts and options of a run."""

    filter: bool = knob(True, "ask the three questions of the filter")
    min_votes: int = knob(10, "votes count if there are more than this", highest_in_studio=1_000)
    min_agreement: float = knob(0.8, "share of the votes that must agree, as more than this", highest=1)
    tries: int = knob(3, "how often an item is made until it passes its checks", highest_in_studio=5)
    max_length_ratio: float = knob(2.0, "words of the longest option per word of the shortest", highest_in_studio=100)
    quoted_words: int = knob(
        6, "words in a row of the caption that a reasoning must not repeat", highest_in_studio=1_000
    )

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(min_votes=0, min_agreement=0.5, tries=1, max_length_ratio=1, quoted_words=2)


builder = PunchBench().builder()
graph = builder.compile(name="punchbench")
