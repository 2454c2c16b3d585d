"""The thought of a reasoning model in the text of its reply: the tags of each family, and where the answer begins."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final


@dataclass(frozen=True, slots=True)
class Tags:
    """What a family of models writes around its thought."""

    open: str
    close: str
    ending: str = ""
    """The text that ends a thought and begins the answer; by default `close` and a blank line."""
    empty: str = ""
    """An answer's beginning without a thought; by default the two tags with a blank line between them, and another."""

    @property
    def end(self) -> str:
        """The text that ends a thought and begins the answer."""
        return self.ending or f"{self.close}\n\n"

    @property
    def no_thought(self) -> str:
        """The beginning of an answer without a thought."""
        return self.empty or f"{self.open}\n\n{self.close}\n\n"


HARMONY: Final = Tags(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    "<|channel|>final<|message|>",
)
"""gpt-oss: messages in channels, the answer in the channel `final`."""
TAGS: Final = (
    Tags("<think>", "</think>"),  # DeepSeek-R1, Qwen3, QwQ, SmolLM3, GLM, Nemotron, MiniMax, ...
    Tags("<thinking>", "</thinking>"),
    Tags("<thought>", "</thought>"),  # EXAONE Deep
    Tags("<thoughts>", "</thoughts>"),
    Tags("<reasoning>", "</reasoning>"),
    Tags("<seed:think>", "</seed:think>"),  # Seed-OSS
    Tags("[THINK]", "[/THINK]"),  # Magistral
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    Tags("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    Tags("<|channel>thought", "<channel|>", "<channel|>", "<|channel>thought\n<channel|>"),  # Gemma 4
    Tags("◁think▷", "◁/think▷"),  # Kimi-VL
)
_WRAPPERS: Final = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
)
"""Tags that some families write around the answer after a thought."""
_OPEN: Final = re.compile("|".join(f"({re.escape(tags.open)})" for tags in TAGS), re.IGNORECASE)
THOUGHT_END: Final = re.compile(
    "|".join(re.escape(tags.close) for tags in TAGS) + r"|<\|channel\|>final[^<]*<\|message\|>", re.IGNORECASE
)
"""The end of a thought of any family."""
THOUGHT_START: Final = re.compile(rf"\s*(?:{_OPEN.pattern}|<\|channel\|>analysis)", re.IGNORECASE)
"""The beginning of a text that begins with a thought."""
_CHANNEL: Final = re.compile(
    r"\s*(?:<\|start\|>assistant)?<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
)
_MARKS: Final = ("<", "[/", "[T", "[t", "◁")
"""One of these is in every text with tags."""
_MESSAGE_END: Final = re.compile(r"<\|end\|>|(?=<\|start\|>)")
_BARE_CHANNELS: Final = re.compile(r"analysis(.*?)assistantfinal", re.DOTALL)
"""Channels in a text from which the server removed the special tokens."""


@dataclass(frozen=True, slots=True)
class Split:
    """A text's thought, None if it has none, and the characters of the answer."""

    thought: str | None
    start: int
    end: int


def split_thought(text: str, opened: Tags | None = None, mentions: Callable[[str], bool] = lambda tag: False) -> Split:
    """Separate thought and answer. A thought that does not end leaves an empty answer.

    `opened`: the tags of a thought that the prompt has opened already. `mentions` tells whether the prompt mentions a
    tag. Then tags other than <think> are the form that it asks for, and a closing tag without an opening one may be
    part of the answer.
    """
    if opened is None and not any(mark in text for mark in _MARKS) and not text.startswith("analysis"):
        return Split(None, 0, len(text))  # most texts
    split = _split_channels(text, opened is HARMONY)
    if split is None and opened is not HARMONY:
        split = _split_tags(text, opened, mentions)
    if split is None:
        split = _split_at_bare_close(text, mentions)
    if split is None:
        return Split(None, 0, len(text))
    return _without_wrapper(text, split, mentions)


