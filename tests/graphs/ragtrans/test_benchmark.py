"""RAGtrans's benchmark: pages and translation memories, documents, leaks, splits, the tasks' records, the mix."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest

from agentsys.commands import command, run_app
from agentsys.graphs.ragtrans.benchmark import mixed, open_corpus, split_topics, write_benchmark
from agentsys.graphs.ragtrans.corpus import Pages, Units, misaligned
from agentsys.graphs.ragtrans.documents import JOIN, count_tokens, paragraphs_of
from agentsys.graphs.ragtrans.samples import CLIC, Benchmark, Sampler, shorten
from agentsys.graphs.ragtrans_collect import build, collect, tasks
from tests.support.toys import one_error, write_lines

Row = dict[str, Any]
ZH = "埃尔姆松德港由来自北方群岛的渔民于一八七一年建成。"


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def call(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run_app(command(build, collect, tasks), [str(option) for option in options])
    said = capsys.readouterr()
    return code, said.out, said.err


# pages


def page(name: str, lang: str, **more: Any) -> Row:
    body = [f"{name} {lang} lead", *(f"{name} {lang} says a thing that is number {i} of several" for i in range(3))]
    return {"id": f"{lang}/{name}", "lang": lang, "title": f"T {name}", "paragraphs": body, **more}


def pages(tmp_path: Path, count: int = 4) -> Path:
    found = []
    for i in range(count):
        found.append(page(f"p{i}", "en", links={"zh": f"zh/p{i}"}, references={"zh": f"译文{i}"}))
        found.append(page(f"p{i}", "zh"))
        found.append(page(f"p{i}", "de", links={"en": f"en/p{i}"}))
    return write_lines(tmp_path / "pages.jsonl", found)


def sampler(file: Path, **options: Any) -> Sampler:
    benchmark = Benchmark(**options)
    corpus = open_corpus(file, [], benchmark)
    return Sampler(corpus, benchmark, benchmark.language or corpus.languages())


def test_versions_are_found_by_links_in_either_direction(tmp_path: Path) -> None:
    corpus = Pages(pages(tmp_path))
    assert corpus.languages() == ["de", "en", "zh"]
    assert corpus.sizes("en") == dict.fromkeys(["en/p0", "en/p1", "en/p2", "en/p3"], 1)
    topic = corpus.topic("en/p2")
    assert set(topic.versions) == {"de", "en", "zh"}
    assert all(version.paragraphs[0].startswith("p2") for version in topic.versions.values())
    assert topic.references == {"zh": "译文2"}


def test_the_lead_is_the_source_and_no_part_of_a_document(tmp_path: Path) -> None:
    found = sampler(pages(tmp_path))
    [sample] = found.samples(found.corpus.topic("en/p1"))
    assert (sample.src, sample.tgt) == ("p1 en lead", "译文1")
    row = found.test_record(sample)
    assert row is not None
    assert list(row) == ["id", "src", "tgt", *(f"{n}{code}_doc" for n in ("", "noisy_") for code in ("de", "en", "zh"))]
    assert row["en_doc"] == JOIN.join(f"p1 en says a thing that is number {i} of several" for i in range(3))
    assert row["zh_doc"].startswith("【T p1】p1 zh says")  # the title only where it is not in the source's language
    assert "lead" not in row["zh_doc"] + row["de_doc"] + row["en_doc"]
    assert "p1" not in row["noisy_en_doc"] + row["noisy_zh_doc"] + row["noisy_de_doc"]


def test_training_records_hold_one_document_and_its_tag(tmp_path: Path) -> None:
    for noisy, kind in ((0.0, "clean"), (1.0, "noisy")):
        found = sampler(pages(tmp_path, 12), noisy=noisy)
        rows = [found.train_record(s) for n in found.corpus.sizes("en") for s in found.samples(found.corpus.topic(n))]
        assert all(row and list(row) == ["id", "src", "tgt", "doc", "tag"] for row in rows)
        tags = {str(row["tag"]) for row in rows if row}
        assert {tag.partition("_")[0] for tag in tags} == {kind}
        assert len(tags) == 3
        for row in rows:
            assert row
            assert (str(row["src"]).partition(" ")[0] in row["doc"].replace("T ", "")) == (kind == "clean")


def test_a_page_in_one_language_gets_documents_in_that_language_only(tmp_path: Path) -> None:
    alone = page("alone", "en", links={"zh": "zh/missing"})
    file = write_lines(tmp_path / "pages.jsonl", [alone, page("other", "zh")])
    found = sampler(file, noisy=0.0)
    [sample] = found.samples(found.corpus.topic("en/alone"))
    assert set(sample.documents) == {"en"}
    assert found.counts["pages in one language only"] == 1
    row = found.train_record(sample)
    assert row is not None
    assert row["tag"] == "clean_en"
    assert "tgt" not in row
    assert found.test_record(sample) is None


def test_paragraphs_that_leak_the_reference_are_taken_out_and_counted(tmp_path: Path) -> None:
    english = page("p", "en", links={"zh": "zh/p"}, references={"zh": ZH})
    chinese = {**page("p", "zh"), "paragraphs": ["导语", f"开头。{ZH}", "无关的一段话在这里。"]}
    found = sampler(write_lines(tmp_path / "pages.jsonl", [english, chinese, page("q", "en"), page("q", "zh")]))
    [sample] = found.samples(found.corpus.topic("en/p"))
    assert sample.documents["zh"] == ["无关的一段话在这里。"]
    assert found.counts["paragraphs that leak the reference"] == 1


def test_a_page_of_a_hundred_thousand_characters_is_cut_and_counted(tmp_path: Path) -> None:
    long = {**page("p", "en"), "paragraphs": ["lead", *(f"paragraph {i} " + "x" * 990 for i in range(100))]}
    found = sampler(write_lines(tmp_path / "pages.jsonl", [long, page("p", "zh")]), document_tokens=600)
    [sample] = found.samples(found.corpus.topic("en/p"))
    assert len(sample.documents["en"]) == 2
    assert sum(map(count_tokens, sample.documents["en"])) <= 600
    assert found.counts["documents cut"] == 1


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"id": "a", "lang": "en", "title": "A"}, "'paragraphs' is no list of texts"),
        ({"id": "a", "lang": "en", "paragraphs": "text"}, "'paragraphs' is no list of texts"),
        ({"id": "a", "lang": "en", "paragraphs": [" ", ""]}, "'paragraphs' has no text"),
        ({"id": "a", "lang": "en", "paragraphs": ["a"], "links": ["zh/a"]}, "'links' is no mapping"),
        ({"id": "a", "lang": "en", "paragraphs": ["a"], "title": 3}, "'title' is no text"),
        ({"id": "a", "paragraphs": ["a"]}, "no field 'lang'"),
        ({"id": "a", "lang": "en/x", "paragraphs": ["a"]}, "field 'lang' is 'en/x'; write a code"),
        ({"id": "a", "lang": "en", "paragraphs": ["", "b"]}, "begins with an empty text; give the lead first"),
        ({"id": "en/p0", "lang": "en", "paragraphs": ["a"]}, "two pages have the id en/p0"),
    ],
)
def test_pages_that_cannot_be_used_are_written_down(tmp_path: Path, record: Row, said: str) -> None:
    good = lines(pages(tmp_path))
    file = write_lines(tmp_path / "pages.jsonl", [*good, record])
    corpus = Pages(file)
    [bad] = corpus.rejected
    assert said in bad.reason
    assert bad.source == f"{file}:{len(good) + 1}"
    assert corpus.counts["pages"] == len(good)


# translation memories


def tmx(path: Path, units: Mapping[str, Mapping[str, str]] | Sequence[Mapping[str, str]]) -> Path:
    named = units.items() if isinstance(units, Mapping) else [("", texts) for texts in units]
    body = "".join(
        f"<tu{f' tuid={chr(34)}{name}{chr(34)}' if name else ''}>"
        + "".join(f'<tuv xml:lang="{lang}"><seg>{escape(text)}</seg></tuv>' for lang, text in texts.items())
        + "</tu>"
        for name, texts in named
    )
    path.write_text(f'<?xml version="1.0"?><tmx version="1.4"><header/><body>{body}</body></tmx>', encoding="utf-8")
    return path


def english(document: str, i: int) -> str:
    """Fourteen words, others in each sentence."""
    lucky = random.Random(f"{document}{i}")
    return f"In {document} {' '.join(''.join(lucky.choices('bdfgklmnprst', k=5)) for _ in range(12))}."


def chinese(document: str, i: int) -> str:
    """About as long as a Chinese translation."""
    lucky = random.Random(f"{document}{i}")
    return f"在{document}中{''.join(chr(lucky.randrange(0x4E00, 0x9000)) for _ in range(26))}。"


def memories(tmp_path: Path, sizes: Mapping[str, int], **changes: str) -> list[Path]:
    """en-zh and en-fr with the same ids; `changes` are other Chinese texts by id."""
    names = [(document, i) for document, size in sizes.items() for i in range(1, size + 1)]
    zh = {f"{d}:{i}": {"en": english(d, i), "zh": changes.get(f"{d}:{i}", chinese(d, i))} for d, i in names}
    fr = {f"{d}:{i}": {"en": english(d, i), "fr": f"fr {english(d, i)}"} for d, i in names}
    return [tmx(tmp_path / "en-zh.tmx", zh), tmx(tmp_path / "en-fr.tmx", fr)]


def test_files_are_joined_by_unit_and_each_unit_is_a_source(tmp_path: Path) -> None:
    corpus = Units(memories(tmp_path, {"a": 5, "b": 3}), ["en", "zh"], 2.0)
    assert corpus.languages() == ["en", "fr", "zh"]
    assert corpus.sizes("en") == {"a": 5, "b": 3}
    found = Sampler(corpus, Benchmark(), corpus.languages())
    samples = found.samples(corpus.topic("a"))
    assert [sample.id for sample in samples] == [f"a:{i}" for i in range(1, 6)]
    third = samples[2]
    assert (third.src, third.tgt) == (english("a", 3), chinese("a", 3))
    assert third.documents["zh"] == [chinese("a", i) for i in (1, 2, 4, 5)]  # the neighbours, in their order
    assert third.documents["fr"] == [f"fr {english('a', i)}" for i in (1, 2, 4, 5)]


def test_a_document_is_made_of_the_nearest_neighbours(tmp_path: Path) -> None:
    options = Benchmark(document_tokens=3 * count_tokens(english("a", 10)))
    corpus = Units(memories(tmp_path, {"a": 30}), ["en", "zh"], 2.0)
    sample = Sampler(corpus, options, ["en"]).samples(corpus.topic("a"))[14]
    assert sample.documents["en"] == [english("a", i) for i in (13, 14, 16)]


def test_the_translation_must_not_stand_elsewhere_in_the_document(tmp_path: Path) -> None:
    repeated = {"a:4": f"{chinese('a', 2)}又一句。"}
    corpus = Units(memories(tmp_path, {"a": 6, "b": 4}, **repeated), ["en", "zh"], 2.0)
    found = Sampler(corpus, Benchmark(), corpus.languages())
    second = found.samples(corpus.topic("a"))[1]
    assert second.tgt == chinese("a", 2)
    assert second.documents["zh"] == [chinese("a", i) for i in (1, 3, 5, 6)]
    assert found.counts["paragraphs that leak the reference"] == 2  # and for unit 4 the other way round


def test_texts_of_a_wrong_length_are_left_out_and_counted(tmp_path: Path) -> None:
    corpus = Units(memories(tmp_path, {"a": 30}, **{"a:7": "好"}), ["en", "zh"], 2.0)
    assert corpus.counts["zh of a wrong length"] == 1
    sample = Sampler(corpus, Benchmark(), ["en", "zh"]).samples(corpus.topic("a"))[6]
    assert sample.tgt == ""


def test_a_document_with_a_shifted_column_is_left_out_as_a_whole(tmp_path: Path) -> None:
    wrong = {f"b:{i}": "好" for i in (2, 9)}
    corpus = Units(memories(tmp_path, {"a": 30, "b": 20}, **wrong), ["en", "zh"], 2.0)
    assert corpus.counts["zh in a misaligned document"] == 20
    assert corpus.counts["zh of a wrong length"] == 0
    assert "zh" not in corpus.topic("b").versions
    assert len([text for text in corpus.topic("a").versions["zh"].paragraphs if text]) == 30


def test_one_wrong_pair_does_not_condemn_a_short_document() -> None:
    ratios = {("a", i): 0.0 for i in range(20)} | {("b", i): 0.0 for i in range(3)} | {("b", 3): 2.0}
    assert misaligned(ratios, 2.0) == {("b", 3): "of a wrong length"}


def test_units_that_contradict_are_left_out_and_counted(tmp_path: Path) -> None:
    first, second = memories(tmp_path, {"a": 3})
    second.write_text(second.read_text().replace(english("a", 2), "Another sentence", 1), encoding="utf-8")
    first.write_text(first.read_text().replace('"a:3"', '"a:1"'), encoding="utf-8")
    corpus = Units([first, second], ["en", "zh"], 2.0)
    assert corpus.counts["units whose id came before"] == 1
    assert corpus.counts["units whose en is another in an earlier file"] == 1
    french = corpus.topic("a").versions["fr"].paragraphs
    assert [bool(text) for text in french] == [True, False, True]
    assert corpus.topic("a").versions["zh"].paragraphs == [chinese("a", 1), chinese("a", 2), ""]


def test_units_without_ids_are_one_document_in_the_files_order(tmp_path: Path) -> None:
    units = [{"en": english("x", i), "zh": chinese("x", i)} for i in range(4)]
    corpus = Units([tmx(tmp_path / "plain.tmx", units)], ["en", "zh"], 2.0)
    assert corpus.sizes("en") == {"plain": 4}
    assert corpus.topic("plain").versions["en"].paragraphs == [english("x", i) for i in range(4)]


def test_codes_with_regions_are_the_wanted_languages(tmp_path: Path) -> None:
    units = [{"en-US": english("x", i), "zh_CN": chinese("x", i), "zh-TW": f"繁{chinese('x', i)}"} for i in range(4)]
    corpus = Units([tmx(tmp_path / "m.tmx", units)], ["en", "zh-CN"], 2.0)
    assert corpus.languages() == ["en", "zh-CN"]
    assert corpus.topic("m").versions["zh-CN"].paragraphs[0] == chinese("x", 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source", "de"], "no text in 'de'; its languages are en, zh"),
        (["--target", "ja"], "--target ja: no text in this language; there is en, zh"),
        (["--language", "en", "--language", "ru"], "--language ru: no text in this language; there is en, zh"),
        (["--target", "en"], "--source and --target are both 'en'"),
        (["--test", "0.9", "--validation", "0.1"], "--test and --validation leave nothing to train on"),
        (["--mix", "1"], "--mix 1: at least 2 paragraphs are needed"),
        (["--keep", "1"], "--keep needs a share between 0 and 1"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    memory, _ = memories(tmp_path, {"a": 4})
    code, _, err = call(capsys, "build", "--tmx", memory, "--out", tmp_path / "out", *options)
    assert code == 2
    assert said in one_error(err)
    assert not (tmp_path / "out").exists()


def test_either_pages_or_memories_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "build", "--out", tmp_path / "out")
    assert code == 2
    assert "give either --pages" in one_error(err)


# the whole benchmark

SIZES = {"a": 40, "b": 6, "c": 5, "d": 4, "e": 30}


def written(tmp_path: Path, name: str = "out", **options: Any) -> Path:
    benchmark = Benchmark(test=0.1, validation=0.1, **options)
    corpus = open_corpus(None, memories(tmp_path, SIZES), benchmark)
    asyncio.run(write_benchmark(corpus, benchmark, CLIC(), tmp_path / name))
    return tmp_path / name


def test_documents_are_on_one_side_only(tmp_path: Path) -> None:
    out = written(tmp_path)
    sides = [{row["id"].partition(":")[0] for row in lines(out / f"{name}.jsonl")} for name in ("train", "val", "test")]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 5
    assert all(sides)
    report = json.loads((out / "report.json").read_text())
    assert sum(report["written"][name] for name in ("train", "val", "test")) == sum(SIZES.values())
    assert report["written"]["test"] <= 0.1 * sum(SIZES.values())
    assert sum(report["tags"].values()) == report["written"]["train"] + report["written"]["val"]


def test_no_page_of_the_test_set_stands_in_what_is_trained_on(tmp_path: Path) -> None:
    out = written(tmp_path)
    tests = {row["id"].partition(":")[0] for row in lines(out / "test.jsonl")}
    vals = {row["id"].partition(":")[0] for row in lines(out / "val.jsonl")}
    for name, apart in {"train": tests | vals, "clrd": tests | vals, "clic": tests | vals, "val": tests}.items():
        seen = [" ".join(str(value) for value in row.values()) for row in lines(out / f"{name}.jsonl")]
        assert not [text for text in seen if any(f"In {d} " in text or f"在{d}中" in text for d in apart)], name
    assert any(row["noisy_zh_doc"] for row in lines(out / "test.jsonl"))


def test_pages_that_are_kept_apart_are_found_by_their_links(tmp_path: Path) -> None:
    corpus = Pages(pages(tmp_path))
    for lang in ("en", "zh", "de"):
        for seed in range(20):
            found = corpus.other(corpus.topic("en/p0"), lang, random.Random(seed), {"en/p1", "en/p2"})
            assert found is not None and found.title == "T p3"


def test_large_documents_train() -> None:
    found = dict((name, split) for split, name in split_topics({"big": 90, "s": 5, "t": 5}, Benchmark(test=0.1)))
    assert found["big"] == "train"
    assert sorted([found["s"], found["t"]]) in (["test", "val"], ["test", "test"])


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    one, two, other = written(tmp_path), written(tmp_path, "again"), written(tmp_path, "other", seed=1)
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    assert (one / "train.jsonl").read_bytes() != (other / "train.jsonl").read_bytes()


def test_an_earlier_benchmark_goes_and_a_failed_one_leaves_it(tmp_path: Path) -> None:
    out = written(tmp_path)
    (out / "passages-xx.jsonl").write_text("{}")
    (out / "unlabeled.jsonl").write_text("{}")
    before = (out / "train.jsonl").read_bytes()

    class Broken(Units):
        def pages(self) -> Any:
            raise OSError("disk full")

    corpus = Broken(memories(tmp_path, SIZES), ["en", "zh"], 2.0)
    with pytest.raises(OSError, match="disk full"):
        asyncio.run(write_benchmark(corpus, Benchmark(seed=5), CLIC(), out))
    assert (out / "train.jsonl").read_bytes() == before
    assert not list(out.glob(".*"))
    assert (out / "passages-xx.jsonl").exists()
    written(tmp_path)
    assert not (out / "passages-xx.jsonl").exists()
    assert not (out / "unlabeled.jsonl").exists()


def test_sources_without_a_reference_are_written_apart(tmp_path: Path) -> None:
    found = [page(f"p{i}", "en", links={"zh": f"zh/p{i}"}) for i in range(6)] + [page(f"p{i}", "zh") for i in range(6)]
    benchmark = Benchmark(test=0.2, validation=0.0)
    corpus = open_corpus(write_lines(tmp_path / "pages.jsonl", found), [], benchmark)
    report = asyncio.run(write_benchmark(corpus, benchmark, CLIC(), tmp_path / "out"))
    assert report.written["unlabeled"] == 5
    assert report.counts["test samples without a translation or a document"] == 1
    assert "train" not in report.written
    assert "sket" not in report.written


def test_passages_can_be_indexed_and_keep_language_and_page(tmp_path: Path) -> None:
    from agentsys.knowledge import Settings, build_index, load_retriever

    out = written(tmp_path)
    built = build_index(out / "passages-zh.jsonl", tmp_path / "index", Settings(kind="bm25"))
    assert built.rejected == 0
    assert built.passages == len(lines(out / "passages-zh.jsonl"))
    [hits] = asyncio.run(load_retriever(tmp_path / "index").search([chinese("c", 3)], 1))
    assert (hits[0].passage.meta["lang"], hits[0].passage.meta["page"]) == ("zh", "c")
    whole = JOIN.join(row["text"] for row in lines(out / "passages-zh.jsonl") if row["page"] == "a")
    assert whole == JOIN.join(chinese("a", i) for i in range(1, 41))


def test_the_command_builds_and_says_what_it_met(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = memories(tmp_path, SIZES, **{"a:7": "好"})
    code, said, _ = call(capsys, "build", "--tmx", first, "--tmx", second, "--out", tmp_path / "out")
    assert code == 0
    assert "zh of a wrong length: 1" in said
    assert "unlabeled" in said
    bad = write_lines(tmp_path / "pages.jsonl", [*lines(pages(tmp_path, 20)), {"id": "x", "lang": "en"}])
    code, _, err = call(capsys, "build", "--pages", bad, "--out", tmp_path / "out")
    assert code == 3
    assert "1 page records rejected" in err
    [rejected] = lines(tmp_path / "out" / "failed.jsonl")
    assert rejected["source"] == f"{bad}:61"


# the tasks


def test_clic_shows_the_beginning_and_mixes_languages(tmp_path: Path) -> None:
    for row in lines(written(tmp_path) / "clic.jsonl"):
        assert row["answer"].startswith(row["text"])
        assert 0.3 < len(row["text"]) / len(row["answer"]) < 0.7
        shown = paragraphs_of(row["document"])
        assert len(shown) == 4
        assert len({text[0] if text[0] == "在" else text[:2] for text in shown}) > 1
        assert row["answer"] not in row["document"]


def test_shortening_counts_words_and_characters() -> None:
    assert shorten("one two three four", 0.5) == "one two"
    assert shorten("一二三四五六", 0.5) == "一二三"
    assert shorten("alone", 0.5) == ""


def test_an_embedding_model_chooses_the_paragraphs(tmp_path: Path) -> None:
    class Embedder:
        name = "by language"

        async def embed(self, texts: Sequence[str]) -> Any:
            return np.array([[1.0, 0.1] if text.startswith("fr") else [0.0, 1.0] for text in texts])

    corpus = Units(memories(tmp_path, {"a": 12}), ["en", "zh"], 2.0)
    found = Sampler(corpus, Benchmark(), corpus.languages())
    sample = found.samples(corpus.topic("a"))[5]
    row = asyncio.run(found.clic_record(sample, CLIC(mmr_lambda=1.0), Embedder()))
    assert row is not None
    assert not any(text.startswith("fr") for text in paragraphs_of(row["document"]))
    row = asyncio.run(found.clic_record(sample, CLIC(mmr_lambda=0.1, mix=2), Embedder()))
    assert row is not None
    assert paragraphs_of(row["document"])[1].startswith("fr")  # novelty counts


def test_the_command_closes_its_embedding_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remote:
        name, closed = "remote", 0

        async def embed(self, texts: Sequence[str]) -> Any:
            return np.ones((len(texts), 2))

        async def aclose(self) -> None:
            self.closed += 1

    remote = Remote()
    monkeypatch.setattr("agentsys.knowledge.embedders.make_embedder", lambda spec: remote)
    files = memories(tmp_path, {"a": 20, "b": 4})
    options = ["build", "--tmx", files[0], "--tmx", files[1], "--embedding", "http://host:1/v1#m", "--out", tmp_path]
    code, _, err = call(capsys, *options)
    assert (code, remote.closed) == (0, 1), err


def test_clrd_labels_are_true(tmp_path: Path) -> None:
    rows = lines(written(tmp_path) / "clrd.jsonl")
    assert 0.3 < Counter(row["answer"] for row in rows)["true"] / len(rows) < 0.7
    for row in rows:
        named = [next(d for d in SIZES if f"In {d} " in t or f"在{d}中" in t) for t in (row["text"], row["document"])]
        assert (named[0] == named[1]) == (row["answer"] == "true")
        one, two = row["language"].split()
        assert one != two


def test_the_mix_keeps_its_weights_at_every_point(tmp_path: Path) -> None:
    out = written(tmp_path)
    rows = list(mixed(out, {"ragtrans": 2.0, "clic": 1.0, "sket": 1.0}, 40, seed=0))
    assert [Counter(row["task"] for row in rows[:n]) for n in (4, 40)] == [
        Counter(ragtrans=n // 2, clic=n // 4, sket=n // 4) for n in (4, 40)
    ]
    assert len({row["id"] for row in rows}) == 40
    assert all({"id", "task", "text", "answer"} <= set(row) for row in rows)
    everything = list(mixed(out, {"ragtrans": 1.0, "clrd": 3.0}, None, seed=0))
    counts = Counter(row["task"] for row in everything)
    assert counts["clrd"] == len(lines(out / "clrd.jsonl"))  # it ends where the clrd records do
    assert abs(counts["ragtrans"] - counts["clrd"] / 3) <= 1
