"""What a reply of DRT's roles must pass before it is used. No check asks a model.

A reply that fails is requested again (agentsys.roles); the reasons are sentences that a model can act on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any, Final

from agentsys.graphs.drt.state import Keyword, Keywords
from agentsys.records import InputError
from agentsys.text.scripts import language_scripts, letter_runs, script_of, scripts_of

QUOTED: Final = re.compile(
    r"“([^“”]+)”|\"([^\"]+)\"|「([^「」]+)」|『([^『』]+)』|«([^«»]+)»|(?<!\w)['‘]([^'‘’]+)['’](?!\w)"
)
"""A phrase in quotation marks."""
NOTES: Final = re.compile(
    r"(?mi)^\W*(notes?|translation|translated|explanation|translator'?s note)\W{0,3}[:：]"
    r"|^\W*(注释?|说明|译文|译注|翻译|原文)\W{0,3}[:：]"
    r"|[(（\[]\s*(?:translator'?s\s+)?(?:notes?|注|译注|译者注)\s*[:：]|```|\*\*"
)
"""Notes and markup around a translation."""
LEAD_IN: Final = re.compile(
    r"(?i)^\W*(?:(?:sure|certainly|okay|ok)\b\W+)?(?:here(?:['’]s|\s+is|\s+are)?|the|this|it|my|a|an)\b[^:：\n]{0,60}"
    r"\btranslat(?:e[sd]?|ions?)\b[^:：\n]{0,40}[:：]"
    r"|^\W*(?:好的\W+)?(?:以下|下面|这|该|此|本|原)[^:：\n]{0,12}(?:翻译|译文|译)[^:：\n]{0,8}[:：]"
)
"""A sentence that announces the translation, such as "The sentence translates to:"."""
ALTERNATIVES: Final = re.compile(r"\w+ [/／] \w+")
"""Two renderings to choose from."""
REFUSAL: Final = re.compile(
    r"(?i)can(?:not|['’]t) (?:assist|help) (?:you )?with (?:that|this)|as an ai\b|作为一个?(?:AI|人工智能)"
)
"""A model's refusal."""
WRAPPED: Final = re.compile(r"[\"“「『].*[\"”」』]", re.DOTALL)
"""A text in quotation marks."""
TAG: Final = re.compile(r"</?[A-Za-z][\w:-]*[^<>]*>|⟦|⟧")
"""Tags, such as those of a thought, and the marks of the narrator (thought.py)."""
SHORTEST: Final = 0.3
LONGEST: Final = 3.0
"""Bounds of a translation's length relative to its sentence, both counted by `count_characters`."""
UNIT: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’-]\w+)*")
"""A word, or a character of Chinese and Japanese."""
LETTERS_PER_CHARACTER: Final = 2.9
"""Letters and digits of an alphabet for one Chinese character of the same content: the mean of 1,000 English-Chinese
pairs of MetaphorTrans (1.9 to 4.5 in 98 % of them)."""


def check_source(text: str, source_language: str) -> None:
    """Raises InputError for a sentence without a letter of its language's script: the languages are set wrong."""
    scripts, expected = scripts_of(text), language_scripts(source_language)
    if scripts and expected and not scripts & expected:
        raise InputError(
            f"the sentence has {', '.join(sorted(scripts))} letters and the source language is {source_language}: set "
            "--source-language and --target-language"
        )


def occurs_in(keyword: Keyword, text: str) -> bool:
    """Whether the sentence contains the key word, in upper or lower case."""
    return bool(keyword.word.strip()) and keyword.word.casefold() in text.casefold()


def is_usable(keyword: Keyword, inputs: Mapping[str, Any]) -> bool:
    """Whether a key word is in the sentence and its rendering is one: another text, in letters of the target."""
    rendering = keyword.translation.strip()
    if (
        not rendering
        or rendering.casefold() == keyword.word.strip().casefold()
        or not occurs_in(keyword, inputs["text"])
    ):
        return False
    return not find_foreign(rendering, inputs)


def drop_repeated_renderings(translation: str) -> str:
    """The renderings of a key word, which " / " separates, each once."""
    return " / ".join(dict.fromkeys(rendering.strip() for rendering in translation.split(" / ")))


def check_keywords(reply: Keywords, inputs: Mapping[str, Any]) -> str | None:
    """Return why the key words are refused, or None: at least one must occur in the sentence."""
    if any(occurs_in(keyword, inputs["text"]) for keyword in reply.keywords):
        return None
    return "copy the words from the sentence"