def _split_channels(text: str, opened: bool) -> Split | None:
    """The split of a text in the channels of gpt-oss."""
    thoughts: list[str] = []
    position = 0
    if opened:
        position = _end_message(text, 0, thoughts)
    elif bare := _BARE_CHANNELS.match(text):
        return Split(bare[1].strip(), _skip_space(text, bare.end()), len(text))
    while header := _CHANNEL.match(text, position):
        if header[1] == "final":
            end = text.find("<|return|>", header.end())
            return Split(_joined(thoughts), header.end(), len(text) if end < 0 else end)
        position = _end_message(text, header.end(), thoughts)
    if not thoughts and not text.lstrip().startswith("<|channel|>"):
        return None
    return Split(_joined(thoughts or [text]) or "", len(text), len(text))


def _end_message(text: str, start: int, thoughts: list[str]) -> int:
    """Append the message that begins at `start` to the thoughts. Returns where it ends."""
    end = _MESSAGE_END.search(text, start)
    thoughts.append(text[start : end.start() if end else len(text)])
    return end.end() if end else len(text)


def _split_tags(text: str, opened: Tags | None, mentions: Callable[[str], bool]) -> Split | None:
    """The split of a text that begins with a thought in tags, or with several."""
    thoughts: list[str] = []
    position, tags = 0, opened
    if opened is not None and (again := _OPEN.match(text, _skip_space(text, 0))) and again[0] == opened.open:
        position = again.end()  # a model that repeats the tag that its prompt ended with
    while tags is not None or (opening := _OPEN.match(text, _skip_space(text, position))):
        if tags is None:
            assert opening is not None and opening.lastindex is not None
            tags, position = TAGS[opening.lastindex - 1], opening.end()
            if tags.open != "<think>" and not thoughts and mentions(opening[0]):
                return None
        close = re.compile(re.escape(tags.close), re.IGNORECASE).search(text, position)
        thoughts.append(text[position : close.start() if close else len(text)])
        position = close.end() if close else len(text)
        tags = None
    return Split(_joined(thoughts) or "", _skip_space(text, position), len(text)) if thoughts else None


def _split_at_bare_close(text: str, mentions: Callable[[str], bool]) -> Split | None:
    """The split at a closing tag without an opening one: the server's template opened the thought.

    Not in JSON, and not if the prompt mentions the tag.
    """
    close = THOUGHT_END.search(text)
    if close is None or text.lstrip().startswith(("{", "[")) or mentions(close[0]):
        return None
    return Split(text[: close.start()].strip(), _skip_space(text, close.end()), len(text))


def _without_wrapper(text: str, split: Split, mentions: Callable[[str], bool]) -> Split:
    for opening, closing in _WRAPPERS:
        if text.startswith(opening, split.start) and not mentions(opening):
            answer = text[: split.end].rstrip()
            end = len(answer) - len(closing) if answer.endswith(closing) else split.end
            return Split(split.thought, _skip_space(text, split.start + len(opening)), end)
    return split


def _joined(thoughts: list[str]) -> str | None:
    return "\n\n".join(thought.strip() for thought in thoughts if thought.strip()) if thoughts else None


def _skip_space(text: str, position: int) -> int:
    return len(text) - len(text[position:].lstrip())


def may_begin_thought(text: str) -> bool:
    """Whether a text, or one that it is the beginning of, begins with a thought in tags."""
    start = text.lstrip().lower()
    openings = [tags.open.lower() for tags in TAGS] + ["<|channel|>", "analysis"]
    return any(start.startswith(opening) or opening.startswith(start) for opening in openings)


@lru_cache(maxsize=64)
def find_tags(template: str) -> Tags | None:
    """The tags that a chat template mentions; None for a template of models that do not think."""
    if HARMONY.open in template:
        return HARMONY
    return next((tags for tags in TAGS if tags.open in template or tags.close in template), None)
