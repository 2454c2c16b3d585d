"""A scripted teacher for DRT with the paper's profile, English to Chinese: its replies are as a strong model's are."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentsys.models.scripted import ScriptedChatModel

CHARACTERS = "老钟在厅里咳了两声仿佛管家带来坏消息随后敲响九点她的笑声跑下楼梯像放学孩子月光如水洒窗前"
SCORES = (72, 84, 92)
"""Score of the first, second and third draft."""
REVIEW = (
    "I reflect on this translation and find that it is accurate and conveys the meaning of the original. The wording "
    "is natural for a reader of Chinese. However, I notice that the middle of the sentence still follows the order of "
    "the English words, so that the comparison arrives too late. I also miss the small surprise that the picture has "
    "in the source, and I ask myself how a Chinese author would lead the reader to it. "
)
DECISION = (
    "Finally, I compare all versions with the source once more. The chosen one is fluent, and it keeps the emotional "
    "tone without any addition. I am satisfied, so my final translation is: "
)


class StrongTeacher(ScriptedChatModel):
    """`langchain:tests.support.strong_teacher:StrongTeacher`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(respond=respond, revision="1", **settings)


def respond(messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
    """The reply of a role to the last message."""
    request, rng = str(messages[-1]["content"]), random.Random(call["seed"])
    role = call["role"]
    if role == "keywords":
        words = re.findall(r"[A-Za-z]{5,}", request.splitlines()[-1])[:6]
        return json.dumps(
            {"keywords": [{"word": word, "translation": "".join(rng.sample(CHARACTERS, 2))} for word in words]}
        )
    if role in ("draft", "refiner", "rewriter"):
        return "".join(rng.choices(CHARACTERS, k=12)) + "，" + "".join(rng.choices(CHARACTERS, k=14)) + "。"
    if role == "advisor":
        draft = line_after("Translation", request)
        return (
            f'It is accurate. The words "{draft[:4]}" are stiff; "{"".join(rng.sample(CHARACTERS, 5))}" is idiomatic.'
        )
    if role == "evaluator":
        return json.dumps(
            {"reason": "smooth, with minor issues", "score": SCORES[int(call["key"].partition("/")[2][0])]}
        )
    return narrate(request)


def narrate(notes: str) -> str:
    """A thought in paragraphs about the notes, with the marks of their translations."""
    marks = re.findall(r"^(⟦\d+⟧) =", notes, re.MULTILINE)
    pairs = [pair.split(" = ") for pair in line_after("Key words", notes).split("; ")]
    words, renderings = (", ".join(f"'{text}'" for text in side) for side in zip(*pairs, strict=True))
    first = (
        f"I start by identifying the key words in the English sentence. The keywords are {words}. I translate them as "
        f"{renderings}. With these renderings in mind, I make my first attempt at translating the entire sentence: "
    )
    middle = [f"{REVIEW}I decide to revise the sentence and write: {mark}" for mark in marks[1:]]
    return "\n\n".join([first + marks[0], *middle, DECISION + re.findall(r"⟦\d+⟧", notes)[-1]])


def line_after(name: str, request: str) -> str:
    """The rest of the last line that begins with this name and a colon."""
    return re.findall(rf"^{name}: (.*)$", request, re.MULTILINE)[-1]
