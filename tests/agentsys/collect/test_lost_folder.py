"""The output folder, or a file in it, is deleted, moved or replaced while a run writes to it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunFolderError, RunOptions, Summary, collect
from agentsys.traces import read_traces
from tests.support.shards import unpack_shards
from tests.support.toys import one_node

COUNT = 40
SHARD = "traces-00000.jsonl"


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def move(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def replace_by_a_new_one(folder: Path) -> None:
    move(folder)
    folder.mkdir()


def replace_by_a_copy(folder: Path) -> None:
    move(folder)
    shutil.copytree(folder.with_name("moved"), folder)


def replace_by_a_file(folder: Path) -> None:
    move(folder)
    folder.write_text("")


def delete_shard(folder: Path) -> None:
    (folder / SHARD).unlink()


def replace_shard(folder: Path) -> None:
    lines = (folder / SHARD).read_bytes()
    (folder / SHARD).unlink()
    (folder / "new").write_bytes(lines)
    (folder / "new").rename(folder / SHARD)


def delete_failed(folder: Path) -> None:
    (folder / "failed.jsonl").unlink()


CHANGES: list[Callable[[Path], None]] = [
    delete, move, replace_by_a_new_one, replace_by_a_copy, replace_by_a_file, delete_shard, replace_shard,
    delete_failed,
]  # fmt: skip


def run(folder: Path, change: Callable[[Path], None] | None = None) -> Summary:
    """Runs 40 records of which one fails; at the twentieth, `change` is applied to the folder."""
    seen = []

    async def node(state: Any) -> dict[str, Any]:
        seen.append(state)
        if len(seen) == 20 and change is not None:
            change(folder)
        if state["text"] == "3":
            raise KeyError("no")
        return {"reply": "x"}

    options = RunOptions(no_cache=True, in_flight=4)
    return collect(one_node(node), [str(i) for i in range(COUNT)], folder, options=options)


@pytest.mark.parametrize("often", [True, False], ids=["seen at once", "seen at the end"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_folder_that_is_gone_is_said_and_nothing_is_called_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], often: bool
) -> None:
    monkeypatch.setattr("agentsys.collect.runner.MANIFEST_SECONDS", 0.0 if often else 3600.0)
    folder = tmp_path / "run"
    with pytest.raises(RunFolderError, match="was deleted, moved or replaced during the run") as error:
        run(folder, change)
    assert str(error.value).startswith(str(folder))
    assert "are saved" not in str(error.value)
    assert "\n" not in str(error.value)
    if change in (replace_by_a_new_one, replace_by_a_file, delete, move):  # nothing is written in its place
        assert not folder.exists() or not folder.is_dir() or list(folder.iterdir()) == []
    if folder.is_file():
        folder.unlink()
    assert run(folder).failed == 1
    assert sorted(trace.input["text"] for trace in read_traces(folder)) == sorted(
        str(i) for i in range(COUNT) if i != 3
    )


def test_records_that_were_lost_between_two_runs_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run")
    lines = (unpack_shards(tmp_path / "run") / SHARD).read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / SHARD).write_bytes(b"".join(lines[:-7]))
    capsys.readouterr()
    assert run(tmp_path / "run").processed == 7
    assert capsys.readouterr().err == (
        f"{tmp_path / 'run'}: 7 finished records are no longer in the shards; they are processed again\n"
    )
    run(tmp_path / "run")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "fix"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EROFS, "make the folder writable")],
)
def test_a_disk_that_cannot_be_written_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fix: str
) -> None:
    def fail(file: int) -> None:
        raise OSError(code, os.strerror(code))

    def change(folder: Path) -> None:
        monkeypatch.setattr("os.fsync", fail)

    with pytest.raises(RunFolderError) as error:
        run(tmp_path / "run", change)
    assert f"{os.strerror(code)}; finished records are saved: {fix} and rerun" in str(error.value)
    monkeypatch.undo()
    assert run(tmp_path / "run").failed == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(file: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", fail)
    assert run(tmp_path / "run").failed == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux shows the name of an open file")
def test_records_are_on_disk_before_the_manifest_that_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the system's calls: what was appended, then the manifest, its name, the folder."""
    order: list[str] = []
    sync, rename = os.fsync, os.replace

    def log_sync(file: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        sync(file)

    def log_rename(source: Any, target: Any) -> None:
        order.append(f"-> {Path(target).name}")
        rename(source, target)

    def change(folder: Path) -> None:
        monkeypatch.setattr("os.fsync", log_sync)
        monkeypatch.setattr("os.replace", log_rename)

    run(tmp_path / "run", change)
    assert order[:2] == [SHARD, "failed.jsonl"]
    assert order[2].startswith(".manifest.json.") and order[2].endswith(".tmp")
    assert order[3:5] == ["-> manifest.json", "run"]
