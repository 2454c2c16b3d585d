"""DRT's stage A: sentences of books, what the miner keeps, and a book through the whole command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentsys.collect import RunOptions, collect
from agentsys.graphs.drt.mine import Mining, MiningContext, graph, read_sentences
from agentsys.traces import read_traces
from tests.support.drt import TEXT, TEXTS, script_rules
from tests.support.toys import call_drt, one_error, write_lines


def judgement(figurative: bool, suitable: bool) -> str:
    """A reply of the miner."""
    return json.dumps({"figurative": figurative, "literal": "直译", "suitable": suitable, "reason": "because"})


def words(count: int, first: str = "Word") -> str:
    """A sentence of so many words."""
    return " ".join([first, *["word"] * (count - 1)]) + "."


def test_sentences_of_a_book(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    paragraphs = [
        "Mr. Smith met Dr. Brown at 5.30 p.m.\nand they walked home together slowly. Short one.",
        f"{words(9)} {words(10, 'Ten')} {words(100, 'Hundred')} {words(101, 'More')}",
    ]
    book.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(paragraphs).encode())
    sentences = list(read_sentences([book], "English"))
    assert [(s["text"].split()[0], len(s["text"].split()), s["source"]) for s in sentences] == [
        ("Mr.", 14, "book.txt, paragraph 1"),
        ("Ten", 10, "book.txt, paragraph 2"),
        ("Hundred", 100, "book.txt, paragraph 2"),
    ]


def test_mining_keeps_what_is_figurative_and_unsuitable(tmp_path: Path) -> None:
    for name, (figurative, suitable), outcome in [
        ("a", (True, False), ("kept", None)),
        ("b", (True, True), ("dropped", "literal is suitable")),
        ("c", (False, True), ("dropped", "no figure of speech")),
    ]:
        script = write_lines(
            tmp_path / f"{name}.jsonl", [{"role": "miner", "replies": [judgement(figurative, suitable)]}]
        )
        context = MiningContext(f"scripted:{script}", target_language="ja")
        collect(graph, [TEXT], tmp_path / name, context=context, options=RunOptions(no_cache=True))
        [trace] = read_traces(tmp_path / name)
        assert (trace.outcome, trace.reason) == outcome
        assert "Japanese" in trace.calls[0].messages[0]["content"]


@pytest.mark.parametrize(
    ("reply", "outcome", "judged"),
    [
        ({"figurative": False}, "dropped", {"figurative": False}),
        ({"figurative": False, "literal": "", "suitable": None, "reason": "x"}, "dropped", {"figurative": False}),
        (
            {"figurative": True, "literal": "直译", "suitable": True},
            "dropped",
            {"figurative": True, "literal": "直译", "suitable": True, "reason": ""},
        ),
        ({"figurative": True}, "failed", None),
        ({"figurative": True, "literal": " ", "suitable": False}, "failed", None),
        ({"figurative": True, "literal": "直译"}, "failed", None),
        ({"figurative": True, "literal": "the ivy leaf", "suitable": True}, "failed", None),
    ],
)
def test_a_verdict_has_only_what_it_needs(
    tmp_path: Path, reply: dict[str, Any], outcome: str, judged: dict[str, Any] | None
) -> None:
    script = write_lines(tmp_path / "miner.jsonl", [{"role": "miner", "replies": [json.dumps(reply)]}])
    context = MiningContext(f"scripted:{script}")
    summary = collect(graph, [TEXT], tmp_path / "run", context=context, options=RunOptions(no_cache=True))
    assert getattr(summary, outcome) == 1
    assert [(trace.result or {}).get("judgement") for trace in read_traces(tmp_path / "run")] == [judged] * bool(judged)
    if outcome == "failed":
        failure = (tmp_path / "run" / "failed.jsonl").read_text()
        reasons = (r"a figurative sentence needs \"literal\" and \"suitable\" too", r"write \"literal\" in Chinese")
        assert any(reason in failure for reason in reasons)


def test_the_schema_lets_a_verdict_end_after_the_first_answer() -> None:
    schema = Mining().miner.schema
    assert schema is not None and schema["required"] == ["figurative"]
    assert [*schema["properties"]] == ["figurative", "literal", "suitable", "reason"]


def test_the_miner_sees_the_sentences_around(tmp_path: Path) -> None:
    script = write_lines(tmp_path / "miner.jsonl", [{"role": "miner", "replies": [judgement(False, False)]}])
    records = [{"text": "T.", "before": "B.", "after": ""}, {"text": "U."}]
    context = MiningContext(f"scripted:{script}", source_language="pt", target_language="zh-TW")
    collect(graph, records, tmp_path / "run", context=context, options=RunOptions(no_cache=True))
    traces = {trace.input["text"]: trace.calls[0].messages for trace in read_traces(tmp_path / "run")}
    assert traces["T."][-1]["content"] == "Sentence to judge: T.\nThe sentence before it, only for context: B.\n"
    assert traces["U."][-1]["content"] == "U."
    assert "from Portuguese into Chinese (Traditional, Taiwan)" in traces["U."][0]["content"]


def test_a_book_goes_through_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.txt"
    like = "Her laughter ran down the stairs like a child let out of school."
    book.write_text(f"{like} He ran to the door and opened it for all of his friends.\n\n{like} Too short.")
    script = write_lines(tmp_path / "replies.jsonl", script_rules((50, 95), TEXTS))
    out = tmp_path / "run"
    prompt = tmp_path / "miner.md"
    prompt.write_text("# user\nMARKED {{ text }}")
    miner = write_lines(tmp_path / "miner.jsonl", [{"role": "miner", "replies": [judgement(True, False)]}])
    miner_options = ["--miner-model", f"scripted:{miner}", "--miner-prompt", prompt]
    folders = ["--out", out, "--cache", tmp_path / "c"]
    options = ["--profile", "paper", "--model", f"scripted:{script}", *miner_options]
    options += ["--book", book, *folders, "--min-steps", 2]
    code, printed, err = call_drt(capsys, *options)
    assert code == 3, err  # the sentence without "like" fails the check of the key words
    mined_records = [orjson.loads(line) for line in (out / "mined" / "mined.jsonl").read_bytes().splitlines()]
    assert sorted(line["text"][:3] for line in mined_records) == ["He ", "Her"]  # the repeated sentence is there once
    assert {line["reason"] for line in mined_records} == {"because"}
    assert {line["source"] for line in mined_records} == {"book.txt, paragraph 1"}
    assert "mined: 2 sentences kept, 0 dropped, 0 failed" in printed
    miner_prompts = [trace.calls[0].messages[-1]["content"] for trace in read_traces(out / "mined")]
    assert all(text.startswith("MARKED ") for text in miner_prompts)
    records = [orjson.loads(line) for line in (out / "records.jsonl").read_bytes().splitlines()]
    assert [sorted(record) for record in records] == [["text", "thought", "trans"]]
    assert records[0]["text"] == like
    assert records[0]["trans"] == TEXTS[1]
    assert TEXTS[0] in records[0]["thought"]
    [trace] = read_traces(out)
    assert trace.input["source"] == "book.txt, paragraph 1"
    assert call_drt(capsys, *options)[0] == 3  # resumed: nothing is left to do
    assert len(list(read_traces(out))) == 1


@pytest.mark.parametrize(
    ("book", "language", "message"),
    [
        ("missing.txt", "English", "book missing.txt: No such file or directory"),
        ("folder", "English", "book folder: the folder has no .txt file; give books as plain text"),
        ("latin.txt", "English", "book latin.txt: not UTF-8 text"),
        (
            "good.txt",
            "Elvish tongue",
            "--source-language Elvish tongue: the language of the book is unknown; give its code, such as 'pt'",
        ),
    ],
)
def test_a_book_that_cannot_be_read_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    book: str,
    language: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("good.txt").write_text(words(12))
    Path("latin.txt").write_bytes(words(12).encode() + b" caf\xe9")
    script = write_lines(Path("replies.jsonl"), script_rules((95,)))
    options = ["--model", f"scripted:{script}", "--out", "run", "--no-cache", "--source-language", language]
    code, _, err = call_drt(capsys, *options, "--book", "good.txt", "--book", book)
    assert code == 2
    assert message in one_error(err)
    assert not Path("run").exists()  # nothing is written, no model is called
