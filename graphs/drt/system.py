"""DRT's graph: roles, nodes and options.

Stage B (section 2.2) refines a translation in rounds; stage C (section 2.3) keeps the steps that changed something and
retells them as a long thought. docs/drt.md lists the departures from the paper.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Final, Literal, Protocol, TypeVar

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.drt.checks import (
    check_advice,
    check_keywords,
    check_refinement,
    check_source,
    drop_repeated_renderings,
    find_difference,
    is_usable,
)
from agentsys.graphs.drt.profiles import PROFILES, ProfileName, find_examples
from agentsys.graphs.drt.state import (
    Comparison,
    Evaluation,
    Input,
    Keywords,
    Output,
    RefinementStep,
    ShortThought,
    State,
)
from agentsys.graphs.drt.targets import targets
from agentsys.graphs.drt.thought import (
    check_long_thought,
    check_short_thought,
    clean,
    compose_short_thought,
    insert_translations,
)
from agentsys.logprobs import expected_score
from agentsys.roles import Answer, Role, RoleError
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options

T = TypeVar("T")

SAMPLED: Final = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 400}


@dataclass(frozen=True)
class DRT(System):
    """DRT's roles and nodes. `DRT(advisor=Role("my_advisor.md"))` replaces a role."""

    keywords: Role[Keywords] = Role(
        "drt/keywords", Keywords, check=check_keywords, sampling={"temperature": 0.3, "max_tokens": 600}
    )
    draft: Role[str] = Role("drt/draft", check=check_refinement, sampling={"temperature": 0.5, "max_tokens": 400})
    candidate: Role[str] = Role("drt/candidate", check=check_refinement, sampling={**SAMPLED, "temperature": 0.8})
    advisor: Role[str] = Role("drt/advisor", check=check_advice, sampling={"temperature": 0.5, "max_tokens": 800})
    contrast: Role[str] = Role("drt/contrast", sampling={"temperature": 0.3, "max_tokens": 120})
    evaluator: Role[Evaluation] = Role(
        "drt/evaluator", Evaluation, sampling={"temperature": 0.0, "max_tokens": 300, "logprobs": 20}
    )
    comparer: Role[Comparison] = Role("drt/comparer", Comparison, sampling={"temperature": 0.0, "max_tokens": 200})
    refiner: Role[str] = Role("drt/refiner", check=check_refinement, sampling={**SAMPLED, "repetition_penalty": 1.1})
    rewriter: Role[str] = Role("drt/rewriter", check=check_refinement, sampling=SAMPLED)
    narrator: Role[str] = Role(
        "drt/narrator", check=check_long_thought, sampling={"temperature": 0.5, "max_tokens": 2500}
    )
    short_narrator: Role[ShortThought] = Role(
        "drt/short_narrator", ShortThought, check=check_short_thought, sampling={"temperature": 0.5, "max_tokens": 700}
    )

    async def pick_keywords(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B1: s -> (W_src, W_tgt). Pairs that are no translation are left out."""
        context = runtime.context
        check_source(state["text"], context.source_language)
        inputs = {"text": state["text"], **context.languages}
        answer = await _ask(context, self.keywords, "keywords", state)
        pairs = {pair.word: pair.translation for pair in answer.value.keywords if is_usable(pair, inputs)}
        keywords = [{"word": word, "translation": drop_repeated_renderings(text)} for word, text in pairs.items()]
        # A thread of Studio may still hold the values of an earlier sentence.
        empty: dict[str, Any] = {"steps": [], "kept": [], "stop": "", "dropped": None, "targets": []}
        return {**empty, "refiner": context.refiner, "keywords": keywords}

    async def translate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B2: the preliminary translation t_0, a literal one."""
        try:
            answer = await _ask(runtime.context, self.draft, "draft", state, keywords=state["keywords"], steps=[])
        except RoleError as err:
            return {"dropped": f"no usable draft: {_last_reason(err)}"}
        return {"steps": [_new_step(answer)]}

    async def advise(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B3a: feedback f_k on t_k. Without usable feedback the rounds end."""
        *before, step = state["steps"]
        key = f"advise/{len(before)}"
        try:
            answer = await _ask(runtime.context, self.advisor, key, state, translation=step["translation"])
        except RoleError as err:
            return {"stop": f"advisor: {_last_reason(err)}"}
        return {"steps": [*before, {**step, "feedback": answer.value}]}

    async def evaluate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B3b: score s_k of t_k, given f_k if there is one. A repeated translation keeps its earlier score."""
        context = runtime.context
        *before, step = state["steps"]
        twin = next((old for old in before if old["translation"] == step["translation"]), None)
        if twin is not None:
            step = {**step, "score": twin["score"], "reason": "the same words as before"}
        elif context.evaluator == "pairwise":
            step = await self._compare_with_previous(state, before, step, context)
        else:
            inputs = {"translation": step["translation"], "feedback": step["feedback"]}
            answer = await _ask(context, self.evaluator, f"evaluate/{len(before)}", state, **inputs)
            score = stated = float(answer.value.score)
            step = {**step, "stated": stated, "reason": answer.value.reason}
            if context.score == "expected":
                expected = await expected_score(context, self.evaluator, answer.call, stated)
                if expected is not None:
                    score = step["expected"] = round(expected, 1)
            step["score"] = score
        steps = [*before, step]
        return {"steps": steps, "stop": state.get("stop") or stop_reason([step["score"] for step in steps], context)}

    async def _compare_with_previous(
        self, state: State, before: list[RefinementStep], step: RefinementStep, context: Context
    ) -> RefinementStep:
        """Pairwise: s_(k-1) + 1 if t_k beats t_(k-1) in both orders, s_(k-1) - 1 if it loses both, else s_(k-1)."""
        if not before:
            return {**step, "score": 0.0, "reason": "the first draft"}
        last = before[-1]
        pairs = [(last["translation"], step["translation"]), (step["translation"], last["translation"])]
        old_first, new_first = await gather_answers(
            _ask(context, self.comparer, f"compare/{len(before)}/{order}", state, first=first, second=second)
            for order, (first, second) in enumerate(pairs)
        )
        wins = [old_first.value.better == "second", new_first.value.better == "first"]
        return {**step, "score": last["score"] + sum(wins) - 1.0, "reason": old_first.value.reason}

    async def refine(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B3c: t_k from the whole dialogue t_0, f_0, ..., t_(k-1), f_(k-1); or one more candidate.

        Where that gives nothing new, the last translation and its feedback are asked about in one turn. If that fails
        too, the rounds end.
        """
        context, steps = runtime.context, state["steps"]
        roles = {"candidate": self.candidate} if context.refiner == "candidates" else {"refine": self.refiner}
        inputs = {"translation": steps[-1]["translation"], "feedback": steps[-1]["feedback"]}
        reason = ""
        for key, role in (roles | {"rewrite": self.rewriter}).items():
            name = f"{key}/{len(steps)}"
            try:
                answer = await _ask(context, role, name, state, keywords=state["keywords"], steps=steps, **inputs)
            except RoleError as err:
                reason = f"{role.name}: {_last_reason(err)}"
            else:
                return {"steps": [*steps, _new_step(answer)]}
        return {"stop": reason}

    async def select(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """C1, C2: drop steps with an unchanged score, then records with too few remaining steps.

        Candidates are first put in the order of their scores.
        """
        context = runtime.context
        steps = state["steps"]
        if context.refiner == "candidates":
            steps = sorted(steps, key=lambda step: step["score"])
        kept = changed_steps([step["score"] for step in steps], context.score_step)
        best = max(kept, key=lambda i: steps[i]["score"])
        n = len(kept) if context.count_draft else len(kept) - 1
        selection = {"steps": steps, "kept": kept, "trans": steps[best]["translation"]}
        return selection | ({"dropped": f"{n} of {context.min_steps} steps left"} if n < context.min_steps else {})

    async def compare(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Feedback on each kept candidate but the best: what the next one does better. It may be missing."""
        steps = [*state["steps"]]
        for worse, better in zip(state["kept"], state["kept"][1:], strict=False):
            first, second = steps[worse]["translation"], steps[better]["translation"]
            words = dict(zip(("weak", "better"), find_difference(first, second), strict=True))
            try:
                answer = await _ask(
                    runtime.context, self.contrast, f"contrast/{worse}", state, first=first, second=second, **words
                )
            except RoleError:
                continue
            feedback = f'"{words["weak"]}" became "{words["better"]}". {answer.value.strip()}'
            steps[worse] = {**steps[worse], "feedback": feedback}
        return {"steps": steps}

    async def narrate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """C3, C4: retell the kept steps as a thought that decides on the best-scored translation."""
        context = runtime.context
        steps = [state["steps"][i] for i in state["kept"]]
        translations = [step["translation"] for step in steps]
        decision = translations.index(state["trans"]) + 1
        notes: dict[str, Any] = {"keywords": state["keywords"], "steps": steps, "decision": decision}
        try:
            if context.thought == "short":
                parts = (await _ask(context, self.short_narrator, "narrate", state, **notes)).value
                thought = compose_short_thought(parts, translations, decision)
            else:
                text = (await _ask(context, self.narrator, "narrate", clean(state), **clean(notes))).value
                thought = insert_translations(text, translations)
        except RoleError as err:
            return {"dropped": f"no usable thought: {_last_reason(err)}"}
        learned = targets(state, thought, context.languages)
        return {"thought": thought, "targets": [asdict(target) for target in learned]}

    def add_refinement(self, builder: StateGraph[Any, Context, Input, Any]) -> None:
        """Add the nodes of stage B and of the selection (C1, C2), and the edges between them."""
        builder.add_node("pick_keywords", self.pick_keywords)
        builder.add_node("translate", self.translate)
        builder.add_node("advise", self.advise)
        builder.add_node("evaluate", self.evaluate)
        builder.add_node("refine", self.refine)
        builder.add_node("select", self.select)
        builder.add_edge(START, "pick_keywords")
        builder.add_edge("pick_keywords", "translate")
        builder.add_conditional_edges("translate", _after_draft, ["advise", "evaluate", END])
        builder.add_edge("advise", "evaluate")
        builder.add_conditional_edges(
            "evaluate", lambda state: "select" if state.get("stop") else "refine", ["select", "refine"]
        )
        builder.add_conditional_edges("refine", _after_refinement, ["advise", "evaluate", "select"])

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """Return the state machine of stages B and C."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        self.add_refinement(builder)
        builder.add_node("compare", self.compare)
        builder.add_node("narrate", self.narrate)
        builder.add_conditional_edges("select", _after_selection, ["compare", "narrate", END])
        builder.add_edge("compare", "narrate")
        builder.add_edge("narrate", END)
        return builder


@dataclass(frozen=True)
@role_options(DRT)
class Context(BaseContext, LanguagePair):
    """Options of a run, and a model and a prompt for each role. What is left open has the value of the profile.

    `left_open` has the options that were left open, as they were given.
    """

    left_open: ClassVar[Mapping[str, Any]] = {}

    profile: Literal["auto", "paper", "small"] = knob(
        "auto",
        "values of the options left open: `paper`, the method as published, or `small`, for small models; `auto` is "
        "`small` for the shipped sentences and `paper` otherwise",
    )
    source_language: str = knob(
        "profile", "language of the sentences (profile paper: English; small: Chinese)", required=True
    )
    target_language: str = knob(
        "profile", "language of the translations (profile paper: Chinese; small: English)", required=True
    )
    refiner: Literal["profile", "dialogue", "candidates"] = knob(
        "profile", "refine in a dialogue with the advisor (paper), or sample candidates and rank them (small)"
    )
    thought: Literal["profile", "long", "short"] = knob(
        "profile", "a long thought in prose (paper), or a short one (small)"
    )
    evaluator: Literal["score", "pairwise"] = knob(
        "score", "score each translation by the rubric, or compare it with the previous one"
    )
    score: Literal["profile", "stated", "expected"] = knob(
        "profile", "the score in the reply (paper), or its expected value over the token probabilities (small)"
    )
    score_step: float = knob(
        0.0,
        "scores that round to the same multiple of this are equal, step C1; 0: the profile's (paper: 1, whole numbers; "
        "small: 0.1)",
        highest_in_studio=100,
    )
    threshold: float = knob(
        90.0, "stop the dialogue at this score, 0-100 (the paper does not report its value)", highest=100
    )
    max_rounds: int = knob(
        8,
        "stop after this many refinements or further candidates (the paper does not report its value)",
        highest_in_studio=64,
    )
    min_steps: int = knob(3, "drop a record with fewer remaining steps (step C2)", highest_in_studio=1000)
    count_draft: bool = knob(True, "count the first draft as a step in min_steps")

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        name = "paper" if self.profile == "auto" else self.profile
        values = {"profile": name, **asdict(PROFILES[name])} if name in PROFILES else {}
        left_open = {option: _OPEN[option] for option in values if getattr(self, option) == _OPEN[option]}
        object.__setattr__(self, "left_open", left_open)
        for option in left_open:
            object.__setattr__(self, option, values[option])
        super().__post_init__()
        self.at_least(threshold=0, max_rounds=0, min_steps=1, score_step=0.1)
        if self.refiner == "candidates" and self.evaluator == "pairwise":
            raise ValueError("evaluator: pairwise compares each draft with the one before: add refiner dialogue")

    def with_default_profile(self, profile: ProfileName) -> Context:
        """The context with what was left open taken from this profile, unless a profile was given."""
        if "profile" not in self.left_open:
            return self
        changes: dict[str, Any] = {**self.left_open, "profile": profile}
        return replace(self, **changes)


_OPEN: Final = {item.name: item.default for item in fields(Context)}
"""The value of each option that means: left open."""


async def _ask(context: Context, role: Role[T], key: str, state: State, **inputs: Any) -> Answer[T]:
    """Ask a role about the sentence of a state, in the languages of a context and with the example for them."""
    examples = find_examples(context.source_language, context.target_language)
    return await ask(context, role, key=key, text=state["text"], examples=examples, **context.languages, **inputs)


async def gather_answers(asked: Iterable[Awaitable[Answer[T]]]) -> list[Answer[T]]:
    """Wait for all, so that the trace does not depend on timing, then raise the first error."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]


def _new_step(answer: Answer[str]) -> RefinementStep:
    return {"translation": answer.value.strip(), "feedback": "", "score": 0.0, "reason": "", "key": answer.call.key}


def _last_reason(error: RoleError) -> str:
    return str(error).rsplit(": ", 1)[-1]


def changed_steps(scores: Sequence[float], score_step: float = 1.0) -> list[int]:
    """C1: indices of the steps whose score differs from that of the step before, rounded to a multiple of a step."""
    rounded = [round(score / score_step) for score in scores]
    return [i for i, score in enumerate(rounded) if i == 0 or score != rounded[i - 1]]


class StopRule(Protocol):
    """The settings that end the rounds: a run's Context, or those of a replay."""

    @property
    def evaluator(self) -> str: ...
    @property
    def refiner(self) -> str: ...
    @property
    def score_step(self) -> float: ...
    @property
    def threshold(self) -> float: ...
    @property
    def max_rounds(self) -> int: ...
    @property
    def min_steps(self) -> int: ...
    @property
    def count_draft(self) -> bool: ...


def stop_reason(scores: Sequence[float], rule: StopRule) -> str:
    """B3d: the pre-set threshold or maximum of rounds; enough candidates of different scores. "" if there is none."""
    if rule.refiner == "candidates":
        needed = rule.min_steps + (not rule.count_draft)
        if len(changed_steps(sorted(scores), rule.score_step)) >= needed:
            return "enough candidates"
    elif rule.evaluator == "score" and scores[-1] >= rule.threshold:
        return "threshold"
    return "max_rounds" if len(scores) > rule.max_rounds else ""


def _after_draft(state: State) -> str:
    return END if state.get("dropped") else _after_refinement(state)


def _after_refinement(state: State) -> str:
    if state.get("stop"):
        return "select"
    return "evaluate" if state.get("refiner") == "candidates" else "advise"


def _after_selection(state: State) -> str:
    if state.get("dropped"):
        return END
    return "compare" if state.get("refiner") == "candidates" else "narrate"


builder = DRT().builder()
graph = builder.compile(name="drt")
