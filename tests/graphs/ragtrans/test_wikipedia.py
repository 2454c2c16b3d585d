"""RAGtrans's benchmark from Wikipedia dumps: rows as pages, links by title, and what is built without links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentsys.graphs.ragtrans.benchmark import open_corpus, sample_topics
from agentsys.graphs.ragtrans.corpus import Pages
from agentsys.graphs.ragtrans.samples import BenchmarkOptions
from agentsys.records import InputError
from tests.support.ragtrans import run_command
from tests.support.ragtrans_corpora import make_page, read_lines, write_pages
from tests.support.toys import one_error, write_lines


def make_row(number: int, lang: str, title: str, **more: Any) -> dict[str, Any]:
    """A row of wikimedia/wikipedia: a lead, a heading, and two paragraphs."""
    end = "。" if lang == "zh" else "."
    text = "\n\n".join(
        [f"{title} {lang} lead{end}", "History ", *(f"{title} {lang} paragraph {i}{end}" for i in (1, 2))]
    )
    return {
        "id": str(number),
        "url": f"https://{lang}.wikipedia.org/wiki/{title}",
        "title": title,
        "text": text,
        **more,
    }


def write_wiki(folder: Path, count: int = 12, **more: Any) -> Path:
    """Pages in English and Chinese, each language with its own numbers, in one folder per language."""
    for lang, name in (("en", "Lake"), ("zh", "湖")):
        (folder / "wiki" / f"20231101.{lang}").mkdir(parents=True)
        rows = [make_row(i if lang == "en" else count - i, lang, f"{name} {i}", **more) for i in range(count)]
        write_lines(folder / "wiki" / f"20231101.{lang}" / "train-00000-of-00001.jsonl", rows)
    return folder / "wiki"


def write_links(folder: Path, count: int = 12) -> Path:
    """Links from English pages; titles with underscores, as in the dumps of the links; one leads nowhere."""
    rows = [f"{i},zh,湖_{i}" for i in range(count)]
    path = folder / "langlinks.csv"
    path.write_text("\n".join(["id,lang,title", *rows, "0,de,See", ""]), encoding="utf-8")
    return path


def test_rows_are_pages_and_links_are_by_title(tmp_path: Path) -> None:
    corpus = Pages([write_wiki(tmp_path)], write_links(tmp_path))
    assert corpus.languages() == ["en", "zh"] and corpus.failed == []
    assert corpus.counts["pages"] == 24 and corpus.counts["links between languages"] == 12
    assert corpus.counts["links from or to pages that are not in the files"] == 1
    topic = corpus.topic("en/3")
    assert topic.versions["en"].paragraphs == ["Lake 3 en lead.", "Lake 3 en paragraph 1.", "Lake 3 en paragraph 2."]
    assert topic.versions["zh"].title == "湖 3"
    assert corpus.topic("zh/9").versions["en"].title == "Lake 3"  # a link works in both directions


def test_links_are_also_a_field_of_the_row(tmp_path: Path) -> None:
    rows = [make_row(1, "en", "Lake", langlinks={"zh": "湖", "de": None}), make_row(1, "zh", "湖")]
    corpus = Pages([write_lines(tmp_path / "pages.jsonl", rows)])
    assert set(corpus.topic("en/1").versions) == {"en", "zh"} and corpus.has_links()


def test_files_of_several_languages_and_forms_are_one_corpus(tmp_path: Path) -> None:
    row = write_lines(tmp_path / "en.jsonl", [make_row(1, "en", "Lake")])
    pages = write_lines(tmp_path / "zh.jsonl", [make_page("p", "zh")])
    plain = write_lines(tmp_path / "de.jsonl", [{"lang": "de", "title": "See", "text": "Der See."}])
    corpus = Pages([row, pages, plain])
    assert corpus.languages() == ["de", "en", "zh"] and not corpus.has_links()
    [(name, version)] = [(name, version) for name, lang, version in corpus.pages() if lang == "de"]
    assert name.startswith("de/") and version.paragraphs == ["Der See."]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "1", "title": "A", "text": "A lead."}, "no field 'lang' with a code such as en, and no 'url'"),
        ({"id": "1", "lang": "en", "text": None}, "'text' is not a text; give the page's text"),
        ({"id": "1", "lang": "en", "text": "A lead.", "langlinks": ["zh"]}, "'langlinks' is not a mapping"),
        (make_row(3, "en", "Again"), "two pages have the id en/3"),
    ],
)
def test_rows_that_cannot_be_used_are_failed_records(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    file = write_lines(tmp_path / "pages.jsonl", [make_row(3, "en", "Lake"), row])
    [bad] = Pages([file]).failed
    assert reason in bad.reason and bad.source == f"{file}:2"


def test_a_page_that_is_only_a_list_is_counted(tmp_path: Path) -> None:
    rows = [make_row(1, "en", "Lake"), {"id": "2", "lang": "en", "title": "Lakes", "text": "Lakes may be:\nA\nB"}]
    corpus = Pages([write_lines(tmp_path / "pages.jsonl", rows)])
    assert corpus.failed == [] and corpus.sizes("en") == {"en/1": 1}
    assert corpus.counts["pages without a paragraph, such as lists"] == 1


def test_a_file_without_a_page_or_without_a_link_is_refused(tmp_path: Path) -> None:
    good = write_pages(tmp_path)
    with pytest.raises(InputError, match=r"no usable page; no field 'lang'"):
        Pages([good, write_lines(tmp_path / "b.jsonl", [{"id": "1", "text": "A lead."}])])
    with pytest.raises(InputError, match="no link between languages"):
        Pages([good], write_lines(tmp_path / "links.jsonl", []))


def test_a_build_from_dumps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pages", write_wiki(tmp_path), "--langlinks", write_links(tmp_path), "--out", tmp_path / "out"]
    code, out, err = run_command(capsys, "build", *options)
    assert (code, err) == (0, "")
    assert "links between languages: 12" in out
    rows = read_lines(tmp_path / "out" / "unlabeled.jsonl")
    assert all(set(row) == {"id", "src", "doc", "tag"} for row in rows)
    by_tag = {row["tag"]: row for row in rows}
    assert set(by_tag) == {"clean_en", "clean_zh", "noisy_en", "noisy_zh"}
    clean = by_tag["clean_zh"]
    number = clean["src"].removeprefix("Lake ").removesuffix(" en lead.")
    assert clean["doc"] == f"【湖 {number}】湖 {number} zh paragraph 1。  湖 {number} zh paragraph 2。"
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["note"] == "" and report["records"]["clrd"] == report["records"]["clic"] == len(rows) == 11


@pytest.mark.parametrize("monolingual", [False, True])
def test_a_build_without_links_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monolingual: bool
) -> None:
    wiki = write_wiki(tmp_path)
    code, out, err = run_command(
        capsys, "build", "--pages", wiki / "20231101.en" if monolingual else wiki, "--out", tmp_path / "out"
    )
    assert code == 0
    lack = "all pages are in en: give pages" if monolingual else "no link between the pages in en, zh: give --langlinks"
    [line] = err.splitlines()
    assert line.startswith(lack)
    assert line.endswith("; built without: relevant documents in en only, and neither clic nor clrd records")
    assert "unlabeled" in out
    tags = {row["tag"] for row in read_lines(tmp_path / "out" / "unlabeled.jsonl")}
    assert tags == ({"clean_en", "noisy_en"} if monolingual else {"clean_en", "noisy_en", "noisy_zh"})
    assert not (tmp_path / "out" / "clrd.jsonl").exists()


def test_a_limit_takes_random_source_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {f"p{i}": 1 for i in range(50)}
    chosen = sample_topics(sizes, BenchmarkOptions(limit=5))
    assert len(chosen) == 5 and chosen.keys() <= sizes.keys() and list(chosen) != sorted(sizes)[:5]
    assert chosen == sample_topics(dict(reversed(sizes.items())), BenchmarkOptions(limit=5))
    assert chosen.keys() != sample_topics(sizes, BenchmarkOptions(limit=5, seed=1)).keys()
    assert sample_topics(sizes, BenchmarkOptions(limit=50)) is sizes
    wiki = write_wiki(tmp_path)
    code, _, _ = run_command(capsys, "build", "--pages", wiki, "--limit", 4, "--out", tmp_path / "out")
    assert code == 0
    assert len(read_lines(tmp_path / "out" / "unlabeled.jsonl")) == 4
    assert len(read_lines(tmp_path / "out" / "passages-en.jsonl")) == 12  # all pages can be retrieved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "--limit 0: at least 1 is needed"),
        (["--source", "fr"], "--source fr: no text in this language; use one of en, zh"),
        (["--language", "fr"], "--language fr: no text in this language; use one of en, zh"),
        (["--langlinks", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--pages", "nowhere"], "nowhere: no such file"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, _, err = run_command(capsys, "build", "--pages", write_wiki(tmp_path), "--out", tmp_path / "out", *options)
    assert code == 2 and message in one_error(err)
    assert not (tmp_path / "out").exists()


def test_links_need_pages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--langlinks: it links pages; give --pages"):
        open_corpus([], [tmp_path / "a.tmx"], BenchmarkOptions(), tmp_path / "links.csv")
