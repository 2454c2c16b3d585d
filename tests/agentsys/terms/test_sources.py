"""Term sources: matching, term lists, dictionaries, translation memories, passages, and what bad input gets."""

from __future__ import annotations

import codecs
import json
import os
import random
import re
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentsys.knowledge import KnowledgeError, build_index
from agentsys.terms.index import TermIndex, plural, singular
from agentsys.terms.item import Item
from agentsys.terms.lists import Counts, TermList
from agentsys.terms.sources import EXCERPT, TermSource, TranslationMemory, load_sources
from agentsys.terms.tmx import Unit, read_tmx
from agentsys.text.languages import best_code, language

TICO_G = """stringID,sourceLang,targetLang,pos,description,sourceString,targetString
1,en,zh-CN,adjective,"By contact, direct or not.",contagious,可传染 : 有传染性
2,en,zh-CN,noun,The virus.,coronavirus,新型冠状病毒 (COVID-19) [when referring COVID-19] : 冠状病毒
"""


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def load(spec: str, source: str = "English", target: str = "Chinese") -> TermSource:
    [found] = load_sources([spec], source, target)
    return found


def load_list(path: Path, source: str = "English", target: str = "Chinese", query: str = "") -> TermList:
    found = load(f"terms:{path}{query}", source, target)
    assert isinstance(found, TermList)
    return found


async def targets(source: TermSource, term: str, sentence: str = "") -> list[str]:
    [items] = await source.look_up([term], sentence or term)
    return [item.target for item in items]


def tmx(*units: dict[str, str], head: str = "", tags: str = "") -> str:
    body = "".join(
        f'<tu tuid="D:{i}"{tags}>'
        + "".join(f'<tuv xml:lang="{code}"><seg>{text}</seg></tuv>' for code, text in unit.items())
        + "</tu>"
        for i, unit in enumerate(units)
    )
    return f'<?xml version="1.0"?>{head}<tmx version="1.4"><header srclang="en"/><body>{body}</body></tmx>'


# Languages


@pytest.mark.parametrize(
    ("wanted", "codes", "best"),
    [
        ("Chinese", ["en", "zh_CN"], "zh_CN"),
        ("zh-CN", ["zh-TW", "zh_Hans"], "zh_Hans"),
        ("zh-CN", ["zh-TW", "zh-Hant"], None),
        ("Traditional Chinese", ["zh-CN", "zh-HK"], "zh-HK"),
        ("zh", ["zh-TW", "zh"], "zh"),
        ("en-GB", ["en-US", "en-GB"], "en-GB"),
        ("en-GB", ["fr", "EN-US"], "EN-US"),
        ("zh", ["cmn-Hans"], "cmn-Hans"),
        ("English", ["x-default", "", "eng"], "eng"),
        ("French", ["en", "zh"], None),
    ],
)
def test_codes_are_matched_by_language_and_script(wanted: str, codes: list[str], best: str | None) -> None:
    asked = language(wanted)
    assert asked is not None and best_code(asked, codes) == best


def test_an_unknown_language_is_one_line() -> None:
    with pytest.raises(KnowledgeError, match="'Qzx' is no language; write a code"):
        load_sources(["terms:a.csv"], "Qzx", "en")


# Matching


@pytest.mark.parametrize(
    ("terms", "text", "found"),
    [
        (["mask", "face mask"], "A face mask is a mask.", ["face mask", "mask"]),
        (["acute care", "care home"], "in acute care homes", ["acute care"]),
        (["cat"], "concatenate cats cat's Cat", ["cats", "cat", "Cat"]),
        (["virus"], "antivirus virus_2 co-virus", ["virus"]),
        (["WHO", "IT"], "who saw it? WHO in IT. WHOs", ["WHO", "IT", "WHOs"]),
        (["COVID-19"], "感染covid-19的人", ["covid-19"]),
        (["冠状病毒", "新型冠状病毒"], "新型冠状病毒与冠状病毒", ["新型冠状病毒", "冠状病毒"]),
        (["close contact"], "close\ncontacts, ｃｌｏｓｅ　contact", ["close\ncontacts", "ｃｌｏｓｅ　contact"]),
        (["o'clock", "co-opt"], "o’clock co\u2011opt", ["o’clock", "co\u2011opt"]),
        (["therapy", "virus", "box", "day"], "therapies viruses boxes days", ["therapies", "viruses", "boxes", "days"]),
        (["deaths"], "one death", []),
        (["Straße"], "STRASSE straße", ["straße"]),
        (["cafe\u0301"], "Café", ["Café"]),
        (["𠮷野"], "在𠮷野家", ["𠮷野"]),
        ([], "text", []),
        (["", "  "], "text", []),
    ],
)
def test_spans(terms: list[str], text: str, found: list[str]) -> None:
    spans = TermIndex(terms, "en").spans(text)
    assert [text[start:end] for start, end, _ in spans] == found
    assert {term for *_, term in spans} <= set(terms)


