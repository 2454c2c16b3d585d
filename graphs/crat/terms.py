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
from agentsys.metrics.terms import normalize_text, rendering
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
"""A language's script (ISO 15924) -> the first word of its letters' Unicode names."""
UNSPACED: Final = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"})
"""Scripts without spaces between words."""
MIN_TARGET_SHARE: Final = 0.5
"""A sentence is in the target language if more than this share of its letters, and of its words, is in its script."""
MAX_LOW_CONFIDENCE: Final = 2
"""Maximum number of low-confidence terms per sentence."""

TermGuess = tuple[str, Kind, float | None]
"""A term before it is placed in the sentence: surface, kind, and its gloss's confidence where that flagged it."""


def char_script(char: str) -> str:
    """The script of a letter, as Unicode names it; "" for other characters."""
    return unicodedata.name(char, "").split(" ")[0] if char.isalpha() else ""


@cache
def language_scripts(name: str) -> frozenset[str]:
    """The scripts of a language, by its name or code; empty for an unknown language or script."""
    import langcodes

    tag = language(name)
    code = langcodes.Language.get(tag.primary).maximize().script if tag else None
    return frozenset(SCRIPTS.get(code or "", "").split())


def is_in_target_language(text: str, source: str, target: str) -> bool:
    """Whether a text is in the target language already, by its script; False if both languages share a script."""
    target_scripts = language_scripts(target)
    if not target_scripts or not language_scripts(source) or target_scripts & language_scripts(source):
        return False
    letters = [char_script(char) for char in text if char.isalpha()]
    words = [char_script(word[0]) for word in _words(text)] + [script for script in letters if script in UNSPACED]
    return all(
        units and sum(script in target_scripts for script in units) > MIN_TARGET_SHARE * len(units)
        for units in (letters, words)
    )


def _words(text: str) -> list[str]:
    """The words of a text in scripts that put spaces between them."""
    spaced = "".join(" " if char_script(char) in UNSPACED else char for char in text)
    return [word for word in re.findall(r"\w+", spaced) if word[0].isalpha()]


def read_sentences(text: str | None, sentences: Sequence[str] | None, source: str) -> list[tuple[str, str]]:
    """(sentence, white space after it) of a text, or of the sentences of a document. Raises InputError.

    Sentences are NFC-normalized with single spaces, as terms are; term spans refer to this form.
    """
    if text and sentences:
        raise InputError("give a text or sentences, not both")
    if sentences:
        if not isinstance(sentences, list | tuple) or not all(isinstance(sentence, str) for sentence in sentences):
            raise InputError("sentences: give a list of texts")
        empty = next((i for i, sentence in enumerate(sentences, 1) if not sentence.strip()), None)
        if empty is not None:
            raise InputError(f"sentences: number {empty} is empty; fill it in or leave it out")
        return [(_normalize(sentence), " ") for sentence in sentences]
    if not isinstance(text or "", str) or not (text or "").strip():
        raise InputError("text: it is empty; give a sentence or a text, or a list of sentences")
    return _split(str(text), source)


def _split(text: str, source: str) -> list[tuple[str, str]]:
    import sentencex

    tag = language(source)
    plain = re.sub(r"\s", " ", text)  # sentencex panics at some kinds of white space
    pairs: list[tuple[str, str]] = []
    at = 0
    for line in text.splitlines():
        for piece in sentencex.segment(tag.primary if tag else "en", re.sub(r"\s", " ", line)):
            if sentence := piece.strip():
                start = plain.index(sentence, at)
                if pairs:
                    pairs[-1] = (pairs[-1][0], text[at:start])
                at = start + len(sentence)
                pairs.append((text[start:at], ""))
    return [(_normalize(sentence), gap) for sentence, gap in pairs]


def _normalize(sentence: str) -> str:
    return unicodedata.normalize("NFC", re.sub(r"\s{2,}", " ", sentence.strip()))


def join_translations(translations: Sequence[str], gaps: Sequence[str], target: str) -> str:
    """The translations as one text; line breaks are kept, other gaps are a space if the target language uses spaces."""
    space = "" if language_scripts(target) & UNSPACED else " "
    spaces = [gap if "\n" in gap else space for gap in gaps]
    return "".join(part for pair in zip(translations, spaces, strict=True) for part in pair).strip()


def place_terms(text: str, number: int, terms: Iterable[TermGuess]) -> tuple[list[Mention], list[str], list[str]]:
    """Find the spans of terms in sentence number `number`: (mentions in order, invented terms, nested terms).

    Longest first: a term gets its first span that no longer term overlaps. Low-confidence terms come after the
    identifier's. Terms match whole words, in any case except for acronyms (agentsys.terms.index).
    """
    guesses: dict[str, TermGuess] = {}
    for term, kind, confidence in terms:
        if any(char.isalnum() for char in term):
            guesses.setdefault(name_key(term), (term, kind, confidence))
    mentions: list[Mention] = []
    invented: list[str] = []
    nested: list[str] = []
    for term, kind, confidence in sorted(guesses.values(), key=_precedence):
        spans = [(start, end) for start, end, _ in TermIndex([term]).spans(text)]
        free = next((span for span in spans if not any(_overlap(span, mention) for mention in mentions)), None)
        if free is None:
            (nested if spans else invented).append(term)
            continue
        start, end = free
        mention = Mention(surface=text[start:end], kind=kind, start=start, end=end, sentence=number)
        mentions.append(mention if confidence is None else {**mention, "confidence": round(confidence, 4)})
    return sorted(mentions, key=lambda mention: mention["start"]), invented, nested


