"""The Parquet export where it fails: one line that names the user's file, and no file is left."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentsys.cli import main
from agentsys.collect import export
from agentsys.collect.export import to_parquet
from agentsys.traces import Trace, dump
from tests.support.calls import make_call, make_trace


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = Path("run")
    folder.mkdir()
    (folder / "traces-00000.jsonl").write_bytes(dump(make_trace(make_call("a"))))
    return folder


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("nofolder/x.parquet", "nofolder/x.parquet: there is no folder nofolder; create it, or name a file elsewhere"),
        ("run/traces-00000.jsonl/x", "there is no folder run/traces-00000.jsonl"),
        ("run", "run is a folder; name a file in it, such as run/traces.parquet"),
        (".", ". is a folder; name a file in it, such as traces.parquet"),
    ],
)
def test_a_file_that_cannot_be_is_one_line(
    file: str, error: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files()
    assert main(["export", "run", file]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and error in printed
    assert printed.count("\n") == 1 and files() == before


@pytest.mark.usefixtures("run")
def test_a_file_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, mode: str) -> Any:
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert main(["export", "run", "x.parquet"]) == 2
    assert capsys.readouterr().err == "error: x.parquet: Permission denied\n"


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"]
)
def test_an_export_that_does_not_end_leaves_the_files_as_they_were(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(folder: Path) -> Iterator[Trace]:
        yield make_trace(make_call("a"))
        yield make_trace(make_call("b"))
        raise failure

    monkeypatch.setattr(export, "ROW_GROUP", 1)
    monkeypatch.setattr(export, "read_traces", read)
    Path("x.parquet").write_bytes(b"an earlier export")
    before = files()
    assert main(["export", "run", "x.parquet"]) != 0
    message = "error: x.parquet: No space left on device\n" if isinstance(failure, OSError) else ""
    assert capsys.readouterr().err == message
    assert files() == before and Path("x.parquet").read_bytes() == b"an earlier export"


def test_a_damaged_trace_leaves_no_file(run: Path) -> None:
    with (run / "traces-00000.jsonl").open("a") as shard:
        shard.write("[]\n")
    before = files()
    with pytest.raises(ValueError, match="not a trace"):
        to_parquet(run, "x.parquet")
    assert files() == before
