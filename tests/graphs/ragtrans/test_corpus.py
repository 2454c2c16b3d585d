"""RAGtrans's corpora: pages and translation memories, documents, leaks, and options of `build`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agentsys.graphs.ragtrans.corpus import Pages, Units, find_misaligned
from agentsys.graphs.ragtrans.documents import JOIN, count_tokens
from agentsys.graphs.ragtrans.samples import BenchmarkOptions, Sampler
from tests.support.ragtrans_corpora import (
    Row,
    chinese,
    english,
    make_page,
    make_sampler,
    read_lines,
    write_memories,
    write_pages,
    write_tmx,
)
from tests.support.toys import write_lines

ZH = "埃尔姆松德港由来自北方群岛的渔民于一八七一年建成。"


def test_versions_are_found_by_links_in_either_direction(tmp_path: Path) -> None:
    corpus = Pages([write_pages(tmp_path)])
    assert corpus.languages() == ["de", "en", "zh"]
    assert corpus.sizes("en") == dict.fromkeys(["en/p0", "en/p1", "en/p2", "en/p3"], 1)
    topic = corpus.topic("en/p2")
    assert set(topic.versions) == {"de", "en", "zh"}
    assert all(version.paragraphs[0].startswith("p2") for version in topic.versions.values())
    assert topic.references == {"zh": "译文2"}


def test_the_lead_is_the_source_and_not_part_of_a_document(tmp_path: Path) -> None:
    sampler = make_sampler(write_pages(tmp_path))
    [sample] = sampler.samples(sampler.corpus.topic("en/p1"))
    assert (sample.src, sample.tgt) == ("p1 en lead", "译文1")
    row = sampler.test_record(sample)
    assert row is not None
    assert list(row) == ["id", "src", "tgt", *(f"{n}{code}_doc" for n in ("", "noisy_") for code in ("de", "en", "zh"))]
    assert row["en_doc"] == JOIN.join(f"p1 en says a thing that is number {i} of several" for i in range(3))
    assert row["zh_doc"].startswith("【T p1】p1 zh says")  # the title only where it is not in the source's language
    assert "lead" not in row["zh_doc"] + row["de_doc"] + row["en_doc"]
    assert "p1" not in row["noisy_en_doc"] + row["noisy_zh_doc"] + row["noisy_de_doc"]


def test_training_records_hold_one_document_and_its_tag(tmp_path: Path) -> None:
    for noisy, kind in ((0.0, "clean"), (1.0, "noisy")):
        sampler = make_sampler(write_pages(tmp_path, 12), noisy=noisy)
        rows = [
            sampler.train_record(s)
            for n in sampler.corpus.sizes("en")
            for s in sampler.samples(sampler.corpus.topic(n))
        ]
        assert all(row and list(row) == ["id", "src", "tgt", "doc", "tag"] for row in rows)
        tags = {str(row["tag"]) for row in rows if row}
        assert {tag.partition("_")[0] for tag in tags} == {kind}
        assert len(tags) == 3
        for row in rows:
            assert row
            assert (str(row["src"]).partition(" ")[0] in row["doc"].replace("T ", "")) == (kind == "clean")


def test_a_page_in_one_language_gets_documents_in_that_language_only(tmp_path: Path) -> None:
    only_page = make_page("alone", "en", links={"zh": "zh/missing"})
    file = write_lines(tmp_path / "pages.jsonl", [only_page, make_page("other", "zh")])
    sampler = make_sampler(file, noisy=0.0)
    [sample] = sampler.samples(sampler.corpus.topic("en/alone"))
    assert set(sample.documents) == {"en"}
    assert sampler.counts["pages in one language only"] == 1
    row = sampler.train_record(sample)
    assert row is not None
    assert row["tag"] == "clean_en"
    assert "tgt" not in row
    assert sampler.test_record(sample) is None


def test_paragraphs_that_leak_the_reference_are_removed_and_counted(tmp_path: Path) -> None:
    english_page = make_page("p", "en", links={"zh": "zh/p"}, references={"zh": ZH})
    chinese_page = {**make_page("p", "zh"), "paragraphs": ["导语", f"开头。{ZH}", "无关的一段话在这里。"]}
    sampler = make_sampler(
        write_lines(tmp_path / "pages.jsonl", [english_page, chinese_page, make_page("q", "en"), make_page("q", "zh")])
    )
    [sample] = sampler.samples(sampler.corpus.topic("en/p"))
    assert sample.documents["zh"] == ["无关的一段话在这里。"]
    assert sampler.counts["paragraphs that leak the reference"] == 1


def test_a_page_of_a_hundred_thousand_characters_is_truncated_and_counted(tmp_path: Path) -> None:
    long_page = {**make_page("p", "en"), "paragraphs": ["lead", *(f"paragraph {i} " + "x" * 990 for i in range(100))]}
    sampler = make_sampler(
        write_lines(tmp_path / "pages.jsonl", [long_page, make_page("p", "zh")]), document_tokens=600
    )
    [sample] = sampler.samples(sampler.corpus.topic("en/p"))
    assert len(sample.documents["en"]) == 2
    assert sum(map(count_tokens, sample.documents["en"])) <= 600
    assert sampler.counts["documents truncated"] == 1


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"id": "a", "lang": "en", "title": "A"}, "'paragraphs' is not a list of texts"),
        ({"id": "a", "lang": "en", "paragraphs": "text"}, "'paragraphs' is not a list of texts"),
        ({"id": "a", "lang": "en", "paragraphs": [" ", ""]}, "'paragraphs' has no text"),
        ({"id": "a", "lang": "en", "paragraphs": ["a"], "links": ["zh/a"]}, "'links' is not a mapping"),
        ({"id": "a", "lang": "en", "paragraphs": ["a"], "title": 3}, "'title' is not a text"),
        ({"id": "a", "paragraphs": ["a"]}, "no field 'lang'"),
        ({"id": "a", "lang": "en/x", "paragraphs": ["a"]}, "field 'lang' is 'en/x'; write a code"),
        ({"id": "a", "lang": "en", "paragraphs": ["", "b"]}, "begins with an empty text; give the lead first"),
        ({"id": "en/p0", "lang": "en", "paragraphs": ["a"]}, "two pages have the id en/p0"),
    ],
)
def test_pages_that_cannot_be_used_are_failed_records(tmp_path: Path, record: Row, reason: str) -> None:
    good = read_lines(write_pages(tmp_path))
    file = write_lines(tmp_path / "pages.jsonl", [*good, record])
    corpus = Pages([file])
    [bad] = corpus.failed
    assert reason in bad.reason
    assert bad.source == f"{file}:{len(good) + 1}"
    assert corpus.counts["pages"] == len(good)


def test_excluded_pages_are_recognized_by_their_links(tmp_path: Path) -> None:
    corpus = Pages([write_pages(tmp_path)])
    for lang in ("en", "zh", "de"):
        for seed in range(20):
            version = corpus.sample_other(corpus.topic("en/p0"), lang, random.Random(seed), {"en/p1", "en/p2"})
            assert version is not None and version.title == "T p3"


def test_files_are_joined_by_unit_and_each_unit_is_a_source(tmp_path: Path) -> None:
    corpus = Units(write_memories(tmp_path, {"a": 5, "b": 3}), ["en", "zh"], 2.0)
    assert corpus.languages() == ["en", "fr", "zh"]
    assert corpus.sizes("en") == {"a": 5, "b": 3}
    sampler = Sampler(corpus, BenchmarkOptions(), corpus.languages())
    samples = sampler.samples(corpus.topic("a"))
    assert [sample.id for sample in samples] == [f"a:{i}" for i in range(1, 6)]
    third = samples[2]
    assert (third.src, third.tgt) == (english("a", 3), chinese("a", 3))
    assert third.documents["zh"] == [chinese("a", i) for i in (1, 2, 4, 5)]  # the neighbors, in order
    assert third.documents["fr"] == [f"fr {english('a', i)}" for i in (1, 2, 4, 5)]


def test_a_document_is_made_of_the_nearest_neighbors(tmp_path: Path) -> None:
    options = BenchmarkOptions(document_tokens=3 * count_tokens(english("a", 10)))
    corpus = Units(write_memories(tmp_path, {"a": 30}), ["en", "zh"], 2.0)
    sample = Sampler(corpus, options, ["en"]).samples(corpus.topic("a"))[14]
    assert sample.documents["en"] == [english("a", i) for i in (13, 14, 16)]


def test_the_translation_must_not_occur_elsewhere_in_the_document(tmp_path: Path) -> None:
    repeated = {"a:4": f"{chinese('a', 2)}又一句。"}
    corpus = Units(write_memories(tmp_path, {"a": 6, "b": 4}, **repeated), ["en", "zh"], 2.0)
    sampler = Sampler(corpus, BenchmarkOptions(), corpus.languages())
    second = sampler.samples(corpus.topic("a"))[1]
    assert second.tgt == chinese("a", 2)
    assert second.documents["zh"] == [chinese("a", i) for i in (1, 3, 5, 6)]
    assert sampler.counts["paragraphs that leak the reference"] == 2  # and for unit 4 the other way round


def test_texts_of_a_wrong_length_are_left_out_and_counted(tmp_path: Path) -> None:
    corpus = Units(write_memories(tmp_path, {"a": 30}, **{"a:7": "好"}), ["en", "zh"], 2.0)
    assert corpus.counts["zh of a wrong length"] == 1
    sample = Sampler(corpus, BenchmarkOptions(), ["en", "zh"]).samples(corpus.topic("a"))[6]
    assert sample.tgt == ""


def test_a_document_with_a_shifted_column_is_left_out_as_a_whole(tmp_path: Path) -> None:
    wrong = {f"b:{i}": "好" for i in (2, 9)}
    corpus = Units(write_memories(tmp_path, {"a": 30, "b": 20}, **wrong), ["en", "zh"], 2.0)
    assert corpus.counts["zh in a misaligned document"] == 20
    assert corpus.counts["zh of a wrong length"] == 0
    assert "zh" not in corpus.topic("b").versions
    assert len([text for text in corpus.topic("a").versions["zh"].paragraphs if text]) == 30


def test_one_wrong_pair_does_not_exclude_a_short_document() -> None:
    ratios = {("a", i): 0.0 for i in range(20)} | {("b", i): 0.0 for i in range(3)} | {("b", 3): 2.0}
    assert find_misaligned(ratios, 2.0) == {("b", 3): "of a wrong length"}


def test_contradicting_units_are_left_out_and_counted(tmp_path: Path) -> None:
    first, second = write_memories(tmp_path, {"a": 3})
    second.write_text(second.read_text().replace(english("a", 2), "Another sentence", 1), encoding="utf-8")
    first.write_text(first.read_text().replace('"a:3"', '"a:1"'), encoding="utf-8")
    corpus = Units([first, second], ["en", "zh"], 2.0)
    assert corpus.counts["units with a repeated id"] == 1
    assert corpus.counts["units whose en text differs from an earlier file"] == 1
    french = corpus.topic("a").versions["fr"].paragraphs
    assert [bool(text) for text in french] == [True, False, True]
    assert corpus.topic("a").versions["zh"].paragraphs == [chinese("a", 1), chinese("a", 2), ""]


def test_units_without_ids_are_one_document_in_the_files_order(tmp_path: Path) -> None:
    units = [{"en": english("x", i), "zh": chinese("x", i)} for i in range(4)]
    corpus = Units([write_tmx(tmp_path / "plain.tmx", units)], ["en", "zh"], 2.0)
    assert corpus.sizes("en") == {"plain": 4}
    assert corpus.topic("plain").versions["en"].paragraphs == [english("x", i) for i in range(4)]


def test_codes_with_regions_match_the_preferred_languages(tmp_path: Path) -> None:
    units = [{"en-US": english("x", i), "zh_CN": chinese("x", i), "zh-TW": f"繁{chinese('x', i)}"} for i in range(4)]
    corpus = Units([write_tmx(tmp_path / "m.tmx", units)], ["en", "zh-CN"], 2.0)
    assert corpus.languages() == ["en", "zh-CN"]
    assert corpus.topic("m").versions["zh-CN"].paragraphs[0] == chinese("x", 0)
