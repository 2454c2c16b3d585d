"""Wikipedia dumps as term sources: titles, redirects, namesakes, links to other languages, the file that is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agentsys.knowledge import KnowledgeError
from agentsys.terms.sources import load_sources, source_summary, sources_digest
from agentsys.terms.titles import LEAD, Titles, WikiSource, open_titles
from agentsys.terms.wikipedia import (
    Langlink,
    bare_title,
    clean_title,
    page_language,
    page_links,
    page_paragraphs,
    read_langlinks,
)
from tests.support.terms import load
from tests.support.toys import write_lines

pytestmark = pytest.mark.needs("knowledge")

URL = "https://en.wikipedia.org/wiki/"
PAGES: list[dict[str, Any]] = [
    {"id": "1", "url": f"{URL}Heron", "title": "Heron", "text": "Heron may refer to:\n\nHeron (bird)\nHeron (band)\n"},
    {
        "id": "2",
        "url": f"{URL}Heron_(bird)",
        "title": "Heron (bird)",
        "text": "Herons wade in shallow water.\n\nFood \n\nThey eat fish.",
        "langlinks": {"zh": "蒼鷺 (鳥)", "de": "Reiher"},
    },
    {"id": "3", "title": "Heron (band)", "text": "Heron is a folk band that plays guitars in the open air."},
    {"id": "4", "title": "Tidal Harbour Institute", "text": "The institute measures tides."},
    {"id": "5", "title": "THI", "redirect": "Tidal_Harbour_Institute#History"},
    {"id": "6", "title": "Polish", "text": "Polish is a language.", "redirects": ["Polish language"]},
    {"id": "7", "title": "polish", "text": "A polish makes shoes shine."},
    {"id": "8", "title": "  ", "text": "No title."},
    {"id": "9", "title": "List", "text": "One\nTwo"},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSYS_CACHE", str(tmp_path / "cache"))


def write_dump(folder: Path, pages: list[dict[str, Any]] = PAGES) -> Path:
    return write_lines(folder / "dump.jsonl", pages)


def kept_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache" / "wikipedia").iterdir())


async def test_a_page_explains_its_term_and_its_other_title_translates_it(tmp_path: Path) -> None:
    source = load(f"wiki:{write_dump(tmp_path)}")
    terms = ["heron", "Tidal Harbour Institute", "THI", "thi", "herons", "Polish language", "Zebra"]
    heron, institute, acronym, lower, plural, redirect, none = await source.look_up(terms, "Herons wade in deep water.")
    [first, second] = heron
    assert (first.term, first.target, first.source) == ("Heron (bird)", "苍鹭", "wiki:2")  # simplified, no brackets
    assert first.meaning == first.evidence == "Herons wade in shallow water."
    assert (second.term, second.target) == ("Heron (band)", "")
    assert [item.source for item in institute] == [item.source for item in acronym] == ["wiki:4"]
    assert lower == none == []  # an acronym has to be in capitals
    assert plural == heron and [item.source for item in redirect] == ["wiki:6"]


async def test_a_namesake_is_ranked_by_the_sentence_and_an_equal_title_comes_first(tmp_path: Path) -> None:
    titles = open_titles(write_dump(tmp_path))
    sentence = "The folk band played guitars outdoors."
    assert [page.id for page in titles.find("Heron", sentence)] == ["3", "2"]
    assert [page.id for page in titles.find("Heron (bird)", sentence)] == ["2"]
    assert [page.id for page in titles.find("polish")] == ["6", "7"]  # the first letter does not distinguish titles
    assert [page.id for page in titles.find("Polish_language")] == ["6"]
    many = [{"id": str(i), "title": f"Mill ({i})", "text": f"Mill {i} grinds corn."} for i in range(9)]
    mills = open_titles(write_dump(tmp_path, many))
    assert [page.id for page in mills.find("mill", "number 7")] == ["7", "0", "1"]


@pytest.mark.parametrize(("target", "title"), [("zh-TW", "蒼鷺"), ("zh-CN", "苍鹭"), ("German", "Reiher"), ("fr", "")])
async def test_the_target_language_decides_the_title(tmp_path: Path, target: str, title: str) -> None:
    [items] = await load(f"wiki:{write_dump(tmp_path)}", target=target).look_up(["Heron (bird)"], "")
    assert items[0].target == title


async def test_links_are_read_from_a_file_of_their_own(tmp_path: Path) -> None:
    links = tmp_path / "links.csv"
    links.write_text("id,lang,title\n4,zh,潮港_研究所\n99,zh,无\n,zh,空\n", encoding="utf-8")
    spec = f"wiki:{write_dump(tmp_path)}?langlinks={links}"
    [items] = await load(spec).look_up(["THI"], "")
    assert items[0].target == "潮港 研究所"
    [line] = source_summary([spec], "en", "zh")
    rows = "4 rows not used (without a title or a paragraph)"  # three pages and one link
    assert line == f"wiki:dump.jsonl: 5 pages, 3 titles in other languages, {rows}"


def test_rows_of_a_links_file_that_cannot_be_used(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "links.jsonl", [{"id": 4, "lang": "zh", "title": "甲"}, {"lang": "zh", "title": "乙"}]
    )
    good, bad = read_langlinks(file)
    assert good == Langlink("4", "zh", "甲")
    assert not isinstance(bad, Langlink) and "no field 'id'" in bad.reason
    with pytest.raises(ValueError, match=r"no link between languages \(no field 'lang'.*give rows with id, lang"):
        list(read_langlinks(write_lines(tmp_path / "other.jsonl", [{"ll_from": 4, "ll_title": "甲"}])))


async def test_passages_of_one_title_are_its_pages(tmp_path: Path) -> None:
    rows = [{"id": f"p{i}", "title": "Cedar", "text": f"Cedar number {i} is tall."} for i in range(5)]
    [items] = await load(f"wiki:{write_dump(tmp_path, rows)}").look_up(["Cedar"], "")
    assert [item.source for item in items] == ["wiki:p0", "wiki:p1", "wiki:p2"]


def test_a_dump_is_read_once_until_it_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = write_dump(tmp_path)
    spec = f"wiki:{dump}"
    before = sources_digest([spec])
    [name] = kept_files(tmp_path)
    assert name.startswith("dump.jsonl-") and name.endswith(".sqlite")
    assert f"wiki:{dump}: reading the titles, once; they are kept in {tmp_path}" in capsys.readouterr().err
    assert open_titles(dump) is open_titles(dump)
    assert capsys.readouterr().err == ""
    os.utime(dump, ns=(1, 1))
    assert sources_digest([spec]) == before  # the content is the same
    assert len(kept_files(tmp_path)) == 2
    write_dump(tmp_path, PAGES[:4])
    assert sources_digest([spec]) != before


def test_folders_compressed_files_and_parquet_are_read(tmp_path: Path) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "20231101.en"
    folder.mkdir()
    for number, part in enumerate((PAGES[1:3], PAGES[3:4])):
        rows = [{"id": p["id"], "title": p["title"], "text": p["text"], "langlinks": p.get("langlinks")} for p in part]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"train-{number}.parquet")
    assert open_titles(folder).pages == open_titles(folder / "*.parquet").pages == 3
    [page] = open_titles(folder).find("Heron (bird)")
    assert page.links == {"de": "Reiher", "zh": "蒼鷺 (鳥)"}
    packed = tmp_path / "dump.jsonl.gz"
    packed.write_bytes(gzip.compress(write_dump(tmp_path).read_bytes()))
    assert open_titles(packed).pages == 5


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("wiki:{}/nope.jsonl", "no such file; check the path"),
        ("wiki:{}/empty.jsonl", "no page .it is empty.; give rows with id, title and text"),
        ("wiki:{}/other.jsonl", "no page .no field 'title'.; give rows with id, title and text"),
        ("wiki:{}/notes.pdf", "unknown file type '.pdf'"),
        ("wiki:{}/dump.jsonl?links=x", "write wiki:PATH or wiki:PATH.langlinks=FILE"),
        ("wiki:{}/dump.jsonl?langlinks={}/none.csv", "none.csv: no such file"),
        ("wiki:hf:wikimedia/wikipedia:20231101.en", "a dump must be on this computer"),
        ("wiki:s3://bucket/dump.jsonl", "a dump must be on this computer"),
    ],
)
def test_errors_of_dumps_are_one_line(tmp_path: Path, spec: str, fault: str) -> None:
    write_dump(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.pdf").touch()
    write_lines(tmp_path / "other.jsonl", [{"id": "1", "body": "x"}])
    with pytest.raises(KnowledgeError, match=fault) as caught:
        load(spec.format(tmp_path, tmp_path))
    assert "\n" not in str(caught.value)
    folder = tmp_path / "cache" / "wikipedia"
    assert not folder.exists() or not list(folder.iterdir())  # nothing half-written is left


def test_a_damaged_or_impossible_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = write_dump(tmp_path)
    open_titles(dump)
    [name] = kept_files(tmp_path)
    with pytest.raises(KnowledgeError, match=r"the index of titles is damaged .*; delete it"):
        damaged = tmp_path / name
        damaged.write_bytes(b"SQLite format 3\0" + bytes(100))
        Titles(damaged)
    (tmp_path / "file").touch()
    monkeypatch.setenv("AGENTSYS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(KnowledgeError, match="set AGENTSYS_CACHE to a folder with enough space"):
        open_titles(dump)


def test_long_leads_are_cut_at_a_space(tmp_path: Path) -> None:
    page = {"id": "1", "title": "Long", "text": f"{'word ' * 400}end."}
    [found] = open_titles(write_dump(tmp_path, [page])).find("Long")
    assert found.lead == ("word " * (LEAD // 5)).strip()


def test_a_source_is_the_same_for_both_directions_of_a_pair(tmp_path: Path) -> None:
    [one, two] = load_sources([f"wiki:{write_dump(tmp_path)}"] * 2, "English", "Chinese")
    assert isinstance(one, WikiSource) and isinstance(two, WikiSource) and one.titles is two.titles


# Reading pages


def test_headings_and_lists_are_no_paragraphs() -> None:
    long_line = "x" * 80
    lines = "Names, such as:\none\n等等。"
    text = f"A lead.\n\nEarly life (1954–1970) \n\nShe said “no.”\n  \n{lines}\n{long_line}\n(End.)"
    assert page_paragraphs(text) == ["A lead.", "She said “no.”", "等等。", long_line, "(End.)"]


@pytest.mark.parametrize(
    ("page", "code"),
    [
        ({"lang": "zh", "url": f"{URL}A"}, "zh"),
        ({"url": f"{URL}A"}, "en"),
        ({"url": "https://zh-yue.m.wikipedia.org/wiki/A"}, "zh-yue"),
        ({"url": "https://example.org/en"}, ""),
        ({}, ""),
    ],
)
def test_the_language_of_a_page(page: dict[str, str], code: str) -> None:
    assert page_language(page) == code


def test_titles_and_links_are_normalized() -> None:
    assert clean_title(" Cafe\u0301_de  nuit ") == "Café de nuit"
    assert (bare_title("Rush (band)"), bare_title("拉什（樂隊）"), bare_title("(Untitled)")) == (
        "Rush",
        "拉什",
        "(Untitled)",
    )
    assert page_links({"langlinks": {"zh": "甲_乙", "de": None, "fr": " "}}) == {"zh": "甲 乙"}
    with pytest.raises(ValueError, match="field 'langlinks' is not a mapping"):
        page_links({"langlinks": ["zh"]})