def test_without_english_there_is_no_plural() -> None:
    assert TermIndex(["main"], "fr").spans("mains") == [] and TermIndex(["main"], "en").spans("mains")


def test_the_writing_of_the_text_chooses_among_terms_that_differ_in_case() -> None:
    spans = TermIndex(["polish", "Polish"]).spans("Polish polish POLISH")
    assert [term for *_, term in spans] == ["Polish", "polish", "polish"]


def test_a_large_index_finds_what_a_plain_search_finds() -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcde", k=rng.randint(1, 4))) for _ in range(60)]
    terms = list({" ".join(rng.choices(vocabulary, k=rng.randint(1, 3))) for _ in range(2000)})
    index = TermIndex(terms)
    for _ in range(15):
        text = " ".join(rng.choices(vocabulary, k=30))
        every = [
            (match.start(), match.start() + len(term), term)
            for term in terms
            for match in re.finditer(rf"(?<!\w)(?={re.escape(term)}(?!\w))", text)
        ]
        kept: list[tuple[int, int, str]] = []
        for span in sorted(every, key=lambda one: (one[0] - one[1], one[0])):
            if all(span[1] <= start or end <= span[0] for start, end, _ in kept):
                kept.append(span)
        assert index.spans(text) == sorted(kept)


@pytest.mark.parametrize(
    ("one", "many"), [("mask", "masks"), ("therapy", "therapies"), ("box", "boxes"), ("watch", "watches")]
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many and singular(many) == one


@pytest.mark.parametrize("term", ["coronavirus", "news", "crisis", "illness", "bus", "病毒", "COVID-19", ""])
def test_what_is_no_plural_has_no_singular(term: str) -> None:
    assert singular(term) == ""


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
    [[found]] = await source.look_up(["Face masks"], "Face masks help.")
    assert (found.term, found.target, found.origin) == ("face mask", "口罩", "external")
    assert found.source.startswith("terms.csv:") and found.evidence == "face mask = 口罩"


async def test_a_named_column_is_no_other_one(tmp_path: Path) -> None:
    path = write(tmp_path / "terms.csv", "source,target,translation\n口罩,mask,face cover\n")
    assert await targets(load_list(path, query="?source=target"), "mask") == ["face cover"]


async def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "terms.csv", "a,b,c\nmask,口罩,worn\n")
    source = load_list(path, query="?source=a&target=b&meaning=c")
    [[found]] = await source.look_up(["mask"], "mask")
    assert found == Item("mask", "口罩", "worn", "mask = 口罩: worn", "terms.csv:2")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    source = load_list(write(tmp_path / "terms.csv", "source,target\nmask,口罩\n", encoding))
    assert await targets(source, "mask") == ["口罩"]


