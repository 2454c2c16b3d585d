"""Token ids as text: byte-level and other vocabularies, characters of several tokens, damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentsys.view.vocabulary import Vocabulary, find_vocabulary

BYTES = ["Hello", "\u0120world", "\u00e4\u00bd", "\u0142", "\u00e5\u00a5", "\u00bd", "\u010a"]
"""Hello, " world", the bytes e4 bd, a0 (together 你), e5 a5, bd (together 好), a line break."""


def test_tokens_of_one_character_are_together() -> None:
    vocabulary = Vocabulary(BYTES, is_byte_level=True)
    assert vocabulary.split([0, 1, 2, 3, 4, 5, 6]) == [
        ("Hello", 1),
        (" world", 1),
        ("你", 2),
        ("好", 2),
        ("\n", 1),
    ]


def test_bytes_that_are_no_text_are_replaced() -> None:
    vocabulary = Vocabulary(BYTES, is_byte_level=True)
    assert vocabulary.split([2, 0, 1]) == [("\ufffdHello", 2), (" world", 1)]
    assert vocabulary.split([0, 2]) == [("Hello", 1), ("\ufffd", 1)]
    assert vocabulary.split([3]) == [("\ufffd", 1)]


def test_unknown_ids_are_shown_as_numbers() -> None:
    assert Vocabulary(BYTES, is_byte_level=True).split([99]) == [("<99>", 1)]
    assert Vocabulary({1: "a"}, is_byte_level=False).split([1, 2]) == [("a", 1), ("<2>", 1)]


def test_sentencepiece_vocabularies() -> None:
    vocabulary = Vocabulary(["\u2581Hello", "\u2581world", "<0xE4>", "<0xBD>", "<0xA0>", "<s>"], is_byte_level=False)
    assert vocabulary.split([0, 1, 2, 3, 4, 5]) == [(" Hello", 1), (" world", 1), ("你", 3), ("<s>", 1)]


def test_a_folder_with_a_tokenizer(tmp_path: Path) -> None:
    content = {
        "model": {"vocab": {"Hello": 0, "\u0120world": 1}},
        "added_tokens": [{"id": 2, "content": "<|im_end|>"}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    for vocabulary in (find_vocabulary("any", tmp_path), find_vocabulary(str(tmp_path))):
        assert vocabulary is not None
        assert vocabulary.split([0, 1, 2]) == [("Hello", 1), (" world", 1), ("<|im_end|>", 1)]


def test_a_model_that_is_not_here_has_none() -> None:
    assert find_vocabulary("somebody/a-model") is None


def test_a_damaged_tokenizer_is_said(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        find_vocabulary("another", tmp_path)


@pytest.mark.needs("local", "weights-small")
async def test_the_vocabulary_of_a_catalog_model_is_that_of_its_engine() -> None:
    from agentsys.models import load_model
    from agentsys.models.chat import EndpointChatModel

    model = load_model("embedded:qwen2.5-coder-0.5b?temperature=0&max_tokens=1")
    assert isinstance(model, EndpointChatModel)
    text = "A lamp, 一盏灯 and ünïcödé 👩‍👩‍👧 \n\tdone"
    ids = await model.token_ids(text)
    await model.aclose()
    vocabulary = find_vocabulary("qwen2.5-coder-0.5b")
    assert ids is not None and vocabulary is not None
    parts = vocabulary.split(ids)
    assert "".join(part for part, _ in parts) == text and sum(count for _, count in parts) == len(ids)
