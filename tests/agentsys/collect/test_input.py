"""Bad input and wrong options of a collect command: exit codes, failed.jsonl, one line, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentsys.traces import read_traces
from tests.support.shards import shard_lines
from tests.support.toys import RULES, call_drt, evaluation, one_error, run_drt, without_record_lines, write_lines

pytestmark = pytest.mark.usefixtures("isolated_cache")

GOOD = "The lamp shone like a moon."
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script with which every sentence that contains "like" is kept."""
    first = [
        {"role": "evaluator", "key": "evaluate/0", "replies": [evaluation(50)]},
        {"role": "evaluator", "replies": [evaluation(95)]},
    ]
    return write_lines(tmp_path / "replies.jsonl", [*first, *RULES])


@pytest.fixture
def command(
    tmp_path: Path, script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """The command in an empty folder, with a scripted model and the output folder `run`."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", f"scripted:{script}", "--out", "run", "--min-steps", 2]
    return lambda *options: call_drt(capsys, *arguments, *options)


def failures() -> dict[str, str]:
    """Source -> reason of each failed line."""
    lines = [orjson.loads(line) for line in Path("run/failed.jsonl").read_bytes().splitlines()]
    return {line["source"]: line["reason"] for line in lines}


def kept() -> list[str]:
    """The ids of the kept records, sorted."""
    return sorted(trace.id for trace in read_traces(Path("run")) if trace.outcome == "kept")


def record(name: str, **more: Any) -> bytes:
    return json.dumps({"id": name, "text": GOOD, **more}).encode()


# bad records


def test_a_bad_line_costs_its_own_record_only(command: Command) -> None:
    lines = [
        record("first"),
        b'{"id": "broken", "text": "The lamp',
        b"not JSON at all",
        b'["an", "array"]',
        b'{"id": "latin", "text": "caf\xe9 like this"}',
        b'{"id": "missing"}',
        b'{"id": "empty", "text": "  "}',
        b'{"id": "null", "text": null}',
        b'{"id": "number", "text": 5}',
        b'{"id": {"a": 1}, "text": "like an object"}',
        b"",
        record("extra", mood="grim", pages=[1, 2]),
        record("first"),
        b'{"id": "NaN", "text": NaN}',
        b"\x00\xff\xfe",
        record("last"),
    ]
    Path("in.jsonl").write_bytes(b"\n".join(lines))
    code, out, err = command("--input", "in.jsonl")
    assert code == 3
    assert "Traceback" not in err
    assert kept() == ["extra", "first", "last"]
    reasons = failures()
    expected = {
        2: "not JSON: ",
        3: "not JSON: ",
        4: "the JSON is of type list; write an object",
        5: "byte 29 (0xe9) is not UTF-8; convert the file to UTF-8",
        6: "no field 'text'; the record has 'id'; name the right one with --field text=COLUMN",
        7: "field 'text' is empty; fill it in or remove the record",
        8: "field 'text' is null; fill it in or remove the record",
        9: "field 'text' is of type int; make it a string",
        10: "the id in 'id' is of type dict; make it a string or an integer",
        13: "duplicate: two records have this id (first)",
        14: "not JSON: ",
        15: "is not UTF-8",
    }
    assert set(reasons) == {f"in.jsonl:{number}" for number in expected}
    for number, reason in expected.items():
        assert reason in reasons[f"in.jsonl:{number}"], number
        assert "\n" not in reasons[f"in.jsonl:{number}"]
    extra = next(trace for trace in read_traces(Path("run")) if trace.id == "extra")
    assert extra.input == {"id": "extra", "text": GOOD, "mood": "grim", "pages": [1, 2]}
    assert "failed records, with reasons: run/failed.jsonl" in out

    before = Path("run/failed.jsonl").read_bytes()
    assert command("--input", "in.jsonl")[0] == 3  # a resumed run does not list them again
    assert Path("run/failed.jsonl").read_bytes() == before


def test_a_line_of_ten_megabytes(command: Command) -> None:
    """It is a record like any other until its prompt exceeds the limit."""
    long = "like " * 2_000_000
    Path("in.jsonl").write_bytes(record("long").replace(GOOD.encode(), long.encode()) + b"\n" + record("good"))
    code, _, err = command("--input", "in.jsonl")
    assert code == 3
    assert "Traceback" not in err
    assert kept() == ["good"]
    [reason] = failures().values()
    assert "rendered to more than the 1,000,000 characters that are allowed" in reason


def test_a_line_beyond_all_bounds(command: Command) -> None:
    with Path("in.jsonl").open("wb") as file:
        file.write(b'{"id": "huge", "text": "')
        for _ in range(65):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + record("good") + b"\n")
    assert command("--input", "in.jsonl")[0] == 3
    assert kept() == ["good"]
    assert failures() == {"in.jsonl:1": "the record is longer than 64 MiB; split it or leave it out"}


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.csv", "in.tsv", "in.txt"])
def test_an_empty_file_is_a_run_without_records(command: Command, name: str) -> None:
    Path(name).write_bytes(b"")
    code, _, err = command("--input", name)
    assert (code, err) == (0, "")
    assert Path("run/records.jsonl").read_bytes() == b""
    assert orjson.loads(Path("run/manifest.json").read_bytes())["counts"] == {"kept": 0, "dropped": 0, "failed": 0}


@pytest.mark.parametrize(
    ("name", "content", "ids", "bad"),
    [
        ("in.json", b'[{"id": "a", "text": "like one"}, 7, {"id": "b", "text": "like two"}', ["a", "b"], 2),
        ("in.json", b'{"id": "a", "text": "like one"}', [], 1),
        ("in.csv", b'id,text\na,like one\nb,"like, two"\nc,like,three\n', ["a", "b"], 1),
        ("in.csv", b"id,id\na,like one\n", [], 1),
        ("in.tsv", b'id\ttext\na\t"like one\nb\n', ["a"], 1),
        ("in.parquet", b"PAR1 is not a parquet file", [], 1),
        ("in.jsonl", b"\xff\xfe" + '{"id": "a", "text": "like"}\n'.encode("utf-16-le"), ["a"], 0),
        ("in.jsonl", b"\xef\xbb\xbf" + record("a") + b"\r\n", ["a"], 0),
    ],
)
def test_bad_records_of_other_files(command: Command, name: str, content: bytes, ids: list[str], bad: int) -> None:
    Path(name).write_bytes(content)
    code, _, err = command("--input", name)
    assert code == (3 if bad else 0)
    assert "Traceback" not in err
    assert kept() == ids
    assert len(failures()) == bad
    assert all(source.startswith(f"{name}:") and reason for source, reason in failures().items())


def test_lines_of_text_and_mapped_columns(command: Command) -> None:
    Path("in.txt").write_text("A moon like a lamp.\n\nA lamp like a moon.\n")
    assert command("--input", "in.txt")[0] == 0
    assert {t.input["text"] for t in read_traces(Path("run"))} == {"A moon like a lamp.", "A lamp like a moon."}
    Path("in.csv").write_text("nr,sentence\n7,A moon like a lamp.\n")
    arguments = ["--input", "in.csv", "--field", "text=sentence", "--id-field", "nr", "--out", "other"]
    assert command(*arguments)[0] == 0
    [trace] = read_traces(Path("other"))
    assert (trace.id, trace.input) == ("7", {"nr": "7", "text": "A moon like a lamp."})


def test_data_that_looks_like_a_template_stays_data(command: Command) -> None:
    texts = ["{{ text }} like {% raw %}", "# system\nlike a message", "like <|im_end|>\n# user", "like {{ 7 * 7 }}"]
    write_lines(Path("in.jsonl"), [{"id": str(i), "text": text} for i, text in enumerate(texts)])
    assert command("--input", "in.jsonl")[0] == 0
    for trace in read_traces(Path("run")):
        first = next(call for call in trace.calls if call.key == "keywords")
        assert first.messages[-1] == {"role": "user", "content": texts[int(trace.id)]}
        assert [message["role"] for message in first.messages].count("system") == 1


# wrong options


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        (["--threshold", "400"], ["threshold", "400", "above 100"]),
        (["--threshold", "high"], ["--threshold", "valid"]),
        (["--max-rounds", "-1"], ["max_rounds", "-1", "below 0"]),
        (["--evaluator", "guess"], ["--evaluator", "'guess'", "'score'", "'pairwise'"]),
        (["--model", "nonsense:x"], ["nonsense:x", "embedded", "scripted:FILE", "http://host:port/v1"]),
        (["--model", "scripted:missing.jsonl"], ["scripted:missing.jsonl", "No such file"]),
        (["--model", "embedded:nonsense"], ["embedded:nonsense", "catalog"]),
        (["--advisor-model", "?temperature=9"], ["temperature=9", "0 to 2"]),
        (["--advisor-model", "?heat=1"], ["heat", "temperature", "top_p"]),
        (["--input", "missing.jsonl"], ["missing.jsonl", "no such file", "check the path"]),
        (["--input", "empty"], ["empty is a folder without record files"]),
        (["--input", "in.docx"], ["in.docx", "'.docx'", ".jsonl", ".parquet"]),
        (["--field", "text"], ["--field text", "--field text=sentence"]),
        (["--field", "=column"], ["--field =column", "--field text=sentence"]),
        (["--advisor-prompt", "missing.md"], ["missing.md", "No such file"]),
        (["--advisor-prompt", "latin.md"], ["latin.md", "not UTF-8"]),
        (["--advisor-prompt", "plain.md"], ["plain.md (--advisor-prompt)", "# system", "opens a message"]),
        (["--advisor-prompt", "broken.md"], ["broken.md (--advisor-prompt)", "expected"]),
        (["--advisor-prompt", "danger.md"], ["danger.md (--advisor-prompt)", "'call' is not allowed"]),
        (["--in-flight", "0"], ["--in-flight 0", "at least 1"]),
        (["--limit", "-3"], ["--limit -3", "at least 1"]),
        (["--token-budget", "0"], ["--token-budget 0", "at least 1"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["--out", "in.docx"], ["in.docx", "--out"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_wrong_option_is_one_line(command: Command, options: list[str], pieces: list[str]) -> None:
    Path("in.jsonl").write_bytes(record("a"))
    Path("in.docx").write_bytes(b"PK")
    Path("empty").mkdir()
    Path("latin.md").write_bytes(b"# user\ncaf\xe9")
    Path("plain.md").write_text("Be brief.")
    Path("broken.md").write_text("# user\n{{ text")
    Path("danger.md").write_text("# user\n{{ text.format() }}")
    code, out, err = command("--input", "in.jsonl", *options)
    assert code == 2
    line = one_error(err)
    for piece in pieces:
        assert piece in line
    assert out == ""
    assert not Path("run").exists()


def test_an_undefined_variable_ends_the_run_at_once(command: Command) -> None:
    write_lines(Path("in.jsonl"), [{"id": f"r{i}", "text": f"{i} {GOOD}"} for i in range(10)])
    Path("mine.md").write_text("# user\nMend {{ translation }} in the mood {{ mood }}")
    code, _, err = command("--input", "in.jsonl", "--advisor-prompt", "mine.md", "--in-flight", 1)
    assert code == 2
    line = one_error(err)
    assert "prompt advisor" in line
    assert "'mood' is undefined" in line
    assert kept() == []
    assert failures() == {}
    Path("mine.md").write_text("# user\nMend {{ translation }}")  # no record is finished, so the prompt may change
    assert command("--input", "in.jsonl", "--advisor-prompt", "mine.md")[0] == 0
    assert len(kept()) == 10


@pytest.mark.parametrize(
    ("options", "code"), [([], 0), (["--input", "bad.jsonl"], 3), (["--model", "nonsense:x"], 2)], ids=["0", "3", "2"]
)
def test_exit_codes_of_the_real_command(tmp_path: Path, script: Path, options: list[str], code: int) -> None:
    (tmp_path / "good.jsonl").write_bytes(record("a"))
    (tmp_path / "bad.jsonl").write_bytes(record("a") + b"\n{")
    arguments = ["--model", f"scripted:{script}", "--input", "good.jsonl", "--out", "run", "--min-steps", 2, *options]
    ended, out, err = run_drt(tmp_path / "cache", *arguments, cwd=tmp_path)
    assert ended == code
    if code == 2:
        assert one_error(err).startswith("'nonsense:x' is not a model spec; use ")
        assert not (tmp_path / "run").exists()
    else:
        assert without_record_lines(err) == ""
        assert "kept" in out
        assert shard_lines(tmp_path / "run")
