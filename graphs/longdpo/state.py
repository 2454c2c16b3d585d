"""LongDPO's state: what its roles answer, a layer and its candidates, and the settings of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agentsys.systems import BaseContext, knob

if TYPE_CHECKING:
    pass


STEP_TOKENS = ((500, 512), (2000, 2048), (4000, 3000))
"""Tokens of a step by required length in words, as released; above the last bound 8192."""


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


class Input(TypedDict):
    """A request, and the words that the response should have (0: the request does not say)."""

    prompt: str
    length: NotRequired[int]


class State(Input):
    """The response so far, layer by layer, and the layer being made."""

    layers: NotRequired[list[Layer]]
    candidates: NotRequired[list[Candidate]]
    chosen: NotRequired[int | None]
    stop: NotRequired[str]
    response: NotRequired[str]
    dropped: NotRequired[str | None]
    targets: NotRequired[list[dict[str, Any]]]


class Output(TypedDict):
    """The response, how it came about, and the pairs."""

    prompt: str
    response: NotRequired[str]
    layers: NotRequired[list[Layer]]
    stop: NotRequired[str]
    dropped: NotRequired[str | None]
    targets: NotRequired[list[dict[str, Any]]]


@dataclass(frozen=True)
class Knobs(BaseContext):
    """The knobs of a run; graphs/longdpo/system.py adds the models and prompts of the roles."""

    width: int = knob(4, "candidates of a layer")
    depth: int = knob(4, "layers at most")
    step_tokens: int = knob(0, "tokens of a step; 0: by the required length, 512 to 8192 as released")
    weights: Literal["stated", "probabilities"] = knob(
        "probabilities",
        "a principle's weights: the chances of its score's token, or five numbers of the judge",
    )
    eta: float = knob(2.5, "a choice of at most this value is improved with critiques, 1-5")
    similarity: float = knob(0.8, "cosine above which a fact and a chunk are judged")
    chunk_tokens: int = knob(128, "tokens of a chunk")
    embedding: str = knob("", "embedding model of the memory; empty: no memory")
    rejected: Literal["random", "worst"] = knob("random", "the rejected side: a random other candidate, or the worst")
    choice_seed: int = knob(0, "seed of random choices: the rejected side, the number of suggestions")

    def __post_init__(self) -> None:
        """Raises ValueError for a knob of the wrong type or out of range."""
        super().__post_init__()
        self.at_least(width=1, depth=1, step_tokens=0, chunk_tokens=1, eta=0, similarity=-1)
        self.at_most(eta=5, similarity=1)

    def tokens(self, length: int) -> int:
        """Tokens of a step for a response of so many words."""
        return self.step_tokens or next((tokens for bound, tokens in STEP_TOKENS if length < bound), 8192)


class Candidate(TypedDict):
    """A step s_(t+1) that could come next. `ids` are the engine's, without the end of the turn.

    Tree search adds the mean q of what it found below the step, and the visits.
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


class Layer(TypedDict):
    """What one layer decided: the candidates, which were chosen and rejected (indices), and the facts it added."""

    candidates: list[Candidate]
    chosen: int
    rejected: int | None
    facts: list[dict[str, Any]]
