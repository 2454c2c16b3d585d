"""A damaged index: one line with the file's name when it is opened, or when it is searched; never a traceback."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from agentsys.cli import main
from agentsys.knowledge import KnowledgeError
from agentsys.knowledge.build import build_index
from agentsys.knowledge.index import open_retriever
from agentsys.knowledge.manifest import IndexSettings
from tests.support.toys import one_error

pytestmark = pytest.mark.needs("knowledge")

RECORDS = [{"id": f"p{i}", "title": f"Title {i}", "text": f"the kettle sang song {i} of {i % 7}"} for i in range(60)]
FILES = [
    "passages.jsonl", "offsets.npy", "bm25/data.csc.index.npy", "bm25/indices.csc.index.npy",
    "bm25/indptr.csc.index.npy", "bm25/params.index.json", "bm25/vocab.index.json",
]  # fmt: skip


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build_index(RECORDS, tmp_path / "index")
    return tmp_path / "index"


def search(folder: Path) -> None:
    asyncio.run(open_retriever(folder).search(["kettle song 3", "of 5"], 20))


def check_error(folder: Path, error: KnowledgeError, file: str = "") -> None:
    message = str(error)
    assert str(folder / file) in message, message
    assert "build it again" in message and "\n" not in message


def changed_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "one bit": changed_byte,
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "header": lambda data: b"\x93NUMPY\x01\x00\x10\x00{'descr': (" + data[20:],
    "longer": lambda data: data + b"\n" if data.startswith((b"\x93", b"{")) else data,
    "other": lambda data: b"hello",
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_changed_file_is_named_when_the_index_is_opened(index: Path, file: str, kind: str) -> None:
    if (file, kind) == ("passages.jsonl", "longer"):
        pytest.skip("a build in progress appends passages")
    path = index / file
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.raises(KnowledgeError) as error:
        open_retriever(index)
    check_error(index, error.value, file)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(index: Path, file: str) -> None:
    (index / file).unlink()
    with pytest.raises(KnowledgeError) as error:
        open_retriever(index)
    check_error(index, error.value, file)


def test_a_copy_is_opened_and_a_damaged_copy_is_not(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "copy", copy_function=shutil.copyfile)
    search(tmp_path / "copy")
    path = tmp_path / "copy" / "bm25" / "data.csc.index.npy"
    path.write_bytes(changed_byte(path.read_bytes()))
    with pytest.raises(KnowledgeError, match=r"data\.csc\.index\.npy is damaged: its bytes are not those"):
        open_retriever(tmp_path / "copy")


def test_an_unchanged_index_is_not_read(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.knowledge.manifest._sha256", lambda path, size: pytest.fail(f"{path} was read"))
    search(index)


def without_stamps(index: Path) -> None:
    """Make the index one of a version that recorded no stamps."""
    manifest = orjson.loads((index / "manifest.json").read_bytes())
    del manifest["files"]
    (index / "manifest.json").write_bytes(orjson.dumps(manifest))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind not in ("one bit", "longer")])
def test_without_stamps_damage_is_one_line_too(index: Path, file: str, kind: str) -> None:
    without_stamps(index)
    path = index / file
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.raises(KnowledgeError) as error:
        search(index)
    check_error(index, error.value)


@pytest.mark.parametrize("seed", range(150))
def test_random_damage_is_one_line_or_unseen(index: Path, seed: int) -> None:
    rng = random.Random(seed)
    without_stamps(index)
    path = index / rng.choice([*FILES, "manifest.json"])
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 4, 40])):
        data[rng.randrange(min(len(data), rng.choice([128, len(data)])))] = rng.randrange(256)
    path.write_bytes(bytes(data))
    try:
        search(index)
    except KnowledgeError as err:
        assert str(index) in str(err) and "\n" not in str(err)


PASSAGES: dict[str, bytes] = {
    "zeros": bytes(40), "text": b"hello", "list": b"[]", "number": b"3", "no text": b'{"id": "a", "title": ""}',
    "number as id": b'{"id": 1, "title": "", "text": ""}', "not UTF-8": b'{"id": "\xff", "title": "", "text": ""}',
    "blank": b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", PASSAGES)
def test_a_damaged_passage_is_named_by_its_line_when_passages_are_added(
    index: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = index / "passages.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[6] = PASSAGES[kind]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(KnowledgeError, match=r"passages\.jsonl:7 is damaged: .*build it again$"):
        build_index([{"id": "new", "text": "more"}], index)
    assert main(["index", "search", str(index), "kettle"]) == 2
    assert "passages.jsonl is damaged" in one_error(capsys.readouterr().err)


@pytest.mark.parametrize("offsets", [[0], [], [0, 5, 3, 9], [1, 5, 9], [0, 5, 10**12], [[0, 5]], [0.0, 5.0]])
def test_offsets_that_do_not_fit(index: Path, offsets: list[int]) -> None:
    without_stamps(index)
    np.save(index / "offsets.npy", np.array(offsets))
    with pytest.raises(KnowledgeError, match=r"offsets\.npy is damaged"):
        open_retriever(index)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b"null", bytes(90), b"\xff", b"[" * 100_000, b'{"version": 1}']
)
def test_a_damaged_manifest(index: Path, data: bytes) -> None:
    (index / "manifest.json").write_bytes(data)
    with pytest.raises(KnowledgeError) as error:
        open_retriever(index)
    check_error(index, error.value, "manifest.json")


class Embedder:
    """Counts letters."""

    name = "letters"

    async def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([[text.count(letter) + 0.1 for letter in "aeiou"] for text in texts], dtype=np.float32)


@pytest.mark.needs("dense")
def test_a_damaged_vector_store_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(RECORDS, folder, IndexSettings("dense"), embedder=Embedder())
    [database] = (folder / "chroma").glob("*.sqlite3")
    database.write_bytes(os.urandom(database.stat().st_size))
    with pytest.raises(KnowledgeError) as error:
        open_retriever(folder, "", Embedder())
    check_error(folder, error.value)
