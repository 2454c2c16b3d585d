"""LongDPO: a long response is written step by step; the best consistent candidate of each layer also gives a pair.

"LongDPO: Unlock Better Long-form Generation Abilities for LLMs via Critique-augmented Stepwise Information" (Ping et
al. 2025). One layer expands the response by several candidate steps with the same exact token prefix, evaluates each on
seven principles, excludes those that contradict the memory of the text so far, rewrites a weak choice with critiques,
and commits to it. The graph repeats layers, so that they can be stepped through in Studio; graphs/longdpo/search.py
uses the same methods for tree search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.longdpo.entries import CRITERIA, score_step
from agentsys.graphs.longdpo.judge import (
    PRINCIPLES,
    Grades,
    Judgment,
    check_weights,
    score_by_probabilities,
    score_by_stated_weights,
)
from agentsys.graphs.longdpo.memory import Fact, find_similar_pairs, load_embedder, split_evenly
from agentsys.graphs.longdpo.state import (
    Candidate,
    Critique,
    Facts,
    Input,
    Knobs,
    Layer,
    Output,
    State,
    Verdict,
    chosen_steps,
    drop_repeated,
    facts_of,
    text_so_far,
)
from agentsys.graphs.longdpo.targets import finish_response, make_layer
from agentsys.metrics.lengths import required_words
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.roles import Role, RoleError, check_no_thought
from agentsys.search import settled
from agentsys.systems import System, ask, knob, role_options


@dataclass(frozen=True)
class LongDPO(System):
    """The roles, the nodes of one layer, and the methods that they share with the tree search.

    `LongDPO(judge=Role(...))` replaces a role.
    """

    writer: Role[str] = Role("longdpo/writer", allow_truncated=True, sampling={"temperature": 0.7, "top_p": 1.0})
    judge: Role[Judgment] = Role(
        "longdpo/judge", Judgment, check=check_weights, sampling={"temperature": 0.7, "max_tokens": 1024}
    )
    grader: Role[Grades] = Role(
        "longdpo/grader", Grades, sampling={"temperature": 0.0, "max_tokens": 128, "logprobs": 10}
    )
    extractor: Role[Facts] = Role("longdpo/extractor", Facts, sampling={"temperature": 0.0, "max_tokens": 1024})
    contradiction: Role[Verdict] = Role(
        "longdpo/contradiction", Verdict, sampling={"temperature": 0.0, "max_tokens": 256}
    )
    critic: Role[Critique] = Role("longdpo/critic", Critique, sampling={"temperature": 0.0, "max_tokens": 512})

    async def begin(self, state: State) -> dict[str, Any]:
        """An empty response, whatever a thread held before."""
        return {"layers": [], "candidates": [], "chosen": None, "stop": ""}

    async def expand(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Candidates for the next step; equal texts are one candidate."""
        context, layers = runtime.context, state["layers"]
        prefix = chosen_steps(layers)
        keys = [f"{len(layers)}/{i}" for i in range(context.width)]
        steps = await settled(*(self.write_step(state, context, prefix, key) for key in keys))
        candidates = drop_repeated([step for step in steps if not isinstance(step, ModelError)])
        stop = "" if candidates else f"no candidate: {steps[0]}"
        return {"candidates": candidates, "chosen": None, "stop": stop}

    async def evaluate(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The candidates with their values. One without a usable judgment is removed: no middle value is invented."""
        prefix = chosen_steps(state["layers"])
        work = (self.evaluate_step(state, runtime.context, prefix, step) for step in state["candidates"])
        results = await settled(*work)
        candidates = [step for step in results if not isinstance(step, ModelError)]
        return {"candidates": candidates} if candidates else {"candidates": [], "stop": f"no judgment: {results[0]}"}

    async def choose(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The best candidate that contradicts no fact in the memory."""
        facts = facts_of(state["layers"])
        candidates, chosen = await self.choose_consistent(runtime.context, facts, state["candidates"])
        stop = "every candidate contradicts the memory" if chosen is None else ""
        return {"candidates": candidates, "chosen": chosen, "stop": stop}

    async def critique(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """A choice of value at most eta is rewritten; the rewritten step replaces it if it is better."""
        chosen = state["chosen"]
        assert chosen is not None
        candidates, prefix, facts = state["candidates"], chosen_steps(state["layers"]), facts_of(state["layers"])
        better = await self.improve_step(state, runtime.context, prefix, facts, candidates, candidates[chosen])
        return {"candidates": [*candidates, better], "chosen": len(candidates)} if better else {}

    async def commit(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """s_(t+1), its pair, and its facts for the memory."""
        context, candidates, chosen = runtime.context, state["candidates"], state["chosen"]
        assert chosen is not None
        layer, stop = await self.commit_step(state, context, chosen_steps(state["layers"]), candidates, chosen)
        layers = [*state["layers"], layer]
        stop = "end" if candidates[chosen]["final"] else "depth" if len(layers) >= context.depth else stop
        return {"layers": layers, "stop": stop}

    async def finish(self, state: State) -> dict[str, Any]:
        """The response and its pairs."""
        return finish_response(state["layers"], state["stop"])

    async def write_step(
        self, state: State, context: Context, prefix: Sequence[Candidate], key: str, suggestions: Sequence[str] = ()
    ) -> Candidate:
        """One candidate for s_(t+1) after the exact ids of s_1 .. s_t. Raises RoleError, ModelError.

        There is one attempt: a reply to a reminder about an empty reply would not be a sibling. Raises ValueError for a
        length that is not a number of words.
        """
        max_tokens = context.tokens(required_words(state.get("length")))
        role = replace(self.writer, sampling={**self.writer.sampling, "max_tokens": max_tokens}, attempts=1)
        prefix_ids = [i for step in prefix for i in step["ids"]]
        if not all(step["ids"] for step in prefix):
            raise RoleError(
                f"writer ({key}): the server returned no token ids, so the response cannot be continued; use embedded, "
                "llama.cpp or vLLM"
            )
        inputs = {"prompt": state["prompt"], "suggestions": list(suggestions)}
        call = (await ask(context, role, key=key, continue_ids=prefix_ids, **inputs)).call
        check_no_thought(call)
        ids = (call.ids or [])[: len(call.ids or []) - call.stop_ids]
        return Candidate(
            key=call.key, text=call.text, ids=ids, final=call.finish == "stop", value=0.0, scores=[],
            suggestions=list(suggestions),
        )  # fmt: skip

    async def evaluate_step(
        self, state: State, context: Context, prefix: Sequence[Candidate], step: Candidate
    ) -> Candidate:
        """The step with its value, 1-5: the mean over the principles of the expected score. Raises RoleError.

        With `value` "entries" the mean over the criteria of the text so far, without a judge.
        """
        if context.value == "entries":
            text = "".join(part["text"] for part in (*prefix, step))
            counted = score_step(state, text, step["final"])
            return {**step, "scores": [*counted.values()], "value": fmean(counted.values())}
        inputs = {"prompt": state["prompt"], "before": text_so_far(prefix), "text": step["text"]}
        key = f"{step['key']}/judge"
        if context.weights == "stated":
            scores = await score_by_stated_weights(context, self.judge, key, inputs)
        else:
            scores = await score_by_probabilities(context, self.grader, key, inputs)
        return {**step, "scores": scores, "value": fmean(scores)}

    async def choose_consistent(
        self, context: Context, facts: Sequence[Fact], candidates: Sequence[Candidate]
    ) -> tuple[list[Candidate], int | None]:
        """The candidates and the index of the best consistent one. They are checked from the best down to it.

        The best has the greatest q, or without tree search the greatest value. Raises RoleError.
        """
        checked = list(candidates)
        for i in sorted(range(len(checked)), key=lambda i: -checked[i].get("q", checked[i]["value"])):
            checked[i] = await self.check_step(context, facts, checked[i])
            if checked[i]["contradicts"] is None:
                return checked, i
        return checked, None

    async def check_step(self, context: Context, facts: Sequence[Fact], step: Candidate) -> Candidate:
        """The step with `contradicts`; one that has it is not checked again. Raises RoleError."""
        if "contradicts" in step:
            return step
        return {**step, "contradicts": await self.find_contradiction(context, facts, step)}

    async def find_contradiction(self, context: Context, facts: Sequence[Fact], step: Candidate) -> str | None:
        """The fact that a step contradicts, or None. Raises RoleError."""
        if not facts or not context.embedding:
            return None
        chunks = split_evenly(step["text"], len(step["ids"]), context.chunk_tokens)
        embedder = load_embedder(context.embedding)
        pairs = await find_similar_pairs(facts, chunks, embedder, context.nearest, context.similarity)
        for number, (fact, chunk, _) in enumerate(pairs):
            key = f"{step['key']}/contradiction/{number}"
            verdict = await ask(context, self.contradiction, key=key, fact=fact.statement, chunk=chunk)
            if verdict.value.contradicts:
                return fact.statement
        return None

    async def improve_step(
        self, state: State, context: Context, prefix: Sequence[Candidate], facts: Sequence[Fact],
        candidates: Sequence[Candidate], chosen: Candidate,
    ) -> Candidate | None:  # fmt: skip
        """Critique augmentation of a choice of value at most eta: a better rewritten step, or None.

        None also if the rewritten step is not better or contradicts the memory, and if a call fails for good.
        """
        if chosen["value"] > context.eta:
            return None
        try:
            step = await self.rewrite_step(state, context, prefix, facts, candidates, chosen)
            if step is None or step["value"] <= chosen["value"]:
                return None
            return None if await self.find_contradiction(context, facts, step) else step
        except EndpointDown:
            raise
        except ModelError:
            return None

    async def rewrite_step(
        self, state: State, context: Context, prefix: Sequence[Candidate], facts: Sequence[Fact],
        candidates: Sequence[Candidate], chosen: Candidate,
    ) -> Candidate | None:  # fmt: skip
        """A choice written again with critiques, with its value; None if no sibling is better. Raises ModelError.

        For each principle on which a consistent sibling is better, the critic suggests what to learn from it. The one
        to three most confident suggestions go into the request.
        """
        suggestions = await self._collect_suggestions(state, context, facts, candidates, chosen)
        if not suggestions:
            return None
        count = context.random_for(chosen, "suggestions").randint(1, 3)
        step = await self.write_step(state, context, prefix, f"{chosen['key']}/rewrite", suggestions[:count])
        return await self.evaluate_step(state, context, prefix, step)

    async def _collect_suggestions(
        self, state: State, context: Context, facts: Sequence[Fact], candidates: Sequence[Candidate], chosen: Candidate
    ) -> list[str]:
        """Suggestions from better siblings, the most confident first."""
        siblings = await settled(*(self.check_step(context, facts, step) for step in candidates if step is not chosen))
        consistent = [step for step in siblings if not isinstance(step, ModelError) and step["contradicts"] is None]
        work = []
        criteria = PRINCIPLES if context.value == "judge" else [*score_step(state, "", False)]
        for number, principle in enumerate(criteria):
            best = max(consistent, key=lambda step: step["scores"][number], default=None)
            if best is not None and best["scores"][number] > chosen["scores"][number]:
                texts = {
                    "better": best["text"],
                    "worse": chosen["text"],
                    "principle": CRITERIA.get(principle, principle),
                }
                key = f"{chosen['key']}/critic/{principle}"
                work.append(ask(context, self.critic, key=key, prompt=state["prompt"], **texts))
        critiques = [answer.value for answer in await settled(*work) if not isinstance(answer, ModelError)]
        return [critique.suggestion for critique in sorted(critiques, key=lambda critique: -critique.confidence)]

    async def commit_step(
        self, state: State, context: Context, prefix: Sequence[Candidate], candidates: Sequence[Candidate], chosen: int
    ) -> tuple[Layer, str]:
        """The layer of a choice, and why the layers stop with it, or "". Failed facts do not undo the choice."""
        try:
            facts, stop = await self.extract_facts(state, context, prefix, candidates[chosen]), ""
        except EndpointDown:
            raise
        except ModelError as err:
            facts, stop = [], str(err)
        return make_layer(context, candidates, chosen, facts), stop

    async def extract_facts(
        self, state: State, context: Context, prefix: Sequence[Candidate], step: Candidate
    ) -> list[Fact]:
        """The facts of a chosen step, except those that the extractor marks as false. Raises RoleError, ModelError.

        An empty list for the last step: nothing can contradict it.
        """
        if not context.embedding or step["final"] or len(prefix) + 1 >= context.depth:
            return []
        inputs = {"before": text_so_far(prefix), "text": step["text"]}
        reply = (await ask(context, self.extractor, key=f"{step['key']}/facts", **inputs)).value
        return [Fact(f.statement, f.validity, f.evidence, step["key"]) for f in reply.facts if f.validity != "false"]

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """One round of the loop is one layer."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        builder.add_node("begin", self.begin)
        names = ("expand", "evaluate", "choose", "critique", "commit")
        for name in names:
            builder.add_node(name, getattr(self, name))
        builder.add_node("finish", self.finish)
        builder.add_edge(START, "begin")
        builder.add_edge("begin", "expand")
        for name, after in zip(names, (*names[1:], names[0]), strict=True):
            builder.add_conditional_edges(
                name, lambda state, after=after: "finish" if state.get("stop") else after, ["finish", after]
            )
        builder.add_edge("finish", END)
        return builder


@dataclass(frozen=True)
@role_options(LongDPO)
class Context(Knobs):
    """Models, prompts and options of a run."""

    judge_model: str = knob("", "model spec of the judge with --weights stated; empty: `model`")
    grader_model: str = knob("", "model spec of the judge with --weights probabilities; empty: `model`")

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range, and for a model that would not be used."""
        super().__post_init__()
        used, unused = ("judge", "grader") if self.weights == "stated" else ("grader", "judge")
        if getattr(self, f"{unused}_model"):
            raise ValueError(f"{unused}_model is not used with weights={self.weights}; set {used}_model instead")
        if self.value == "entries" and getattr(self, f"{used}_model"):
            raise ValueError(f"{used}_model is not used with value=entries, which asks no judge; remove it")


builder = LongDPO().builder()
graph = builder.compile(name="longdpo")
