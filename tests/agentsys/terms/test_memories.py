"""Translation memories: TMX files, and segments that contain a term."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsys.knowledge import KnowledgeError
from agentsys.terms.sources import TranslationMemory
from agentsys.terms.tmx import Unit, read_tmx
from tests.support.terms import load, tmx, write

pytestmark = pytest.mark.needs("knowledge")


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


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not well-formed XML"),
        ("<html/>", "its root is <html>, not <tmx>"),
        (tmx({"en": "a", "zh": "b"})[:-20], r"no unit can be read \(a\.tmx:1: <tu> has no end\)"),
        (tmx(), "the file has no segments"),
        (tmx({"en": "a", "fr": "b"}, {"en": "c"}), r"no pair of en and zh; .* are en \(2\), fr \(1\)"),
        (tmx({"en": "a", "": "b"}), r"en \(1\), none \(1\)"),
    ],
)
def test_errors_of_memories_are_one_line(tmp_path: Path, text: str, fault: str) -> None:
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
    [items] = await source.look_up(["bank"], "They sat on the bank of the Thames river.")
    assert [(item.target, item.source) for item in items] == [
        ("银行", "a.tmx:D:2"),
        ("", "a.tmx:D:1"),
        ("", "a.tmx:D:0"),
    ]
    assert items[1].evidence == items[1].meaning == "We sat on the bank of the river. = 我们坐在河岸上。"
    assert (await source.look_up(["robbers", "closed"], ""))[0] == []


@pytest.mark.parametrize("term", ["癌", "癌症", "COVID-19癌"])
async def test_terms_without_spaces_in_a_memory(term: str) -> None:
    memory = TranslationMemory("m", [("m:1", "一种COVID-19癌症。", "a cancer"), ("m:2", "别的", "other")])
    [items] = await memory.look_up([term], "癌症")
    assert [item.source for item in items] == ["m:1"]
