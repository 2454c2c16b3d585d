"""CRAT's text work: sentences, spans of terms, glosses and their confidence, terms in a translation, prompts."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from agentsys.graphs.crat.system import CRAT, Context
from agentsys.graphs.crat.terms import (
    char_script,
    gloss_confidences,
    has_term,
    join_translations,
    low_confidence_terms,
    parse_glosses,
    place_terms,
    read_sentences,
)
from agentsys.roles import load_prompt
from tests.support.crat import (
    SHORE,
    Runner,
    Script,
    Unsure,
)

PROMPTS = sorted(Path(str(resources.files("agentsys.prompts"))).glob("crat/*.md"))


@pytest.mark.parametrize(
    ("target", "translation", "expected"),
    [
        ("艾滋病（AIDS）", "他得了愛滋病", False),
        ("艾滋病（AIDS）", "他得了艾滋病。", True),
        ("胸部 X 光检查", "做了胸部X光檢查", True),
        ("acute infection", "two Acute Infections were", True),
        ("acute infection", "an acute and severe infection", False),
        ("Krankenhaus", "in den Krankenhäusern", True),
        ("flu", "he is fluent", False),
        ("WHO", "whole", False),
        ("CDC", "das CDC sagt", True),
        ("CDC", "据CDC称", True),
        ("CDC", "据CDCX称", False),
        ("COVID-19 检测中心", "一家COVID-19檢測中心。", True),
        ("은행", "은행은 금리를 올렸다.", True),
    ],
)
def test_a_term_is_found_in_inflection_and_in_both_scripts(target: str, translation: str, expected: bool) -> None:
    assert has_term(target, translation) is expected


def test_terms_are_placed_longest_first_and_invented_ones_dropped() -> None:
    text = "The New York Times said that New York sued IT, but it did not."
    listed = [("new york", "proper", None), ("New York Times", "proper", None), ("Times", "polysemy", None)]
    unsure = [("Times said", "low_conf", 0.1), ("sued", "low_conf", 0.2), ("new york", "low_conf", 0.3)]
    mentions, invented, nested = place_terms(
        text, 3, [*listed, ("IT", "acronym", None), ("Paris", "proper", None), *unsure]
    )
    assert [(m["surface"], m["kind"], text[m["start"] : m["end"]]) for m in mentions] == [
        ("New York Times", "proper", "New York Times"),
        ("New York", "proper", "New York"),
        ("sued", "low_conf", "sued"),
        ("IT", "acronym", "IT"),
    ]
    assert mentions[1]["start"] == 29 and mentions[0]["sentence"] == 3 and mentions[2]["confidence"] == 0.2
    assert (invented, nested) == (["Paris"], ["Times", "Times said"])


def test_a_korean_term_is_found_before_its_particle() -> None:
    mentions, invented, _ = place_terms(
        "스코샤은행은 금리를 올렸다.", 0, [("금리", "domain", None), ("은행", "domain", None)]
    )
    assert [(m["surface"], m["start"]) for m in mentions] == [("금리", 7)] and invented == ["은행"]


def test_a_text_is_split_into_sentences_and_joined_again() -> None:
    pairs = read_sentences("Dr. Smith left. He came back!\n\nThen nothing.", None, "English")
    assert pairs == [("Dr. Smith left.", " "), ("He came back!", "\n\n"), ("Then nothing.", "")]
    gaps = [gap for _, gap in pairs]
    assert join_translations(["甲。", "乙！", "丙。"], gaps, "Chinese") == "甲。乙！\n\n丙。"
    assert join_translations(["A.", "B!", "C."], gaps, "German") == "A. B!\n\nC."
    chinese = read_sentences("你好。再见。\n完。", None, "Chinese")
    assert join_translations(["Hello.", "Bye.", "End."], [gap for _, gap in chinese], "English") == "Hello. Bye.\nEnd."


def test_terms_are_found_whatever_form_accents_and_spaces_have() -> None:
    text = "Das Cafe\u0301 in  New  York ist neu."
    for [(sentence, _)] in (read_sentences(text, None, "German"), read_sentences(None, [text], "German")):
        mentions, invented, _ = place_terms(sentence, 0, [("Café", "proper", None), ("New York", "proper", None)])
        assert [sentence[m["start"] : m["end"]] for m in mentions] == ["Café", "New York"] and not invented


def test_an_acronym_and_a_word_of_its_letters_are_two_terms() -> None:
    terms: list[tuple[str, Any, None]] = [("aids", "domain", None), ("AIDS", "acronym", None)]
    mentions, _, nested = place_terms("AIDS patients need hearing aids.", 0, terms)
    assert [(m["surface"], m["kind"]) for m in mentions] == [("AIDS", "acronym"), ("aids", "domain")] and not nested


@pytest.mark.parametrize("space", ["\u00a0", "\u3000"])
def test_spaces_of_every_kind_are_kept(space: str) -> None:
    text = f"He took plan B{space}. It\u2009was late."
    pairs = read_sentences(text, None, "English")
    assert "".join(part for pair in pairs for part in pair) == text and len(pairs) > 1


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_no_prompt_has_words_of_a_target_language(path: Path) -> None:
    assert {char_script(char) for char in path.read_text(encoding="utf-8")} <= {"", "LATIN"}


@pytest.mark.parametrize("name", ["glosser", "llm_source"])
def test_glosser_and_llm_source_prompts_name_the_languages_of_the_run(name: str) -> None:
    inputs = {"text": "Die Bank war steil.", "term": "Bank", "refused": []}
    messages = load_prompt(f"crat/{name}").render({**inputs, "source_language": "German", "target_language": "French"})
    texts = "\n".join(str(message["content"]) for message in messages)
    assert [message["role"] for message in messages] == ["system", "user"], "no example that could be copied"
    assert texts.count("French") > 1 and "Chinese" not in texts and "English" not in texts


@pytest.mark.parametrize("ids", [True, False])
async def test_words_that_the_translator_is_unsure_of_are_terms(
    run: Runner, monkeypatch: pytest.MonkeyPatch, ids: bool
) -> None:
    replies = "bank = 岸\nScotia=斯科\nsteep = 陡\nice = 冰\nnear = 近"
    monkeypatch.setattr(Script, "glosser", lambda self, request: replies)
    script = Script(terms=[("bank", "polysemy")], senses={"bank": [SHORE]})
    odds = {"岸": 0.1, "斯": 0.5, "科": 0.08, "陡": 0.3, "近": 0.9, "冰": 0.01}
    result = await run(script, model=Unsure(respond=script, odds=odds, ids=ids), signals="both")
    assert [(m["surface"], m["kind"], m.get("confidence")) for m in result["document"][0]["mentions"]] == [
        ("bank", "polysemy", None), ("Scotia", "low_conf", 0.2),
    ]  # fmt: skip
    confidence_only = Script(terms=[("bank", "polysemy")], senses={"bank": [SHORE]})
    result = await run(
        confidence_only,
        model=Unsure(respond=confidence_only, odds=odds, ids=ids),
        signals="confidence",
        confidence=0.25,
    )
    assert [(m["surface"], m["kind"]) for m in result["document"][0]["mentions"]] == [
        ("bank", "low_conf"), ("Scotia", "low_conf"),
    ]  # fmt: skip
    assert confidence_only.keys("identifier") == []
    result = await run(
        confidence_only,
        model=Unsure(respond=confidence_only, odds=odds, ids=ids),
        signals="confidence",
        confidence=0.15,
    )
    assert [m["surface"] for m in result["document"][0]["mentions"]] == ["bank"]


def test_articles_and_prepositions_are_not_terms() -> None:
    """A small glosser lists them against its instructions."""
    terms = low_confidence_terms([("by", 0.1), ("of", 0.2), ("UN", 0.3), ("岸", 0.4)], 0.5)
    assert [word for word, _, _ in terms] == ["UN", "岸"]


async def test_without_log_probabilities_the_other_signal_is_left(run: Runner) -> None:
    result = await run(Script(), signals="both")
    assert len(result["document"][0]["mentions"]) == 2
    assert "glosser: the model returns no log-probabilities" in result["document"][0]["faults"]


async def test_a_gloss_counts_only_between_token_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pairs(Unsure):
        async def token_ids(self, text: str) -> list[int] | None:
            return [crc32(text[i : i + 2].encode()) for i in range(0, len(text), 2)]

    text = "a = 岸xab = 陡x"
    model = Pairs(respond=lambda messages, call: text, odds={})
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
    assert parse_glosses("a =  岸 \nno gloss\nb c=d=e") == [("a", 5, 6), ("b c", 21, 24)]
    from types import SimpleNamespace

    reply = "a= 岸\nbb =陡坡"
    call: Any = SimpleNamespace(text=reply, ids=await model.token_ids(reply), logprobs=[-1.0] * 6, top_tokens=None)
    call.top_logprobs = None
    assert await gloss_confidences(Context(), CRAT().glosser, call) == [("a", pytest.approx(math.exp(-1)))]
