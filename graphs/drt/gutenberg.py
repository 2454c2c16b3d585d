"""Removes from a book what is not its text: Project Gutenberg's header and footer, notes, page numbers, emphasis marks.

The rules are narrow, because other texts go through them too: a name with an underscore and brackets that are no notes
are left alone. No package was found that does this without large dependencies.
"""

from __future__ import annotations

import re
from typing import Final

_LINE: Final = re.IGNORECASE | re.MULTILINE
_START: Final = re.compile(
    r"^[ \t]*\*{3}[ \t]*START OF (?:THE |THIS )?PROJECT GUTENBERG(?:(?:[^*\n]*\n(?!\s*\n)){0,3}?[^*\n]*\*{3}.*|.*)$",
    _LINE,
)
"""The header's last line; a long title makes it several lines."""
_SMALL_PRINT: Final = re.compile(r"^[ \t]*(?:\*+[ \t]*)?END[ *]*(?:OF )?THE SMALL PRINT.*$", _LINE)
"""The last line of older headers."""
_END: Final = re.compile(
    r"^[ \t]*(?:\*+[ \t]*)?(?:(?:This is the )?end of (?:the |this )?Project Gutenberg"
    r"|Ende (?:dieses |des )?Proje[ck]t Gutenberg|Fin (?:de |du )?(?:ce )?Projec?t Gutenberg)",
    _LINE,
)
_HEADER: Final = re.compile(r"Project Gutenberg(?:['’]s)? (?:E-?(?:book|text)|edition)|gutenberg\.(?:org|net)", _LINE)
"""What only Project Gutenberg's texts say in their first lines."""
_FRONT_MATTER: Final = re.compile(
    r"project gutenberg|distributed proofread|^[ \t]*this e-?(?:text|book) is for the use of"
    r"|^[ \t]*(?:title|author|translator|editor|illustrator|release date|posting date|last updated|language|credits"
    r"|character set encoding|original publication):"
    r"|^[ \t]*(?:produced|transcribed|e-?text prepared|this e-?(?:text|book) was (?:produced|prepared|created))"
    r" (?:by|from)\b"
    r"|^[ \t]*\[(?:e-?text|e-?book) ?#\d+\]",
    _LINE,
)
_FRONT_PARAGRAPHS: Final = 30
"""Header lines and credits are looked for in this many paragraphs."""

_NOTE: Final = re.compile(
    r"\[[ \t]*(?:"
    r"(?i:illustrations?|footnotes?|sidenote)[ \t]*(?:\]|:|\n|--|—|(?:\d+|[A-Z*†‡])[ \t]*[:.\]])"
    r"|(?i:transcriber['’]?s?['’]?|transcription) (?i:notes?)\b"
    r")(?:(?<=\])|(?:[^\[\]]|\[[^\[\]]*\])*+\])"
)
"""A note in brackets, which may hold brackets of its own."""
_LONGEST_NOTE: Final = 10_000
"""In characters. What is longer is a bracket without its end."""
_PAGE: Final = re.compile(
    r"\[(?i:pg|page|p)\.?[ \t]*(?:\d{1,4}|[ivxlc]{1,8})\]|\{(?:(?i:pg|page|p)\.?[ \t]*)?(?:\d{1,4}|[ivxlc]{1,8})\}"
)
_REMOVED: Final = "\ue000"
"""Stands for a removed note until the white space around it is set right. Private use: in no text."""
_PLACE: Final = re.compile(rf"(?<!\s)\s*(?:{_REMOVED}\s*)+")

_MARK: Final = r"\[([1-9]\d{0,2}|[A-Z]|[*†‡])\]"
_BODY: Final = re.compile(rf"[ \t]*{_MARK}")
"""The beginning of a footnote that is a paragraph."""
_FOOTNOTE: Final = re.compile(r"\[(?i:footnote) (\w{1,3}|[*†‡])[:.\]]")
_MARK_IN_TEXT: Final = re.compile(rf"(?:(?<=\w\w)|(?<=[.,;:!?…\"”'’»)]))([ \t]?){_MARK}")

_TRANSCRIBER: Final = re.compile(r"[\s*_=\[]*(?:transcriber['’]?s?['’]?|transcription) notes?\b", re.IGNORECASE)
_LAST_SHARE, _LAST_CHARACTERS = 0.1, 3000
"""A transcriber's note in the second half with less text than this behind it is the last thing in the book."""
_TABLE: Final = re.compile(r"(?:\s*[|+].*[|+][ \t]*(?:\n|$)){2,}\s*")
"""A frame of | and + around a note."""

