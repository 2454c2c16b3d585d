"""DRT's checks without a model: languages, key words, drafts, feedback, and where two translations differ."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agentsys.graphs.drt.checks import (
    check_advice,
    check_draft,
    check_keywords,
    check_refinement,
    check_source,
    find_difference,
    is_usable,
    quoted_phrases,
)
from agentsys.graphs.drt.state import Keyword, Keywords
from agentsys.records import InputError

ENGLISH = "The kettle coughed like an old butler, and Ada laughed."
CHINESE = "水壶咳嗽了一声，像个老管家，艾达笑了。"
TO_CHINESE = {"text": ENGLISH, "source_language": "English", "target_language": "Chinese", "steps": []}
TO_ENGLISH = {"text": CHINESE, "source_language": "Chinese", "target_language": "English", "steps": []}


def test_a_sentence_in_another_script_than_its_language_is_an_error() -> None:
    for text, language in ((ENGLISH, "English"), (CHINESE, "zh"), ("1914–1918", "Chinese"), ("Ἀχιλλεύς", "my Greek")):
        check_source(text, language)
    with pytest.raises(InputError, match="Han letters and the source language is English: set --source-language"):
        check_source(CHINESE, "English")
    with pytest.raises(InputError, match="Latin letters and the source language is Chinese"):
        check_source(ENGLISH, "Chinese")


@pytest.mark.parametrize(
    ("inputs", "translation"),
    [
        (TO_CHINESE, "水壶像个老管家似的咳了一声，艾达笑了。"),
        (TO_CHINESE, "水壶像个老管家似的咳了一声，Ada笑了。"),  # a name
        (TO_CHINESE, "水壶像个老管家似的咳了一声，穿T恤的DNA专家笑了。"),  # abbreviations
        (TO_ENGLISH, "The kettle coughed like an old butler, and the father's friend Ada laughed."),
        (
            TO_ENGLISH | {"text": "他写了“壶”字，像个老管家。"},
            'He wrote the sign "壶", like an old butler.',
        ),  # a quotation
        (TO_CHINESE | {"target_language": "German"}, "Der Kessel hustete wie ein alter Butler, und Ada lachte."),
        (TO_ENGLISH | {"target_language": "Japanese"}, "やかんが老執事のように咳をし、エイダが笑った。"),
        (TO_CHINESE | {"text": f"**{ENGLISH}**"}, "**水壶像个老管家似的咳了一声，艾达笑了。**"),
        (TO_ENGLISH, "The kettle, which translated its cough like an old butler, made Ada laugh."),
        (
            TO_ENGLISH | {"text": "他说这句话的译法是：水壶像个老管家。"},
            "The sentence is translated thus, he said: the kettle is an old butler.",
        ),
        (TO_ENGLISH, "The kettle coughed and/or barked like an old butler, and Ada laughed."),
        (TO_ENGLISH | {"text": "水壶/茶壶咳嗽了一声，像个老管家。"}, "The kettle / teapot coughed like an old butler."),
    ],
)
def test_translations_that_pass(inputs: dict[str, Any], translation: str) -> None:
    assert check_draft(translation, inputs) is None


@pytest.mark.parametrize(
    ("inputs", "translation", "reason"),
    [
        (
            TO_CHINESE,
            "水壶像个butler似的咳了一声，艾达笑了。",
            "it leaves butler untranslated; write all of it in Chinese",
        ),
        (TO_CHINESE, "水壶咳了一声，艾达下楼 laughing。", "it leaves laughing untranslated"),
        (TO_ENGLISH, "The water壶 coughed like an old butler, and Ada laughed.", "it leaves 壶 untranslated"),
        (TO_ENGLISH, "Note: this is literary. The kettle coughed like an old butler.", r"it has a note \(Note:\)"),
        (TO_CHINESE, "译文：水壶像个老管家似的咳了一声，艾达笑了。", r"it has a note \(译文：\)"),
        (TO_CHINESE, "水壶像个老管家似的咳了一声，艾达笑了。（注：比喻）", "it has a note"),
        (TO_CHINESE, "<think>壶</think>水壶像个老管家似的咳了一声，艾达笑了。", r"it has a tag \(<think>\)"),
        (TO_CHINESE, "水壶像个老管家似的咳了一声，⟦1⟧艾达笑了。", "it has a tag"),
        (TO_ENGLISH, "The sentence translates to: The kettle coughed like an old butler.", "it begins with an announ"),
        (TO_ENGLISH, "Sure! Here's my translation: The kettle coughed like an old butler.", "it begins with an announ"),
        (
            TO_ENGLISH,
            "This can be translated into English as: The kettle coughed.",
            r"\(This can .* as:\)",
        ),
        (TO_CHINESE, "以下是中文翻译：水壶像个老管家似的咳了一声，艾达笑了。", "it begins with an announcement"),
        (TO_CHINESE, "这句话的译文是：水壶像个老管家似的咳了一声，艾达笑了。", "it begins with an announcement"),
        (TO_ENGLISH, "The kettle coughed like a black / dark butler.", r"two renderings \(black / dark\); choose one"),
        (TO_CHINESE, "水壶像个老管家 ／ 仆人似的咳了一声，艾达笑了。", "it has two renderings"),
        (TO_ENGLISH, "I'm sorry, but I can't assist with that.", "it has a refusal"),
        (TO_CHINESE, "抱歉，作为一个人工智能，我不能翻译这句话。", "it has a refusal"),
        (TO_CHINESE, "水壶像个老管家似的咳了一声。\n\n艾达笑了。", "it has several lines"),
        (TO_CHINESE, "“水壶像个老管家似的咳了一声，艾达笑了。”", "it is in quotation marks"),
        (TO_CHINESE, "水壶咳。", "it is not the whole sentence"),
        (TO_ENGLISH, "Kettle.", "it is not the whole sentence"),
        (TO_CHINESE, "水壶像个老管家似的咳了一声，艾达笑了。" * 4, "it is much longer than the sentence"),
    ],
)
def test_translations_that_are_refused(inputs: dict[str, Any], translation: str, reason: str) -> None:
    refusal = check_draft(translation, inputs)
    assert refusal is not None
    assert re.search(reason, refusal), refusal


def test_a_refinement_is_new_and_as_whole_as_the_first() -> None:
    steps = [{"translation": "水壶像个老管家似的咳了一声，艾达笑了。"}]
    inputs = {**TO_CHINESE, "steps": steps}
    assert check_refinement("水壶像老管家一样咳了一声，艾达笑了。", inputs) is None
    assert "repeats" in str(check_refinement(" 水壶像个老管家似的咳了一声，艾达笑了。\n", inputs))
    assert "repeats" in str(check_refinement("水壶像个老管家似的咳了一声；艾达笑了！", inputs)), (
        "only other punctuation"
    )
    assert "not the whole sentence" in str(check_refinement("水壶像个老管家。", inputs))


@pytest.mark.parametrize(
    ("feedback", "reason"),
    [
        ('It is accurate, but "咳了一声" is flat; write "咳嗽起来".', None),
        ("It is accurate, but 咳了一声 is flat; write 咳嗽起来.", None),  # another script needs no quotation marks
        ("“咳了…笑了” is flat; write “咳嗽起来”.", None),  # an ellipsis inside a quotation
        ("It follows the English too closely.", "quote the words of the translation"),
        ('"打了个喷嚏" is wrong; write "咳嗽起来".', "quote the words of the translation"),
        ('Write "咳了一声" instead of "咳了一声".', "propose other words"),
        ("The words 咳了一声 are flat.", "propose other words"),
    ],
)
def test_advice_quotes_the_translation_and_proposes_what_is_not_there(feedback: str, reason: str | None) -> None:
    refusal = check_advice(feedback, {**TO_CHINESE, "translation": "水壶像个老管家似的咳了一声，艾达笑了。"})
    assert refusal is None if reason is None else str(refusal).startswith(reason)


def test_quotations_in_english_feedback_on_english() -> None:
    translation = "The kettle coughed like an old butler."
    feedback = "The kettle's voice is right, but 'coughed' is flat; \"cleared its throat\" is better."
    assert [*quoted_phrases(feedback, translation)] == ["coughed", "cleared its throat"]
    assert check_advice(feedback, {"translation": translation}) is None


def test_key_words_are_words_of_the_sentence_with_a_translation() -> None:
    words = {"kettle": "水壶", "butler": "butler", "Ada": "", "teapot": "茶壶", "OLD": "老"}
    usable = [word for word in words if is_usable(Keyword(word=word, translation=words[word]), TO_CHINESE)]
    assert usable == ["kettle", "OLD"]
    assert check_keywords(Keywords(keywords=[Keyword(word="teapot", translation="茶壶")]), TO_CHINESE)
    many = [Keyword(word=word, translation="某") for word in ("kettle", "old", "Ada") * 9]
    assert check_keywords(Keywords(keywords=many), TO_CHINESE) is None, "as many as the model likes"


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ("He ran home at noon.", "He walked home at noon.", ("ran", "walked")),
        ("He ran home.", "He ran home quickly.", ("home", "home quickly")),
        ("Quickly he ran home.", "he ran home.", ("Quickly he", "he")),
        ("Her laugh is like bells.", "Her laughter was like bells.", ("laugh is", "laughter was")),
        ("消息像湿雪一样落下", "消息像湿雪落满了屋子", ("下", "满了屋子")),
        ("Same.", "Same.", ("", "")),
        ("Alpha.", "Beta.", ("Alpha", "Beta")),
    ],
)
def test_where_two_translations_differ_most(first: str, second: str, difference: tuple[str, str]) -> None:
    assert find_difference(first, second) == difference
