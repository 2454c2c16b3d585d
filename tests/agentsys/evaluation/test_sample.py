"""agentsys/evaluation/sample.py: which records are used, which are refused, and the overlap with training runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, collect
from agentsys.evaluation.sample import Sample, SampleOptions, check_overlap, read_rows, read_sample
from agentsys.records import BadRecord, InputError, Record
from tests.support.toys import one_node, write_lines

TEXTS = {"a": "The Cat.", "b": "A dog!", "c": "Rain"}


def read_texts(path: Path, options: SampleOptions) -> Iterator[str | BadRecord]:
    """The texts of a file; "bad" is no text."""

    def text_in(record: Record) -> str:
        if record.data["text"] == "bad":
            raise ValueError("a bad text")
        return f"{record.id}: {record.data['text']}"

    return read_rows(path, options, text_in, "text", required=["text"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "texts.jsonl", [{"id": name, "text": text} for name, text in TEXTS.items()])


def sample(file: Path | None, **options: Any) -> Sample[str]:
    return read_sample(file, read_texts, SampleOptions(**options), "text")


def test_a_sample_is_the_first_rows(file: Path) -> None:
    assert sample(file).rows == ["a: The Cat.", "b: A dog!", "c: Rain"] and sample(file).unusable == []
    assert sample(file, limit=2).rows == ["a: The Cat.", "b: A dog!"]
    assert len(sample(file).sha256) == 64 and sample(file).sha256 == sample(file, limit=1).sha256


def test_a_shuffled_sample_depends_on_the_seed_alone(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "many.jsonl", [{"id": str(i), "text": "x"} for i in range(50)])
    first, again, other = (sample(file, shuffle=True, seed=seed, limit=10).rows for seed in (0, 0, 1))
    assert first == again != other and len({*first}) == 10
    assert sorted(sample(file, shuffle=True).rows) == sorted(sample(file).rows), "without --limit it is the whole file"


def test_other_columns(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "texts.jsonl", [{"key": 7, "sentence": "x"}])
    assert sample(file, field=["text=sentence"], id_field="key").rows == ["7: x"]


def test_records_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    lines = [{"id": "a", "text": "x"}, {"id": "b", "text": "bad"}, {"id": "a", "text": "y"}, {"id": "c"}]
    test = sample(write_lines(tmp_path / "texts.jsonl", lines))
    assert test.rows == ["a: x"]
    reasons = [(bad.source.rpartition(":")[2], bad.reason.partition(";")[0]) for bad in test.unusable]
    assert reasons[:2] == [("2", "a bad text"), ("3", "duplicate: two texts have the id a")]
    assert reasons[2][0] == "4" and "no field 'text'" in reasons[2][1]


def test_the_limit_counts_records_that_cannot_be_used(tmp_path: Path) -> None:
    test = sample(write_lines(tmp_path / "texts.jsonl", [{"text": "bad"}, {"text": "x"}, {"text": "y"}]), limit=2)
    assert len(test.rows) == 1 and len(test.unusable) == 1


def test_a_sample_without_a_usable_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--texts: name a file of texts, such as texts\.jsonl$"):
        sample(None)
    with pytest.raises(InputError, match=r"empty\.jsonl: no text to use: empty file"):
        sample(write_lines(tmp_path / "empty.jsonl", []))
    with pytest.raises(InputError, match="no text to use: a bad text"):
        sample(write_lines(tmp_path / "bad.jsonl", [{"text": "bad"}]))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"limit": 0}, "--limit 0"), ({"field": ["text"]}, "--field text"), ({"seed": 2**63}, "--seed")],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SampleOptions(**options)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A collect run over three texts: an id of the sample, a text of it, and neither."""
    records = [{"id": "a", "text": "Other words"}, {"id": "x", "text": "a DOG"}, {"id": "y", "text": "Snow"}]
    graph = one_node(lambda state: {"reply": "x"})
    assert not collect(graph, records, tmp_path / "run", options=RunOptions(no_cache=True)).stopped
    return tmp_path / "run"


def test_an_overlap_by_id_or_normalized_text(run: Path) -> None:
    with pytest.raises(InputError, match=r"^--texts: 2 of 3 are also in .*/run \("):
        check_overlap(TEXTS, [run], "text", "text")
    with pytest.raises(InputError, match=r"1 of 1 are also in .* \(id a: The Cat\.\)"):
        check_overlap({"a": "The Cat."}, [run], "text", "text")
    with pytest.raises(InputError, match=r"1 of 2 are also in .* \(same text, b: A dog!\)"):
        check_overlap({"b": "A dog!", "c": "Rain"}, [run], "text", "text")
    check_overlap({"c": "Rain"}, [run], "text", "text")
    check_overlap(TEXTS, [], "text", "text")


def test_an_overlap_with_another_comparison(run: Path) -> None:
    check_overlap(TEXTS, [run], "text", "text", normalize=str.casefold, match_ids=False)
    with pytest.raises(InputError, match="1 of 3 are also in"):
        check_overlap(TEXTS, [run], "text", "text", normalize=lambda text: text[-3:].casefold(), match_ids=True)
    with pytest.raises(InputError, match=r"1 of 1 .*same text, s: Cold"):
        check_overlap(
            {"s": "Cold"}, [run], "text", "text", text_of=lambda record: record["text"].replace("Snow", "cold")
        )


def test_a_run_that_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--trained-on .*nowhere: no traces there"):
        check_overlap(TEXTS, [tmp_path / "nowhere"], "text", "text")
    with pytest.raises(InputError, match="its records have no question; name a run over questions"):
        check_overlap(TEXTS, [run], "question", "question")
