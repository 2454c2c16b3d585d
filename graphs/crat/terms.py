"""CRAT's text work without a model: sentences, spans of terms, glosses, and whether a translation has a term."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

from agentsys.graphs.crat.state import Mention
from agentsys.logprobs import nearest
from agentsys.metrics.terms import folded, rendering
from agentsys.models.chat import AgentChatModel
from agentsys.records import InputError
from agentsys.systems import model_of
from agentsys.terms.index import TermIndex, is_acronym, name_key
from agentsys.terms.item import Kind
from agentsys.text.languages import language
from agentsys.traces import Call

SCRIPTS: Final = {
    "Latn": "LATIN", "Cyrl": "CYRILLIC", "Grek": "GREEK", "Hebr": "HEBREW", "Arab": "ARABIC", "Deva": "DEVANAGARI",
    "Beng": "BENGALI", "Taml": "TAMIL", "Thai": "THAI", "Laoo": "LAO", "Khmr": "KHMER", "Mymr": "MYANMAR",
    "Geor": "GEORGIAN", "Armn": "ARMENIAN", "Ethi": "ETHIOPIC", "Kore": "HANGUL", "Hans": "CJK", "Hant": "CJK",
    "Jpan": "CJK HIRAGANA KATAKANA",
}  # fmt: skip
"""A language's script (ISO 15924) -> how Unicode's names of its letters begin."""
UNSPACED: Final = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"})
"""Scripts that put no space between words."""
ALREADY: Final = 0.5
"""A sentence with more than this share of its letters, and of its words, in the target's script is in the target
language already."""
DOUBTFUL: Final = 2
"""Terms of low confidence that a sentence can have."""


def script(char: str) -> str:
    """The script of a letter, as Unicode names it; "" for what is no letter."""
    return unicodedata.name(char, "").split(" ")[0] if char.isalpha() else ""


@cache
def scripts_of(name: str) -> frozenset[str]:
    """The scripts of a language, by its name or code; none for a language or script that is not known."""
    import langcodes

    found = language(name)
    written = langcodes.Language.get(found.primary).maximize().script if found else None
    return frozenset(SCRIPTS.get(written or "", "").split())


def is_already(text: str, source: str, target: str) -> bool:
    """Whether a text is in the target language already, by its script; never where both languages share one."""
    into = scripts_of(target)
    if not into or not scripts_of(source) or into & scripts_of(source):
        return False
    letters = [script(char) for char in text if char.isalpha()]
    words = [script(word[0]) for word in _words(text)] + [letter for letter in letters if letter in UNSPACED]
    return all(counted and sum(one in into for one in counted) > ALREADY * len(counted) for counted in (letters, words))


def _words(text: str) -> list[str]:
    """The words of a text in scripts that put spaces between them."""
    spaced = "".join(" " if script(char) in UNSPACED else char for char in text)
    return [word for word in re.findall(r"\w+", spaced) if word[0].isalpha()]


def sentences_of(text: str | None, sentences: Sequence[str] | None, source: str) -> list[tuple[str, str]]:
    """(sentence, white space behind it) of a text, or of the sentences of a document. Raises InputError.

    Accents are composed and no white space is doubled inside a sentence, as in terms: places of terms are in these.
    """
    if text and sentences:
        raise InputError("give a text or sentences, not both")
    if sentences:
        if not isinstance(sentences, list | tuple) or not all(isinstance(sentence, str) for sentence in sentences):
            raise InputError("sentences: give a list of texts")
        empty = next((i for i, sentence in enumerate(sentences, 1) if not sentence.strip()), None)
        if empty is not None:
            raise InputError(f"sentences: number {empty} is empty; fill it in or leave it out")
        return [(_plain(sentence), " ") for sentence in sentences]
    if not isinstance(text or "", str) or not (text or "").strip():
        raise InputError("text: it is empty; give a sentence or a text, or a list of sentences")
    return _split(str(text), source)


def _split(text: str, source: str) -> list[tuple[str, str]]:
    import sentencex

    known = language(source)
    plain = re.sub(r"\s", " ", text)  # sentencex panics at some spaces that are no plain ones
    found: list[tuple[str, str]] = []
    at = 0
    for line in text.splitlines():
        for piece in sentencex.segment(known.primary if known else "en", re.sub(r"\s", " ", line)):
            if sentence := piece.strip():
                start = plain.index(sentence, at)
                if found:
                    found[-1] = (found[-1][0], text[at:start])
                at = start + len(sentence)
                found.append((text[start:at], ""))
    return [(_plain(sentence), gap) for sentence, gap in found]


def _plain(sentence: str) -> str:
    return unicodedata.normalize("NFC", re.sub(r"\s{2,}", " ", sentence.strip()))


def joined(translations: Sequence[str], gaps: Sequence[str], target: str) -> str:
    """The translations as one text: line breaks stay; between others is a space where the target language has them."""
    space = "" if scripts_of(target) & UNSPACED else " "
    spaces = [gap if "\n" in gap else space for gap in gaps]
    return "".join(part for pair in zip(translations, spaces, strict=True) for part in pair).strip()


def place(
    text: str, number: int, terms: Iterable[tuple[str, Kind, float | None]]
) -> tuple[list[Mention], list[str], list[str]]:
    """Where terms stand in sentence number `number`: (mentions in their order, invented terms, nested terms).

    Longest first: a term gets its first place that no longer one has taken. What the identifier named goes before what
    only a low confidence named. Terms are whole words, in any case but for acronyms (agentsys.knowledge.term_index).
    """
    known: dict[str, tuple[str, Kind, float | None]] = {}
    for term, kind, confidence in terms:
        if any(char.isalnum() for char in term):
            known.setdefault(name_key(term), (term, kind, confidence))
    mentions: list[Mention] = []
    invented: list[str] = []
    nested: list[str] = []
    for term, kind, confidence in sorted(known.values(), key=_precedence):
        spans = [(start, end) for start, end, _ in TermIndex([term]).spans(text)]
        free = next((span for span in spans if not any(_overlap(span, mention) for mention in mentions)), None)
        if free is None:
            (nested if spans else invented).append(term)
            continue
        start, end = free
        mention = Mention(surface=text[start:end], kind=kind, start=start, end=end, sentence=number)
        mentions.append(mention if confidence is None else {**mention, "confidence": round(confidence, 4)})
    return sorted(mentions, key=lambda mention: mention["start"]), invented, nested


def _precedence(entry: tuple[str, Kind, float | None]) -> tuple[bool, int, bool]:
    term, kind, _ = entry
    return kind == "low_conf", -len(term), not is_acronym(term)  # "aids" would take the place of "AIDS"


def _overlap(span: tuple[int, int], mention: Mention) -> bool:
    return span[0] < mention["end"] and mention["start"] < span[1]


def glosses(reply: str) -> list[tuple[str, int, int]]:
    """(word, begin and end of its gloss in the reply) for each line "word = gloss"."""
    found = []
    for line in re.finditer(r"^[ \t]*(\S.*?)[ \t]*=[ \t]*(\S.*?)[ \t]*$", reply, re.MULTILINE):
        found.append((line[1], line.start(2), line.end(2)))
    return found


async def confidences(context: Any, role: Any, call: Call) -> list[tuple[str, float]] | None:
    """Each glossed word with the geometric mean probability of its gloss's tokens; None without log-probabilities.

    A gloss counts only where its ends are ends of tokens, so that no token of a neighbour is taken for its own; the
    space before it may be part of its first token.
    """
    if not call.logprobs:
        return None
    ends = _token_ends(call)
    model = model_of(context, role)
    known = call.ids is not None and isinstance(model, AgentChatModel) and await model.token_ids("a") is not None
    if ends is None and not known:
        return None
    found = []
    for word, begin, end in glosses(call.text):
        places = []
        for at in (len(call.text[:begin].rstrip()), begin, end):
            places.append(await _place(model, call, at) if known else (ends or {}).get(at))
        first, last = places[0] if places[1] is None else places[1], places[2]
        if first is not None and last is not None and first < last <= len(call.logprobs):
            found.append((word, math.exp(sum(call.logprobs[first:last]) / (last - first))))
    return found


def doubtful(found: Iterable[tuple[str, float]], threshold: float) -> list[tuple[str, Kind, float | None]]:
    """The words whose glosses are least likely, as terms: below the threshold, and at most DOUBTFUL.

    One or two small letters are no term: they are articles and prepositions, which a glosser is told to leave out.
    """
    words = ((word, chance) for word, chance in found if len(word) > 2 or not word.islower())
    low = sorted((pair for pair in words if pair[1] < threshold), key=lambda pair: pair[1])
    return [(word, "low_conf", confidence) for word, confidence in low[:DOUBTFUL]]


async def _place(model: Any, call: Call, at: int) -> int | None:
    """How many tokens the first `at` characters of a reply are, if they are whole tokens of it."""
    ids = await model.token_ids(call.text[:at])
    return len(ids) if ids and ids == (call.ids or [])[: len(ids)] else None


def _token_ends(call: Call) -> dict[int, int] | None:
    """Characters -> tokens, where the server told the tokens' texts and they make up the reply."""
    if not call.top_tokens or not call.top_logprobs or not call.logprobs:
        return None
    ends, text = {0: 0}, ""
    for i, (tokens, row, written) in enumerate(zip(call.top_tokens, call.top_logprobs, call.logprobs, strict=False), 1):
        if not tokens:
            return None
        text += tokens[nearest(row, written)]
        ends[len(text)] = i
    return ends if text.startswith(call.text) else None


def has_term(target: str, translation: str) -> bool:
    """Whether a translation has a term: the term itself, without what stands in brackets, or in another inflection.

    In a script without spaces those do not count. Elsewhere the words follow each other, and a word of more than three
    letters may end otherwise: the first three fifths of its letters (at least three) are the same.
    """
    bare = re.sub(r"\s*[(\[][^)\]]*[)\]]\s*", " ", folded(target)).strip() or target
    if rendering(translation, (target, bare)):
        return True
    if any(script(char) in UNSPACED for char in bare):
        return bare.replace(" ", "") in folded(translation).replace(" ", "")
    words, tokens = _words(bare), _words(folded(translation))
    runs = (tokens[i : i + len(words)] for i in range(len(tokens) - len(words) + 1))
    return bool(words) and any(all(map(_inflected, words, run)) for run in runs)


def _inflected(word: str, other: str) -> bool:
    if word == other:
        return True
    stem = max(3, math.ceil(0.6 * len(word)))
    return len(word) > 3 and word.isalpha() and word[:stem] == other[:stem] and abs(len(word) - len(other)) <= 3