def check_draft(translation: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why a translation is refused, or None.

    It must be the whole sentence and nothing else: no note, tag, refusal or announcement, no two renderings to choose
    from, no word of the source language but names and quotations, and neither much shorter nor much longer than the
    sentence.
    """
    text = inputs["text"]
    for pattern, name in ((NOTES, "a note"), (TAG, "a tag"), (REFUSAL, "a refusal")):
        if (match := pattern.search(translation)) and match[0] not in text:
            return f"it has {name} ({match[0].strip()}); give the translation alone"
    if (match := LEAD_IN.search(translation)) and not re.search("[:：]", text):
        return f"it begins with an announcement ({match[0].strip()}); give the translation alone"
    if (match := ALTERNATIVES.search(translation)) and not re.search("[/／]", text):
        return f"it has two renderings ({match[0]}); choose one"
    if WRAPPED.fullmatch(translation.strip()) and not WRAPPED.fullmatch(text.strip()):
        return "it is in quotation marks; give the translation alone"
    if "\n" in translation.strip() and "\n" not in text.strip():
        return "it has several lines; give the translation alone, in one line"
    if words := find_foreign(translation, inputs):
        return f"it leaves {', '.join(words)} untranslated; write all of it in {inputs['target_language']}"
    ratio = count_characters(translation) / max(count_characters(text), 1.0)
    if ratio < SHORTEST:
        return "it is not the whole sentence; translate all of it"
    return "it is much longer than the sentence; give its translation alone" if ratio > LONGEST else None


def check_refinement(translation: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why a refined translation is refused, or None: as `check_draft`, and it must be new and whole."""
    if reason := check_draft(translation, inputs):
        return reason
    earlier = [step["translation"] for step in inputs["steps"]]
    if earlier and len(translation) < len(earlier[0]) / 2:
        return "it is not the whole sentence; translate all of it"
    is_repeated = any(_normalize(translation) == _normalize(version) for version in earlier)
    return "it repeats an earlier version; change the words that were criticised" if is_repeated else None


def check_advice(feedback: str, inputs: Mapping[str, Any]) -> str | None:
    """Return why feedback is refused, or None: it quotes words of the translation and proposes words that are new."""
    quotes = list(quoted_phrases(feedback, inputs["translation"]))
    present = [quote for quote in quotes if _contains(inputs["translation"], quote)]
    if not present:
        return "quote the words of the translation that you mean, in quotation marks"
    if len(present) == len(quotes):
        return "propose other words, in quotation marks, which are not in the translation yet"
    return None


def find_difference(first: str, second: str) -> tuple[str, str]:
    """The words in which two translations differ most: (those of the first, those of the second).

    Where words were only added or left out, their neighbors belong to it. ("", "") for equal texts.
    """
    spans = [[match.span() for match in UNIT.finditer(text)] for text in (first, second)]
    units = [[text[a:b].casefold() for a, b in span] for text, span in zip((first, second), spans, strict=True)]
    matcher = SequenceMatcher(None, units[0], units[1], autojunk=False)
    changes = [code[1:] for code in matcher.get_opcodes() if code[0] != "equal"]
    if not changes:
        return "", ""
    a1, a2, b1, b2 = max(changes, key=lambda c: sum(map(len, units[0][c[0] : c[1]] + units[1][c[2] : c[3]])))
    if a1 == a2 or b1 == b2:
        a1, b1 = max(a1 - 1, 0), max(b1 - 1, 0)
        a2, b2 = min(a2 + 1, len(units[0])), min(b2 + 1, len(units[1]))
    return first[spans[0][a1][0] : spans[0][a2 - 1][1]], second[spans[1][b1][0] : spans[1][b2 - 1][1]]


def quoted_phrases(feedback: str, translation: str) -> Iterator[str]:
    """The phrases that feedback quotes: those in quotation marks, and those in a script that only they have.

    English feedback on a Chinese translation needs no quotation marks.
    """
    quotes = [next(filter(None, match.groups())) for match in QUOTED.finditer(feedback)]
    yield from quotes
    rest = QUOTED.sub(" ", feedback)
    main = max(scripts_of(translation), key=lambda script: sum(script_of(c) == script for c in translation), default="")
    letters = sum(script_of(c) == main for c in rest)
    if main and letters < sum(script_of(c) not in (main, "") for c in rest):
        yield from (rest[start:end] for start, end in letter_runs(rest, main))


def _contains(text: str, phrase: str) -> bool:
    """Whether the text has the phrase, whatever the case, the punctuation at its ends, and where "..." leaves out."""
    pieces = [_normalize(piece) for piece in re.split(r"…+|\.{3,}", phrase)]
    pieces = [piece for piece in pieces if piece]
    return bool(pieces) and all(piece in _normalize(text) for piece in pieces)


def _normalize(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()


def find_foreign(translation: str, inputs: Mapping[str, Any]) -> list[str]:
    """Words in the source language's script that a translation should not have.

    Names (in a script with capitals: capitalized in the sentence), abbreviations in capitals and what the sentence
    itself quotes may stay. Empty if the target language is written in that script too, or a language is unknown.
    """
    text = inputs["text"]
    source, target = (language_scripts(inputs[name]) for name in ("source_language", "target_language"))
    if not source or not target:
        return []
    quotations = " ".join(match[0] for match in QUOTED.finditer(text))
    words = []
    for script in sorted(source - target):
        for start, end in letter_runs(translation, script):
            word = translation[start:end]
            name = word[:1].isupper() and re.search(rf"(?<!\w){re.escape(word)}", text)
            if not (word.isupper() or name or word in quotations):
                words.append(word)
    return words


def count_characters(text: str) -> float:
    """The length of a text in Chinese characters, roughly: letters of other scripts count less."""
    characters = sum(script_of(c) in ("Han", "Kana", "Hangul") for c in text)
    return characters + (sum(map(str.isalnum, text)) - characters) / LETTERS_PER_CHARACTER
