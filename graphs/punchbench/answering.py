"""A pair's questions answered by a model: zero-shot, few-shot, after thinking, and by SC-CoQ's chains (section 4).

The record is one pair P_i^x. Each question and reply is a step of the graph. A conversation that several strategies or
chains share is asked once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel
from typing_extensions import TypedDict

from agentsys.graphs.punchbench.chains import (
    OTHER,
    STRATEGIES,
    Conversation,
    Strategy,
    conversation_of,
    option_in,
    options_of,
    plan_conversations,
)
from agentsys.graphs.punchbench.state import Verdict
from agentsys.knobs import split_names
from agentsys.models.errors import EndpointDown
from agentsys.pictures import PictureInput
from agentsys.prompt import Prompt
from agentsys.roles import Answer, Role, RoleError
from agentsys.systems import BaseContext, System, ask, knob, prompt_of, role_options

NO_REPLY: Final = "(no answer)"
"""What stands for an unusable reply in a longer conversation."""
ANSWERING: Final = {"temperature": 0.0, "max_tokens": 300}


class ChoiceOf2(BaseModel):
    """A reply to a Matching question."""

    answer: Literal["A", "B"]


class ChoiceOf4(BaseModel):
    """A reply to a Multi-option question."""

    answer: Literal["A", "B", "C", "D"]


class Question(TypedDict):
    """A question on a pair, as tasks.py writes it. `image` names one of the record's pictures: "pair" or "other"."""

    task: str
    format: str
    caption: str
    sentence: str
    options: list[str]
    answer: str
    image: NotRequired[str]


class Exemplar(TypedDict):
    """An answered question of another pair, for few-shot; `image` is the number of its picture."""

    question: Question
    image: int


class Input(TypedDict):
    """Graph input: the questions of a pair by task/format, with their pictures.

    `image` is None where it is withheld. `other_image` is the picture of the question "other/yes_no".
    """

    questions: dict[str, Question]
    image: NotRequired[PictureInput]
    other_image: NotRequired[PictureInput]
    exemplars: NotRequired[dict[str, list[Exemplar]]]
    exemplar_images: NotRequired[PictureInput]


class Reply(TypedDict):
    """A step: the reply to the last question of a conversation, and the answer that it names ("" if none).

    `probabilities` of the options are those of the first token that tells them apart, where the engine returns
    log-probabilities.
    """

    mode: str
    questions: list[str]
    text: str
    answer: str
    key: str
    prompt_tokens: int
    completion_tokens: int
    probabilities: dict[str, float] | None


class Prediction(TypedDict):
    """What a strategy answers to a question; `right` is None without a gold answer and for an explanation unjudged."""

    strategy: str
    question: str
    answer: str
    right: bool | None
    conversation: str


class State(Input):
    """The replies so far and the predictions."""

    replies: NotRequired[list[Reply]]
    left: NotRequired[int]
    """Conversations of the plan that are still to be asked."""
    predictions: NotRequired[list[Prediction]]


class Output(TypedDict):
    """Graph output: all replies, and a prediction for each strategy and question."""

    replies: NotRequired[list[Reply]]
    predictions: NotRequired[list[Prediction]]


