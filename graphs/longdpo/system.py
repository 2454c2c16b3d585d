"""LongDPO: a long response written step by step; the best consistent step of several goes on, and gives a pair.

"LongDPO: Unlock Better Long-form Generation Abilities for LLMs via Critique-augmented MCTSProblem Information" (Ping et
al. 2025). One layer: expand the response by several candidate steps with the same exact token prefix, judge each on
seven principles, pass over those that contradict the memory of what was written, improve a weak choice with critiques,
and commit to it. The graph repeats layers, so that a person can step through them; the methods are the search's too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentsys.graphs.longdpo.judge import PRINCIPLES, Grades, Judgement, fault, probable, stated
from agentsys.graphs.longdpo.memory import Fact, cut_evenly, suspicions
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
)
from agentsys.graphs.longdpo.targets import chosen_steps, layer_of, random_of, response_of
from agentsys.knobs import listed
from agentsys.knowledge.embedders import Embedder, close, make_embedder
from agentsys.metrics.lengths import required_words
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.models.spec import served_to_browsers
from agentsys.roles import Role, RoleError
from agentsys.search import settled
from agentsys.systems import System, ask, role_options


@dataclass(frozen=True)
class LongDPO(System):
    """The roles and nodes of one layer. `LongDPO(judge=Role(...))` replaces a role."""

    writer: Role[str] = Role("longdpo/writer", allow_truncated=True, sampling={"temperature": 0.7, "top_p": 1.0})
    judge: Role[Judgement] = Role(
        "longdpo/judge", Judgement, check=fault, sampling={"temperature": 0.7, "max_tokens": 1024}
    )
    grader: Role[Grades] = Role(
        "longdpo/grader", Grades, sampling={"temperature": 0.0, "max_tokens": 128, "logprobs": 10}
    )
    extractor: Role[Facts] = Role("longdpo/extractor", Facts, sampling={"temperature": 0.0, "max_tokens": 1024})
    contradiction: Role[Verdict] = Role(
        "longdpo/contradiction", Verdict, sampling={"temperature": 0.0, "max_tokens": 256}
    )
    critic: Role[Critique] = Role("longdpo/critic", Critique, sampling={"temperature": 0.0, "max_tokens": 512})

    async def write(
        self, state: State, context: Context, prefix: Sequence[Candidate], key: str, suggestions: Sequence[str] = ()
    ) -> Candidate:
        """One candidate for s_(t+1) after s_1 .. s_t, the very ids of `prefix`. Raises RoleError, ModelError.

        It is asked for once: what came after a reminder of an empty reply would be no sibling. Raises ValueError for a
        length that is no number of words.
        """
        budget = context.tokens(required_words(state.get("length")))
        role = replace(self.writer, sampling={**self.writer.sampling, "max_tokens": budget}, attempts=1)
        ids = [i for step in prefix for i in step["ids"]]
        if not all(step["ids"] for step in prefix):
            raise RoleError(f"writer ({key}): a step before has no token ids; use embedded, llama.cpp or vLLM")
        asked = {"prompt": state["prompt"], "suggestions": list(suggestions)}
        call = (await ask(context, role, key=key, continue_ids=ids, **asked)).call
        kept = (call.ids or [])[: len(call.ids or []) - call.stop_ids]
        return Candidate(
            key=call.key, text=call.text, ids=kept, final=call.finish == "stop", value=0.0, scores=[],
            suggestions=list(suggestions),
        )  # fmt: skip

    async def evaluate(self, state: State, context: Context, prefix: Sequence[Candidate], step: Candidate) -> Candidate:
        """The step with its value: the mean over the principles of the expected score. Raises RoleError."""
        inputs = {"prompt": state["prompt"], "before": text_of(prefix), "text": step["text"]}
        key = f"{step['key']}/judge"
        if context.weights == "stated":
            scores = await stated(context, self.judge, key, inputs)
        else:
            scores = await probable(context, self.grader, key, inputs)
        return {**step, "scores": scores, "value": sum(scores) / len(scores)}

    async def contradicted(self, context: Context, facts: Sequence[Fact], step: Candidate) -> str | None:
        """The fact that a step contradicts, or None. Raises RoleError."""
        if not facts or not context.embedding:
            return None
        chunks = cut_evenly(step["text"], len(step["ids"]), context.chunk_tokens)
        found = await suspicions(facts, chunks, _embedder(context.embedding), context.similarity)
        for number, (fact, chunk, _) in enumerate(found):
            key = f"{step['key']}/contradiction/{number}"
            verdict = await ask(context, self.contradiction, key=key, fact=fact.statement, chunk=chunk)
            if verdict.value.contradicts:
                return fact.statement
        return None

    async def remember(
        self, state: State, context: Context, prefix: Sequence[Candidate], step: Candidate
    ) -> list[Fact]:
        """Facts of a chosen step; what the extractor holds to be false is not kept. Raises RoleError, ModelError.

        None of the last step, which nothing can contradict.
        """
        if not context.embedding or step["final"] or len(prefix) + 1 >= context.depth:
            return []
        inputs = {"before": text_of(prefix), "text": step["text"]}
        found = (await ask(context, self.extractor, key=f"{step['key']}/facts", **inputs)).value.facts
        return [Fact(f.statement, f.validity, f.evidence, step["key"]) for f in found if f.validity != "false"]

    async def choose(
        self, context: Context, facts: Sequence[Fact], candidates: Sequence[Candidate]
    ) -> tuple[list[Candidate], int | None]:
        """The candidates with what they contradict, asked from the best down to the first consistent one: the choice.

        The best has the greatest q, or without tree search the greatest value. Raises RoleError.
        """
        found = list(candidates)
        for i in sorted(range(len(found)), key=lambda i: -found[i].get("q", found[i]["value"])):
            fact = await self.contradicted(context, facts, found[i])
            found[i] = {**found[i], "contradicts": fact}
            if fact is None:
                return found, i
        return found, None

    async def improve(
        self, state: State, context: Context, prefix: Sequence[Candidate], facts: Sequence[Fact],
        candidates: Sequence[Candidate], chosen: Candidate,
    ) -> Candidate | None:  # fmt: skip
        """Critique augmentation of a choice whose value is at most eta: a better rewriting, or None.

        For each principle on which a consistent sibling is better the critic says what could be learned from it; one to
        three suggestions, the most confident, go into the request of the rewriting. There is none where no sibling is
        better, where the rewriting is not better or contradicts the memory, and where a call fails for good.
        """
        if chosen["value"] > context.eta:
            return None
        try:
            suggestions = await self._suggestions(state, context, facts, candidates, chosen)
            if not suggestions:
                return None
            count = random_of(context, chosen, "suggestions").randint(1, 3)
            key = f"{chosen['key']}/rewrite"
            step = await self.write(state, context, prefix, key, suggestions[:count])
            step = await self.evaluate(state, context, prefix, step)
            better = step["value"] > chosen["value"] and not await self.contradicted(context, facts, step)
        except EndpointDown:
            raise
        except ModelError:
            return None
        return step if better else None

    async def _suggestions(
        self, state: State, context: Context, facts: Sequence[Fact], candidates: Sequence[Candidate], chosen: Candidate
    ) -> list[str]:
        """Advice from better siblings, the most confident first."""
        siblings = [step for step in candidates if step is not chosen and "contradicts" not in step]
        verdicts = await settled(*(self.contradicted(context, facts, step) for step in siblings))
        sound = [step for step, verdict in zip(siblings, verdicts, strict=True) if verdict is None]
        asked = []
        for number, principle in enumerate(PRINCIPLES):
            best = max(sound, key=lambda step: step["scores"][number], default=None)
            if best is not None and best["scores"][number] > chosen["scores"][number]:
                texts = {"better": best["text"], "worse": chosen["text"], "principle": principle}
                key = f"{chosen['key']}/critic/{principle}"
                asked.append(ask(context, self.critic, key=key, prompt=state["prompt"], **texts))
        found = [answer.value for answer in await settled(*asked) if not isinstance(answer, ModelError)]
        return [critique.suggestion for critique in sorted(found, key=lambda critique: -critique.confidence)]

    async def commit(
        self, state: State, context: Context, prefix: Sequence[Candidate], candidates: Sequence[Candidate], chosen: int
    ) -> tuple[Layer, str]:
        """The layer of a choice, and what ends the layers with it: its facts are not known, but the choice was made."""
        try:
            facts, reason = await self.remember(state, context, prefix, candidates[chosen]), ""
        except EndpointDown:
            raise
        except ModelError as err:
            facts, reason = [], str(err)
        return layer_of(context, candidates, chosen, facts), reason

    async def begin(self, state: State) -> dict[str, Any]:
        """An empty response, whatever a thread held before."""
        return {"layers": [], "candidates": [], "chosen": None, "stop": ""}

    async def expand_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Candidates for the next step; equal texts are one."""
        context, layers = runtime.context, state["layers"]
        prefix = chosen_steps(layers)
        keys = [f"{len(layers)}/{i}" for i in range(context.width)]
        written = await settled(*(self.write(state, context, prefix, key) for key in keys))
        candidates = distinct([step for step in written if not isinstance(step, ModelError)])
        stop = "" if candidates else f"no candidate: {written[0]}"
        return {"candidates": candidates, "chosen": None, "stop": stop}

    async def judge_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """Values. A candidate whose judgement cannot be used is out: no middle value takes its place."""
        prefix = chosen_steps(state["layers"])
        found = await settled(*(self.evaluate(state, runtime.context, prefix, step) for step in state["candidates"]))
        valued = [step for step in found if not isinstance(step, ModelError)]
        return {"candidates": valued} if valued else {"candidates": [], "stop": f"no judgement: {found[0]}"}

    async def consistency_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """The best candidate that contradicts nothing in the memory."""
        facts = facts_of(state["layers"])
        candidates, chosen = await self.choose(runtime.context, facts, state["candidates"])
        stop = "every candidate contradicts the memory" if chosen is None else ""
        return {"candidates": candidates, "chosen": chosen, "stop": stop}

    async def critique_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """A choice of at most eta is rewritten, and replaced if that is better."""
        chosen = state["chosen"]
        assert chosen is not None
        candidates, prefix, facts = state["candidates"], chosen_steps(state["layers"]), facts_of(state["layers"])
        better = await self.improve(state, runtime.context, prefix, facts, candidates, candidates[chosen])
        return {"candidates": [*candidates, better], "chosen": len(candidates)} if better else {}

    async def commit_node(self, state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        """s_(t+1), its pair, and what it adds to the memory."""
        context, candidates, chosen = runtime.context, state["candidates"], state["chosen"]
        assert chosen is not None
        layer, reason = await self.commit(state, context, chosen_steps(state["layers"]), candidates, chosen)
        layers = [*state["layers"], layer]
        stop = "end" if candidates[chosen]["final"] else "depth" if len(layers) >= context.depth else reason
        return {"layers": layers, "stop": stop}

    async def finish(self, state: State) -> dict[str, Any]:
        """The response and its pairs."""
        return response_of(state["layers"], state["stop"])

    def builder(self) -> StateGraph[State, Context, Input, Output]:
        """One turn of the loop is one layer."""
        builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
        builder.add_node("begin", self.begin)
        names = ("expand", "judge", "consistency", "critique", "commit")
        for name in names:
            builder.add_node(name, getattr(self, f"{name}_node"))
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
    """Models, prompts and knobs of a run."""

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range, and for a model that would not be asked."""
        super().__post_init__()
        judge, other = ("judge", "grader") if self.weights == "stated" else ("grader", "judge")
        if getattr(self, f"{other}_model"):
            raise ValueError(f"{other}_model: with weights {self.weights} the judge is {judge}; name its {judge}_model")


def distinct(steps: Sequence[Candidate]) -> list[Candidate]:
    """Candidates without repeated texts, the first of equal ones."""
    found = {step["text"]: step for step in reversed(steps)}
    return [step for step in steps if found[step["text"]] is step]


def facts_of(layers: Sequence[Layer]) -> list[Fact]:
    """The memory of s_1 .. s_t."""
    return [Fact(**fact) for layer in layers for fact in layer["facts"]]


async def check_memory(context: Context) -> None:
    """Embed a word, so that what is wrong with the memory's model is known before anything is paid for.

    Raises KnowledgeError, and what an endpoint's model raises.
    """
    if context.embedding:
        embedder = _embedder(context.embedding)
        try:
            await embedder.embed(["memory"])
        finally:
            await close(embedder)


@lru_cache(maxsize=4)
def _embedder(spec: str) -> Embedder:
    """The memory's embedding model; in Studio one that the server's environment allows. Raises ValueError."""
    allowed = listed(os.environ.get("AGENTSYS_EMBEDDINGS", ""))
    if served_to_browsers() and spec not in allowed:
        raise ValueError(f"in Studio, {spec} is not allowed; start the server with AGENTSYS_EMBEDDINGS={spec}")
    return make_embedder(spec)


def text_of(steps: Sequence[Candidate]) -> str:
    """s_1 .. s_t as one text."""
    return "".join(step["text"] for step in steps) or "(nothing yet)"


builder = LongDPO().builder()
graph = builder.compile(name="longdpo")
