"""DRT: long-thought translation data from a translator, an advisor and an evaluator.

"DRT: Deep Reasoning Translation via Long Chain-of-Thought" (Wang et al., Findings of ACL 2025). Stage B (section 2.2)
refines a translation in rounds; stage C (section 2.3) keeps the steps that changed something and retells them as a long
thought. docs/drt.md says where this departs from the paper.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agentsys.logprobs import expected_score
from agentsys.roles import Answer, Role, RoleError, load_prompt
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options
from agentsys.traces import Segment, Target, masked

STUDENT = load_prompt("drt/student")
"""The published chat format that a student is trained in."""


class Keyword(BaseModel):
    """One pair of (W_src, W_tgt)."""

    word: str
    translation: str


class Keywords(BaseModel):
    """Word-level translation, step B1."""

    keywords: Annotated[list[Keyword], Field(min_length=1, max_length=8)]


class Evaluation(BaseModel):
    """The evaluator's reply, step B3b: the reason comes before the score."""

    reason: str
    score: Annotated[int, Field(ge=0, le=100)]


class Comparison(BaseModel):
    """Which of two translations is better."""

    reason: str
    better: Literal["first", "second"]


class Step(TypedDict):
    """One <t_k, f_k, s_k> of the trace P(s); `key` is the call that wrote t_k."""

    translation: str
    feedback: str
    score: float
    reason: str
    key: str


class Input(TypedDict):
    """What a person types."""

    text: str


class State(Input):
    """P(s) as it grows (step B4)."""

    keywords: NotRequired[list[dict[str, str]]]
    steps: NotRequired[list[Step]]
    kept: NotRequired[list[int]]
    thought: NotRequired[str]
    trans: NotRequired[str]
    stop: NotRequired[str]
    dropped: NotRequired[str | None]
    targets: NotRequired[list[dict[str, Any]]]


class Output(TypedDict):
    """The published record (text, trans, thought), P(s) behind it, and what is worth learning."""

    text: str
    trans: NotRequired[str]
    thought: NotRequired[str]
    keywords: NotRequired[list[dict[str, str]]]
    steps: NotRequired[list[Step]]
    kept: NotRequired[list[int]]
    stop: NotRequired[str]
    dropped: NotRequired[str | None]
    targets: NotRequired[list[dict[str, Any]]]


QUOTE = re.compile(r"[\"“「]?\[(\d+)\][\"”」]?")
"""How the narrator quotes an attempt: [1], with or without quotation marks."""


def thought_fault(thought: str, inputs: Mapping[str, Any]) -> str | None:
    """What is wrong with a narrator's reply: an attempt is missing, it ends in another one, the notes are copied."""
    if re.search(r"^\W*(\[\d+\] =|wrong with \[|decided on:)", thought, re.MULTILINE):
        return "retell the notes in sentences of your own, do not copy their lines"
    quoted = {int(number) for number in QUOTE.findall(thought)}
    wanted = set(range(1, len(inputs["steps"]) + 1))
    if missing := sorted(wanted - quoted):
        return f"the attempts {', '.join(f'[{i}]' for i in missing)} are missing; quote each one in its place"
    if quoted - wanted:
        return f"there are only {len(wanted)} attempts"
    decision = inputs["decision"]
    return None if QUOTE.findall(thought)[-1] == str(decision) else f"end with the decision, [{decision}]"


def refinement_fault(translation: str, inputs: Mapping[str, Any]) -> str | None:
    """What is wrong with a refined translation: it repeats an earlier one, or renders only what the advisor quoted."""
    earlier = [step["translation"] for step in inputs["steps"]]
    if len(translation) < len(earlier[0]) / 2:
        return "it is not the whole sentence; translate all of it"
    return "it repeats an earlier version; change the words that were criticised" if translation in earlier else None


def known_words(keywords: Keywords, inputs: Mapping[str, Any]) -> str | None:
    """What is wrong with picked key words: none of them stands in the sentence."""
    text = inputs["text"].casefold()
    return None if any(k.word.casefold() in text for k in keywords.keywords) else "copy the words from the sentence"


