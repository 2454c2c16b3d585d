"""Books as sentences: files and folders, paragraphs, sentences inside quotation marks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsys.graphs.drt.books import (
    count_words,
    detect_mode,
    find_books,
    has_end,
    language_code,
    split_paragraphs,
    split_sentences,
)
from agentsys.graphs.drt.gutenberg import clean
from agentsys.graphs.drt.mine import Reading, drop_repetitions, read_sentences
from agentsys.records import InputError

WRAPPED = """\
THE ROAD
It was late when the two brothers came to
the inn, and nobody asked where they had
been for so many days. The rain had stopped--
at last--in the well-
known valley.

Mr. Hill opened the door and looked at
them for a while.
"""
LINES = """\
01 The Long Road
It was late when the brothers came to the inn. Nobody asked where they had been.
"Come in," said Mr. Hill. "The soup is cold."
They sat down.
"""
VERSE = """\
The moon went up behind the mill,
The owl came down the stair,
And nobody upon the hill
Was there to comb her hair.
"""


@pytest.mark.parametrize(
    ("text", "code", "sentences"),
    [
        ('He said: "I came. It rained. We slept." Then.', "en", 'He said: "I came.|It rained.|We slept."|Then.'),
        ("“Is it? Yes. No!” he said. “Dr. Hill came.”", "en", "“Is it?|Yes.|No!” he said.|“Dr. Hill came.”"),
        ("“He said ‘Come here.’ Then he left.”", "en", "“He said ‘Come here.’|Then he left.”"),
        ("'He came. It's Jim's.' 'Tis the dogs' own. Yes.", "en", "'He came.|It's Jim's.'|'Tis the dogs' own.|Yes."),
        ("He left (Mr. Poe did. I did.) Then [One. Two.].", "en", "He left (Mr. Poe did.|I did.)|Then [One.|Two.]."),
        ("“First. Second", "en", "“First.|Second"),
        ("First. Second.” Third.", "en", "First.|Second.”|Third."),
        ("Wait... what? It was 5 p.m. and cold.", "en", "Wait... what?|It was 5 p.m. and cold."),
        ("i came. it rained.", "en", "i came.|it rained."),
        ("„Komm her. Geh.“ Er ging. »Ja. Nein!« rief er.", "de", "„Komm her.|Geh.“|Er ging.|»Ja.|Nein!« rief er."),
        ("»Komm.« Er ging. ‚Gut. Nun.‘", "de", "»Komm.«|Er ging.|‚Gut.|Nun.‘"),
        ("« Viens. Va ! » dit-il. M. Dupont vint. « Oui. »", "fr", "« Viens.|Va ! » dit-il.|M. Dupont vint.|« Oui. »"),
        ("Он сказал: «Я пришёл. Шёл дождь». Потом ушёл.", "ru", "Он сказал: «Я пришёл.|Шёл дождь».|Потом ушёл."),
        ("「我来了。下雨了。」他走了。", "zh", "「我来了。|下雨了。」|他走了。"),
        ("“走吧。”“好。”天黑了！", "zh", "“走吧。”|“好。”|天黑了！"),
        ("「来た。『本。』雨だ。」", "ja", "「来た。|『本。』|雨だ。」"),
        ("“”", "en", "“”"),
        ("", "en", ""),
    ],
)  # fmt: skip
def test_sentences_are_split_inside_quotation_marks(text: str, code: str, sentences: str) -> None:
    assert "|".join(split_sentences(text, code)) == sentences


@given(st.text(alphabet="aB .!?\"'“”‘’«»「」()。我—", max_size=40), st.sampled_from(["en", "zh", "fr"]))
def test_no_character_is_lost(text: str, code: str) -> None:
    text = " ".join(text.split())
    sentences = split_sentences(text, code)
    assert "".join(sentences).replace(" ", "") == text.replace(" ", "")
    assert all(sentence == sentence.strip() != "" for sentence in sentences)


@given(st.text(max_size=60), st.sampled_from(["en", "de", "zh", "hi", "th", "xx"]))
def test_any_text_can_be_read(text: str, code: str) -> None:
    for paragraph in split_paragraphs(clean(text)):
        sentences = split_sentences(paragraph, code)
        assert "".join(sentences).replace(" ", "") == paragraph.replace(" ", "")
        assert all(count_words(sentence) >= 0 and has_end(sentence, code) in (True, False) for sentence in sentences)


def test_a_long_speech_is_not_one_sentence() -> None:
    speech = "“" + " ".join(f"I walked {i} miles along the river and saw nobody on the way." for i in range(20)) + "”"
    assert len(split_sentences(speech, "en")) == 20


def test_wrapped_lines_are_joined_and_a_title_stays_apart() -> None:
    assert detect_mode(WRAPPED) == "blank-lines"
    assert split_paragraphs(WRAPPED) == [
        "THE ROAD",
        "It was late when the two brothers came to the inn, and nobody asked where they had been for so many days. "
        "The rain had stopped--at last--in the well-known valley.",
        "Mr. Hill opened the door and looked at them for a while.",
    ]
    assert split_paragraphs(WRAPPED, "lines")[1] == "It was late when the two brothers came to"


def test_without_wrapped_lines_each_line_is_a_paragraph() -> None:
    assert detect_mode(LINES) == "lines"
    assert split_paragraphs(LINES) == LINES.splitlines()
    assert split_paragraphs(LINES, "blank-lines")[-1].endswith('cold." They sat down.')
    assert detect_mode("One line.\n\nAnother one.") == "blank-lines"
    assert detect_mode("") == "blank-lines"


def test_wrapped_chinese_lines_are_joined_without_spaces() -> None:
    text = "　　那天晚上下着\n大雨，屋里的灯\n像一只眼睛。\n\n　　他没有说话。"
    assert split_paragraphs(text) == ["那天晚上下着大雨，屋里的灯像一只眼睛。", "他没有说话。"]
    assert detect_mode("下着大雨。\n他来了。\n灯亮了。") == "lines"


@pytest.mark.parametrize(
    ("block", "headings"),
    [
        ("CHAPTER I.\nIt was late when the brothers came\nto the inn, and it rained.", 1),
        ("CHAPTER I\nThe Inn\nIt was late when the brothers came\nto the inn, and it rained.", 2),
        ("The Inn\n“It was late,” said the brother who\nhad come to the inn.", 1),
        ("It was late when the brothers came\nTo the inn, and it rained.", 0),
        ("The Inn\nwas late.", 0),
        (VERSE, 0),
        ("I walked alone,\nThe way was long and steep,\nAnd no one came.", 0),
        ("IV. Of Rain and Snow, and of Old Men\nIt was late when the three brothers came at last\nto the inn.", 1),
    ],
)
def test_titles_at_the_beginning_of_a_paragraph(block: str, headings: int) -> None:
    assert len(split_paragraphs(block, "blank-lines")) == headings + 1


def test_a_title_is_not_a_sentence() -> None:
    assert not has_end("The Gift That Nobody in the Whole Long Street Had Asked For", "en")
    assert has_end("He wrote:", "en") and has_end("“Come!”", "en") and has_end("他来了。", "zh")
    assert has_end("ฝนตก", "th")


@pytest.mark.parametrize(
    ("sentence", "words"),
    [("It rained, and rained.", 4), ("他没有说话。", 3), ("他说 Hello world，走了。", 4), ("비가 왔다.", 2)],
)
def test_words_are_counted_in_scripts_without_spaces_too(sentence: str, words: int) -> None:
    assert count_words(sentence) == words


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/a.txt", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"In {name} the lamp was as cold as a stone in the river.")
    assert [book.name for book in find_books([tmp_path])] == ["a.txt", "b.txt", "sub/a.txt"]
    assert [book.name for book in find_books([f"{tmp_path}/*.txt"])] == ["a.txt", "b.txt"]
    assert [book.name for book in find_books([f"{tmp_path}/**/a.txt"])] == ["a.txt", "a.txt"]
    assert [book.name for book in find_books([tmp_path / "notes.md", tmp_path / "b.txt", tmp_path])][:2] == [
        "notes.md",
        "b.txt",
    ]
    assert len(find_books([tmp_path, f"{tmp_path}/*.txt"])) == 3, "a book is read once"


def test_an_old_book_says_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("Character set encoding: ISO-8859-1\n\nDas war schön.".encode("latin-1"))
    [book] = find_books([path])
    assert "schön" in book.read()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing.txt", "book .*missing.txt: No such file or directory"),
        ("empty", "book .*empty: the folder has no .txt file"),
        ("*.tex", "no file matches this pattern; check the path, and quote the pattern"),
        ("bytes.txt", "bytes.txt: not UTF-8 text; convert it, for example with iconv"),
        ("odd.txt", "odd.txt: not UTF-8 text"),
    ],
)
def test_a_book_that_cannot_be_read_is_an_error_at_once(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.txt").write_bytes(b"a caf\xe9")
    (tmp_path / "odd.txt").write_bytes(b"Character set encoding: Klingon-8\n\na caf\xe9")
    with pytest.raises(InputError, match=message):
        find_books([tmp_path / place])


def test_books_are_read_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"{LINES}Book {i} ended as every book must end, with a door that closed.")
    counts: Counter[str] = Counter()
    sentences = read_sentences([tmp_path], "en", counts)
    assert counts["books"] == 0
    next(sentences)
    assert counts["books"] == 1
    assert [line["source"] for line in drop_repetitions(sentences, counts)][-1] == "2.txt, paragraph 5"
    assert counts == {"books": 3, "sentences": 21, "headings": 3, "length": 12, "repeated": 1}


def test_sentences_around(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    long = [
        "The first lamp hung over the door like a moon of tin.",
        "The second lamp hung over the water like a tired eye.",
    ]
    book.write_text(f"A Title\n\n{long[0]}\n\nIt rained. {long[1]}")
    [first, second] = read_sentences([book], "English", reading=Reading(context_sentences=True))
    assert (first["before"], first["text"], first["after"]) == ("", long[0], "It rained.")
    assert (second["before"], second["text"], second["after"]) == ("It rained.", long[1], "")
    assert all({*line} == {"text", "source"} for line in read_sentences([book], "English"))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *[("English", "en"), ("ENGLISH", "en"), ("pt", "pt"), ("PT-br", "pt"), ("zh-TW", "zh"), ("中文", "zh")],
        *[("Deutsch", "de"), ("deu", "de"), ("Old Norse", "non")],
    ],
)
def test_the_language_of_a_book_is_a_name_or_a_code(name: str, code: str) -> None:
    assert language_code(name) == code


SPLITTER = (
    "am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk cs gl yue nb gsw lzh"
)


@pytest.mark.parametrize("code", SPLITTER.split())
def test_every_language_with_rules_in_the_splitter_is_accepted(code: str) -> None:
    assert language_code(code.upper()) == code


@pytest.mark.parametrize("name", ["Elvish", "zz", "und", "", "house style"])
def test_an_unknown_language_names_the_option(name: str) -> None:
    with pytest.raises(InputError, match=f"--source-language {name}: the language of the book is unknown"):
        language_code(name)
