"""graphs/punchbench/tasks.py and the collect command: six files, balanced, the same in a second run."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.commands import run_app
from agentsys.graphs.punchbench.tasks import (
    FILES,
    Item,
    balance,
    count_answers,
    make_items,
    read_items,
    shuffle_options,
)
from agentsys.graphs.punchbench_collect import app
from agentsys.records import InputError
from tests.support.images import png
from tests.support.punchbench import CAPTION, GIVEN, STATEMENTS, BuilderModel, item, usual_reply
from tests.support.toys import write_lines


def result(punchline: bool = True, **fields: Any) -> dict[str, Any]:
    """What the builder makes of a pair."""
    reasoning = {"reasoning_sentence": GIVEN["reasoning"], "distractor_sentence": GIVEN["distractor_reasoning"]}
    return {
        "image": {"type": "image", "sha256": "ab", "width": 1, "height": 1}, "caption": CAPTION,
        "has_punchline": punchline, "synonymous_caption": GIVEN["synonymous"],
        "antonymous_caption": GIVEN["antonymous"], "distractor_caption": GIVEN["distractor"],
        "options": dict.fromkeys("osa", STATEMENTS), **(reasoning if punchline else {}), **fields,
    }  # fmt: skip


def by_kind(items: list[Item]) -> dict[str, Item]:
    return {item.caption_type: item for item in items}


def test_a_pair_with_a_punchline_has_all_formats() -> None:
    files = make_items({"p": result()})
    counts = {f"{task}/{format}": len(items) for (task, format), items in files.items()}
    assert counts == {
        "perception/yes_no": 2, "perception/matching": 2, "perception/multi_option": 3, "reasoning/yes_no": 2,
        "reasoning/matching": 2, "reasoning/generation": 2,
    }  # fmt: skip
    matching = by_kind(files["perception", "matching"])
    for kind, caption in (("o", CAPTION), ("s", GIVEN["synonymous"])):
        one = matching[kind]
        assert sorted(one.options) == sorted([caption, GIVEN["distractor"]]) and one.caption == ""
        assert one.options["AB".index(one.answer)] == caption
    for one in files["perception", "multi_option"]:
        assert one.options["ABCD".index(one.answer)] == STATEMENTS["correct"] and len(one.options) == 4
    sentences = {one.sentence: one.answer for one in files["reasoning", "yes_no"]}
    assert sentences == {GIVEN["reasoning"]: "Yes", GIVEN["distractor_reasoning"]: "No"}
    for one in files["reasoning", "matching"]:
        assert one.options["AB".index(one.answer)] == GIVEN["reasoning"]
    assert {one.answer for one in files["reasoning", "generation"]} == {GIVEN["reasoning"]}


def test_a_pair_without_one_has_the_perception_formats_alone() -> None:
    """Only its antonymous caption makes a punchline, so only that one can be matched."""
    files = make_items({"p": result(punchline=False)})
    assert {file for file, items in files.items() if items} == {
        ("perception", "yes_no"), ("perception", "matching"), ("perception", "multi_option"),
    }  # fmt: skip
    assert [one.caption_type for one in files["perception", "matching"]] == ["a"]
    assert {one.answer: one.caption for one in files["perception", "yes_no"]}["Yes"] == GIVEN["antonymous"]


def test_faulty_items_make_no_questions() -> None:
    faults = [{"item": "distractor_caption", "reason": "x"}, {"item": "distractor_sentence", "reason": "x"}]
    files = make_items({"p": result(distractor_faults=faults[:1], sentence_faults=faults[1:])})
    assert not files["perception", "matching"] and not files["reasoning", "matching"]
    assert files["reasoning", "generation"]


def test_yes_and_no_are_balanced_by_the_hash_of_the_id() -> None:
    items = [item(n, answer="Yes" if n % 3 else "No") for n in range(30)]
    kept = balance(items)
    assert count_answers(kept) == {"No": 10, "Yes": 10}
    assert kept == balance(list(reversed(items)))[::-1], "whatever the order of the records"
    assert balance([item(n) for n in range(5)]) == [], "one class only"


def test_the_order_of_options_is_seeded_by_the_record_and_near_even() -> None:
    answers = [shuffle_options(f"pair-{n}", ["right", "wrong"])[1] for n in range(400)]
    assert answers == [shuffle_options(f"pair-{n}", ["right", "wrong"])[1] for n in range(400)]
    assert 160 < answers.count("A") < 240


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> BuilderModel:
    """A captioner that writes another sentence for each pair."""
    model = BuilderModel.of()
    for place in ("agentsys.systems.load_model", "agentsys.collect.fingerprint.load_model"):
        monkeypatch.setattr(place, lambda *spec, **settings: model)
    return model


def collect(folder: Path, out: str, *options: str, count: int = 6) -> int:
    (folder / "images").mkdir(exist_ok=True)
    records: list[dict[str, Any]] = []
    for n in range(count):
        (folder / "images" / f"{n}.png").write_bytes(png(n))
        fields = {"label": n % 2, **(GIVEN if n % 2 else {"distractor": GIVEN["distractor"]})}
        records.append({"id": f"pair-{n}", "image": f"images/{n}.png", "caption": f"{CAPTION} {n}", **fields})
    lines = write_lines(folder / "pairs.jsonl", records)
    arguments = ["--input", str(lines), "--out", str(folder / out), "--cache", str(folder / f"{out}.sqlite")]
    return run_app(app, [*arguments, *options])


def test_the_command_writes_the_same_files_twice(
    tmp_path: Path, model: BuilderModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect(tmp_path, "one") == 0
    printed = capsys.readouterr().out
    assert "perception" in printed and "multi_option" in printed
    assert collect(tmp_path, "two") == 0
    for name in [*(f"{task}_{format}.jsonl" for task, format in FILES), "report.json"]:
        one, two = (tmp_path / run / "benchmark" / name for run in ("one", "two"))
        assert one.read_bytes() == two.read_bytes() and (name != "perception_yes_no.jsonl" or one.read_bytes())
    items = read_items(tmp_path / "one" / "benchmark")
    assert {(i.task, i.format) for i in items} == set(FILES)
    for one_item in items:
        assert (tmp_path / "one" / "benchmark" / one_item.image).read_bytes()[:4] == b"\x89PNG"
    report = json.loads((tmp_path / "one" / "benchmark" / "report.json").read_text())
    assert report["pairs"] == 6
    yes_no = next(f for f in report["files"] if (f["task"], f["format"]) == ("perception", "yes_no"))
    assert yes_no["answers"]["Yes"] == yes_no["answers"]["No"]


def test_the_command_needs_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["--out", str(tmp_path / "run")]) == 2
    assert "--input: name a file of image-caption pairs" in capsys.readouterr().err


def test_folders_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no task files; name the folder benchmark"):
        read_items(tmp_path)
    (tmp_path / "perception_yes_no.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(InputError, match=r"perception_yes_no.jsonl:1: not a question of PunchBench"):
        read_items(tmp_path)


def test_items_are_read_as_they_were_written(tmp_path: Path) -> None:
    one = replace(item(1, options=["a", "b"]), image="images/a.png")
    (tmp_path / "perception_yes_no.jsonl").write_text(json.dumps(asdict(one)) + "\n")
    assert read_items(tmp_path) == [one]


def test_the_usual_replies_have_a_role_each() -> None:
    assert json.loads(usual_reply("filter_judge", "filter/ethics"))["answer"] == "No"
