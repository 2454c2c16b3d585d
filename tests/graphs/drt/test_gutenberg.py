"""Cleaning of books: what is Project Gutenberg's, notes and marks go; ordinary texts stay as they are."""

from __future__ import annotations

import pytest

from agentsys.graphs.drt.gutenberg import clean

HEADER = """\
The Project Gutenberg eBook of The Tin Lantern, by A. Nobody

This eBook is for the use of anyone anywhere at no cost.

Title: The Tin Lantern

Author: A. Nobody

Character set encoding: UTF-8

"""
FOOTER = """

*** START: FULL LICENSE ***

THE FULL PROJECT GUTENBERG LICENSE
"""

BOOK = (
    HEADER
    + """*** START OF THE PROJECT GUTENBERG EBOOK THE TIN
LANTERN ***




Produced by Some Body and the Online Distributed Proofreading Team

[Illustration: _Frontispiece_

The lantern on [its] hook]

THE TIN LANTERN


CHAPTER I

The lantern hung by the door[1] like a _second_ moon, and =nobody= dared
to touch it.{12} Mr. Smith, who was a
+Captain+ once,[A] walked past it every

[Illustration: The walk]

night with his hat in his hand.

[Footnote 1: The door is gone now.

It burnt [in 1850].]

[A] Of a fishing boat.

The ro[Pg 13]ad was long. "I _never_," he said, "saw it
[Page xiv] lit."

Transcriber's Note:

Two commas were added.

The spelling was kept.

*** END OF THE PROJECT GUTENBERG EBOOK THE TIN LANTERN ***"""
    + FOOTER
)


def paragraphs(text: str) -> list[str]:
    return [" ".join(block.split()) for block in clean(text).split("\n\n") if block.strip()]


def test_a_book_of_project_gutenberg_keeps_only_its_text() -> None:
    assert paragraphs(BOOK) == [
        "THE TIN LANTERN",
        "CHAPTER I",
        "The lantern hung by the door like a second moon, and nobody dared to touch it. Mr. Smith, who was a Captain "
        "once, walked past it every night with his hat in his hand.",
        'The road was long. "I never," he said, "saw it lit."',
    ]
    assert paragraphs(BOOK.replace("\n", "\r\n")) == paragraphs(BOOK)


@pytest.mark.parametrize(
    "start",
    [
        "*** START OF THE PROJECT GUTENBERG EBOOK THE TIN LANTERN ***",
        "***START OF THE PROJECT GUTENBERG EBOOK THE TIN LANTERN***",
        "*** START OF THIS PROJECT GUTENBERG EBOOK THE TIN LANTERN ***",
        "*** START OF THIS PROJECT GUTENBERG EBOOK THE TIN LANTERN",
        "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
        "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.02/11/02*END*",
        "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\nPolicies.\n\n*END*THE SMALL PRINT! FOR ETEXTS*END*",
    ],
)
@pytest.mark.parametrize(
    "end",
    [
        "*** END OF THE PROJECT GUTENBERG EBOOK THE TIN LANTERN ***",
        "***END OF THE PROJECT GUTENBERG EBOOK THE TIN LANTERN***",
        "End of the Project Gutenberg EBook of The Tin Lantern, by A. Nobody",
        "End of Project Gutenberg's The Tin Lantern, by A. Nobody\n\n*** END OF THIS PROJECT GUTENBERG EBOOK X ***",
        "*** This is the end of the Project Gutenberg Edition ***",
        "Ende dieses Projekt Gutenberg Etextes Die Laterne",
    ],
)
def test_new_and_old_frames_are_cut(start: str, end: str) -> None:
    small_print = "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\n\nYou may sue us.\n\n"
    text = f"{HEADER}{small_print}{start}\n\nThe lamp was out.\n\nIt rained.\n\n{end}{FOOTER}"
    assert paragraphs(text) == ["The lamp was out.", "It rained."]


def test_a_file_of_two_books_keeps_both() -> None:
    assert paragraphs(BOOK + "\n\n" + BOOK) == paragraphs(BOOK) * 2


def test_a_header_without_its_last_line_is_recognized() -> None:
    assert paragraphs(f"{HEADER}The lamp was out.\n\nLanguage: she had none left.") == ["The lamp was out."]
    assert paragraphs("The lamp was out.\n\nLanguage: she had none left.")[1] == "Language: she had none left."


@pytest.mark.parametrize(
    "text",
    [
        "She opened my_file_name.txt and __init__, _private and its x.",
        "He wrote [sic] and [1890], a list[0], x[1] and see [2], [A] and [B].",
        "The [Illustrations of this kind] are rare; [the footnote] is not; [Page Smith came].",
        "Let a=b, c =d, 2+2=4 and 3 +4+ 5; in sets {1, 2} and {vivid}.",
        "_ _ _\n\n* * *\n\nA line | with a bar\n\n+1 is a vote",
        "[1] was the first on the list, and nobody asked why.\n\n[2] was next.",
        "The end of the Project Gutenberg was near.\n\n  *** The end ***",
        "An open bracket [Illustration: without its end\n\nand the text goes on.",
        "Title: none.\n\nThe transcriber's note lay on the table.",
        "窗外下着雨。[1990]\n\n他说：「走吧。」",
    ],
)
def test_ordinary_texts_are_not_changed(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("_Never!_ he said, and _went\naway_.", "Never! he said, and went\naway."),
        ("the _Times_'s man, (_so_) _I_", "the Times's man, (so) I"),
        ("A stone.[12] And wood[*] [Footnote *: Oak.]", "A stone. And wood"),
        ("a stone [3] there\n\n[3] Of granite.", "a stone there"),
        ("one [Transcriber's note: [sic]] two", "one two"),
        ("[Sidenote: Rain.] It rained.", "It rained."),
        ("It rained. [Illustration]", "It rained."),
        ("the old\n\n[Illustration]\n\nhouse; the\n{iv}\nend.", "the old house; the end."),
        ("It ended.\n\n[Pg 3]\n\nit began.", "It ended.\n\nit began."),
        ("A.\n\n+-------+\n| Transcriber's notes |\n|  none  |\n+-------+\n\nB.", "A.\n\nB."),
        ("TRANSCRIBER'S NOTE\n\nNothing was changed.\n\n" + "A day passed. " * 20, "A day passed. " * 20),
    ],
)
def test_marks_and_notes_are_removed(text: str, cleaned: str) -> None:
    assert clean(text).strip() == cleaned.strip()


def test_a_bracket_without_its_end_does_not_swallow_the_book() -> None:
    text = "[Illustration: a lamp\n\n" + "The rain went on. " * 1000 + "\n\n] and on."
    assert clean(text) == text
