"""Term lists and dictionaries: layouts, columns, encodings, duplicates, and bad files."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from agentsys.knowledge import KnowledgeError
from agentsys.terms.item import Item
from agentsys.terms.lists import Counts, TermList
from tests.support.terms import load, load_list, targets, write

pytestmark = pytest.mark.needs("knowledge")

TICO_G = """stringID,sourceLang,targetLang,pos,description,sourceString,targetString
1,en,zh-CN,adjective,"By contact, direct or not.",contagious,可传染 : 有传染性
2,en,zh-CN,noun,The virus.,coronavirus,新型冠状病毒 (COVID-19) [when referring COVID-19] : 冠状病毒
"""


# Term lists


@pytest.mark.parametrize(
    "text",
    [
        "source,target\nface mask,口罩\n",
        "Term;Translation\nface mask;口罩\n",
        "id\ttarget-term\tsource_term\n1\t口罩\tface mask\n",
        "zh_CN,en\n口罩,face mask\n",
        "English,Chinese\nface mask,口罩\n",
        '\n"source","target"\n"face mask","口罩"\n',
        "id,sourceLang,targetLang,sourceString,targetString\n1,en,zh_CN,face mask,口罩\n",
        "stringID,sourceLang,targetLang,pos,description,sourceString,targetString\n1,zh-Hans,en,,,口罩,face mask\n",
        "source,target\r\nface mask,口罩\r\n",
    ],
)
async def test_layouts(tmp_path: Path, text: str) -> None:
    source = load_list(write(tmp_path / "terms.csv", text))
    [[item]] = await source.look_up(["Face masks"], "Face masks help.")
    assert (item.term, item.target, item.origin) == ("face mask", "口罩", "external")
    assert item.source.startswith("terms.csv:") and item.evidence == "face mask = 口罩"


async def test_a_named_column_has_no_second_use(tmp_path: Path) -> None:
    path = write(tmp_path / "terms.csv", "source,target,translation\n口罩,mask,face cover\n")
    assert await targets(load_list(path, query="?source=target"), "mask") == ["face cover"]


async def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "terms.csv", "a,b,c\nmask,口罩,worn\n")
    source = load_list(path, query="?source=a&target=b&meaning=c")
    [[item]] = await source.look_up(["mask"], "mask")
    assert item == Item("mask", "口罩", "worn", "mask = 口罩: worn", "terms.csv:2")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    source = load_list(write(tmp_path / "terms.csv", "source,target\nmask,口罩\n", encoding))
    assert await targets(source, "mask") == ["口罩"]


async def test_the_lists_of_tico_19(tmp_path: Path) -> None:
    """Alternatives are separated by a colon, and a note in brackets belongs to the meaning."""
    source = load_list(write(tmp_path / "g.csv", TICO_G))
    assert await targets(source, "contagious") == ["可传染", "有传染性"]
    [items] = await source.look_up(["Coronavirus"], "Coronavirus")
    assert [(item.target, item.meaning) for item in items] == [
        ("新型冠状病毒 (COVID-19)", "The virus. (when referring COVID-19)"),
        ("冠状病毒", "The virus."),
    ]
    assert source.counts == Counts(items=4, duplicates=0, rivals=2, skipped=0)


async def test_duplicates_are_merged_and_rivals_kept_and_counted(tmp_path: Path) -> None:
    rows = [
        "isolation,隔离",
        "Isolation,隔離",
        "isolation,隔离",
        "isolation,孤立",
        "mask,口罩",
        ",x",
        "y,",
        "z",
        "a,b,c",
    ]
    source = load_list(write(tmp_path / "terms.csv", "\n".join(["source,target", *rows])))
    assert await targets(source, "isolation") == ["隔离", "孤立"]
    assert source.counts == Counts(items=3, duplicates=2, rivals=1, skipped=4)


async def test_capitals_count_for_short_acronyms(tmp_path: Path) -> None:
    source = load_list(write(tmp_path / "terms.csv", "source,target\nWHO,世卫组织\nwhom,谁\n"))
    assert await targets(source, "WHO") == ["世卫组织"]
    assert await targets(source, "who", "Ask who came.") == []


async def test_an_unlisted_term_is_explained_by_entries_inside_and_around_it(tmp_path: Path) -> None:
    source = load_list(write(tmp_path / "terms.csv", "source,target\nface mask,口罩\ncoronavirus,冠状病毒\n"))
    text = "Face masks stop the coronavirus pandemic."
    mask, pandemic, other = await source.look_up(
        ["mask", "coronavirus pandemic", "stop"], text.replace("masks", "mask")
    )
    assert [(item.term, item.target, item.meaning) for item in mask] == [("mask", "", "face mask = 口罩")]
    assert [(item.target, item.meaning) for item in pandemic] == [("", "coronavirus = 冠状病毒")]
    assert other == []


def test_the_index_of_a_list(tmp_path: Path) -> None:
    source = load_list(write(tmp_path / "terms.csv", "source,target\nface mask,口罩\nmask,面具\n"))
    [(start, end, term)] = source.index.spans("Two face masks.")
    assert (start, end) == (4, 14) and [item.target for item in source.items(term)] == ["口罩"]


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "the file has no rows"),
        (b"\n \n", "the file has no rows"),
        (b"source,target\n", "the file has no rows"),
        (b"id,note\n1,x\n", r"which columns hold terms and translations\? The columns are id, note; add \?source="),
        (b"source,target\na,b\n\xff\xfa,c\n", r"terms\.csv:3: not UTF-8; save it as UTF-8$"),
        ("source,target\nmask,口罩\n".encode("gb18030"), r"terms\.csv:2: not UTF-8; .* iconv -f GB18030 -t UTF-8"),
        ("source,target\nmask,口罩\n".encode("utf-16-le"), "zero bytes|not UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\x00\x00\xd8b\x00", "not UTF-16"),
        (b'source,target\na,b\n"c,d\ne,f\n', r"terms\.csv:3: not a row .*; check its quotation marks"),
        (b"source,target,target\na,b,c\n", "column 'target' occurs more than once"),
        (b"source,target\n,\nx,\n", "no entry for en and zh: every row is blank or broken"),
        (b"sourceLang,targetLang,source,target\nde,fr,a,b\n", "no entry for en and zh: its languages are de and fr"),
    ],
)
def test_errors_of_lists_are_one_line(tmp_path: Path, raw: bytes, fault: str) -> None:
    path = tmp_path / "terms.csv"
    path.write_bytes(raw)
    with pytest.raises(KnowledgeError, match=fault) as caught:
        load_list(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


# Dictionaries


async def test_a_dictionary_in_jsonl(tmp_path: Path) -> None:
    rows = [
        {"headword": "shoal"},
        {"headword": "bank", "glosses": ["keeps money"], "translations": ["银行", "庄家"]},
        {"headword": "bank", "glosses": "side of a river", "translations": "河岸"},
        {"headword": "levee", "glosses": ["a wall; against water"]},
    ]
    path = write(tmp_path / "d.jsonl", "\n".join([*map(json.dumps, rows), "[1]", "broken"]))
    source = load(f"dictionary:{path}")
    bank, levee = await source.look_up(["banks", "levee"], "banks and levee")
    assert [(item.target, item.meaning, item.source) for item in bank] == [
        ("银行", "keeps money", "d.jsonl:2"),
        ("庄家", "keeps money", "d.jsonl:2"),
        ("河岸", "side of a river", "d.jsonl:3"),
    ]
    assert [(item.target, item.meaning) for item in levee] == [("", "a wall; against water")]
    assert isinstance(source, TermList) and source.counts.skipped == 3


async def test_a_dictionary_in_csv_has_several_translations_per_cell(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "word,translations\n一败涂地,utter failure; be ruined\n")
    assert await targets(load(f"dictionary:{path}", "zh", "en"), "一败涂地") == ["utter failure", "be ruined"]


def test_a_dictionary_needs_translations_or_glosses(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "word,x\na,b\n")
    with pytest.raises(KnowledgeError, match="headwords and translations or glosses"):
        load(f"dictionary:{path}")
