"""XML files of translators that are not XML: repaired or left out unit by unit, counted, with their places."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsys.knowledge import KnowledgeError
from agentsys.terms import units
from agentsys.terms.sources import TranslationMemory, source_summary
from agentsys.terms.tmx import Unit, read_tmx
from agentsys.terms.units import Fault, repair
from tests.support.terms import load, tmx, write

pytestmark = pytest.mark.needs("knowledge")


def read(path: Path) -> tuple[list[Unit], list[Fault]]:
    """Return the units of a memory and its faults."""
    faults: list[Fault] = []
    return list(read_tmx(path, faults.append)), faults


@pytest.mark.parametrize(
    ("segment", "text", "reason"),
    [
        ("a&#x1F;b", "ab", "a control character was removed"),
        ("a&#11;b", "ab", "a control character was removed"),
        ("a\x02b\x0b", "ab", "a control character was removed"),
        ("a&#x110000;b", "ab", "a control character was removed"),
        ("a\ufffeb", "ab", "a control character was removed"),
        ("Q&A desk", "Q&A desk", 'a bare "&" was read as text'),
        ("a & b && c", "a & b && c", 'a bare "&" was read as text'),
        ("x=1&y=2", "x=1&y=2", 'a bare "&" was read as text'),
        ("a < b", "a < b", 'a bare "<" was read as text'),
        ("<5 and 3<4", "<5 and 3<4", 'a bare "<" was read as text'),
        ("&company; Ltd", "&company; Ltd", "the unknown entity &company; was kept as text"),
        # No faults: entities of HTML are named characters, CDATA may hold anything.
        ("caf&eacute;&nbsp;noir&hellip;", "café noir…", ""),
        ("a &lt;b&gt; &amp;amp; &quot;&apos;", "a <b> &amp; \"'", ""),
        ("<![CDATA[R&D <b> &eacute;]]>", "R&D <b> &eacute;", ""),
        ("&#20320;&#x597D;", "你好", ""),
        ("&LT;&AMP;", "<&", ""),
    ],
)
def test_a_unit_is_repaired_without_losing_text(tmp_path: Path, segment: str, text: str, reason: str) -> None:
    path = write(tmp_path / "m.tmx", tmx({"en": "before"}, {"en": segment}, {"en": "after"}))
    read_units, faults = read(path)
    assert [unit.texts["en"] for unit in read_units] == ["before", text, "after"]
    assert [(fault.place, fault.repaired) for fault in faults] == ([("m.tmx:1", True)] if reason else [])
    assert not reason or reason in faults[0].reason


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ('<tu tuid="x"><tuv xml:lang="en"><seg>a</tuv></tu>', "not well-formed XML (Opening and ending tag mismatch"),
        ('<tu tuid="x"><tuv xml:lang="en"><seg>a</seg></tuv>', "<tu> has no end"),
        ('<tu tuid="x" tuid="y"><tuv xml:lang="en"><seg>a</seg></tuv></tu>', "Attribute tuid redefined"),
        ('<tu tuid=x><tuv xml:lang="en"><seg>a</seg></tuv></tu>', "AttValue"),
        ('<tu tuid="x><tuv xml:lang="en"><seg>a</seg></tuv></tu>', "not well-formed XML"),
        ('<tu><tuv xml:lang="en"><seg>a <b</seg></tuv></tu>', "not well-formed XML"),
    ],
)
def test_a_broken_unit_costs_itself_only(tmp_path: Path, unit: str, reason: str) -> None:
    text = tmx({"en": "one"}, {"en": "two"}, {"en": "three"}).replace("<tu ", "\n<tu ")
    head, middle, tail = text.partition('\n<tu tuid="D:1"')
    path = write(tmp_path / "m.tmx", f"{head}\n{unit}{middle}{tail}")
    read_units, faults = read(path)
    assert [unit.texts["en"] for unit in read_units] == ["one", "two", "three"]
    assert [(fault.place, fault.repaired) for fault in faults] == [("m.tmx:3", False)] and reason in faults[0].reason


def test_bytes_in_another_encoding_cost_their_unit(tmp_path: Path) -> None:
    raw = tmx({"en": "one"}, {"en": "caf\u00e9"}, {"en": "na\u00efve"}).encode()
    path = tmp_path / "m.tmx"
    path.write_bytes(raw.replace("caf\u00e9".encode(), "caf\u00e9".encode("latin-1")))
    read_units, faults = read(path)
    assert [unit.texts["en"] for unit in read_units] == ["one", "na\u00efve"]
    assert "bytes that are not in the file's encoding" in faults[0].reason and not faults[0].repaired


@pytest.mark.parametrize(
    ("declared", "actual"),
    [
        ("UTF-16", "utf-8"),
        ("utf-16", "utf-8-sig"),
        ("no-such-code", "utf-8"),
        ("US-ASCII", "utf-8"),
        ("ISO-8859-1", "utf-8"),
        ("windows-1252", "cp1252"),
        ("UTF-8", "utf-16"),
        ("UTF-16", "utf-16-le"),
        ("UTF-16", "utf-16-be"),
        ("Shift_JIS", "shift_jis"),
        ("koi8-r", "koi8-r"),
    ],
)
def test_a_wrong_declaration_of_the_encoding(tmp_path: Path, declared: str, actual: str) -> None:
    letters = {"cp1252": "déjà “vu”", "shift_jis": "時計台の鐘", "koi8-r": "старые часы"}.get(actual, "déjà 时钟")
    text = tmx({"en": "a", "xx": letters}).replace('"1.0"?', f'"1.0" encoding="{declared}"?')
    path = write(tmp_path / "m.tmx", text, actual)
    if (declared, actual) == ("ISO-8859-1", "utf-8"):
        letters = "déjà 时钟"
    read_units, faults = read(path)
    assert read_units[0].texts["xx"] == letters and not faults


def test_a_file_that_ends_early_is_read_to_there(tmp_path: Path) -> None:
    text = tmx({"en": "one", "zh": "一"}, {"en": "two", "zh": "二"}).replace("<tu ", "\n<tu ")
    source = load(f"tmx:{write(tmp_path / 'm.tmx', text[:-40])}")
    assert isinstance(source, TranslationMemory)
    assert (source.counts.items, source.counts.broken) == (1, 2)
    assert source.counts.faults == ("m.tmx:3: <tu> has no end", "m.tmx:3: the file ends before </tmx>")


def test_faults_are_told_in_the_summary_and_else_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    units_with_faults = [{"en": "a & b", "zh": "甲"}, {"en": "<seg>", "zh": "乙"}, {"en": "c", "zh": "丙"}]
    path = write(tmp_path / "m.tmx", tmx(*units_with_faults))
    [line] = source_summary([f"tmx:{path}"], "en", "zh")
    assert line.startswith("tmx:m.tmx: 2 entries, 1 left out (not well-formed), 1 repaired; for example m.tmx:1: <tu>")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        list(read_tmx(path))
    assert "m.tmx: 1 units left out, 1 repaired; for example m.tmx:1" in caplog.text


def test_tags_in_comments_and_cdata_are_no_tags(tmp_path: Path) -> None:
    text = tmx({"en": "<![CDATA[</tu><tu>]]>x"}, {"en": "<!-- </seg></tu> <tu> -->y"})
    text = text.replace("<body>", "<body><!-- <tu><tuv xml:lang='en'><seg>old</seg></tuv></tu> -->")
    read_units, faults = read(write(tmp_path / "m.tmx", text))
    assert [unit.texts["en"] for unit in read_units] == ["</tu><tu>x", "y"] and not faults


def test_namespaces_of_the_elements_around_a_unit(tmp_path: Path) -> None:
    text = tmx({"en": '<q:hi q:n="1">a</q:hi>'}).replace("<body>", '<body xmlns:q="urn:q">')
    read_units, faults = read(write(tmp_path / "m.tmx", text))
    assert read_units[0].texts == {"en": "a"} and not faults


@pytest.mark.parametrize("size", [7, 64, 500])
def test_the_size_of_chunks_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    text = tmx(*({"en": f"number {i} & more <!-- c --> <hi>é</hi>", "zh": f"第{i}"} for i in range(40)))
    text = text.replace("<tu ", "\n<tu ").replace('tuid="D:7">', 'tuid="D:7"><seg>')
    path = write(tmp_path / "m.tmx", text)
    expected = read(path)
    assert len(expected[0]) == 39 and len(expected[1]) == 40
    monkeypatch.setattr(units, "_CHUNK", size)
    assert read(path) == expected
    assert read(path)[0][-1].line == 41


@pytest.mark.parametrize(
    "dtd",
    [
        '<!ENTITY a SYSTEM "{secret}">',
        "<!ENTITY a PUBLIC 'x' '{secret}'>",
        '<!ENTITY % p SYSTEM "{secret}"> %p;',
        '<!ENTITY a "&b;&b;"><!ENTITY b "boom">',
        '<!ENTITY b "boom"><!ENTITY a "&b;&b;&b;&b;">',
        '<!ENTITY a "<seg>x</seg>">',
        f'<!ENTITY a "{"x" * 5000}">',
    ],
)
def test_external_and_nested_entities_are_refused(tmp_path: Path, dtd: str) -> None:
    secret = write(tmp_path / "secret.txt", "secret")
    head = f"<!DOCTYPE tmx [{dtd.replace('{secret}', secret.as_uri())}]>"
    with pytest.raises(KnowledgeError, match=r"its DTD has an external or nested entity \((a|p)\), which is refused"):
        read(write(tmp_path / "m.tmx", tmx({"en": "x&a;y"}, head=head)))


def test_a_plain_entity_of_the_dtd_is_its_text(tmp_path: Path) -> None:
    head = '<!DOCTYPE tmx SYSTEM "tmx14.dtd" [<!-- don\'t --><!ENTITY org "Blue &#38; Sons"><!ELEMENT seg ANY>]>'
    read_units, faults = read(write(tmp_path / "m.tmx", tmx({"en": "at &org;!"}, head=head)))
    assert read_units[0].texts == {"en": "at Blue & Sons!"} and not faults


@pytest.mark.parametrize(
    "text", ["<tu" * 5000, "<!DOCTYPE x [" + "\"a\" 'b' " * 5000, "<tmx>" + "<!--" * 5000, "&" * 9000]
)
def test_hostile_texts_end_soon(tmp_path: Path, text: str) -> None:
    try:
        read(write(tmp_path / "m.tmx", text))
    except KnowledgeError as err:
        assert "\n" not in str(err)


@settings(max_examples=300)
@given(st.text(st.sampled_from("ab&&;;#é \"'\x01\x1f\ufffe"), max_size=30))
def test_a_repaired_text_is_xml_and_keeps_every_character(text: str) -> None:
    """All but what XML cannot hold; no reference of this alphabet is one of XML or HTML."""
    from lxml import etree

    repaired, _ = repair(text, {})
    assert (etree.fromstring(f"<s>{repaired}</s>").text or "") == re.sub("[\x01\x1f\ufffe]", "", text)
