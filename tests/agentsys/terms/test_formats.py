"""Term bases, XLIFF files, spreadsheets, and compressed files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest

from agentsys.knowledge import KnowledgeError
from agentsys.terms import packed, xlsx
from agentsys.terms.lists import TermList
from agentsys.terms.sources import TranslationMemory
from agentsys.terms.tmx import Unit, is_memory, read_units
from tests.support.terms import load, load_list, targets, tmx, write

pytestmark = pytest.mark.needs("knowledge")

TBX_2 = """<?xml version="1.0"?><!DOCTYPE martif SYSTEM "TBXcoreStructV02.dtd">
<martif type="TBX-Basic" xml:lang="en"><text><body>
<termEntry id="c1"><descrip type="subjectField">law</descrip>
<descripGrp><descrip type="definition">A place for ships.</descrip></descripGrp>
 <langSet xml:lang="en-US"><tig><term>harbor</term></tig><ntig><termGrp><term>haven</term></termGrp></ntig></langSet>
 <langSet xml:lang="en-GB"><tig><term>harbour</term></tig></langSet>
 <langSet xml:lang="zh-CN"><tig><term>码头</term>
<termNote type="administrativeStatus">deprecatedTerm-admn-sts</termNote></tig>
  <tig><term>港</term></tig><tig><term>港口</term>
<termNote type="administrativeStatus">preferredTerm-admn-sts</termNote></tig></langSet>
 <langSet xml:lang="zh-TW"><tig><term>港灣</term></tig></langSet></termEntry>
<termEntry id="c2"><langSet xml:lang="en"><tig><term>R&D</term></tig></langSet><langSet xml:lang="zh">
<tig><term>研发</term></tig></langSet></termEntry>
<termEntry id="c3"><langSet xml:lang="en"><tig><term>broken</tig></langSet></termEntry>
<termEntry id="c4"><langSet xml:lang="de"><tig><term>Hafen</term></tig></langSet></termEntry>
</body></text></martif>"""

TBX_3 = """<tbx style="dct" type="TBX-Min" xml:lang="en" xmlns="urn:iso:std:iso:30042:ed-2"
 xmlns:min="http://www.tbxinfo.net/ns/min"
 xmlns:basic="http://www.tbxinfo.net/ns/basic"><text>
<body><conceptEntry id="1"><min:subjectField>sea</min:subjectField>
 <langSec xml:lang="en">
<descripGrp><basic:definition>Flat boat.</basic:definition></descripGrp><termSec><term>barge</term>
 <min:partOfSpeech>noun</min:partOfSpeech></termSec></langSec>
 <langSec xml:lang="zh"><termSec><term>驳船</term></termSec></langSec></conceptEntry></body></text></tbx>"""


async def test_a_term_base_of_version_2(tmp_path: Path) -> None:
    source = load_list(write(tmp_path / "t.tbx", TBX_2), "en", "zh-CN")
    assert await targets(source, "harbour") == await targets(source, "haven") == ["港口", "港"]
    assert await targets(source, "R&D") == ["研发"]
    [[item, _]] = await source.look_up(["harbor"], "harbor")
    assert (item.meaning, item.source) == ("A place for ships.", "t.tbx:3")
    assert (source.counts.items, source.counts.skipped) == (7, 1)
    assert (source.counts.broken, source.counts.repaired) == (1, 1)
    assert source.counts.faults[0].startswith("t.tbx:14: <termEntry> is not well-formed XML (Opening and ending tag")


async def test_a_term_base_of_version_3(tmp_path: Path) -> None:
    source = load(f"dictionary:{write(tmp_path / 't.tbx', TBX_3)}")
    [[item]] = await source.look_up(["barges"], "barges")
    assert (item.target, item.meaning) == ("驳船", "Flat boat.")


@pytest.mark.parametrize(
    ("text", "query", "fault"),
    [
        (TBX_3, "?source=a", "has no columns; remove"),
        (TBX_3.replace('"zh"', '"fr"'), "", r"no entry for en and zh: its languages are en \(1\), fr \(1\)"),
        ("<html></html>", "", "its root is <html>, not <martif> or <tbx>; give a TBX file"),
        ("", "", "the file is empty"),
    ],
)
def test_errors_of_term_bases_are_one_line(tmp_path: Path, text: str, query: str, fault: str) -> None:
    with pytest.raises(KnowledgeError, match=fault) as caught:
        load_list(write(tmp_path / "t.tbx", text), query=query)
    assert "\n" not in str(caught.value)


XLIFF_1 = """<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
<file original="a" source-language="en" target-language="zh-CN" datatype="plaintext"><body><group id="g">
<trans-unit id="1"><source>Turn the <g id="1">key</g><x id="2"/> &amp; wait<ph id="3">&lt;br/></ph>.</source>
<target state="final">转动<g id="1">钥匙</g>。</target><note>on a lock</note>
 <alt-trans><source>Turn</source><target>转</target></alt-trans></trans-unit>