def _precedence(guess: TermGuess) -> tuple[bool, int, bool]:
    term, kind, _ = guess
    return kind == "low_conf", -len(term), not is_acronym(term)  # otherwise "aids" would take the span of "AIDS"


def _overlap(span: tuple[int, int], mention: Mention) -> bool:
    return span[0] < mention["end"] and mention["start"] < span[1]


def parse_glosses(reply: str) -> list[tuple[str, int, int]]:
    """(word, start and end of its gloss in the reply) for each line "word = gloss"."""
    pattern = re.compile(r"^[ \t]*(\S.*?)[ \t]*=[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
    return [(line[1], line.start(2), line.end(2)) for line in pattern.finditer(reply)]


async def gloss_confidences(context: Any, role: Any, call: Call) -> list[tuple[str, float]] | None:
    """Each glossed word with the geometric mean probability of its gloss's tokens; None without log-probabilities.

    Glosses that do not start and end at token boundaries are left out: a token would be shared with a neighbor. The
    space before a gloss may be part of its first token.
    """
    if not call.logprobs:
        return None
    ends = _token_ends(call)
    model = model_of(context, role)
    has_ids = call.ids is not None and isinstance(model, AgentChatModel) and await model.token_ids("a") is not None
    if ends is None and not has_ids:
        return None
    pairs = []
    for word, start, end in parse_glosses(call.text):
        positions = []
        for at in (len(call.text[:start].rstrip()), start, end):
            positions.append(await _token_position(model, call, at) if has_ids else (ends or {}).get(at))
        first, last = positions[0] if positions[1] is None else positions[1], positions[2]
        if first is not None and last is not None and first < last <= len(call.logprobs):
            pairs.append((word, math.exp(sum(call.logprobs[first:last]) / (last - first))))
    return pairs


def low_confidence_terms(confidences: Iterable[tuple[str, float]], threshold: float) -> list[TermGuess]:
    """The words with the least probable glosses: below the threshold, at most MAX_LOW_CONFIDENCE.

    Lower-case words of one or two letters are left out: articles and prepositions, which some glossers list.
    """
    words = ((word, confidence) for word, confidence in confidences if len(word) > 2 or not word.islower())
    low = sorted((pair for pair in words if pair[1] < threshold), key=lambda pair: pair[1])
    return [(word, "low_conf", confidence) for word, confidence in low[:MAX_LOW_CONFIDENCE]]


async def _token_position(model: Any, call: Call, at: int) -> int | None:
    """The number of tokens in the first `at` characters of a reply, None if they end inside a token."""
    ids = await model.token_ids(call.text[:at])
    return len(ids) if ids and ids == (call.ids or [])[: len(ids)] else None


def _token_ends(call: Call) -> dict[int, int] | None:
    """Characters -> tokens, where the server returned the tokens' texts and they add up to the reply."""
    if not call.top_tokens or not call.top_logprobs or not call.logprobs:
        return None
    ends, text = {0: 0}, ""
    for i, (tokens, row, logprob) in enumerate(zip(call.top_tokens, call.top_logprobs, call.logprobs, strict=False), 1):
        if not tokens:
            return None
        text += tokens[nearest(row, logprob)]
        ends[len(text)] = i
    return ends if text.startswith(call.text) else None


def has_term(target: str, translation: str) -> bool:
    """Whether a translation has a term: the term itself, without a part in brackets, or inflected.

    In scripts without spaces, spaces are ignored. Elsewhere the words must be adjacent, and a word of more than three
    letters may have another ending: the first three fifths of its letters (at least three) must match.
    """
    bare = re.sub(r"\s*[(\[][^)\]]*[)\]]\s*", " ", normalize_text(target)).strip() or target
    if rendering(translation, (target, bare)):
        return True
    if any(char_script(char) in UNSPACED for char in bare):
        return bare.replace(" ", "") in normalize_text(translation).replace(" ", "")
    words, tokens = _words(bare), _words(normalize_text(translation))
    runs = (tokens[i : i + len(words)] for i in range(len(tokens) - len(words) + 1))
    return bool(words) and any(all(map(_is_inflection, words, run)) for run in runs)


def _is_inflection(word: str, other: str) -> bool:
    if word == other:
        return True
    stem = max(3, math.ceil(0.6 * len(word)))
    return len(word) > 3 and word.isalpha() and word[:stem] == other[:stem] and abs(len(word) - len(other)) <= 3
