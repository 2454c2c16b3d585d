"""Users' texts: what is read, left out and refused, and how they are split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentsys.trainers.idfree.data import Data, bin_name, read_split, write_split
from agentsys.trainers.idfree.options import DataOptions, FitOptions, ModelOptions, TableOptions
from agentsys.trainers.idfree.published import read_published
from agentsys.trainers.loading import TrainerError
from tests.support.tastes import write_tastes


def split(folder: Path, file: Path | str, *, max_length: int = 16, **options: Any) -> Data:
    (folder / "split").mkdir(exist_ok=True)
    task = options.pop("task", "classify")
    write_split(DataOptions(data=str(file), **options), task, max_length, 0, folder / "split", folder / "users.json")
    return read_split(folder / "split")


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_each_user_is_split_and_only_users_json_has_names(tmp_path: Path) -> None:
    data = split(tmp_path, write_tastes(tmp_path / "t.csv", users=10, texts=20))
    for part, count in ((data.train, 14), (data.validation, 2), (data.test, 4)):
        assert np.bincount(part.user, minlength=10).tolist() == [count] * 10
    assert data.labels == ("dislike", "like") and len(data.texts) <= 48 and data.known_test.all()
    names = json.loads((tmp_path / "users.json").read_text())
    assert sorted(names.values()) == sorted(f"reader-{number}" for number in range(10))
    assert [names[str(number)] for number in range(10)] != [f"reader-{number}" for number in range(10)]
    assert all(b"reader-" not in file.read_bytes() for file in (tmp_path / "split").iterdir())


def test_with_times_the_last_texts_of_each_user_are_the_test(tmp_path: Path) -> None:
    rows = [{"user": "a", "text": f"t{time}", "label": str(time % 2), "time": 9 - time} for time in range(10)]
    data = split(tmp_path, write_lines(tmp_path / "t.jsonl", rows), time="time")
    assert sorted(data.texts[text] for text in data.test.text) == ["t0", "t1"]
    assert [data.texts[text] for text in data.validation.text] == ["t2"]


def test_new_users_have_texts_in_the_test_alone(tmp_path: Path) -> None:
    data = split(tmp_path, write_tastes(tmp_path / "t.csv", users=10, texts=20), cold=0.3)
    assert len(data.new_users) == 3 and not np.isin(data.train.user, data.new_users).any()
    assert (~data.known_test).sum() == 60


def test_unusable_texts_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"user": 3.0, "text": "good", "label": number % 2, "time": 1} for number in range(5)]
    rows += [
        {"user": None, "text": "a", "label": 1, "time": 1},
        {"user": "u", "text": " ", "label": 1, "time": 1},
        {"user": "u", "text": "b", "label": "NaN", "time": 1},
        {"user": "u", "text": "c", "label": 1, "time": None},
        {"user": "u", "text": "c", "label": 1, "time": "noon"},
    ]
    data = split(tmp_path, write_lines(tmp_path / "t.jsonl", rows), time="time")
    assert data.users == 1 and len(data.train) + len(data.validation) + len(data.test) == 5
    printed = capsys.readouterr().out
    for reason in ("no user", "no text", "no label", "no time", "the time is neither a number nor ISO 8601"):
        assert f"1 texts left out: {reason}" in printed


def test_a_class_unseen_in_training_counts_as_wrong_in_the_test(tmp_path: Path) -> None:
    rows = [{"user": "a", "text": f"t{time}", "label": "xy"[time % 2], "time": time} for time in range(9)]
    rows.append({"user": "a", "text": "last", "label": "z", "time": 99})
    data = split(tmp_path, write_lines(tmp_path / "t.jsonl", rows), time="time")
    assert data.labels == ("x", "y") and data.test.label.tolist() == [0, -1]


def test_users_with_one_text_and_very_long_texts_are_read(tmp_path: Path) -> None:
    rows = [{"user": "one", "text": "x" * 10_000_000, "label": "a"}, {"user": "two", "text": "y", "label": "b"}]
    data = split(tmp_path, write_lines(tmp_path / "t.jsonl", rows))
    assert len(data.train) == 2 and len(data.test) == 0 and max(map(len, data.texts)) == 16 * 32


def test_bins_make_classes_of_numbers(tmp_path: Path) -> None:
    assert [bin_name([3, 4], value) for value in (0.5, 3, 3.5, 4, 4.5)] == ["<= 3", "<= 3", "3 to 4", "3 to 4", "> 4"]
    rows = [{"user": "a", "text": f"t{number}", "label": number % 5 + 1} for number in range(40)]
    assert split(tmp_path, write_lines(tmp_path / "t.jsonl", rows), bins="3,4").labels == ("<= 3", "3 to 4", "> 4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "class"}, r"--label class: .* has no such column; it has user, text, label, time"),
        ({"min_texts": 99}, "--min-texts 99: no user has as many texts; the most is 6"),
        ({"bins": "3"}, r"no usable texts: .* is no number, which --bins needs"),
    ],
)
def test_a_table_that_cannot_be_split_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=message):
        split(tmp_path, write_tastes(tmp_path / "t.csv", users=2, texts=6), **options)


def test_texts_of_one_class_are_refused(tmp_path: Path) -> None:
    rows = [{"user": "a", "text": f"t{number}", "label": "same"} for number in range(5)]
    with pytest.raises(TrainerError, match="all texts have the class 'same': give at least two classes"):
        split(tmp_path, write_lines(tmp_path / "t.jsonl", rows))


@pytest.mark.parametrize(
    ("group", "options", "message"),
    [
        (DataOptions, {}, "--data and --rows: give one of them"),
        (DataOptions, {"data": "x", "test": 0.6, "validation": 0.5}, "leave nothing to train on"),
        (DataOptions, {"data": "x", "cold": 1.0}, "--cold 1.0: give a share from 0 to below 1"),
        (DataOptions, {"data": "x", "bins": "4,3"}, "--bins 4,3: give ascending numbers"),
        (DataOptions, {"data": "x", "bins": "a"}, "--bins a: give numbers such as 3,4"),
        (ModelOptions, {"spread": 0.0}, "--spread 0.0: give a number above 0"),
        (ModelOptions, {"embedding_tokens": 0}, "--embedding-tokens 0: give at least 1"),
        (ModelOptions, {"lora": -1}, "--lora -1: give a rank"),
        (FitOptions, {"device_rate": -1.0}, "--device-rate -1.0: give a number above 0"),
        (TableOptions, {"baselines": "magic"}, "--baselines magic: the baselines are lora, static, id-text"),
        (TableOptions, {"stage": "lunch"}, "--stage lunch: the stages are split, central"),
    ],
)
def test_options_that_cannot_be_are_refused(group: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        group(**options)


def test_sentiment140_as_published(tmp_path: Path) -> None:
    file = tmp_path / "training.csv"
    lines = [
        '"0","1467810369","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","ann","caf\xe9 is closed"',
        '"4","1467810672","Sat May 16 23:58:44 PDT 2009","NO_QUERY","bob","so, ""good"""',
    ]
    file.write_bytes("\n".join(lines).encode("latin-1"))
    rows = list(read_published("sentiment140", str(file)))
    assert [(row["user"], row["label"], row["text"]) for row in rows] == [
        ("ann", "0", "café is closed"),
        ("bob", "4", 'so, "good"'),
    ]
    assert rows[0]["time"] < rows[1]["time"]
    file.write_text("user,text\n")
    with pytest.raises(TrainerError, match=r"line 1 of .* is not in that format"):
        list(read_published("sentiment140", str(file)))


