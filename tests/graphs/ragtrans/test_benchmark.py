"""RAGtrans's benchmark: splits, files, the records of the tasks, and the mix."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentsys.graphs.ragtrans.benchmark import open_corpus, split_topics, write_benchmark
from agentsys.graphs.ragtrans.corpus import Units
from agentsys.graphs.ragtrans.documents import JOIN, split_paragraphs
from agentsys.graphs.ragtrans.mix import mix_records
from agentsys.graphs.ragtrans.samples import BenchmarkOptions, CLICOptions, Sampler, shorten
from tests.support.ragtrans_corpora import (
    SIZES,
    build_files,
    chinese,
    make_page,
    read_lines,
    write_memories,
)
from tests.support.toys import write_lines


def test_each_document_is_in_one_split_only(tmp_path: Path) -> None:
    out = build_files(tmp_path)
    splits = [
        {row["id"].partition(":")[0] for row in read_lines(out / f"{name}.jsonl")} for name in ("train", "val", "test")
    ]
    assert sum(map(len, splits)) == len(set().union(*splits)) == 5
    assert all(splits)
    report = json.loads((out / "report.json").read_text())
    assert sum(report["records"][name] for name in ("train", "val", "test")) == sum(SIZES.values())
    assert report["records"]["test"] <= 0.1 * sum(SIZES.values())
    assert sum(report["tags"].values()) == report["records"]["train"] + report["records"]["val"]


def test_no_page_of_the_test_set_is_in_the_training_data(tmp_path: Path) -> None:
    out = build_files(tmp_path)
    test_pages = {row["id"].partition(":")[0] for row in read_lines(out / "test.jsonl")}
    val_pages = {row["id"].partition(":")[0] for row in read_lines(out / "val.jsonl")}
    for name, excluded in {
        "train": test_pages | val_pages,
        "clrd": test_pages | val_pages,
        "clic": test_pages | val_pages,
        "val": test_pages,
    }.items():
        texts = [" ".join(str(value) for value in row.values()) for row in read_lines(out / f"{name}.jsonl")]
        assert not [text for text in texts if any(f"In {d} " in text or f"在{d}中" in text for d in excluded)], name
    assert any(row["noisy_zh_doc"] for row in read_lines(out / "test.jsonl"))


def test_large_documents_go_to_training() -> None:
    splits = dict(
        (name, split) for split, name in split_topics({"big": 90, "s": 5, "t": 5}, BenchmarkOptions(test=0.1))
    )
    assert splits["big"] == "train"
    assert sorted([splits["s"], splits["t"]]) in (["test", "val"], ["test", "test"])


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    first, second, other = build_files(tmp_path), build_files(tmp_path, "again"), build_files(tmp_path, "other", seed=1)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert (first / "train.jsonl").read_bytes() != (other / "train.jsonl").read_bytes()


def test_a_benchmark_replaces_an_earlier_one_and_a_failed_build_does_not(tmp_path: Path) -> None:
    out = build_files(tmp_path)
    (out / "passages-xx.jsonl").write_text("{}")
    (out / "unlabeled.jsonl").write_text("{}")
    before = (out / "train.jsonl").read_bytes()

    class Broken(Units):
        def pages(self) -> Any:
            raise OSError("disk full")

    corpus = Broken(write_memories(tmp_path, SIZES), ["en", "zh"], 2.0)
    with pytest.raises(OSError, match="disk full"):
        asyncio.run(write_benchmark(corpus, BenchmarkOptions(seed=5), CLICOptions(), out))
    assert (out / "train.jsonl").read_bytes() == before
    assert not list(out.glob(".*"))
    assert (out / "passages-xx.jsonl").exists()
    build_files(tmp_path)
    assert not (out / "passages-xx.jsonl").exists()
    assert not (out / "unlabeled.jsonl").exists()


def test_sources_without_a_reference_go_to_another_file(tmp_path: Path) -> None:
    rows = [make_page(f"p{i}", "en", links={"zh": f"zh/p{i}"}) for i in range(6)] + [
        make_page(f"p{i}", "zh") for i in range(6)
    ]
    benchmark = BenchmarkOptions(test=0.2, validation=0.0)
    corpus = open_corpus([write_lines(tmp_path / "pages.jsonl", rows)], [], benchmark)
    report = asyncio.run(write_benchmark(corpus, benchmark, CLICOptions(), tmp_path / "out"))
    assert report.records["unlabeled"] == 5
    assert report.counts["test samples without a translation or a document"] == 1
    assert "train" not in report.records
    assert "sket" not in report.records


def test_passages_can_be_indexed_and_keep_language_and_page(tmp_path: Path) -> None:
    from agentsys.knowledge import IndexSettings, build_index, load_retriever

    out = build_files(tmp_path)
    index = build_index(out / "passages-zh.jsonl", tmp_path / "index", IndexSettings(kind="bm25"))
    assert index.failed == 0
    assert index.passages == len(read_lines(out / "passages-zh.jsonl"))
    [hits] = asyncio.run(load_retriever(tmp_path / "index").search([chinese("c", 3)], 1))
    assert (hits[0].passage.meta["lang"], hits[0].passage.meta["page"]) == ("zh", "c")
    whole = JOIN.join(row["text"] for row in read_lines(out / "passages-zh.jsonl") if row["page"] == "a")
    assert whole == JOIN.join(chinese("a", i) for i in range(1, 41))


def test_clic_shows_the_beginning_and_mixes_languages(tmp_path: Path) -> None:
    for row in read_lines(build_files(tmp_path) / "clic.jsonl"):
        assert row["answer"].startswith(row["text"])
        assert 0.3 < len(row["text"]) / len(row["answer"]) < 0.7
        paragraphs = split_paragraphs(row["document"])
        assert len(paragraphs) == 4
        assert len({text[0] if text[0] == "在" else text[:2] for text in paragraphs}) > 1
        assert row["answer"] not in row["document"]


def test_shortening_counts_words_and_characters() -> None:
    assert shorten("one two three four", 0.5) == "one two"
    assert shorten("一二三四五六", 0.5) == "一二三"
    assert shorten("alone", 0.5) == ""


def test_an_embedding_model_selects_the_paragraphs(tmp_path: Path) -> None:
    class Embedder:
        name = "by language"

        async def embed(self, texts: Sequence[str]) -> Any:
            return np.array([[1.0, 0.1] if text.startswith("fr") else [0.0, 1.0] for text in texts])

    corpus = Units(write_memories(tmp_path, {"a": 12}), ["en", "zh"], 2.0)
    sampler = Sampler(corpus, BenchmarkOptions(), corpus.languages())
    sample = sampler.samples(corpus.topic("a"))[5]
    row = asyncio.run(sampler.clic_record(sample, CLICOptions(mmr_lambda=1.0), Embedder()))
    assert row is not None
    assert not any(text.startswith("fr") for text in split_paragraphs(row["document"]))
    row = asyncio.run(sampler.clic_record(sample, CLICOptions(mmr_lambda=0.1, mix=2), Embedder()))
    assert row is not None
    assert split_paragraphs(row["document"])[1].startswith("fr")  # novelty counts


def test_clrd_labels_are_correct(tmp_path: Path) -> None:
    rows = read_lines(build_files(tmp_path) / "clrd.jsonl")
    assert 0.3 < Counter(row["answer"] for row in rows)["true"] / len(rows) < 0.7
    for row in rows:
        documents = [
            next(d for d in SIZES if f"In {d} " in t or f"在{d}中" in t) for t in (row["text"], row["document"])
        ]
        assert (documents[0] == documents[1]) == (row["answer"] == "true")
        first, second = row["language"].split()
        assert first != second


def test_the_mix_follows_its_weights_at_every_point(tmp_path: Path) -> None:
    out = build_files(tmp_path)
    rows = list(mix_records(out, {"ragtrans": 2.0, "clic": 1.0, "sket": 1.0}, 40, seed=0))
    assert [Counter(row["task"] for row in rows[:n]) for n in (4, 40)] == [
        Counter(ragtrans=n // 2, clic=n // 4, sket=n // 4) for n in (4, 40)
    ]
    assert len({row["id"] for row in rows}) == 40
    assert all({"id", "task", "text", "answer"} <= set(row) for row in rows)
    everything = list(mix_records(out, {"ragtrans": 1.0, "clrd": 3.0}, None, seed=0))
    counts = Counter(row["task"] for row in everything)
    assert counts["clrd"] == len(read_lines(out / "clrd.jsonl"))  # it ends where the clrd records do
    assert abs(counts["ragtrans"] - counts["clrd"] / 3) <= 1
