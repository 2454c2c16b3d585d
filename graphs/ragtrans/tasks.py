"""CSC multi-task training (RAGtrans, section 4) as targets: CLIC, SKET, CLRD and the benchmark's own samples.

`ragtrans`: p(t | d, s). `clic`, cross-lingual information completion: p(y | d_mix, y^). `clrd`, cross-lingual relevance
discrimination: p(r | d_1, d_2). These ask no model. `sket`, self-knowledge-enhanced translation: the model writes its
knowledge d~ in language l, and p(t | d~, s) is learned. graphs/ragtrans/samples.py makes the records.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agentsys.graphs.ragtrans.documents import JOIN, Reference, remove_leaks, split_paragraphs
from agentsys.graphs.ragtrans.targets import PROMPTS, Task, task_targets
from agentsys.roles import Role
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options


class Input(TypedDict):
    """Graph input, a record of a task: a text, its document, and the answer to learn.

    `language` is the code of CLIC's summary or of SKET's knowledge; for the other tasks it is only a note.
    """

    task: Task
    text: str
    document: NotRequired[str]
    answer: NotRequired[str]
    language: NotRequired[str]


class Output(TypedDict):
    """Graph output: the model's knowledge d~ (SKET) and the targets."""

    knowledge: NotRequired[str]
    leaks: NotRequired[int]
    dropped: NotRequired[str | None]
    targets: NotRequired[list[dict[str, Any]]]


class State(Input, Output):
    """Graph state: the input and the output."""


@dataclass(frozen=True)
class Tasks(System):
    """The one role and the nodes of the CSC tasks."""

    knowledge: Role[str] = Role("ragtrans/knowledge", sampling={"temperature": 0.7, "max_tokens": 512})

    async def check(self, state: State) -> dict[str, Any]:
        """Drop records without an answer. Raises ValueError for an unknown task, an empty text, or a non-text field."""
        for name, value in state.items():
            if name in Input.__annotations__ and not isinstance(value, str | None):
                raise ValueError(f"{name}: of type {type(value).__name__}; give a text")
        if state["task"] not in PROMPTS:
            raise ValueError(f"task: {state['task']!r} is none of {', '.join(PROMPTS)}")
        if not state["text"].strip():
            raise ValueError("text: empty; give a text")
        dropped = None if (state.get("answer") or "").strip() else "no reference to learn"
        return {"dropped": dropped, "targets": [], "knowledge": "", "leaks": 0}

    async def write(self, state: State, runtime: Runtime[TasksContext]) -> dict[str, Any]:
        """SKET: d~ without the paragraphs that leak the translation. Raises RoleError."""
        language = language_name(state.get("language") or "en")
        inputs = {"text": state["text"], "knowledge_language": language, **runtime.context.languages}
        answer = await ask(runtime.context, self.knowledge, key="knowledge", **inputs)
        clean, leaks = remove_leaks(split_paragraphs(answer.value), [Reference(state["answer"])])
        dropped = None if clean else "the knowledge leaks the translation"
        return {"knowledge": JOIN.join(clean), "leaks": leaks, "dropped": dropped}

    async def teach(self, state: State, runtime: Runtime[TasksContext]) -> dict[str, Any]:
        """The targets: the answer is learned, the prompt is not.

        SKET has a second target, the knowledge itself (our choice: the paper does not say whether it is learned),
        unless paragraphs were removed from it: the call then contains text that must not be learned.
        """
        task = state["task"]
        document = state["knowledge"] if task == "sket" else state.get("document") or ""
        inputs = {"text": state["text"], "document": document, **runtime.context.languages}
        if task == "clic":
            inputs["language"] = language_name(state.get("language") or "")
        learn_knowledge = task == "sket" and not state["leaks"]
        targets = task_targets(task, inputs, state["answer"], learn_knowledge=learn_knowledge)
        return {"targets": [asdict(target) for target in targets]}

    def builder(self) -> StateGraph[State, TasksContext, Input, Output]:
        """check -> (SKET: write) -> teach."""
        builder = StateGraph(State, context_schema=TasksContext, input_schema=Input, output_schema=Output)
        builder.add_node("check", self.check)
        builder.add_node("write", self.write)
        builder.add_node("teach", self.teach)
        builder.add_edge(START, "check")
        builder.add_conditional_edges("check", _after_check, ["write", "teach", END])
        builder.add_conditional_edges("write", _after_write, ["teach", END])
        builder.add_edge("teach", END)
        return builder


@dataclass(frozen=True)
@role_options(Tasks, shared_models={"knowledge": ""})
class TasksContext(BaseContext, LanguagePair):
    """The model, its prompt and the languages."""

    model: str = knob("embedded", "model spec of the role that writes its knowledge (SKET)", required=True)
    source_language: str = knob("English", "language of the texts", required=True)
    target_language: str = knob("Chinese", "language of the translations", required=True)


def _after_check(state: State) -> str:
    if state.get("dropped"):
        return END
    return "write" if state["task"] == "sket" else "teach"


def _after_write(state: State) -> str:
    return END if state.get("dropped") else "teach"


def language_name(code: str) -> str:
    """The English name of a language code: "Chinese" for zh. Raises KnowledgeError for an unknown code."""
    from langcodes import Language

    from agentsys.text.languages import known_language

    return str(Language.get(known_language(code).primary).display_name("en"))


builder = Tasks().builder()
graph = builder.compile(name="ragtrans_tasks")
