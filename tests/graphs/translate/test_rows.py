"""graphs/translate/rows.py: pairs from records and memories, their terms, and records that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentsys.evaluation.sample import SampleOptions
from agentsys.graphs.translate.rows import Columns, Pair, read_pairs, with_terms
from agentsys.metrics.terms import KnownTerm
from agentsys.records import BadRecord, InputError
from tests.support.toys import write_lines


def test_a_term_list_is_added_to_the_terms_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "terms.csv").write_text("source,target\nFlu,流感\nstop,阻止\n", encoding="utf-8")
    pair = Pair("1", "", 0, "Stop the flu.", ("阻止流感。",), terms=(KnownTerm("flu", ("流行性感冒",)),))
    [with_list] = with_terms([pair], [str(tmp_path / "terms.csv")], ("English", "Chinese"))
    assert with_list.terms == (KnownTerm("flu", ("流行性感冒",)), KnownTerm("stop", ("阻止",)))


@pytest.mark.parametrize("names", [("one.csv", "two.csv"), ("two.csv", "one.csv")])
def test_the_translations_of_all_lists_count_in_any_order(tmp_path: Path, names: tuple[str, str]) -> None:
    (tmp_path / "one.csv").write_text("source,target\nflu,流感\ncafé,咖啡馆\n", encoding="utf-8")
    (tmp_path / "two.csv").write_text("source,target\nFlu,流行性感冒\n", encoding="utf-8")
    pair = Pair("1", "", 0, "The flu in the cafe\u0301.", ("咖啡馆里的流感。",))
    [with_lists] = with_terms([pair], [str(tmp_path / name) for name in names], ("English", "Chinese"))
    terms = {term.source.casefold(): set(term.targets) for term in with_lists.terms}
    assert terms == {"flu": {"流感", "流行性感冒"}, "café": {"咖啡馆"}}


XC = {
    "id": "Q1_0",
    "source": "Are soybean sprouts common?",
    "targets": [
        {"translation": "黃豆芽常見嗎？", "mention": "黃豆芽"},
        {"translation": "黃豆芽常見嗎？", "mention": "大豆芽"},
    ],
}


def pairs_of(path: Path, columns: Columns | None = None) -> list[Pair | BadRecord]:
    return read_pairs(path, columns or Columns(), ("English", "Chinese"))


def test_the_references_column_may_be_called_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "reversed.jsonl", [{"text": "The flu.", "trans": "流感。"}])
    [pair] = pairs_of(path, Columns("trans", "text"))
    assert isinstance(pair, Pair) and (pair.text, pair.references, dict(pair.data)) == ("流感。", ("The flu.",), {})
    [bad] = pairs_of(path, Columns("source", "text"))
    assert isinstance(bad, BadRecord) and "--source-field COLUMN" in bad.reason
    with pytest.raises(InputError, match="both name 'text'; name two columns"):
        pairs_of(path, Columns("text", "text"))


def test_other_columns_and_ids(tmp_path: Path) -> None:
    lines = [{"key": key, "text": "A.", "trans": "甲。", "book": "one"} for key in (7, 7, 8)]
    options = SampleOptions(field=["document=book"], id_field="key")
    first, second, third = read_pairs(write_lines(tmp_path / "a.jsonl", lines), Columns(), ("en", "zh"), options)
    assert isinstance(first, Pair) and (first.id, first.document) == ("7", "one")
    assert isinstance(second, BadRecord) and "two pairs have the id 7" in second.reason
    assert isinstance(third, Pair) and third.id == "8"


def test_xc_translate_s_records(tmp_path: Path) -> None:
    [pair] = pairs_of(write_lines(tmp_path / "xc.jsonl", [XC]), Columns("source", "targets"))
    assert isinstance(pair, Pair) and pair.id == "Q1_0" and pair.text == XC["source"]
    assert pair.references == ("黃豆芽常見嗎？",) and pair.mentions == (("黃豆芽", "大豆芽"),)


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<tmx version="1.4"><header srclang="en" datatype="text"/><body>
<tu tuid="wiki_1:1"><tuv xml:lang="en"><seg>The flu.</seg></tuv><tuv xml:lang="zh-CN"><seg>流感。</seg></tuv></tu>
<tu tuid="wiki_1:2"><tuv xml:lang="en"><seg>Only here.</seg></tuv></tu>
<tu tuid="wiki_2:1"><tuv xml:lang="en"><seg>A mask.</seg></tuv><tuv xml:lang="zh-CN"><seg>口罩。</seg></tuv></tu>
</body></tmx>"""


def test_a_translation_memory(tmp_path: Path) -> None:
    path = tmp_path / "memory.tmx"
    path.write_text(TMX, encoding="utf-8")
    first, second, third = pairs_of(path)
    assert isinstance(first, Pair) and isinstance(third, Pair)
    assert (first.id, first.text, first.references, first.document) == ("wiki_1:1", "The flu.", ("流感。",), "wiki_1")
    assert third.document == "wiki_2" and isinstance(second, BadRecord) and "wiki_1:2 is not in" in second.reason
    with pytest.raises(InputError, match="no unit in English and German; it has en, zh-CN"):
        read_pairs(path, Columns(), ("English", "German"))


BAD_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"text": "a", "trans": ""}, "field 'trans' holds no text"),
    ({"text": "a", "trans": []}, "field 'trans' holds no text"),
    ({"text": "a", "trans": ["b", 3]}, "field 'trans' holds no text"),
    ({"text": "a", "trans": [{"text": "b"}]}, "field 'trans' holds no text"),
    ({"text": " ", "trans": "b"}, "field 'text' is empty"),
    ({"source": "a", "trans": "b"}, "--source-field COLUMN"),
    ({"text": "a", "trans": "b", "mentions": [["x"], "y"]}, "field 'mentions'"),
    ({"text": "a", "trans": "b", "mentions": "y"}, "field 'mentions'"),
    ({"text": "a", "trans": "b", "terms": [{"source": "x"}]}, "field 'terms'"),
    ({"text": "a", "trans": "b", "terms": "x"}, "field 'terms'"),
    ({"text": "a", "trans": "b", "terms": 5}, "field 'terms'"),
    ({"text": "a", "trans": "b", "terms": [{"source": "", "targets": ["y"]}]}, "field 'terms'"),
]


@pytest.mark.parametrize(("record", "words"), BAD_RECORDS, ids=lambda value: str(value)[:30])
def test_a_bad_record_is_one_line(tmp_path: Path, record: dict[str, Any], words: str) -> None:
    bad, good = pairs_of(write_lines(tmp_path / "pairs.jsonl", [record, {"text": "a", "trans": "b"}]))
    assert isinstance(bad, BadRecord) and words in bad.reason and "\n" not in bad.reason
    assert isinstance(good, Pair)