@dataclass(frozen=True)
class SCCoQ(System):
    """The roles and nodes that answer questions, and judge explanations. `question` has the wording alone."""

    question: Role[str] = Role("punchbench/questions")
    answerer: Role[str] = Role("punchbench/answerer", sampling=ANSWERING, allow_truncated=True, attempts=1)
    thinker: Role[str] = Role("punchbench/thinker", sampling=ANSWERING, allow_truncated=True, attempts=1)
    explanation_judge: Role[Verdict] = Role(
        "punchbench/explanation_judge", Verdict, sampling={"temperature": 0.0, "max_tokens": 40}
    )

    async def plan(self, state: State, runtime: Runtime[AnswerContext]) -> dict[str, Any]:
        """How many conversations there are to ask, each once."""
        conversations = plan_conversations(runtime.context.strategy_names, list(state["questions"]))
        return {"replies": [], "left": len(conversations)}

    async def answer(self, state: State, runtime: Runtime[AnswerContext]) -> dict[str, Any]:
        """Ask the next conversation of the plan. An unusable reply is none, and counts as wrong. Raises ModelError."""
        replies = state.get("replies", [])
        plan = plan_conversations(runtime.context.strategy_names, list(state["questions"]))
        reply = await self._reply(state, runtime.context, plan[len(replies)])
        return {"replies": [*replies, reply], "left": len(plan) - len(replies) - 1}

    async def _reply(self, state: State, context: AnswerContext, conversation: Conversation) -> Reply:
        earlier_replies = [reply for reply in state.get("replies", []) if reply["mode"] == conversation.mode]
        texts = {tuple(reply["questions"]): reply["text"] for reply in earlier_replies}
        questions = [state["questions"][name] for name in conversation.questions]
        question = questions[-1]
        prompt = prompt_of(context, self.question)
        turns, shown = _exemplar_turns(state, prompt, context.shots, conversation), set[str]()
        for number, earlier in enumerate(questions[:-1], 1):
            reply = texts.get(conversation.questions[:number], "") or NO_REPLY
            turns.append({**_turn(state, prompt, earlier, shown), "reply": reply})
        role = self.thinker if conversation.mode == "cot" else self.answerer
        output = _output_of(question) if context.constrained and conversation.mode != "cot" else str
        role = replace(role, output=output, sampling=_sampling(role, context, question))
        try:
            inputs = {**_turn(state, prompt, question, shown), "turns": turns}
            answer: Answer[Any] = await ask(context, role, key=conversation.key, **inputs)
        except EndpointDown:
            raise
        except RoleError as err:
            return _make_reply(conversation, "", "", None, err.tokens)
        options = options_of(question) if question["format"] != "generation" else []
        text = str(getattr(answer.value, "answer", answer.value))
        named = option_in(text, options) if options else text
        return _make_reply(conversation, text, named, answer, 0, options)

    async def score(self, state: State, runtime: Runtime[AnswerContext]) -> dict[str, Any]:
        """Compare the answer of each strategy with the gold answer; a judge compares explanations. Raises ModelError.

        An explanation that two strategies share is judged once.
        """
        context = runtime.context
        replies = {(reply["mode"], tuple(reply["questions"])): reply for reply in state.get("replies", [])}
        judged: dict[str, bool | None] = {}
        predictions: list[Prediction] = []
        for strategy in context.strategy_names:
            for name in _targets(state):
                conversation = conversation_of(strategy, name, state["questions"])
                reply = replies[conversation.mode, conversation.questions]
                question = state["questions"][name]
                right: bool | None = reply["answer"] == question["answer"] if question["answer"] else None
                if question["format"] == "generation" and question["answer"]:
                    if conversation.key not in judged:
                        judged[conversation.key] = await self._judge(context, conversation, question, reply["answer"])
                    right = judged[conversation.key]
                predictions.append(
                    Prediction(
                        strategy=strategy, question=name, answer=reply["answer"], right=right,
                        conversation=conversation.key,
                    )
                )  # fmt: skip
        return {"predictions": predictions}

    async def _judge(
        self, context: AnswerContext, conversation: Conversation, question: Question, explanation: str
    ) -> bool | None:
        if not context.judge:
            return None
        if not explanation.strip():
            return False
        inputs = {"caption": question["caption"], "reference": question["answer"], "explanation": explanation}
        verdict = await ask(context, self.explanation_judge, key=f"judge/{conversation.key}", **inputs)
        return verdict.value.answer == "Yes"

    def builder(self) -> StateGraph[State, AnswerContext, Input, Output]:
        """plan -> answer until the plan is done -> score."""
        graph = StateGraph(State, context_schema=AnswerContext, input_schema=Input, output_schema=Output)
        graph.add_node("plan", self.plan)
        graph.add_node("answer", self.answer)
        graph.add_node("score", self.score)
        graph.add_edge(START, "plan")
        graph.add_edge("plan", "answer")
        graph.add_conditional_edges("answer", lambda s: "answer" if s["left"] else "score", ["answer", "score"])
        graph.add_edge("score", END)
        return graph


