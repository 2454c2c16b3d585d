"""CSC multi-task training (RAGtrans, section 4) as targets: CLIC, SKET, CLRD and the benchmark's own samples.

`ragtrans`: p(t | d, s). `clic`, cross-lingual information completion: p(y | d_mix, y^). `clrd`, cross-lingual relevance
discrimination: p(r | d_1, d_2). These ask no model. `sket`, self-knowledge-enhanced translation: the model writes its
knowledge d~ in language l, and p(t | d~, s) is learned. graphs/ragtrans/samples.py makes the records.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NotRequired

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agentsys.graphs.ragtrans.documents import JOIN, Reference, paragraphs_of, without_leaks
from agentsys.graphs.ragtrans.system import STUDENT
from agentsys.prompt import Prompt
from agentsys.roles import Role, load_prompt
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options
from agentsys.traces import Segment, Target, masked

PROMPTS: Final[dict[str, Prompt]] = {
    "ragtrans": STUDENT,
    "sket": STUDENT,
    "clic": load_prompt("ragtrans/clic"),
    "clrd": load_prompt("ragtrans/clrd"),
}
"""What a student is given in each task."""


class Input(TypedDict):
    """A record of a task: a text, what stands beside it, and the answer to learn.

    `language` is the code of CLIC's summary, of SKET's knowledge; elsewhere a note.
    """

    task: Literal["ragtrans", "clic", "sket", "clrd"]
    text: str
    document: NotRequired[str]
    answer: NotRequired[str]
    language: NotRequired[str]


class Output(TypedDict):
    """What the model knew, d~, and what is to be learned."""

    knowledge: NotRequired[str]
    leaks: NotRequired[int]
    dropped: NotRequired[str | None]
    targets: NotRequired[list[dict[str, Any]]]


class State(Input, Output):
    """The input and what comes of it."""


@dataclass(frozen=True)
class Tasks(System):
    """The one role, and the nodes."""

    knowledge: Role[str] = Role("ragtrans/knowledge", sampling={"temperature": 0.7, "max_tokens": 512})

    async def check(self, state: State) -> dict[str, Any]:
        """Drop what has nothing to learn. Raises ValueError for a task that is none, an empty text, or no text."""
        for name, value in state.items():
            if name in Input.__annotations__ and not isinstance(value, str | None):
                raise ValueError(f"{name}: of type {type(value).__name__}; give a text")
        if state["task"] not in PROMPTS:
            raise ValueError(f"task: {state['task']!r} is none of {', '.join(PROMPTS)}")
        if not state["text"].strip():
            raise ValueError("text: empty; give a text")
        missing = None if (state.get("answer") or "").strip() else "no reference to learn"
        return {"dropped": missing, "targets": [], "knowledge": "", "leaks": 0}

    async def write(self, state: State, runtime: Runtime[TasksContext]) -> dict[str, Any]:
        """SKET: d~, without paragraphs that already give the translation."""
        language = language_name(state.get("language") or "en")
        inputs = {"text": state["text"], "knowledge_language": language, **runtime.context.languages}
        answer = await ask(runtime.context, self.knowledge, key="knowledge", **inputs)
        clean, taken = without_leaks(paragraphs_of(answer.value), [Reference(state["answer"])])
        dropped = None if clean else "the knowledge gives the translation away"
        return {"knowledge": JOIN.join(clean), "leaks": taken, "dropped": dropped}

    async def teach(self, state: State, runtime: Runtime[TasksContext]) -> dict[str, Any]:
        """The targets: the answer is learned, what stands before it is not.

        SKET has a second one of kind `role`, the knowledge itself (ours: the paper does not say whether it is learned),
        unless something had to be taken out of it: then the call says more than is to be learned.
        """
        document = state["knowledge"] if state["task"] == "sket" else state.get("document") or ""
        told = {"language": language_name(state.get("language") or "")} if state["task"] == "clic" else {}
        asked = PROMPTS[state["task"]].render(
            {"text": state["text"], "document": document, **told, **runtime.context.languages}
        )
        prompt = masked(asked)
        found = [Target("sft", (*prompt, Segment("assistant", True, text=state["answer"].strip())))]
        if state["task"] == "sket" and not state["leaks"]:
            wrote = Segment("user", False, prompt="knowledge"), Segment("assistant", True, call="knowledge")
            found.append(Target("role", wrote))
        return {"targets": [asdict(target) for target in found]}

    def builder(self) -> StateGraph[State, TasksContext, Input, Output]:
        """check -> (SKET: write) -> teach."""
        builder = StateGraph(State, context_schema=TasksContext, input_schema=Input, output_schema=Output)
        builder.add_node("check", self.check)
        builder.add_node("write", self.write)
        builder.add_node("teach", self.teach)
        builder.add_edge(START, "check")
        builder.add_conditional_edges("check", _after_check, ["write", "teach", END])
        builder.add_conditional_edges("write", lambda state: END if state.get("dropped") else "teach", ["teach", END])
        builder.add_edge("teach", END)
        return builder


@dataclass(frozen=True)
@role_options(Tasks, shared_models={"knowledge": ""})
class TasksContext(BaseContext, LanguagePair):
    """The model, its prompt and the languages."""

    model: str = knob("embedded", "model spec of the role that writes its knowledge (SKET)")
    source_language: str = knob("English", "language of the texts")
    target_language: str = knob("Chinese", "language of the translations")


def _after_check(state: State) -> str:
    if state.get("dropped"):
        return END
    return "write" if state["task"] == "sket" else "teach"


def language_name(code: str) -> str:
    """The English name of a language code: "Chinese" for zh. Raises KnowledgeError for what is no code."""
    from langcodes import Language

    from agentsys.text.languages import known_language

    return str(Language.get(known_language(code).primary).display_name("en"))


builder = Tasks().builder()
graph = builder.compile(name="ragtrans_tasks")
