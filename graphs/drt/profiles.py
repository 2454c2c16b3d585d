"""Profiles: the settings of a run for small models and those of the paper; and the examples that the prompts show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Final, Literal

import orjson

from agentsys.text.languages import language

ProfileName = Literal["small", "paper"]


@dataclass(frozen=True)
class Profile:
    """Values of the options that a run leaves open."""

    source_language: str
    target_language: str
    refiner: Literal["dialogue", "candidates"]
    score: Literal["stated", "expected"]
    score_step: float
    thought: Literal["long", "short"]


PROFILES: Final[dict[ProfileName, Profile]] = {
    "small": Profile("Chinese", "English", "candidates", "expected", 0.1, "short"),
    "paper": Profile("English", "Chinese", "dialogue", "stated", 1.0, "long"),
}
"""`small` is for models of a few billion parameters: docs/drt.md says what was measured. `paper` is the method as it
was published, for strong models."""


@lru_cache(maxsize=64)
def find_examples(source_language: str, target_language: str) -> list[dict[str, Any]]:
    """The example of a language pair, for the prompts (`# each example in examples`); empty if none is shipped.

    An example has text, keywords, drafts, assessments, contrasts, scores, reasons, thought and short_thought, as in
    prompts/drt/examples/*.json; `keywords_reply` and the like are what a role would answer, as JSON.
    """
    codes = [parsed.primary if (parsed := language(name)) else "" for name in (source_language, target_language)]
    file = resources.files("agentsys.prompts") / "drt" / "examples" / f"{'-'.join(codes)}.json"
    if not all(codes) or not file.is_file():
        return []
    example = orjson.loads(file.read_bytes())
    replies = {
        "keywords_reply": {"keywords": example["keywords"]},
        "short_reply": example["short_thought"],
    }
    return [example | {name: orjson.dumps(reply).decode() for name, reply in replies.items()}]
