"""Damage in a run's folder: the same words wherever it is read, and `agentsys check` finds and repairs it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from filelock import FileLock

from agentsys.cli import main
from agentsys.collect import RunFolderError, RunOptions, Summary, collect
from agentsys.collect.manifest import MANIFEST_COPY
from agentsys.graphs.drt.system import Context, graph
from agentsys.traces import read_finished, read_traces
from tests.support.shards import unpack_shards
from tests.support.toys import one_error, outcomes, read_manifest, sentences

COUNT = 12
FAILED = 3
"""r5 and r10 lack the word that the scripted model picks, one reply is unusable, and one record has no text."""
SHARD = "traces-00000.jsonl"


@pytest.fixture
def run(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """Collects 12 records into `run`, of which 4 fail."""
    monkeypatch.chdir(tmp_path)

    def collect_records(folder: str = "run", **options: Any) -> Summary:
        records = [*sentences(COUNT - 1, 5), {"id": "empty", "text": ""}]
        settings = RunOptions(cache=Path("cache.sqlite"), **options)
        return collect(graph, records, folder, context=Context(model), options=settings)

    return collect_records


@pytest.fixture
def folder(run: Callable[..., Summary]) -> Path:
    """A finished run."""
    assert run().failed == FAILED
    return unpack_shards(Path("run"))


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["check", "run", *arguments])
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).splitlines()


def edit_line(path: Path, number: int, change: Callable[[bytes], bytes]) -> bytes:
    """Change a line of a file (from 1) and return it."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = change(lines[number - 1])
    path.write_bytes(b"".join(lines))
    return lines[number - 1]


def with_values(**values: Any) -> Callable[[bytes], bytes]:
    return lambda line: orjson.dumps(orjson.loads(line) | values) + b"\n"


def with_call(**values: Any) -> Callable[[bytes], bytes]:
    def change(line: bytes) -> bytes:
        trace = orjson.loads(line)
        trace["calls"][1] |= values
        return orjson.dumps(trace) + b"\n"

    return change


def zeros(line: bytes) -> bytes:
    middle = len(line) // 2
    return line[:middle] + bytes(40) + line[middle + 40 :]


