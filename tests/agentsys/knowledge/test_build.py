"""Building an index: sources, failed records, adding, kill -9, and the command line."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agentsys.commands import command, run_app
from agentsys.knowledge import IndexSettings, KnowledgeError, build_index, index_digest, load_retriever, open_retriever
from agentsys.knowledge.__main__ import build, search
from agentsys.knowledge.manifest import read_manifest
from agentsys.knowledge.passages import Passage, Passages
from agentsys.knowledge.store import FAILED_FILE
from tests.support.passages import RECORDS, WordEmbedder
from tests.support.paths import ROOT
from tests.support.toys import PYTHON_PATH, write_lines

pytestmark = pytest.mark.needs("knowledge")

MANY = [{"id": f"r{i}", "title": f"Title {i}", "text": f"passage number {i} of many"} for i in range(3000)]


def read_failed(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / FAILED_FILE).read_bytes().splitlines()]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run `python -m agentsys.knowledge`; return its exit code, stdout and stderr."""
    code = run_app(command(build, search), [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def read_passages(folder: Path) -> list[Passage]:
    return list(Passages(folder))


# Sources


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_record_files(tmp_path: Path, suffix: str) -> None:
    records = [{"id": "1", "title": "Ä", "text": 'say "hi",\nthen go'}, {"id": "2", "title": "", "text": "你好"}]
    path = tmp_path / f"in.{suffix}"
    if suffix == "jsonl":
        write_lines(path, records)
    elif suffix == "csv":
        path.write_text('id,title,text\n1,Ä,"say ""hi"",\nthen go"\n2,,你好\n', encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    build_index(path, tmp_path / "i")
    assert [(p.id, p.title, p.text) for p in read_passages(tmp_path / "i")] == [tuple(r.values()) for r in records]


def test_a_folder_of_text_and_markdown(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    (source / "a.txt").write_text("# not a heading in plain text")
    (source / "sub" / "b.MD").write_text("intro\n\n##  The *heading* ##\nbody", encoding="utf-8")
    (source / "sub" / "c.md").write_text("no heading")
    (source / "d.pdf").write_text("ignored")
    (source / "e.txt").write_text(" \n")
    (source / "f.txt").write_bytes(b"\xff\xfe")
    built = build_index(source, tmp_path / "i")
    assert {p.id: (p.title, p.text) for p in read_passages(tmp_path / "i")} == {
        "a.txt": ("a", "# not a heading in plain text"),
        "sub/b.MD": ("The *heading*", "intro\n\n##  The *heading* ##\nbody"),
        "sub/c.md": ("c", "no heading"),
    }
    assert built.failed == 2
    assert [entry["reason"].partition(";")[0] for entry in read_failed(tmp_path / "i")] == [
        "the file is empty",
        "byte 1 is not UTF-8",
    ]


def test_the_steps_are_watched(tmp_path: Path) -> None:
    """Documents are read, and their passages embedded."""
    seen: list[tuple[str, int, int | None]] = []
    records = write_lines(tmp_path / "in.jsonl", [{"text": "one two three four"}, {"text": ""}, {"text": "five"}])
    settings = IndexSettings(kind="hybrid", chunk_words=2)
    build_index(records, tmp_path / "i", settings, embedder=WordEmbedder(), watch=lambda *step: seen.append(step))
    assert seen[:3] == [("reading", 1, 3), ("reading", 2, 3), ("reading", 3, 3)]
    assert [step for step in seen[3:] if step[1] == step[2]] == [("embedding", 3, 3)]


def test_the_command_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agentsys.progress.LINE_SECONDS", -1)
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.txt").write_text("one two")
    code, _, err = run(capsys, "build", tmp_path / "in", "--out", tmp_path / "i", "--kind", "bm25", "--chunk-words", 1)
    assert code == 0
    first, second = [line.partition(": ")[2] for line in err.splitlines()]
    assert first.startswith("reading: 1 of 2 documents done, about 0 s left, ")
    assert second.startswith("reading: 2 of 2 documents done, about 0 s left, ")


def test_columns_of_other_names(tmp_path: Path) -> None:
    build_index([{"body": "hello", "n": 3}], tmp_path / "i", fields={"text": "body", "id": "n"})
    assert read_passages(tmp_path / "i") == [Passage("3", "hello", "", {})]


async def test_chunks(tmp_path: Path) -> None:
    text = " ".join(f"w{i}" for i in range(10))
    build_index(
        [{"id": "d", "title": "T", "text": text, "n": 1}], tmp_path / "i", IndexSettings(chunk_words=4, overlap_words=1)
    )
    assert [(p.id, p.text) for p in read_passages(tmp_path / "i")] == [
        ("d#0", "w0 w1 w2 w3"),
        ("d#1", "w3 w4 w5 w6"),
        ("d#2", "w6 w7 w8 w9"),
    ]
    [hits] = await open_retriever(tmp_path / "i").search(["w8"], 1)
    assert (hits[0].passage.title, hits[0].passage.meta) == ("T", {"n": 1, "document": "d"})


# Failed records, adding


def test_failed_records_are_listed_and_the_rest_is_indexed(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [*RECORDS[:2], {"id": "x"}, {"id": "y", "text": " "}, RECORDS[0], {"id": "t", "title": 5, "text": "a"}]
    write_lines(path, lines)
    path.write_bytes(path.read_bytes() + b"{broken\n")
    built = build_index(path, tmp_path / "i")
    assert (built.passages, built.failed) == (2, 5)
    failures = [(entry["source"].rpartition(":")[2], entry["reason"]) for entry in read_failed(tmp_path / "i")]
    expected = ["no field 'text'", "'text' is empty", "the id occurs twice", "'title' is of type int", "not JSON"]
    assert [line for line, _ in failures] == ["3", "4", "5", "6", "7"]
    assert all(part in reason for part, (_, reason) in zip(expected, failures, strict=True))


@pytest.mark.parametrize("kind", ["bm25", "hybrid"])
def test_adding_gives_the_same_index_as_one_build(tmp_path: Path, kind: Any) -> None:
    embedder = WordEmbedder()
    settings = IndexSettings(kind)
    assert build_index(RECORDS[:4], tmp_path / "i", settings, embedder=embedder).added == 4
    built = build_index(RECORDS, tmp_path / "i", settings, embedder=embedder)
    assert (built.added, built.passages, built.failed) == (2, 6, 0)
    again = build_index(RECORDS, tmp_path / "i", settings, embedder=embedder)
    assert (again.added, again.digest) == (0, built.digest)
    assert build_index(RECORDS, tmp_path / "whole", settings, embedder=embedder).digest == built.digest
    queries = ["北京 album", "the cat and the dog"]
    both = [open_retriever(tmp_path / name, kind, WordEmbedder()) for name in ("i", "whole")]
    hits = [asyncio.run(retriever.search(queries, 6)) for retriever in both]
    assert hits[0] == hits[1]


def test_an_id_with_different_content_fails(tmp_path: Path) -> None:
    build_index(RECORDS, tmp_path / "i")
    built = build_index([RECORDS[0] | {"text": "changed"}, {"id": "new", "text": "new"}], tmp_path / "i")
    assert (built.added, built.failed, built.passages) == (1, 1, 7)
    assert "in the index with different content" in read_failed(tmp_path / "i")[0]["reason"]
    assert read_passages(tmp_path / "i")[0].text == RECORDS[0]["text"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    build_index(RECORDS, tmp_path / "i", IndexSettings("hybrid"), embedder=WordEmbedder())
    for settings, line in (
        (IndexSettings("bm25"), "--kind hybrid, not bm25"),
        (IndexSettings("hybrid", chunk_words=5), "--chunk-words 0, not 5"),
        (IndexSettings("hybrid", k1=2.0), "--k1 0.9, not 2.0"),
    ):
        with pytest.raises(KnowledgeError, match=line):
            build_index(RECORDS, tmp_path / "i", settings, embedder=WordEmbedder())
    with pytest.raises(KnowledgeError, match="'counts', not 'others'"):
        build_index(RECORDS, tmp_path / "i", IndexSettings("hybrid"), embedder=WordEmbedder("others"))


class WrongEmbedder(WordEmbedder):
    async def embed(self, texts: Any) -> Any:
        return [[float("nan")] * 4 for _ in texts]


def test_a_model_that_does_not_work_fails_before_any_file_is_written(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match="finite numbers of shape"):
        build_index(RECORDS, tmp_path / "i", IndexSettings("dense"), embedder=WrongEmbedder())
    assert not (tmp_path / "i").exists()


async def test_the_error_in_a_running_event_loop_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match=r"await asyncio\.to_thread\(build_index"):
        build_index(RECORDS, tmp_path / "i", IndexSettings("dense"), embedder=WordEmbedder())


# Kills


class Dies(WordEmbedder):
    """Kills the process at the second batch."""

    async def embed(self, texts: Any) -> Any:
        if len(self.texts) > 300:
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().embed(texts)


def start_child(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PYTHON_PATH},
        text=True,
        stderr=subprocess.PIPE,
    )


def test_a_build_killed_while_embedding_resumes(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", MANY[:1000])
    process = start_child(
        "from tests.agentsys.knowledge.test_build import *\n"
        f"build_index({str(source)!r}, {str(tmp_path / 'i')!r}, IndexSettings('hybrid'), embedder=Dies())"
    )
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(KnowledgeError, match="is incomplete; rerun its build command to resume"):
        load_retriever(tmp_path / "i")
    embedder = WordEmbedder()
    built = build_index(source, tmp_path / "i", IndexSettings("hybrid"), embedder=embedder)
    assert built.passages == 1000
    assert 0 < len(embedder.texts) < 1000  # passages embedded before the kill are not embedded again
    whole = build_index(source, tmp_path / "whole", IndexSettings("hybrid"), embedder=WordEmbedder())
    assert built.digest == whole.digest
    assert open_retriever(tmp_path / "i", "dense", embedder)  # checks the number of vectors


def test_a_build_killed_while_reading_resumes(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", MANY)
    code = (
        "from tests.agentsys.knowledge.test_build import *\n"
        "from agentsys.knowledge import store\n"
        "store._BUFFER = 100\n"  # so that a kill tears a line
        "slow = lambda step, done, total: time.sleep(0.002)\n"
        f"build_index({str(source)!r}, {str(tmp_path / 'i')!r}, IndexSettings(chunk_words=3), watch=slow)"
    )
    process = start_child(code)
    file = tmp_path / "i" / "passages.jsonl"
    end = time.monotonic() + 60
    while not (file.exists() and file.stat().st_size > 20_000):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    with file.open("ab") as torn:
        torn.write(b'{"id": "r9')
    built = build_index(source, tmp_path / "i", IndexSettings(chunk_words=3))
    whole = build_index(source, tmp_path / "whole", IndexSettings(chunk_words=3))
    assert file.read_bytes() == (tmp_path / "whole" / "passages.jsonl").read_bytes()
    assert (built.passages, built.digest) == (whole.passages, whole.digest)


def test_a_kill_while_adding_leaves_the_old_index(tmp_path: Path) -> None:
    build_index(RECORDS[:3], tmp_path / "i")
    digest = index_digest(tmp_path / "i")
    with (tmp_path / "i" / "passages.jsonl").open("ab") as file:  # the state after a kill while reading
        file.write(Passage("late", "late").to_line() + b'{"id": "to')
    assert index_digest(tmp_path / "i") == digest
    assert len(Passages(tmp_path / "i")) == 3
    assert build_index([{"id": "late", "text": "late"}], tmp_path / "i").passages == 4


def test_two_builds_do_not_mix(tmp_path: Path) -> None:
    from filelock import FileLock

    build_index(RECORDS, tmp_path / "i")
    with FileLock(tmp_path / "i" / ".lock"), pytest.raises(KnowledgeError, match="another build is writing here"):
        build_index(RECORDS, tmp_path / "i")


# The command line


def test_build_and_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "in.jsonl", RECORDS)
    code, out, err = run(capsys, "build", source, "--out", tmp_path / "i")
    assert (code, err) == (0, "")
    assert "6 passages, 6 of them new" in out
    code, out, _ = run(capsys, "search", tmp_path / "i", "final answer", "--k", 2)
    assert code == 0
    assert all(part in out for part in ("rank", "score", "marks", "[bold]x"))
    code, out, _ = run(capsys, "search", tmp_path / "i", "zebra")
    assert code == 0


def test_failed_records_are_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "in.jsonl", [*RECORDS, {"id": "x", "text": None}])
    code, out, err = run(capsys, "build", source, "--out", tmp_path / "i")
    assert code == 3
    assert "6 passages" in out
    assert "1 records failed" in err
    assert read_manifest(tmp_path / "i")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["in.jsonl"], "--out is required"),
        (["empty.jsonl", "--out", "i"], "no records"),
        (["folder", "--out", "i"], "no .txt or .md file"),
        (["none.jsonl", "--out", "i"], "no such file"),
        (["in.jsonl", "--out", "i", "--kind", "dense"], "no embedding model: give"),
        (["in.jsonl", "--out", "i", "--kind", "dense", "--embedding", "http://host/v1"], "the model is missing"),
        (["in.jsonl", "--out", "i", "--kind", "dense", "--embedding", "no/such-model"], "cannot be loaded"),
        (["in.jsonl", "--out", "i", "--chunk-words", "5", "--overlap-words", "5"], "less than --chunk-words 5"),
        (["in.jsonl", "--out", "i", "--chunk-words", "-1"], "at least 1"),
        (["in.jsonl", "--out", "i", "--b", "2"], "from 0 to 1"),
        (["in.jsonl", "--out", "i", "--field", "text"], "--field text: give"),
        (["in.jsonl", "--out", "in.jsonl"], "is a file"),
        (["in.jsonl", "--out", "folder"], "is not an index"),
    ],
)
def test_errors_of_the_command_are_one_line_and_write_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in.jsonl", RECORDS)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.bin").touch()
    code, out, err = run(capsys, "build", *arguments)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "i").exists()


def test_the_error_for_only_failed_records_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"id": "x", "text": ""}])
    code, _, err = run(capsys, "build", source, "--out", tmp_path / "i")
    assert code == 2
    assert "all records failed" in err
    assert len(read_failed(tmp_path / "i")) == 1