@dataclass(frozen=True)
class DRT(System):
    """The roles and nodes of DRT. `DRT(advisor=Role("my_advisor.md"))` replaces a role."""

    keywords: Role[Keywords] = Role(
        "drt/keywords", Keywords, check=known_words, sampling={"temperature": 0.3, "max_tokens": 300}
    )
    draft: Role[str] = Role("drt/draft", sampling={"temperature": 0.5, "max_tokens": 400})
    advisor: Role[str] = Role("drt/advisor", sampling={"temperature": 0.5, "max_tokens": 200})
    evaluator: Role[Evaluation] = Role(
        "drt/evaluator", Evaluation, sampling={"temperature": 0.0, "max_tokens": 200, "logprobs": 10}
    )
    comparer: Role[Comparison] = Role("drt/comparer", Comparison, sampling={"temperature": 0.0, "max_tokens": 200})
    refiner: Role[str] = Role(
        "drt/refiner",
        check=refinement_fault,
        sampling={"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1, "max_tokens": 400},
    )
    narrator: Role[str] = Role(
        "drt/narrator",
        check=thought_fault,
        sampling={"temperature": 0.5, "max_tokens": 1000, "repetition_penalty": 1.05},
    )

    async def pick_keywords(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B1: s -> (W_src, W_tgt)."""
        answer = await ask(
            runtime.context, self.keywords, key="keywords", text=state["text"], **runtime.context.languages
        )
        found = {k.word: k for k in answer.value.keywords if k.word.casefold() in state["text"].casefold()}
        begun: dict[str, Any] = {
            "steps": [],
            "kept": [],
            "stop": "",
            "dropped": None,
            "targets": [],
        }  # a thread goes on
        return {**begun, "keywords": [keyword.model_dump() for keyword in found.values()]}

    async def translate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B2: the preliminary translation t_0."""
        answer = await ask(
            runtime.context,
            self.draft,
            key="draft",
            text=state["text"],
            keywords=state["keywords"],
            **runtime.context.languages,
        )
        return {"steps": [_step(answer)]}

    async def advise(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B3a: feedback f_k on t_k."""
        *before, step = state["steps"]
        answer = await ask(
            runtime.context,
            self.advisor,
            key=f"advise/{len(before)}",
            text=state["text"],
            translation=step["translation"],
            **runtime.context.languages,
        )
        return {"steps": [*before, {**step, "feedback": answer.value}]}

    async def evaluate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B3b: score s_k of t_k, given f_k. A translation that was scored before keeps its score."""
        context = runtime.context
        *before, step = state["steps"]
        known = next((old for old in before if old["translation"] == step["translation"]), None)
        if known is not None:
            step = {**step, "score": known["score"], "reason": "the same words as before"}
        elif context.evaluator == "pairwise":
            step = await self._compare(state["text"], before, step, context)
        else:
            answer = await ask(
                context,
                self.evaluator,
                key=f"evaluate/{len(before)}",
                text=state["text"],
                translation=step["translation"],
                feedback=step["feedback"],
                **context.languages,
            )
            score = float(answer.value.score)
            if context.score == "expected":
                score = round(await expected_score(context, self.evaluator, answer.call, score), 1)
            step = {**step, "score": score, "reason": answer.value.reason}
        stop = _stop(step["score"], len(before), context)
        return {"steps": [*before, step]} | ({"stop": stop} if stop else {})

    async def _compare(self, text: str, before: list[Step], step: Step, context: Context) -> Step:
        """Pairwise: last score + 1 if t_k beats t_(k-1) in both orders, - 1 if it loses both, else the same."""
        if not before:
            return {**step, "score": 0.0, "reason": "the first draft"}
        last = before[-1]
        pairs = [(last["translation"], step["translation"]), (step["translation"], last["translation"])]
        answers = await asyncio.gather(
            *(
                ask(
                    context,
                    self.comparer,
                    key=f"compare/{len(before)}/{order}",
                    text=text,
                    first=first,
                    second=second,
                    **context.languages,
                )
                for order, (first, second) in enumerate(pairs)
            ),
            return_exceptions=True,  # both finish, so that the trace does not depend on which was faster
        )
        verdicts = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            verdicts.append(answer.value)
        wins = [verdicts[0].better == "second", verdicts[1].better == "first"]
        return {**step, "score": last["score"] + sum(wins) - 1.0, "reason": verdicts[0].reason}

    async def refine(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B3c: t_k from the whole dialogue t_0, f_0, ..., t_(k-1), f_(k-1). A refiner that fails ends the rounds."""
        steps = state["steps"]
        try:
            answer = await ask(
                runtime.context,
                self.refiner,
                key=f"refine/{len(steps)}",
                text=state["text"],
                keywords=state["keywords"],
                steps=steps,
                **runtime.context.languages,
            )
        except RoleError as err:
            return {"stop": f"refiner: {str(err).rsplit(': ', 1)[-1]}"}
        return {"steps": [*steps, _step(answer)]}

    async def select(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """C1, C2: drop steps that changed nothing, then records with too few steps left."""
        context = runtime.context
        steps = state["steps"]
        kept = [i for i in range(len(steps)) if i == 0 or round(steps[i]["score"]) != round(steps[i - 1]["score"])]
        best = max(kept, key=lambda i: steps[i]["score"])
        n = len(kept) if context.count_draft else len(kept) - 1
        chosen = {"kept": kept, "trans": steps[best]["translation"]}
        return chosen | ({"dropped": f"{n} of {context.min_steps} steps left"} if n < context.min_steps else {})

    async def narrate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """C3, C4: the kept steps as a long thought that decides on the best-scored translation."""
        context = runtime.context
        kept = [state["steps"][i]["translation"] for i in state["kept"]]
        try:
            answer = await ask(
                context,
                self.narrator,
                key="narrate",
                text=state["text"],
                keywords=state["keywords"],
                steps=[state["steps"][i] for i in state["kept"]],
                decision=kept.index(state["trans"]) + 1,
                **context.languages,
            )
        except RoleError as err:
            return {"dropped": f"no usable thought: {str(err).rsplit(': ', 1)[-1]}"}
        thought = QUOTE.sub(lambda quote: f'"{kept[int(quote[1]) - 1]}"', answer.value)
        return {"thought": thought, "targets": [asdict(target) for target in targets(state, thought, context)]}

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """The state machine of stages B and C."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        builder.add_node("keywords", self.pick_keywords)
        builder.add_node("draft", self.translate)
        builder.add_node("advise", self.advise)
        builder.add_node("evaluate", self.evaluate)
        builder.add_node("refine", self.refine)
        builder.add_node("select", self.select)
        builder.add_node("narrate", self.narrate)
        builder.add_edge(START, "keywords")
        builder.add_edge("keywords", "draft")
        builder.add_edge("draft", "advise")
        builder.add_edge("advise", "evaluate")
        builder.add_conditional_edges(
            "evaluate", lambda state: "select" if state.get("stop") else "refine", ["select", "refine"]
        )
        builder.add_conditional_edges(
            "refine", lambda state: "select" if state.get("stop") else "advise", ["advise", "select"]
        )
        builder.add_conditional_edges(
            "select", lambda state: END if state.get("dropped") else "narrate", ["narrate", END]
        )
        builder.add_edge("narrate", END)
        return builder


@dataclass(frozen=True)
@role_options(DRT)
class Context(BaseContext, LanguagePair):
    """Models, prompts and knobs of a run."""

    source_language: str = knob("English", "language of the sentences")
    target_language: str = knob("Chinese", "language of the translations")
    evaluator: Literal["score", "pairwise"] = knob("score", "rubric score, or: is this round better than the last one")
    score: Literal["stated", "expected"] = knob(
        "expected", "the number in the reply, or its expectation over the tokens"
    )
    threshold: float = knob(90.0, "stop refining at this score, 0-100 (the paper does not tell its own)")
    max_rounds: int = knob(3, "stop after this many refinements (the paper does not tell its own)")
    min_steps: int = knob(3, "drop a record with fewer steps left than this (step C2)")
    count_draft: bool = knob(True, "whether the first draft counts as a step in min_steps")

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        if not 0 <= self.threshold <= 100:
            raise ValueError(f"threshold: {self.threshold:g} is not from 0 to 100")
        self.at_least(max_rounds=0, min_steps=1)


def _step(answer: Answer[str]) -> Step:
    return {"translation": answer.value, "feedback": "", "score": 0.0, "reason": "", "key": answer.call.key}


def _stop(score: float, rounds: int, context: Context) -> str | None:
    """B3d: a pre-set threshold or a pre-set maximum of rounds."""
    if context.evaluator == "score" and score >= context.threshold:
        return "threshold"
    return "max_rounds" if rounds >= context.max_rounds else None


def targets(state: State, thought: str, context: Context) -> list[Target]:
    """What is worth learning: the long thought with its translation, the best draft's call, and better drafts."""
    asked = STUDENT.render({"text": state["text"], **context.languages})
    steps = [state["steps"][i] for i in state["kept"]]
    best = next(step for step in steps if step["translation"] == state["trans"])
    scores = {"score": best["score"], "steps": float(len(steps)), "gain": best["score"] - steps[0]["score"]}
    answer = [
        Segment("assistant", True, text=f"<thought>\n{thought}\n</thought>\n<output>\n"),
        Segment("assistant", True, call=best["key"]),
        Segment("assistant", True, text="\n</output>"),
    ]
    prompt = masked(asked)
    sft = Target("sft", (*prompt, *answer), scores=scores)
    role = Target("role", (_sent(best), _written(best)), scores={"score": best["score"]})
    return [sft, role, *(_preference(better, worse) for worse, better in _improvements(steps))]


def _improvements(steps: list[Step]) -> Iterator[tuple[Step, Step]]:
    """Each draft with the best one that came after it, where that one scored higher."""
    for i, step in enumerate(steps[:-1]):
        best = max(steps[i + 1 :], key=lambda later: later["score"])
        if best["score"] > step["score"]:
            yield step, best


def _preference(better: Step, worse: Step) -> Target:
    """After what the worse draft's translator was sent, the better draft is preferred (ours; the paper has no DPO)."""
    scores = {"chosen": better["score"], "rejected": worse["score"], "margin": better["score"] - worse["score"]}
    return Target("step", (_sent(worse), _written(better)), (_sent(worse), _written(worse)), scores=scores)


def _sent(step: Step) -> Segment:
    return Segment("user", False, prompt=step["key"])


def _written(step: Step) -> Segment:
    return Segment("assistant", True, call=step["key"])


builder = DRT().builder()
graph = builder.compile(name="drt")