LINES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "zeros in it": (zeros, "40 bytes are zero"),
    "all zeros": (lambda line: bytes(len(line) - 1) + b"\n", "bytes are zero"),
    "blank": (lambda line: b"\n", "a blank line"),
    "spaces": (lambda line: b"  \t\r\n", "a blank line"),
    "cut off": (lambda line: line[: len(line) // 2] + b"\n", "not JSON"),
    "without its start": (lambda line: line[len(line) // 2 :], "not JSON"),
    "two in one": (lambda line: line[:-1] + line, "not JSON"),
    "text": (lambda line: b"hello\n", "not JSON"),
    "not UTF-8": (lambda line: line.replace(b'"system":"', b'"system":"\xff\xfe'), "not JSON"),
    "lone surrogate": (lambda line: line.replace(b'"id":"r', b'"id":"\\ud800'), "not JSON"),
    "bad escape": (lambda line: line.replace(b'"id":"r', b'"id":"\\uZZZZ'), "not JSON"),
    "deep": (lambda line: b"[" * 100_000 + b"\n", "not JSON"),
    "list": (lambda line: b"[]\n", "not a trace: no version field"),
    "number": (lambda line: b"3\n", "not a trace: no version field"),
    "null": (lambda line: b"null\n", "not a trace: no version field"),
    "empty object": (lambda line: b"{}\n", "not a trace: no version field"),
    "version true": (with_values(version=True), "not a trace: no version field"),
    "outcome banana": (with_values(outcome="banana"), "not a trace: 'outcome' is 'banana'"),
    "outcome rejected": (with_values(outcome="rejected"), "not a trace: 'outcome' is 'rejected'"),
    "outcome failed": (with_values(outcome="failed"), "the trace of a failed record"),
    "outcome list": (with_values(outcome=["kept"]), "not a trace: 'outcome' is a list"),
    "id number": (with_values(id=5), "not a trace: 'id' is a number"),
    "id null": (with_values(id=None), "not a trace: 'id' is null"),
    "calls object": (with_values(calls={}), "not a trace: 'calls' is an object"),
    "calls of texts": (with_values(calls=["a"]), "not a trace: 'calls' has an item that is a text"),
    "input list": (with_values(input=[]), "not a trace: 'input' is a list"),
    "measured null": (with_values(measured=None), "not a trace: 'measured' is null"),
    "tree number": (with_values(tree=3), "not a trace: 'tree' is a number"),
    "targets of numbers": (with_values(targets=[1]), "not a trace: 'targets' has an item that is a number"),
    "target empty": (with_values(targets=[{}]), "not a trace: one of its targets"),
    "target segments": (with_values(targets=[{"kind": "sft", "segments": 4}]), "not a trace: one of its targets"),
    "another field": (with_values(extra=1), "not a trace: a trace has no field 'extra'"),
    "call without text": (with_call(text=None), "not a trace: in calls[1], 'text' is null"),
    "call with ids of texts": (with_call(ids=[1, "2"]), "in calls[1], 'ids' has an item that is a text"),
    "call with a text as tokens": (with_call(prompt_tokens="3"), "in calls[1], 'prompt_tokens' is '3'"),
    "call with a list as measured": (with_call(measured=[]), "in calls[1], 'measured' is a list"),
    "call with another mode": (with_call(mode="morse"), "in calls[1], 'mode' is 'morse'"),
    "call with another field": (with_call(volume=11), "in calls[1], a call has no field 'volume'"),
}


@pytest.mark.parametrize("kind", LINES)
def test_a_damaged_line_has_the_same_words_everywhere_and_its_record_is_due_again(
    run: Callable[..., Summary], folder: Path, capsys: pytest.CaptureFixture[str], calls: Callable[[], int], kind: str
) -> None:
    change, fault = LINES[kind]
    before, paid = outcomes(folder), calls()
    original = (folder / SHARD).read_bytes()
    line = edit_line(folder / SHARD, 4, change)
    damaged = (folder / SHARD).read_bytes()

    words = set()
    for read in (lambda: list(read_traces(folder)), lambda: list(read_finished(folder)), run):
        with pytest.raises(RunFolderError) as error:
            read()
        words.add(str(error.value))
    for command in (["export", "run"], ["rows", "run", "--out", "rows", "--student", "none"]):
        if command[0] == "export":
            assert main(command) == 2
            words.add(one_error(capsys.readouterr().err))
    [word] = words
    assert word.startswith(f"run/{SHARD}:4: ") and fault in word
    assert word.endswith("; run `agentsys check run --repair`")
    assert calls() == paid  # noticed before anything is collected
    assert (folder / SHARD).read_bytes() == damaged
    assert not (folder / "traces.parquet").exists()

    code, listed = check(capsys)
    assert code == 1
    assert listed[0] == word.partition("; run `agentsys check")[0]
    assert len(listed) == 2
    code, listed = check(capsys, "--repair")
    assert code == 0, listed
    assert (folder / "damaged" / SHARD).read_bytes() == line
    assert (folder / SHARD).read_bytes() == b"".join(
        one for number, one in enumerate(original.splitlines(keepends=True), 1) if number != 4
    )
    assert read_manifest(folder)["counts"]["failed"] == FAILED
    assert sum(read_manifest(folder)["counts"].values()) == COUNT - 1
    assert check(capsys) == (0, ["run: no damage"])
    summary = run()
    assert (summary.processed, summary.calls) == (1, 0)  # its calls come from the request cache
    assert outcomes(folder) == before
    assert sum(read_manifest(folder)["counts"].values()) == COUNT


FAILED_LINES: dict[str, tuple[bytes, str]] = {
    "zeros": (bytes(300) + b"\n", "300 bytes are zero"),
    "text": (b"hello\n", "not JSON"),
    "blank": (b"\n", "a blank line"),
    "list": (b"[]\n", "not a failed record: a refused input is a list"),
    "number": (b"7\n", "not a failed record"),
    "no source": (b'{"id": "1", "reason": "x"}\n', "not a failed record"),
    "number as source": (b'{"id": null, "source": 1, "reason": "x"}\n', "not a failed record: 'source' is a number"),
    "number as id": (b'{"id": 1, "source": "a", "reason": "x"}\n', "not a failed record: 'id' is a number"),
    "list as content": (
        b'{"id": "1", "source": "a", "reason": "x", "content": []}\n',
        "not a failed record: 'content' is a list",
    ),
    "calls only": (b'{"calls": []}\n', "not a trace: no version field"),
    "version only": (b'{"version": 2}\n', "not a trace: a trace has no"),
}


@pytest.mark.parametrize("old_name", [False, True], ids=["failed", "rejected"])
@pytest.mark.parametrize("kind", FAILED_LINES)
def test_a_damaged_line_of_failed_records(
    run: Callable[..., Summary], folder: Path, capsys: pytest.CaptureFixture[str], kind: str, old_name: bool
) -> None:
    line, fault = FAILED_LINES[kind]
    before = outcomes(folder)
    name = "rejected.jsonl" if old_name else "failed.jsonl"
    lines = (folder / "failed.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "failed.jsonl").rename(folder / name)
    (folder / name).write_bytes(b"".join([lines[0], line, *lines[1:-1]]))  # the last record is lost with it
    assert len(list(read_traces(folder))) == COUNT - FAILED
    for read in (lambda: list(read_finished(folder)), run):
        with pytest.raises(RunFolderError, match=r"; run `agentsys check run --repair`$") as error:
            read()
        assert str(error.value).startswith(f"run/failed.jsonl:2: {fault}" if read is run else f"run/{name}:2: {fault}")
        name = "failed.jsonl"  # which is its name once a collector has it
    assert check(capsys, "--repair")[0] == 0
    assert (folder / "damaged" / "failed.jsonl").read_bytes() == line
    assert run().processed == 1
    assert outcomes(folder) == before


MANIFESTS: dict[str, bytes] = {
    "empty": b"", "zeros": bytes(200), "cut off": b'{"version": 3, "run": "', "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000, "list": b"[]", "text": b'"x"', "number": b"3", "null": b"null",
    "totals text": b'{"totals": "x", "retries": 0}', "total of a text": b'{"totals": {"calls": "x"}}',
    "negative total": b'{"totals": {"calls": -1}}', "total of true": b'{"totals": {"calls": true}}',
    "counts list": b'{"counts": []}', "count null": b'{"counts": {"kept": null}}', "retries text": b'{"retries": "x"}',
    "negative retries": b'{"retries": -3}', "fingerprint text": b'{"fingerprint": "x"}',
    "fingerprint list": b'{"fingerprint": []}', "roles list": b'{"fingerprint": {"roles": []}}',
    "role text": b'{"fingerprint": {"roles": {"a": "b"}}}', "topology text": b'{"fingerprint": {"topology": "x"}}',
    "models number": b'{"fingerprint": {"models": 1}}', "version text": b'{"version": "3"}', "run list": b'{"run": []}',
}  # fmt: skip


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_damaged_manifest_is_rebuilt(
    run: Callable[..., Summary], folder: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    good = read_manifest(folder)
    (folder / "manifest.json").write_bytes(MANIFESTS[kind])
    code, listed = check(capsys)
    assert (code, len(listed)) == (1, 2)
    assert listed[0].startswith("run/manifest.json: ")
    assert check(capsys, "--repair")[0] == 0
    assert (folder / "damaged" / "manifest.json").read_bytes() == MANIFESTS[kind]
    rebuilt = read_manifest(folder)
    assert rebuilt["totals"].pop("seconds") <= good["totals"].pop("seconds")  # it cannot be counted again
    assert rebuilt == good
    assert run().processed == 0

    for name in ("manifest.json", MANIFEST_COPY):
        (folder / name).write_bytes(MANIFESTS[kind])
    with pytest.raises(RunFolderError, match="no good copy of it; run `agentsys check run --repair`") as error:
        run()
    assert str(error.value).startswith("run/manifest.json: ") and "\n" not in str(error.value)
    code, listed = check(capsys, "--repair")
    assert code == 0, listed
    assert any("the settings are lost; the same settings resume the run" in line for line in listed)
    with pytest.raises(RunFolderError, match="holds records, but no manifest"):
        run(id_field="text")
    assert run().processed == 0
    resumed = read_manifest(folder)
    assert (resumed["fingerprint"], resumed["counts"]) == (good["fingerprint"], good["counts"])
    assert {name: resumed["totals"][name] for name in good["totals"]} == good["totals"]


def test_files_that_are_missing_or_foreign(
    run: Callable[..., Summary],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.rmtree(folder)
    monkeypatch.setattr("agentsys.collect.store.SHARD_BYTES", 0)  # one trace per shard
    run()
    before = outcomes(unpack_shards(folder))
    (folder / "traces-00001.jsonl").unlink()
    (folder / "traces-00003.jsonl").rename(folder / "traces-abc.jsonl")
    (folder / "traces-00005.jsonl").unlink()
    (folder / "traces-00005.jsonl").mkdir()
    (folder / "run.yaml").write_bytes(b"\0\0\0")
    with pytest.raises(RunFolderError, match=r"^run/traces-00005\.jsonl: not a file; run `agentsys check run"):
        run()
    (folder / "traces-00005.jsonl").rename(folder / "traces-99999.json")
    with pytest.raises(RunFolderError, match=r"^run/traces-abc\.jsonl: not the name of a shard.*check run --repair`$"):
        run()
    assert main(["export", "run"]) == 2
    assert "run/traces-abc.jsonl: not the name of a shard" in one_error(capsys.readouterr().err)
    (folder / "traces-99999.json").rename(folder / "traces-00005.jsonl")
    code, listed = check(capsys)
    assert code == 1
    assert [line.split(": ")[0] for line in listed[:-1]] == [
        "run/traces-00005.jsonl",
        "run/traces-abc.jsonl",
        "run/traces-00001.jsonl",
        "run/traces-00003.jsonl",
        "run/traces-00005.jsonl",
        "run/run.yaml",
    ]
    code, listed = check(capsys, "--repair")
    assert code == 0, listed
    assert sorted(path.name for path in (folder / "damaged").iterdir()) == [
        "run.yaml",
        "traces-00005.jsonl",
        "traces-abc.jsonl",
    ]
    assert run().processed == 3
    assert outcomes(folder) == before


def test_a_lost_last_shard_shows_in_the_counts(
    run: Callable[..., Summary], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = outcomes(folder)
    lines = (folder / SHARD).read_bytes().splitlines(keepends=True)
    (folder / SHARD).write_bytes(b"".join(lines[:-2]))
    code, [line, _] = check(capsys)
    assert code == 1
    assert line.startswith("run/manifest.json: it counts 2 more finished records than the shards have")
    assert check(capsys, "--repair")[0] == 0
    assert check(capsys)[0] == 0
    assert run().processed == 2
    assert outcomes(folder) == before


def test_a_record_twice_is_damage(
    run: Callable[..., Summary], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / SHARD).read_bytes().splitlines(keepends=True)
    (folder / SHARD).write_bytes(b"".join([*lines, lines[2]]))
    with pytest.raises(RunFolderError, match=rf"^run/{SHARD}:{len(lines) + 1}: a second trace of the record r\d+; run"):
        run()
    assert check(capsys, "--repair")[0] == 0
    assert (folder / SHARD).read_bytes() == b"".join(lines)
    assert (folder / "damaged" / SHARD).read_bytes() == lines[2]


def test_a_torn_last_line_is_damage_unless_a_collector_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (folder / SHARD).read_bytes().splitlines(keepends=True)
    (folder / SHARD).write_bytes(b"".join(lines)[:-10])
    code, [line, _] = check(capsys)
    assert (code, line) == (1, f"run/{SHARD}:{len(lines)}: cut off: the line has no end")
    with FileLock(folder / ".lock"):
        assert check(capsys) == (0, ["run: no damage"])
        code, [line] = check(capsys, "--repair")
        assert (code, line) == (2, "error: run: another run is writing to this folder; wait for it, then repair")
    assert check(capsys, "--repair")[0] == 0
    assert (folder / "damaged" / SHARD).read_bytes() == lines[-1][:-10]


def test_lines_of_a_later_version_are_left_alone(
    run: Callable[..., Summary], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_line(folder / SHARD, 2, with_values(version=99))
    before = (folder / SHARD).read_bytes()
    message = f"run/{SHARD}:2: trace version 99 is newer than 4; update agentsys"
    with pytest.raises(RunFolderError) as error:
        run()
    assert str(error.value) == message
    assert check(capsys) == (1, [message])
    assert check(capsys, "--repair") == (2, [f"error: {message}; nothing was repaired"])
    assert (folder / SHARD).read_bytes() == before


def test_a_second_repair_adds_to_what_was_moved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = []
    for number in (1, 2):
        moved.append(edit_line(folder / SHARD, number, zeros))
        assert check(capsys, "--repair")[0] == 0
    assert (folder / "damaged" / SHARD).read_bytes() == b"".join(moved)
    assert len(list(read_traces(folder))) == COUNT - FAILED - 2


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder", "other files"])
def test_a_folder_without_a_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if what == "a file":
        Path("run").write_text("x")
    elif what != "nothing":
        Path("run").mkdir()
    if what == "other files":
        Path("run", "records.jsonl").write_text("{}\n")
    files = sorted(tmp_path.rglob("*"))
    for arguments in ([], ["--repair"]):
        code, [line] = check(capsys, *arguments)
        assert (code, "name the output folder of a collect run" in line) == (2, True)
    assert sorted(tmp_path.rglob("*")) == files


def test_a_run_folder_that_is_created_is_private(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    os.chmod(folder, 0o755)
    assert main(["check", "run"]) == 0
    assert folder.stat().st_mode & 0o777 == 0o755
