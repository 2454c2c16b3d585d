"""LongDPO's state: the replies of its roles, candidates and layers, and the options of a run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agentsys.graphs.longdpo.memory import Fact
from agentsys.systems import BaseContext, knob

STEP_TOKENS = ((500, 512), (2000, 2048), (4000, 3000))
"""Token limit of a step by required length in words, as in the released code; above the last bound 8192."""


class FoundFact(BaseModel):
    """One statement to remember."""

    statement: str
    validity: Literal["true", "false", "unsure"]
    evidence: str


class Facts(BaseModel):
    """The extractor's reply."""

    facts: list[FoundFact]


class Verdict(BaseModel):
    """The contradiction judge's reply."""

    reason: str
    contradicts: bool


class Critique(BaseModel):
    """The critic's reply."""

    analysis: str
    suggestion: str
    confidence: Annotated[int, Field(ge=1, le=5)]
    words: str


class Candidate(TypedDict):
    """A candidate for the next step s_(t+1). `ids` are the engine's, without the end of the turn.

    `contradicts` is set where the memory was asked: the fact that the step contradicts, or None. Tree search adds `q`,
    the mean value backed up through the step, and `visits`.
    """

    key: str
    text: str
    ids: list[int]
    final: bool
    value: float
    scores: list[float]
    contradicts: NotRequired[str | None]
    suggestions: NotRequired[list[str]]
    q: NotRequired[float]
    visits: NotRequired[int]


Path = tuple[Candidate, ...]
"""s_1 .. s_t."""


class Layer(TypedDict):
    """The candidates of a layer, the indices of the chosen and the rejected one, and the facts for the memory.

    Tree search adds how many of its simulations wrote new steps, and whether all steps within reach were written.
    """

    candidates: list[Candidate]
    chosen: int
    rejected: int | None
    facts: list[dict[str, Any]]
    expansions: NotRequired[int]
    saturated: NotRequired[bool]


class Input(TypedDict):
    """A request, the required length of the response in words (0: none), and what its text consists of (entries.py)."""

    prompt: str
    length: NotRequired[int]
    entries: NotRequired[dict[str, Any] | None]


class State(Input):
    """The response so far, layer by layer, and the current layer."""

    layers: NotRequired[list[Layer]]
    candidates: NotRequired[list[Candidate]]
    chosen: NotRequired[int | None]
    stop: NotRequired[str]
    response: NotRequired[str]
    dropped: NotRequired[str | None]
    targets: NotRequired[list[dict[str, Any]]]


class Output(TypedDict):
    """The response, its layers, why they stopped, and the pairs."""

    prompt: str
    response: NotRequired[str]
    layers: NotRequired[list[Layer]]
    stop: NotRequired[str]
    dropped: NotRequired[str | None]
    targets: NotRequired[list[dict[str, Any]]]


@dataclass(frozen=True)
class Knobs(BaseContext):
    """The options of a layer; graphs/longdpo/system.py adds the models and prompts of the roles."""

    width: int = knob(4, "candidates per layer", highest_in_studio=16)
    depth: int = knob(4, "maximum number of layers", highest_in_studio=16)
    step_tokens: int = knob(
        0,
        "token limit of a step; 0: by the required length, 512 to 8192 as in the released code",
        highest_in_studio=32_768,
    )
    value: Literal["judge", "entries"] = knob(
        "judge", "value of a step: the judge's scores, or a count of the entries and items that the record requires"
    )
    weights: Literal["stated", "probabilities"] = knob(
        "probabilities",
        "weights of a principle's scores 1-5: the probabilities of the score's token, or numbers that the judge states",
    )
    eta: float = knob(2.5, "rewrite a chosen step with critiques if its value, 1-5, is at most eta", highest=5)
    nearest: int = knob(
        3,
        "chunks per fact, the most similar ones, that are checked for a contradiction; 0: those above `similarity`",
        highest_in_studio=64,
    )
    similarity: float = knob(
        0.8, "with nearest 0, the paper's rule: cosine above which a fact and a chunk are checked", highest=1
    )
    chunk_tokens: int = knob(128, "tokens per chunk", highest_in_studio=32_768)
    embedding: str = knob("", "embedding model of the memory; empty: no memory")
    rejected: Literal["random", "worst"] = knob("random", "rejected side of a pair: a random sibling, or the worst")
    choice_seed: int = knob(
        0, "seed of random choices: the rejected side, the number of suggestions", highest_in_studio=2**53
    )

    def __post_init__(self) -> None:
        """Raises ValueError for an option of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(width=1, depth=1, step_tokens=0, chunk_tokens=1, eta=0, nearest=0, similarity=-1)

    def tokens(self, length: int) -> int:
        """Token limit of a step for a response of this many words."""
        return self.step_tokens or next((tokens for bound, tokens in STEP_TOKENS if length < bound), 8192)

    def random_for(self, step: Candidate, purpose: str) -> random.Random:
        """Random numbers that depend on the step, not on the order in which steps are written."""
        return random.Random(f"{self.choice_seed}/{purpose}/{step['key']}/{step['text']}")


def chosen_steps(layers: Sequence[Layer]) -> list[Candidate]:
    """s_1 .. s_t."""
    return [layer["candidates"][layer["chosen"]] for layer in layers]


def text_so_far(steps: Sequence[Candidate]) -> str:
    """s_1 .. s_t as one text."""
    return "".join(step["text"] for step in steps) or "(nothing yet)"


def facts_of(layers: Sequence[Layer]) -> list[Fact]:
    """The memory of s_1 .. s_t."""
    return [Fact(**fact) for layer in layers for fact in layer["facts"]]


def drop_repeated(steps: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of each text."""
    by_text = {step["text"]: step for step in reversed(steps)}
    return [step for step in steps if by_text[step["text"]] is step]