@dataclass(frozen=True)
@role_options(SCCoQ, shared_models={"question": ""})
class AnswerContext(BaseContext):
    """Models, prompts and options of a run."""

    strategies: str = knob(
        "zero_shot,sc_coq", f"strategies, separated by commas: {', '.join(STRATEGIES)}", required=True
    )
    shots: int = knob(3, "exemplars of few_shot", highest_in_studio=8)
    constrained: bool = knob(True, "replies of questions with options follow a schema, but not after thinking")
    judge: bool = knob(True, "have a judge compare explanations with the reference")
    logprobs: int = knob(0, "log-probabilities of so many alternatives, for the probabilities of options", highest=20)

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range, and for an unknown strategy."""
        super().__post_init__()
        self.at_least(shots=1, logprobs=0)
        if unknown := [name for name in split_names(self.strategies) if name not in STRATEGIES]:
            raise ValueError(f"strategies: there is no '{unknown[0]}'; there are {', '.join(STRATEGIES)}")
        if not self.strategy_names:
            raise ValueError(f"strategies: it is empty; there are {', '.join(STRATEGIES)}")

    @property
    def strategy_names(self) -> list[Strategy]:
        """The strategies, in the paper's order."""
        names = split_names(self.strategies)
        return [name for name in STRATEGIES if name in names]


def _targets(state: State) -> list[str]:
    return [name for name in state["questions"] if name != OTHER]


def _turn(state: State, prompt: Prompt, question: Question, shown: set[str]) -> dict[str, Any]:
    """A question as text, with its picture unless that was shown before in the conversation."""
    name = question.get("image", "pair")
    image = None if name in shown else state.get("other_image" if name == "other" else "image")
    shown.add(name)
    return {"image": image, "question": render_question(prompt, question)}


def _exemplar_turns(state: State, prompt: Prompt, shots: int, conversation: Conversation) -> list[dict[str, Any]]:
    """The answered questions of other pairs that stand before the question, for few-shot."""
    if conversation.mode != "few_shot":
        return []
    exemplars = (state.get("exemplars") or {}).get(conversation.questions[-1], [])[:shots]
    images = state.get("exemplar_images") or []
    return [
        {
            "image": images[exemplar["image"]] if images else None,
            "question": render_question(prompt, exemplar["question"]),
            "reply": exemplar["question"]["answer"],
        }
        for exemplar in exemplars
    ]


def render_question(prompt: Prompt, question: Mapping[str, Any]) -> str:
    """The words of a question. Raises PromptError."""
    letters = [f"{letter}. {option}" for letter, option in zip("ABCD", question["options"], strict=False)]
    return str(prompt.render({**question, "options": letters})[0]["content"])


def _output_of(question: Question) -> Any:
    """The type of a constrained reply."""
    return {("yes_no", 0): Verdict, ("matching", 2): ChoiceOf2, ("multi_option", 4): ChoiceOf4}.get(
        (question["format"], len(question["options"])), str
    )


def _sampling(role: Role[str], context: AnswerContext, question: Question) -> dict[str, Any]:
    wants_logprobs = context.logprobs and question["format"] != "generation"
    return {**role.sampling, **({"logprobs": context.logprobs} if wants_logprobs else {})}


def _make_reply(
    conversation: Conversation,
    text: str,
    named: str,
    answer: Answer[Any] | None,
    tokens: int,
    options: Sequence[str] = (),
) -> Reply:
    call = answer.call if answer else None
    return Reply(
        mode=conversation.mode,
        questions=list(conversation.questions),
        text=text,
        answer=named,
        key=conversation.key,
        prompt_tokens=call.prompt_tokens if call else 0,
        completion_tokens=call.completion_tokens if call else tokens,
        probabilities=option_probabilities(call.top_tokens, call.top_logprobs, options) if call else None,
    )


def option_probabilities(
    tokens: Sequence[Sequence[str]] | None, logprobs: Sequence[Sequence[float]] | None, options: Sequence[str]
) -> dict[str, float] | None:
    """The probability of each option among the alternatives of the first token that names one; they sum to 1.

    None without the texts of alternatives.
    """
    for texts, values in zip(tokens or (), logprobs or (), strict=False):
        found: dict[str, float] = {}
        for text, value in zip(texts, values, strict=True):
            name = text.strip(' "\n')
            if name in options:
                found[name] = found.get(name, 0.0) + math.exp(value)
        if found:
            total = sum(found.values())
            return {option: found.get(option, 0.0) / total for option in options}
    return None


builder = SCCoQ().builder()
graph = builder.compile(name="punchbench_sc_coq").with_config({"recursion_limit": 200})  # a step per question
