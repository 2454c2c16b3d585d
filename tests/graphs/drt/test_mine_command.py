"""The command of DRT's stage A: books in, sentences.jsonl out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from agentsys.commands import run_app
from agentsys.graphs.drt_mine import app
from agentsys.traces import read_traces
from tests.support.drt import TEXTS, script_rules
from tests.support.toys import call_drt, one_error, write_lines

Command = Callable[..., tuple[int, str, str]]

LIKE = "Her laughter ran down the stairs like a child let out of school."
PLAIN = "He ran to the door and opened it for all of his friends."
ICE = "The old teacher was made of ice from his shoes to his voice."


def judge(text: str, figurative: bool, suitable: bool, kind: str = "replies") -> dict[str, object]:
    reply = json.dumps({"figurative": figurative, "literal": "直译", "suitable": suitable, "reason": f"on {text[:3]}"})
    return {"role": "miner", "key": "judge", kind: [reply]}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in a folder with two books. Returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("one.txt").write_text(f"{LIKE} {PLAIN} Too short.\n\n{LIKE}")
    Path("two.txt").write_text(ICE)
    write_lines(Path("keep.jsonl"), [judge(LIKE, True, False)])
    write_lines(Path("drop.jsonl"), [judge(LIKE, True, True)])
    write_lines(Path("break.jsonl"), [{"role": "miner", "replies": ["no JSON"]}])

    def run(*arguments: object, model: str = "keep") -> tuple[int, str, str]:
        code = run_app(app, [*map(str, arguments), "--model", f"scripted:{model}.jsonl", "--no-cache"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def lines_of(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_the_kept_sentences_of_books_are_written_with_their_judgements(mine: Command) -> None:
    code, out, err = mine("one.txt", "two.txt")
    assert code == 0, err
    folder = Path("runs/drt-mine-one")
    lines = lines_of(folder / "sentences.jsonl")
    assert sorted((line["text"], line["source"]) for line in lines) == [
        (PLAIN, "one.txt, paragraph 1"),
        (LIKE, "one.txt, paragraph 1"),
        (ICE, "two.txt, paragraph 1"),
    ]
    assert {trace.id for trace in read_traces(folder)} == {line["id"] for line in lines}
    assert all(line["figurative"] and not line["suitable"] and line["reason"] == "on Her" for line in lines)
    rows = dict([cell.strip(" ") for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line)
    names = ("kept", "dropped", "books read", "sentences read", "not of 10 to 100 words", "repeated")
    assert {name: rows[name] for name in names} == {
        "kept": "3",
        "dropped": "0",
        "books read": "2",
        "sentences read": "5",
        "not of 10 to 100 words": "1",
        "repeated": "1",
    }
    assert "runs/drt-mine-one/sentences.jsonl" in out
    assert (folder / "prompts" / "miner.md").exists()


def test_a_folder_of_books_with_the_sentences_around(mine: Command) -> None:
    Path("books").mkdir()
    for name in ("one.txt", "two.txt"):
        Path(name).rename(f"books/{name}")
    assert mine("books", "--context-sentences")[0] == 0
    lines = lines_of(Path("runs/drt-mine-books/sentences.jsonl"))
    assert [(line["before"], line["text"], line["after"]) for line in lines] == [
        ("", LIKE, PLAIN),
        (LIKE, PLAIN, "Too short."),
        ("", ICE, ""),
    ]
    assert mine("books/t*.txt", "--out", "two")[0] == 0
    assert [line["text"] for line in lines_of(Path("two/sentences.jsonl"))] == [ICE]


def test_lines_as_paragraphs_can_be_forced(mine: Command) -> None:
    Path("three.txt").write_text("A Night\n" + LIKE.replace(" like", "\nlike"))
    mine("three.txt", "--out", "auto")
    assert [line["text"] for line in lines_of(Path("auto/sentences.jsonl"))] == [LIKE]
    assert mine("three.txt", "--paragraphs", "lines", "--out", "lines")[0] == 2


def test_the_table_says_why_sentences_were_dropped(mine: Command) -> None:
    code, out, _ = mine("one.txt", "--out", "run", model="drop")
    assert code == 0
    dropped = out.index("│ dropped")
    assert dropped < out.index("│   literal is suitable") < out.index("│ failed")
    assert Path("run/sentences.jsonl").read_bytes() == b""


def test_an_unfinished_run_is_resumed(mine: Command) -> None:
    assert mine("one.txt", "--out", "run", "--limit", 1)[0] == 0
    assert [line["text"] for line in lines_of(Path("run/sentences.jsonl"))] == [LIKE]
    code, out, _ = mine("one.txt", "--out", "run")
    assert code == 0
    assert "finished before this run" in out
    assert [line["text"] for line in lines_of(Path("run/sentences.jsonl"))] == [LIKE, PLAIN]


def test_failed_sentences_are_exit_code_3(mine: Command) -> None:
    code, out, _ = mine("two.txt", model="break")
    assert code == 3
    assert "no usable reply in 3 attempts" in out


def test_its_file_is_the_input_of_the_next_stage(mine: Command, capsys: pytest.CaptureFixture[str]) -> None:
    mine("one.txt", "--limit", 1, "--out", "mined")
    script = write_lines(Path("replies.jsonl"), script_rules((50, 95), TEXTS))
    options = ["--profile", "paper", "--model", f"scripted:{script}", "--min-steps", 2, "--no-cache", "--out", "run"]
    code, _, err = call_drt(capsys, *options, "--input", "mined/sentences.jsonl")
    assert code == 0, err
    [record] = lines_of(Path("run/records.jsonl"))
    assert record["text"] == LIKE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument"),
        (["nope.txt"], "book nope.txt: No such file or directory"),
        (["short.txt"], "short.txt: no sentence of 10 to 100 words; give books as plain text"),
        (["one.txt", "--input", "x.jsonl"], "--input: this command reads books; give them as arguments, BOOK..."),
        (["one.txt", "--field", "text=a"], "--field, --id-field: books have no columns; leave these options out"),
        (["one.txt", "--id-field", "nr"], "--field, --id-field: books have no columns; leave these options out"),
        (["one.txt", "--target-language", ""], "target_language: it is empty; give the language of the literal"),
        (["one.txt", "--source-language", "Elvish"], "the language of the book is unknown; give its code"),
        (["one.txt", "--source-language", "jp"], "source_language: 'jp' is not a language code; write one such as zh"),
        (["one.txt", "--target-language", "cn"], "target_language: 'cn' is not a language code; write one such as zh"),
        (
            ["one.txt", "--source-language", "zh"],
            "--source-language zh: one.txt, paragraph 1 is written in Latin letters; give the language of the books",
        ),
        (["*.tex"], "book *.tex: no file matches this pattern"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(mine: Command, arguments: list[str], message: str) -> None:
    Path("short.txt").write_text("Too short.")
    code, out, err = mine(*arguments)
    assert (code, out) == (2, "")
    assert message in one_error(err)
    assert not Path("runs").exists()


def test_the_help_says_that_it_is_stage_a(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["--help"]) == 0
    text = capsys.readouterr().out
    assert "Stage A of the DRT paper" in text
    options = [line.split()[1] for line in text.splitlines() if line.startswith("│ --")]
    assert {"--out", "--limit", "--model", "--target-language"} <= {*options}
    assert not {"--input", "--field", "--id-field"} & {*options}