async def test_the_lists_of_tico_19(tmp_path: Path) -> None:
    """Alternatives are parted by a colon, and a note in brackets belongs to the meaning."""
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
        (b"", "no row in it"),
        (b"\n \n", "no row in it"),
        (b"source,target\n", "no row in it"),
        (b"id,note\n1,x\n", r"which columns hold terms and translations\? The columns are id, note; add \?source="),
        (b"source,target\na,b\n\xff\xfa,c\n", r"terms\.csv:3: not UTF-8; save it as UTF-8$"),
        ("source,target\nmask,口罩\n".encode("gb18030"), r"terms\.csv:2: not UTF-8; .* iconv -f GB18030 -t UTF-8"),
        ("source,target\nmask,口罩\n".encode("utf-16-le"), "zero bytes|not UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\x00\x00\xd8b\x00", "not UTF-16"),
        (b'source,target\na,b\n"c,d\ne,f\n', r"terms\.csv:3: not a row .*; check its quotation marks"),
        (b"source,target,target\na,b,c\n", "column 'target' is there twice"),
        (b"source,target\n,\nx,\n", "no entry for en and zh: every row is blank or broken"),
        (b"sourceLang,targetLang,source,target\nde,fr,a,b\n", "no entry for en and zh: its languages are de and fr"),
    ],
)
def test_bad_lists_are_one_line(tmp_path: Path, raw: bytes, fault: str) -> None:
    path = tmp_path / "terms.csv"
    path.write_bytes(raw)
    with pytest.raises(KnowledgeError, match=fault) as caught:
        load_list(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("terms:{}/nope.csv", "cannot be read .*; check the path"),
        ("terms:{}/a.csv?target=c", "no column 'c'; the columns are source, target"),
        ("terms:{}/a.csv?color=c", "'color' cannot be set; there are source, target, meaning"),
        ("tmx:{}/a.csv", "not well-formed XML"),
        ("tmx:{}/a.csv?source=x", "has no columns"),
        ("passages:{}/nope", "is no index"),
        ("web:example", "'web:example' is no term source; there are terms:FILE"),
        ("a.csv", "'a.csv' is no term source"),
        ("terms:", "'terms:' is no term source"),
    ],
)
def test_bad_specs_are_one_line(tmp_path: Path, spec: str, fault: str) -> None:
    write(tmp_path / "a.csv", "source,target\nmask,口罩\n")
    with pytest.raises(KnowledgeError, match=fault) as caught:
        load(spec.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_string_of_specs_is_refused() -> None:
    with pytest.raises(KnowledgeError, match="sources are a list"):
        load_sources("terms:a.csv", "en", "zh")


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


async def test_a_dictionary_in_csv_has_several_in_a_cell(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "word,translations\n一败涂地,utter failure; be ruined\n")
    assert await targets(load(f"dictionary:{path}", "zh", "en"), "一败涂地") == ["utter failure", "be ruined"]


def test_a_dictionary_needs_translations_or_glosses(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "word,x\na,b\n")
    with pytest.raises(KnowledgeError, match="headwords and translations or glosses"):
        load(f"dictionary:{path}")


# Translation memories


def test_units_are_read_with_their_codes_and_notes(tmp_path: Path) -> None:
    text = (
        '<!DOCTYPE tmx SYSTEM "tmx14.dtd"><tmx version="1.4"><body>'
        '<tu tuid="A:1"><note> from  here </note><tuv xml:lang="EN-US"><seg>a <bpt i="1">&lt;b></bpt>bold<ept i="1"/>'
        ' <hi>mark</hi> &amp;\n more</seg></tuv><tuv lang="zh"><seg>粗</seg></tuv></tu>'
        '<!-- a comment --><tu><prop type="note">p</prop><tuv xml:lang="en"><seg/></tuv></tu></body></tmx>'
    )
    units = list(read_tmx(write(tmp_path / "a.tmx", text)))
    assert units == [Unit("A:1", {"EN-US": "a bold mark & more", "zh": "粗"}, "from here"), Unit("#2", {}, "p")]


@pytest.mark.parametrize("encoding", ["utf-16", "gb18030"])
def test_a_tmx_file_declares_its_encoding(tmp_path: Path, encoding: str) -> None:
    text = tmx({"en": "mask", "zh": "口罩"}).replace('"1.0"?', f'"1.0" encoding="{encoding}"?')
    [unit] = read_tmx(write(tmp_path / "a.tmx", text, encoding))
    assert unit.texts["zh"] == "口罩"


def test_entities_of_the_file_are_not_expanded_and_nothing_is_read(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.txt", "secret")
    head = f'<!DOCTYPE tmx [<!ENTITY a "boom"><!ENTITY s SYSTEM "{secret.as_uri()}">]>'
    [unit] = read_tmx(write(tmp_path / "a.tmx", tmx({"en": "x&a;&s;y"}, head=head)))
    assert unit.texts == {"en": "xy"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not well-formed XML"),
        ("<html/>", "its root is <html>, not <tmx>"),
        (tmx({"en": "a", "zh": "b"})[:-20], r"a\.tmx:1: not well-formed XML \("),
        (tmx(), "no segment in it"),
        (tmx({"en": "a", "fr": "b"}, {"en": "c"}), r"no pair of en and zh; .* are en \(2\), fr \(1\)"),
        (tmx({"en": "a", "": "b"}), r"en \(1\), none \(1\)"),
    ],
)
def test_bad_memories_are_one_line(tmp_path: Path, text: str, fault: str) -> None:
    path = write(tmp_path / "a.tmx", text)
    with pytest.raises(KnowledgeError, match=fault) as caught:
        load(f"tmx:{path}")
    assert "\n" not in str(caught.value)


async def test_segments_that_contain_the_term(tmp_path: Path) -> None:
    units = [
        {"en": "The bank was closed.", "zh": "银行关门了。"},
        {"en": "We sat on the bank of the river.", "zh": "我们坐在河岸上。"},
        {"en": "Bank.", "zh": "银行。"},
        {"en": "A bankrupt man", "zh": "破产者"},
        {"en": "We sat on the bank of the river.", "zh": "我们坐在河岸上。"},
        {"en": "Several banks were robbed in May.", "zh": "五月有几家银行遭抢。"},
        {"en": "bank", "fr": "banque"},
    ]
    source = load(f"tmx:{write(tmp_path / 'a.tmx', tmx(*units))}", "en", "zh-CN")
    [found] = await source.look_up(["bank"], "They sat on the bank of the Thames river.")
    assert [(item.target, item.source) for item in found] == [
        ("银行", "a.tmx:D:2"),
        ("", "a.tmx:D:1"),
        ("", "a.tmx:D:0"),
    ]
    assert found[1].evidence == found[1].meaning == "We sat on the bank of the river. = 我们坐在河岸上。"
    assert (await source.look_up(["robbers", "closed"], ""))[0] == []


@pytest.mark.parametrize("term", ["癌", "癌症", "COVID-19癌"])
async def test_terms_without_spaces_in_a_memory(term: str) -> None:
    memory = TranslationMemory("m", [("m:1", "一种COVID-19癌症。", "a cancer"), ("m:2", "别的", "other")])
    [found] = await memory.look_up([term], "癌症")
    assert [item.source for item in found] == ["m:1"]


# Passages and sources of one's own


async def test_passages_that_name_the_term(tmp_path: Path) -> None:
    long = f"{'Nothing here. ' * 60}Rush is a band from Toronto. {'Nothing there. ' * 60}"
    records = [
        {"id": "rush", "title": "Music", "text": long},
        {"id": "title", "title": "Rush", "text": "Three people from Canada."},
        {"id": "crush", "title": "", "text": "A crush is a drink; the rushes grow."},
        {"id": "zh", "title": "", "text": "病毒" * 400},
    ]
    build_index(records, tmp_path / "index")
    source = load(f"passages:{tmp_path / 'index'}")
    rush, virus, none = await source.look_up(["Rush", "病毒", "zebra"], "Rush and zebra")
    by_source = {item.source: item for item in rush}
    assert by_source.keys() == {"passage:rush", "passage:title"}
    assert "Rush is a band from Toronto." in by_source["passage:rush"].meaning
    assert by_source["passage:title"].evidence == "Rush: Three people from Canada."
    assert all(len(item.meaning) <= EXCERPT and item.target == "" for item in rush + virus)
    assert [item.source for item in virus] == ["passage:zh"] and none == []
    assert await source.look_up([], "") == []


async def test_a_source_of_ones_own() -> None:
    class Mine:
        name = "mine"

        async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
            return [[Item(term, term.upper(), "", "", "mine")] for term in terms]

    assert await targets(load_sources([Mine()], "en", "zh")[0], "a") == ["A"]


# Loading


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "terms.csv", "source,target\nmask,口罩\n")
    first = load_list(path)
    assert load_list(path) is first
    assert load_list(path, "English", "zh-CN") is not first
    write(path, "source,target\nmask,面具\n")
    os.utime(path, ns=(1, 1))
    assert await targets(load_list(path), "mask") == ["面具"]


def test_in_studio_only_listed_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langgraph_api", types.ModuleType("langgraph_api"))
    allowed, other = (write(tmp_path / name, "source,target\nmask,口罩\n") for name in ("a.csv", "b.csv"))
    monkeypatch.setenv("AGENTSYS_TERM_SOURCES", f" {allowed} , {tmp_path / 'dir'}")
    assert load_list(allowed).counts.items == 1
    for spec in (f"terms:{other}", f"tmx:{other}", f"dictionary:{tmp_path}/dir/../b.csv", f"terms:{tmp_path}/nope"):
        with pytest.raises(KnowledgeError, match="is not allowed; start the server with AGENTSYS_TERM_SOURCES="):
            load(spec)
    with pytest.raises(KnowledgeError, match="AGENTSYS_INDEXES="):
        load(f"passages:{tmp_path}")


def test_importing_the_sources_loads_nothing_heavy() -> None:
    code = "import sys, agentsys.knowledge.term_sources, agentsys.knowledge.transkg; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in found.stdout.split()}
    assert not loaded & {"ahocorasick", "chromadb", "langcodes", "lxml", "matplotlib", "networkx", "opencc", "torch"}
