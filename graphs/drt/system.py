"""DRT's graph: roles, nodes and options.

Stage B (section 2.2) refines a translation in rounds; stage C (section 2.3) keeps the steps that changed something and
retells them as a long thought. docs/drt.md lists the departures from the paper.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any, Literal

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.drt.state import (
    ATTEMPT,
    Comparison,
    Evaluation,
    Input,
    Keywords,
    Output,
    RefinementStep,
    State,
    check_keywords,
    check_refinement,
    check_thought,
    occurs_in,
)
from agentsys.graphs.drt.targets import targets
from agentsys.logprobs import expected_score
from agentsys.roles import Answer, Role, RoleError
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options


@dataclass(frozen=True)
class DRT(System):
    """DRT's roles and nodes. `DRT(advisor=Role("my_advisor.md"))` replaces a role."""

    keywords: Role[Keywords] = Role(
        "drt/keywords", Keywords, check=check_keywords, sampling={"temperature": 0.3, "max_tokens": 300}
    )
    draft: Role[str] = Role("drt/draft", sampling={"temperature": 0.5, "max_tokens": 400})
    advisor: Role[str] = Role("drt/advisor", sampling={"temperature": 0.5, "max_tokens": 200})
    evaluator: Role[Evaluation] = Role(
        "drt/evaluator", Evaluation, sampling={"temperature": 0.0, "max_tokens": 200, "logprobs": 10}
    )
    comparer: Role[Comparison] = Role("drt/comparer", Comparison, sampling={"temperature": 0.0, "max_tokens": 200})
    refiner: Role[str] = Role(
        "drt/refiner",
        check=check_refinement,
        sampling={"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1, "max_tokens": 400},
    )
    narrator: Role[str] = Role(
        "drt/narrator",
        check=check_thought,
        sampling={"temperature": 0.5, "max_tokens": 1000, "repetition_penalty": 1.05},
    )

    async def pick_keywords(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B1: s -> (W_src, W_tgt)."""
        answer = await ask(
            runtime.context, self.keywords, key="keywords", text=state["text"], **runtime.context.languages
        )
        keywords = {k.word: k.model_dump() for k in answer.value.keywords if occurs_in(k, state["text"])}
        # A thread of Studio may still hold the values of an earlier sentence.
        empty: dict[str, Any] = {"steps": [], "kept": [], "stop": "", "dropped": None, "targets": []}
        return {**empty, "keywords": [*keywords.values()]}

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
        return {"steps": [_new_step(answer)]}

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
        """B3b: score s_k of t_k, given f_k. A repeated translation keeps its earlier score."""
        context = runtime.context
        *before, step = state["steps"]
        twin = next((old for old in before if old["translation"] == step["translation"]), None)
        if twin is not None:
            step = {**step, "score": twin["score"], "reason": "the same words as before"}
        elif context.evaluator == "pairwise":
            step = await self._compare_with_previous(state["text"], before, step, context)
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
        stop = _stop_reason(step["score"], len(before), context)
        return {"steps": [*before, step]} | ({"stop": stop} if stop else {})

    async def _compare_with_previous(
        self, text: str, before: list[RefinementStep], step: RefinementStep, context: Context
    ) -> RefinementStep:
        """Pairwise: s_(k-1) + 1 if t_k beats t_(k-1) in both orders, s_(k-1) - 1 if it loses both, else s_(k-1)."""
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
            return_exceptions=True,  # wait for both, so that the trace does not depend on timing
        )
        verdicts = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            verdicts.append(answer.value)
        wins = [verdicts[0].better == "second", verdicts[1].better == "first"]
        return {**step, "score": last["score"] + sum(wins) - 1.0, "reason": verdicts[0].reason}

    async def refine(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """B3c: t_k from the whole dialogue t_0, f_0, ..., t_(k-1), f_(k-1). If the refiner fails, the rounds end."""
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
        return {"steps": [*steps, _new_step(answer)]}

    async def select(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """C1, C2: drop steps with an unchanged score, then records with too few remaining steps."""
        context = runtime.context
        steps = state["steps"]
        kept = [i for i in range(len(steps)) if i == 0 or round(steps[i]["score"]) != round(steps[i - 1]["score"])]
        best = max(kept, key=lambda i: steps[i]["score"])
        n = len(kept) if context.count_draft else len(kept) - 1
        selection = {"kept": kept, "trans": steps[best]["translation"]}
        return selection | ({"dropped": f"{n} of {context.min_steps} steps left"} if n < context.min_steps else {})

    async def narrate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """C3, C4: retell the kept steps as a long thought that decides on the best-scored translation."""
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
        thought = ATTEMPT.sub(lambda quote: f'"{kept[int(quote[1]) - 1]}"', answer.value)
        learned = targets(state, thought, context.languages)
        return {"thought": thought, "targets": [asdict(target) for target in learned]}

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """Return the state machine of stages B and C."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        builder.add_node("pick_keywords", self.pick_keywords)
        builder.add_node("translate", self.translate)
        builder.add_node("advise", self.advise)
        builder.add_node("evaluate", self.evaluate)
        builder.add_node("refine", self.refine)
        builder.add_node("select", self.select)
        builder.add_node("narrate", self.narrate)
        builder.add_edge(START, "pick_keywords")
        builder.add_edge("pick_keywords", "translate")
        builder.add_edge("translate", "advise")
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
    """Options of a run: the paper's settings, and a model and a prompt for each role."""

    source_language: str = knob("English", "language of the sentences", required=True)
    target_language: str = knob("Chinese", "language of the translations", required=True)
    evaluator: Literal["score", "pairwise"] = knob(
        "score", "score each translation by the rubric, or compare it with the previous one"
    )
    score: Literal["stated", "expected"] = knob(
        "expected", "the score in the reply, or its expected value over the token probabilities"
    )
    threshold: float = knob(
        90.0, "stop refining at this score, 0-100 (the paper does not report its value)", highest=100
    )
    max_rounds: int = knob(
        3, "stop after this many refinements (the paper does not report its value)", highest_in_studio=64
    )
    min_steps: int = knob(3, "drop a record with fewer remaining steps (step C2)", highest_in_studio=1000)
    count_draft: bool = knob(True, "count the first draft as a step in min_steps")

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(threshold=0, max_rounds=0, min_steps=1)


def _new_step(answer: Answer[str]) -> RefinementStep:
    return {"translation": answer.value, "feedback": "", "score": 0.0, "reason": "", "key": answer.call.key}


def _stop_reason(score: float, rounds: int, context: Context) -> str | None:
    """B3d: the pre-set threshold or the pre-set maximum of rounds."""
    if context.evaluator == "score" and score >= context.threshold:
        return "threshold"
    return "max_rounds" if rounds >= context.max_rounds else None


builder = DRT().builder()
graph = builder.compile(name="drt")
