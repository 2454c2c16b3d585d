"""The live page: records as they are appended, read-only, asked for on loopback alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agentsys.commands import run_app
from agentsys.view.live import Tail
from tests.support.pages import HOSTILE, serve_in_thread
from tests.support.shards import unpack_shards


def no_vocabulary(model: str) -> None:
    return None


@pytest.fixture
def folder(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a run."""
    return unpack_shards(Path(shutil.copytree(runs["hostile"], tmp_path / "run")))


def ids(tail: Tail) -> list[Any]:
    return tail.columns["id"]


def test_only_whole_lines_are_read(folder: Path) -> None:
    [shard] = folder.glob("traces-*.jsonl")
    lines = shard.read_bytes().splitlines(keepends=True)
    (folder / "failed.jsonl").unlink()
    shard.write_bytes(lines[0] + lines[1][:-1])
    tail = Tail(folder)
    for _ in range(2):
        tail.read()
        assert len(ids(tail)) == 1
    with shard.open("ab") as file:
        file.write(b"\n" + lines[2])
    tail.read()
    assert [json.loads(line)["id"] for line in lines[:3]] == ids(tail)
    record = tail.record(2)
    assert not isinstance(record, dict) and record.id == ids(tail)[2]
    assert json.loads(tail.since(1))["index"]["id"] == ids(tail)[1:]


def test_failed_records_and_refused_inputs_are_there(folder: Path) -> None:
    tail = Tail(folder)
    tail.read()
    assert len(ids(tail)) == len(HOSTILE) + 3
    assert tail.columns["outcome"].count("failed") == 3
    head = tail.head()
    assert head["records"] == 10 and head["system"] == "toy" and head["sections"][0]["title"] == "Records"


def test_failed_records_that_are_tried_again_are_forgotten(folder: Path) -> None:
    tail = Tail(folder)
    tail.read()
    (folder / "failed.jsonl").write_bytes(b"")
    tail.read()
    assert len(ids(tail)) == 7 and "failed" not in tail.columns["outcome"]
    assert tail.head()["generation"] == 1
    (folder / "failed.jsonl").unlink()
    tail.read()
    assert len(ids(tail)) == 7


def test_a_damaged_line_is_said(folder: Path) -> None:
    [shard] = folder.glob("traces-*.jsonl")
    with shard.open("ab") as file:
        file.write(b"{}\n")
    tail = Tail(folder)
    for _ in range(2):
        tail.read()
        assert len(ids(tail)) == 7, "those before it, once"
        assert f"{shard.name}: a line that is no record" in tail.head()["fault"]


async def test_the_server_answers_loopback_and_reads_only(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    with serve_in_thread(folder, no_vocabulary) as url:
        async with aiohttp.ClientSession() as session:
            async with session.get(url) as page:
                assert page.status == 200 and b'"live":true' in await page.read()
            async with session.get(f"{url}since/8") as reply:
                assert len((await reply.json())["index"]["id"]) == 2
            async with session.get(f"{url}record/0") as reply:
                assert (await reply.json())["input"]["text"] == HOSTILE["script"]
            for path, status in {"record/10": 404, "record/-1": 404, "../manifest.json": 404}.items():
                async with session.get(f"{url}{path}") as reply:
                    assert reply.status == status
            async with session.get(url, headers={"Host": "evil.example:80"}) as reply:
                assert reply.status == 403
            async with session.post(url) as reply:
                assert reply.status == 405
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--live", "a", "b"], "error: --live shows one run: give one folder"),
        (["--live", "a", "--out", "b.html", "--rows", "c"], "error: --live writes no file: leave --out and --rows out"),
        (["--live", "nowhere"], "error: nowhere: no run there; start `agentsys collect` with --out nowhere first"),
    ],
)
def test_what_cannot_be_followed_is_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentsys.cli import app

    monkeypatch.chdir(tmp_path)
    assert run_app(app, ["view", *arguments]) == 2
    assert capsys.readouterr().err.splitlines() == [line]
