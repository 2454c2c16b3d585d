"""Books as sentences: files and folders, paragraphs, and sentences inside quotation marks and brackets too."""

from __future__ import annotations

import codecs
import glob
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from agentsys.graphs.drt.gutenberg import clean
from agentsys.records import InputError
from agentsys.text.languages import language
from agentsys.text.words import SPACELESS

Paragraphs = Literal["auto", "blank-lines", "lines"]
"""What separates paragraphs: blank lines, or each line end."""

_CHUNK: Final = 2**20
_STATED_ENCODING: Final = re.compile(rb"Character set encoding:\s*([\w-]+)", re.IGNORECASE)
"""The line of Project Gutenberg's older headers."""

_WRAPPED_SHARE: Final = 0.3
"""Lines are wrapped if at least this share of the line ends is inside a sentence: over half in books, else near 0."""
_WIDTH_SHARE: Final = 0.85
"""A line is full if it and the next word are longer than this share of the width."""
_CHAPTER: Final = re.compile(
    r"(?:chapter|book|part|act|scene|letter|volume|stave)\s+[\divxlc]+\b|[\divxlc]+(?:[.:]|$)", re.IGNORECASE
)
_NO_SPACE_AFTER: Final = re.compile(r"(?:--|—|[^\W\d_]-)$")
_CJK: Final = rf"[{SPACELESS}\u3000-\u303f\uff00-\uffef]"
_CJK_END, _CJK_START = re.compile(rf"{_CJK}$"), re.compile(_CJK)

_APOSTROPHE: Final = r"(?<=\w)['’](?=\w)"
_QUOTES: Final = re.compile(rf"(?!{_APOSTROPHE})[\"'“”‘’‚„‛‟«»‹›「」『』()\[\]（）]")
_CLOSING: Final = frozenset("\"'”’»›」』)]）")
_FRENCH_TITLE: Final = re.compile(r"\b(?:MM?|Mmes?|Mlles?)\.\s*$")
"""Abbreviations before names that sentencex takes for the end of a French sentence."""
_WITHOUT_FULL_STOP: Final = frozenset({"th", "lo"})
"""Languages whose sentences end without a mark."""


@dataclass(frozen=True, slots=True)
class Book:
    """A text file, its name in `source`, and its encoding."""

    path: Path
    name: str
    encoding: str

    def read(self) -> str:
        """The cleaned text. Raises InputError if the file can no longer be read."""
        try:
            return clean(self.path.read_bytes().decode(self.encoding))
        except (OSError, UnicodeDecodeError) as err:
            raise _unreadable(self.path, err) from None


def find_books(places: Iterable[str | Path]) -> list[Book]:
    """The books of files, folders (their .txt files, at any depth) and patterns ("books/*.txt").

    Each file is decoded once, a piece at a time, so that one that is no text is an error before the first sentence.
    Raises InputError.
    """
    books = [_open_book(path, name) for place in places for path, name in _find_files(Path(place))]
    return list({book.path: book for book in books}.values())


def _find_files(place: Path) -> list[tuple[Path, str]]:
    if place.is_dir():
        paths = sorted(path for path in place.rglob("*.txt") if path.is_file())
        if not paths:
            raise InputError(f"book {place}: the folder has no .txt file; give books as plain text")
        return [(path, path.relative_to(place).as_posix()) for path in paths]
    if glob.has_magic(str(place)) and not place.exists():
        paths = sorted(path for path in map(Path, glob.glob(str(place), recursive=True)) if path.is_file())
        if not paths:
            raise InputError(f"book {place}: no file matches this pattern; check the path, and quote the pattern")
        return [(path, path.name) for path in paths]
    return [(place, place.name)]


def _open_book(path: Path, name: str) -> Book:
    try:
        with path.open("rb") as file:
            stated = _STATED_ENCODING.search(file.read(4096))
            for encoding in ("utf-8-sig", stated[1].decode() if stated else ""):
                if encoding and _is_decodable(path, encoding):
                    return Book(path, name, encoding)
    except OSError as err:
        raise _unreadable(path, err) from None
    raise InputError(f"book {path}: not UTF-8 text; convert it, for example with iconv -f LATIN1 -t UTF-8")


def _is_decodable(path: Path, encoding: str) -> bool:
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                decoder.decode(piece)
        decoder.decode(b"", final=True)
    except (LookupError, UnicodeDecodeError):
        return False
    return True


def _unreadable(path: Path, err: OSError | UnicodeDecodeError) -> InputError:
    return InputError(f"book {path}: {getattr(err, 'strerror', None) or 'not UTF-8 text'}")


def split_paragraphs(text: str, mode: Paragraphs = "auto") -> list[str]:
    """The paragraphs of a text, each on one line; a heading is a paragraph of its own."""
    if mode == "auto":
        mode = detect_mode(text)
    if mode == "lines":
        blocks = [[line] for line in text.split("\n") if line.strip()]
    else:
        blocks = [block for lines in re.split(r"\n\s*\n", text) for block in _split_headings(_strip_lines(lines))]
    return [" ".join(_join_lines(block).split()) for block in blocks]