def test_amazon_as_published(tmp_path: Path) -> None:
    new = {"user_id": "A", "rating": 4.0, "text": "fine", "timestamp": 1_632_712_835_970}
    old = {"reviewerID": "B", "overall": 2.0, "reviewText": "poor", "unixReviewTime": 1_000}
    file = write_lines(tmp_path / "reviews.jsonl", [new, old])
    rows = list(read_published("amazon", str(file)))
    assert [(row["user"], row["label"], row["text"], row["time"]) for row in rows] == [
        ("A", "4", "fine", 1_632_712_835_970),
        ("B", "<= 3", "poor", 1_000),
    ]
    with pytest.raises(TrainerError, match="has no user, rating or time of that format"):
        list(read_published("amazon", str(write_lines(file, [{"text": "x"}]))))


def test_reddit_of_leaf(tmp_path: Path) -> None:
    content = {"users": ["u"], "user_data": {"u": {"x": [[["<BOS>", "a", "b"], ["c", "<EOS>", "<PAD>"]], [["d"]]]}}}
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert [(row["text"], row["time"]) for row in read_published("reddit", str(tmp_path))] == [("a b c", 0), ("d", 1)]
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(TrainerError, match="is no data file of LEAF"):
        list(read_published("reddit", str(tmp_path)))
    with pytest.raises(TrainerError, match="no such file"):
        read_published("reddit", str(tmp_path / "none"))
