"""Damaged files of the folders that agentsys writes: it reads them, or refuses them in one line that names the file."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, acollect
from agentsys.collect.damage import find_damage
from agentsys.collect.repair import repair_run
from agentsys.collect.store import RunFolder
from agentsys.config import config_text, read_config
from agentsys.graphs.drt.system import Context, graph
from agentsys.models.cache import RequestCache
from agentsys.models.tokenizers import find_tokenizer
from agentsys.models.wire import load_reply
from agentsys.traces import read_finished
from tests.support.fuzz import check, damaged, fault_of, first_faults
from tests.support.servers import write_model_folder
from tests.support.shards import unpack_shards
from tests.support.toys import RULES, sentences, write_lines

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def run(tmp_path: Path) -> Path:
    """A small run with kept, dropped and failed records, and a refused input."""
    script = write_lines(tmp_path / "script.jsonl", RULES)
    context = Context(model=f"scripted:{script}", min_steps=2)
    records = [*sentences(6, unusable=4), {"id": "blank", "text": " "}]
    await acollect(graph, records, tmp_path / "run", context=context, options=RunOptions(no_cache=True))
    (tmp_path / "run" / "run.yaml").write_text(config_text("collect drt", {"limit": 7}))
    return tmp_path / "run"


def resume(folder: Path) -> None:
    with closing(RunFolder(folder)) as opened:
        opened.manifest()
        opened.scan()


def repair(folder: Path) -> None:
    repair_run(folder)
    assert [str(damage) for damage in find_damage(folder) if damage.fix != "none"] == []


READERS: dict[str, Callable[[Path], Any]] = {
    "traces": lambda folder: [*read_finished(folder)],
    "check": find_damage,
    "options": lambda folder: read_config(folder / "run.yaml"),
    "repair": repair,
}


@pytest.mark.parametrize(
    "name", ["traces-00000.jsonl.zst", "traces-00000.jsonl", "failed.jsonl", "manifest.json", "run.yaml"]
)
def test_a_run(run: Path, name: str, tmp_path: Path) -> None:
    if not name.endswith(".zst"):
        unpack_shards(run)
    faults = []
    for damage, content in damaged((run / name).read_bytes(), name, 60):
        to_repair, to_resume = tmp_path / "repaired", tmp_path / "resumed"
        for folder in (to_repair, to_resume):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(run, folder)
            (folder / name).write_bytes(content)
        readings = [(reader, read, to_repair) for reader, read in READERS.items()]
        for reader, read, folder in [*readings, ("resume", resume, to_resume)]:
            if fault := fault_of(lambda read=read, folder=folder: read(folder), name):
                faults.append(f"{damage} ({reader}): {fault}")
    check(faults)


@pytest.mark.needs("knowledge")
def test_an_index(tmp_path: Path) -> None:
    from agentsys.knowledge.build import build_index
    from agentsys.knowledge.index import open_retriever

    passages = [
        {"id": f"p{i}", "title": f"Title {i}", "text": f"the kettle sang song {i} of {i % 7}"} for i in range(20)
    ]
    build_index(passages, tmp_path / "index")

    def search(path: Path) -> None:
        asyncio.run(open_retriever(tmp_path / "index").search(["kettle song 3", "of 5"], 5))

    faults = []
    for path in sorted(path for path in (tmp_path / "index").rglob("*") if path.is_file() and path.stat().st_size):
        faults += first_faults(path, search, path.name, 30, str(tmp_path / "index"))
    check(faults)


@pytest.mark.needs("train")
def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from agentsys.trainers.row_files import TEXT_COLUMNS, Needs, read_rows
    from tests.support.training import sft_row, write_rows

    needs = Needs("trainers/sft.py", TEXT_COLUMNS, ("sft",))
    path = write_rows(tmp_path / "rows" / "train.parquet", [sft_row(i) for i in range(8)])
    check(first_faults(path, lambda path: read_rows(path, needs), "rows", 60))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "generation_config.json"])
def test_a_model_folder(name: str, tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    assert find_tokenizer(str(folder)) is not None
    check(first_faults(folder / name, lambda path: find_tokenizer(str(folder)), name, 100))


def test_a_request_cache(tmp_path: Path) -> None:
    async def fill(path: Path) -> None:
        with closing(RequestCache(path)) as cache:
            for i in range(40):
                await cache.put(bytes([i]) * 32, b'{"text": "reply %d", "finish": "stop"}' % i)

    def read(path: Path) -> None:
        with closing(RequestCache(path)) as cache:
            for i in range(40):
                if (reply := cache.get(bytes([i]) * 32)) is not None:
                    load_reply(reply)

    path = tmp_path / "requests.sqlite"
    asyncio.run(fill(path))
    check(first_faults(path, read, "cache", 200))