def detect_mode(text: str) -> Paragraphs:
    """Whether lines are wrapped, so that blank lines separate paragraphs, or each line is a paragraph."""
    blocks = [_strip_lines(lines) for lines in re.split(r"\n\s*\n", text)]
    breaks = [_is_in_sentence(line, after) for block in blocks for line, after in itertools.pairwise(block)]
    return "lines" if sum(breaks) < _WRAPPED_SHARE * len(breaks) else "blank-lines"


def _is_in_sentence(line: str, after: str) -> bool:
    """Whether a sentence goes on after a line end: in lower case, or in other scripts without a mark before it."""
    letter = re.search(r"[^\W_]", after)
    if letter and (letter[0].isupper() or letter[0].islower()):
        return letter[0].islower()
    return line[-1].isalnum()


def _strip_lines(block: str) -> list[str]:
    return [line.strip() for line in block.split("\n") if line.strip()]


def _is_full(line: str, after: str, width: int) -> bool:
    """Whether a line ends because the first word of the next one did not fit."""
    word = 1 if _CJK_START.match(after) else len(after.split(maxsplit=1)[0])
    return len(line) + 1 + word > _WIDTH_SHARE * width


def _split_headings(lines: list[str]) -> Iterator[list[str]]:
    """The headings at the beginning of a block, and the rest."""
    while len(lines) > 1 and _is_heading(lines):
        yield lines[:1]
        lines = lines[1:]
    if lines:
        yield lines


def _is_heading(lines: Sequence[str]) -> bool:
    """Whether a block's first line ends early and looks like a title, and what follows is wrapped, unlike verse.

    Only in languages with capital letters: the line after a title begins with one.
    """
    first, *rest = lines
    letter = re.search(r"[^\W_]", rest[0])
    if _is_full(first, rest[0], max(map(len, rest))) or letter is None or not letter[0].isupper():
        return False
    if first.isupper() or _CHAPTER.match(first):
        return True
    return first[-1].isalnum() and (len(rest) == 1 or _is_full(rest[0], rest[1], max(map(len, rest))))


def _join_lines(lines: Sequence[str]) -> str:
    text = lines[0]
    for line in lines[1:]:
        is_cjk = _CJK_END.search(text) and _CJK_START.match(line)
        text += line if is_cjk or _NO_SPACE_AFTER.search(text) else f" {line}"
    return text


def split_sentences(text: str, code: str) -> list[str]:
    """The sentences of a paragraph, also those inside quotation marks and brackets.

    sentencex splits neither, so it gets the text without these marks. A closing mark stays with the sentence before it,
    an opening one with the sentence after it. What begins in lower case continues the sentence ("No!" he said), unless
    the text has no capitals.
    """
    import sentencex

    kept = [i for i, char in enumerate(text) if not _QUOTES.match(text, i)]
    plain = "".join(text[i] for i in kept)
    cuts: list[int] = []
    at = 0
    for segment in sentencex.segment(code, plain):
        at += len(segment)
        last = at - len(segment) + len(segment.rstrip()) - 1
        if segment.strip() and at < len(kept):
            cuts.append(_place_of_cut(text, kept[last] + 1, kept[at]))
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    return [sentence.strip() for sentence in _merge(pieces, any(char.isupper() for char in text)) if sentence.strip()]


def _place_of_cut(text: str, end: int, start: int) -> int:
    """Where to cut text[end:start], the quotation marks and spaces between two sentences."""
    gap = text[end:start]
    if not gap.split():
        return start
    if not re.search(r"\s", gap):  # Chinese, Japanese
        return end + len(gap) - len(gap.lstrip("".join(_CLOSING)))
    attached = re.match(r"\S*", gap)
    cut = end + (attached.end() if attached else 0)
    for lone in re.finditer(r"(?<=\s)(\S+)(?=\s)", gap):  # French puts spaces inside the marks
        if set(lone[1]) <= _CLOSING:
            cut = end + lone.end()
    return cut


def _merge(pieces: Iterable[str], has_capitals: bool) -> list[str]:
    """Join a piece to the one before it that it continues."""
    merged: list[str] = []
    for piece in pieces:
        letter = re.search(r"\w", piece)
        continues = letter is None or (has_capitals and letter[0].islower())
        if merged and (continues or _FRENCH_TITLE.search(merged[-1])):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def has_end(sentence: str, code: str) -> bool:
    """Whether a sentence ends in a mark; a heading, a line of a table of contents and a caption do not."""
    return code in _WITHOUT_FULL_STOP or not sentence[-1].isalnum()


def count_words(sentence: str) -> int:
    """Number of words separated by spaces; in scripts without spaces, two characters count as one word."""
    spaceless = len(re.findall(rf"[{SPACELESS}]", sentence))
    if not spaceless:
        return len(sentence.split())
    return len(re.findall(rf"[^\W{SPACELESS}]+", sentence)) + (spaceless + 1) // 2


def language_code(name: str) -> str:
    """The code of a language that is given by its name or code, for sentencex. Raises InputError for another name."""
    parsed = language(name)
    if parsed is None or parsed.primary in ("", "und"):
        raise InputError(f"--source-language {name}: the language of the book is unknown; give its code, such as 'pt'")
    return parsed.primary