_EMPHASIS: Final = re.compile(r"(?<![\w_])_((?=[^\s_])(?:(?!\n\s*\n)[^_]){1,2000}?(?<=\S))_(?![\w_])")
_STRONG: Final = re.compile(
    r"(?<![\w=+])([=+])((?=[^\W\d_]|[\"“'‘])(?:(?!\n\s*\n)[^=+]){1,300}?(?<=[\w.,;:!?\"”'’]))\1(?![\w=+])"
)
"""=bold= and +small capitals+; only in Project Gutenberg's texts, since these signs have other uses."""


def clean(text: str) -> str:
    """Return a book without header, footer, notes, page numbers and emphasis marks; lines end in "\\n"."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace(_REMOVED, "")
    bodies = _cut_frames(text)
    is_gutenberg = bodies != [text] or bool(_HEADER.search(text[:3000]))
    return "\n\n".join(_clean_body(body, is_gutenberg) for body in bodies)


def _cut_frames(text: str) -> list[str]:
    """The texts between header and footer; a file may have several books."""
    bodies, at = [], 0
    while start := _START.search(text, at):
        end = _END.search(text, start.end())
        at = end.end() if end else len(text)
        bodies.append(text[start.end() : end.start() if end else len(text)])
    if not bodies:
        end = _END.search(text)
        bodies.append(text[: end.start()] if end else text)
    return [body[small_print.end() :] if (small_print := _SMALL_PRINT.search(body)) else body for body in bodies]


def _clean_body(body: str, is_gutenberg: bool) -> str:
    labels = _labels_of_notes(body)
    body = _NOTE.sub(lambda note: _REMOVED if len(note[0]) < _LONGEST_NOTE else note[0], body)
    body = _PLACE.sub(_close_gap, _PAGE.sub(_REMOVED, body))
    body = _drop_paragraphs(body, labels, is_gutenberg)
    body = _MARK_IN_TEXT.sub(lambda mark: "" if _is_mark(mark, labels) else mark[0], body)
    body = _EMPHASIS.sub(r"\1", body)
    return _STRONG.sub(r"\2", body) if is_gutenberg else body


def _labels_of_notes(text: str) -> set[str]:
    """The labels ("1", "A") that a mark in the text and a footnote's paragraph have in common."""
    paragraphs = re.split(r"\n\s*\n", text)
    bodies = {body[1] for paragraph in paragraphs if (body := _BODY.match(paragraph))}
    bodies |= {note[1] for note in _FOOTNOTE.finditer(text)}
    return bodies & {mark[2] for mark in _MARK_IN_TEXT.finditer(text)} if bodies else bodies


def _is_mark(mark: re.Match[str], labels: set[str]) -> bool:
    """Whether brackets are a footnote's mark: they have a footnote, or a number follows its word without a space."""
    return mark[2] in labels or (mark[2].isdigit() and not mark[1])


def _close_gap(place: re.Match[str]) -> str:
    """The white space where a note was: a paragraph that it interrupts becomes one again."""
    before, after = place.string[: place.start()][-1:], place.string[place.end() :][:1]
    space = place[0].replace(_REMOVED, "")
    if not space or not before:
        return ""
    if "\n" not in space or (after.islower() and (before.isalnum() or before in ",;")):
        return " "
    return "\n\n" if re.search(r"\n\s*\n", space) else "\n"


def _drop_paragraphs(text: str, labels: set[str], is_gutenberg: bool) -> str:
    """Drop front matter, footnotes and transcriber's notes that are paragraphs of their own."""
    kept: list[str] = []
    paragraphs = re.split(r"\n\s*\n", text)
    at, drop_next = 0, False
    for number, paragraph in enumerate(paragraphs):
        at += len(paragraph)
        if note := _TRANSCRIBER.match(paragraph):
            if at > len(text) / 2 and len(text) - at < max(_LAST_SHARE * len(text), _LAST_CHARACTERS):
                break
            drop_next = not paragraph[note.end() :].strip(" :.*_=]")
        elif drop_next:
            drop_next = False
        elif not _is_dropped(paragraph, labels, is_gutenberg and number < _FRONT_PARAGRAPHS):
            kept.append(paragraph)
    return "\n\n".join(kept) if len(kept) < len(paragraphs) else text


def _is_dropped(paragraph: str, labels: set[str], is_front: bool) -> bool:
    body = _BODY.match(paragraph)
    if body and body[1] in labels:
        return True
    return bool(_TABLE.fullmatch(paragraph)) or (is_front and bool(_FRONT_MATTER.search(paragraph)))