<trans-unit id="2"><source>Copy</source><target state="needs-translation">Copy</target></trans-unit>
<trans-unit id="3"><source>Alone</source></trans-unit>
<trans-unit id="4"><source>Bad</sorce></trans-unit></group></body></file>
<file original="b" source-language="en" target-language="de"><body><trans-unit id="1"><source>Key</source>
<target>Schlüssel</target></trans-unit></body></file></xliff>"""

XLIFF_2 = """<xliff version="2.0" xmlns="urn:oasis:names:tc:xliff:document:2.0" srcLang="en" trgLang="zh">
<file id="f"><unit id="u">
<notes><note>said at a door</note></notes><originalData><data id="d">&lt;b></data></originalData>
<segment id="s1" state="translated"><source>Come <pc id="1">in</pc><ph id="2"/>.</source>
<target>请<pc id="1">进</pc>。</target></segment>
<ignorable><source> </source></ignorable><segment id="s2" state="initial"><source>Sit.</source>
<target>Sit.</target></segment></unit>
<unit id="v"><segment><source><mrk id="m" type="term">Door</mrk></source><target>门</target></segment>
</unit></file></xliff>"""


def test_xliff_1_2(tmp_path: Path) -> None:
    faults: list[Any] = []
    assert list(read_units(write(tmp_path / "m.xlf", XLIFF_1), faults.append)) == [
        Unit("1", {"en": "Turn the key & wait.", "zh-CN": "转动钥匙。"}, "on a lock"),
        Unit("2", {"en": "Copy"}),
        Unit("3", {"en": "Alone"}),
        Unit("1", {"en": "Key", "de": "Schlüssel"}),
    ]
    assert [fault.place for fault in faults] == ["m.xlf:8"]


def test_xliff_2(tmp_path: Path) -> None:
    assert list(read_units(write(tmp_path / "m.xliff", XLIFF_2))) == [
        Unit("u-s1", {"en": "Come in.", "zh": "请进。"}, "said at a door"),
        Unit("u-s2", {"en": "Sit."}, "said at a door"),
        Unit("v", {"en": "Door", "zh": "门"}),
    ]


async def test_xliff_is_a_memory_and_a_term_list(tmp_path: Path) -> None:
    path = write(tmp_path / "m.xliff", XLIFF_2)
    memory = load(f"tmx:{path}")
    assert isinstance(memory, TranslationMemory) and memory.counts.items == 2 and memory.counts.skipped == 1
    assert await targets(memory, "door") == await targets(load(f"terms:{path}"), "door") == ["门"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.tmx", True), ("a.TMX.gz", True), ("a.sdlxliff", True), ("a.csv.gz", False), ("tmx", False)],
)
def test_memories_by_name(name: str, expected: bool) -> None:
    assert is_memory(Path(name)) is expected


def workbook(path: Path, **sheets: list[list[Any]]) -> Path:
    """Write an XLSX file of sheets with rows."""
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


async def test_a_spreadsheet(tmp_path: Path) -> None:
    rows = [
        [None, None],
        ["Term", "Translation", None, "Definition"],
        ["mask", "口罩", None, "covers  the\nface"],
        [None, None, None, None],
        [42, 42.0, None, None],
        ["only a term"],
        ["too", "long", None, "x", "extra"],
    ]
    path = workbook(tmp_path / "t.xlsx", first=rows, second=[["term", "translation"], ["visor", "面罩"]], third=[])
    source = load_list(path)
    [[item]] = await source.look_up(["mask"], "mask")
    assert (item.target, item.meaning, item.source) == ("口罩", "covers the face", "t.xlsx:3")
    assert await targets(source, "42") == ["42"]
    assert source.counts.skipped == 2 + 1, "two bad rows, and the second sheet names its columns otherwise"


async def test_several_sheets(tmp_path: Path) -> None:
    sheet = [["en", "zh"], ["mask", "口罩"]]
    source = load_list(workbook(tmp_path / "t.xlsx", one=sheet, two=[["zh", "en"], ["面罩", "visor"]]))
    [[item]] = await source.look_up(["visor"], "visor")
    assert (item.target, item.source) == ("面罩", "t.xlsx:two!2") and source.counts.items == 2


def test_a_spreadsheet_that_expands_beyond_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "t.xlsx", one=[["source", "target"], *([["a" * 30_000, "b"]] * 200)])
    monkeypatch.setattr(xlsx, "FREE_SIZE", 10_000)
    monkeypatch.setattr(xlsx, "MAX_RATIO", 2)
    with pytest.raises(KnowledgeError, match=r"expands to .* bytes, over 2 times its size"):
        load_list(path)


def test_a_spreadsheet_with_a_dtd_is_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", one=[["source", "target"], ["a", "b"]])
    parts = {}
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            bomb = b'<!DOCTYPE x [<!ENTITY a "boom">]>' if name == "xl/workbook.xml" else b""
            archive.writestr(
                name, bomb + content.partition(b"?>\n")[2] if bomb and b"?>\n" in content else bomb + content
            )
    with pytest.raises(KnowledgeError, match=r"xl/workbook\.xml has a DTD, which no workbook has"):
        load_list(path)


@pytest.mark.parametrize(
    ("name", "raw", "fault"),
    [
        ("t.xlsx", b"not a zip", "not a workbook"),
        ("t.xlsx", b"", "not a workbook"),
        ("t.xls", b"\xd0\xcf\x11\xe0", ".xls files cannot be read; save it as XLSX or CSV"),
        ("t.ods", b"PK", ".ods files cannot be read"),
        ("t.csv", b"PK\x03\x04xxxx", r"is compressed \(ZIP\); decompress it"),
        ("t.csv.zst", b"\x28\xb5\x2f\xfdxxxx", r"is compressed \(Zstandard\)"),
        ("t.csv.gz", gzip.compress(b"source,target\n" * 100, mtime=0)[:30], "its compressed data are damaged"),
        ("t.csv.xz", lzma.compress(b"source,target\n" * 100)[:30], "its compressed data are damaged"),
        ("nope.csv.gz", None, "cannot be read .*; check the path"),
    ],
)
def test_errors_of_files_are_one_line(tmp_path: Path, name: str, raw: bytes | None, fault: str) -> None:
    path = tmp_path / name
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(KnowledgeError, match=fault) as caught:
        load_list(path)
    assert "\n" not in str(caught.value)


def test_an_empty_workbook_is_damaged(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("other.xml", "<x/>")
    (tmp_path / "t.xlsx").write_bytes(buffer.getvalue())
    with pytest.raises(KnowledgeError, match="not a workbook"):
        load_list(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "source,target\nface mask,口罩\n"),
        ("t.tsv", "source\ttarget\nface mask\t口罩\n"),
        ("t.jsonl", '{"source": "face mask", "target": "口罩"}\n'),
        ("t.tbx", TBX_3.replace("barge", "face mask").replace("驳船", "口罩")),
        ("t.xliff", XLIFF_2.replace("Door", "Face mask").replace("门", "口罩")),
    ],
)
async def test_compressed_lists(tmp_path: Path, suffix: str, compress: Any, name: str, text: str) -> None:
    for file in (tmp_path / f"{name}{suffix}", tmp_path / name):  # the name need not tell
        file.write_bytes(compress(text.encode()))
        source = load_list(file)
        assert isinstance(source, TermList) and await targets(source, "face mask") == ["口罩"]


async def test_a_compressed_memory(tmp_path: Path) -> None:
    path = tmp_path / "en-zh.tmx.gz"
    path.write_bytes(gzip.compress(tmx({"en": "face mask", "zh": "口罩"}).encode()))
    assert await targets(load(f"tmx:{path}"), "face mask") == ["口罩"]


def test_a_memory_that_expands_beyond_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "FREE_SIZE", 2**20)
    path = tmp_path / "m.tmx.gz"
    path.write_bytes(gzip.compress(tmx({"en": "a" * 2**24}).encode()))
    with pytest.raises(KnowledgeError, match=r"expands to over .* bytes, 200 times its size; not read"):
        list(read_units(path))
