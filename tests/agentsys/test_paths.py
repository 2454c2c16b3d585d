"""A path may be a string wherever a public function takes one: both give the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from agentsys.collect import RunOptions, collect
from agentsys.collect.command import CollectOptions, run_with_view
from agentsys.collect.export import to_parquet
from agentsys.collect.store import RunFolder
from agentsys.evaluation import report, sample
from agentsys.graphs.drt.mine import read_sentences
from agentsys.graphs.translate.rows import Columns, read_pairs
from agentsys.models.cache import RequestCache
from agentsys.paths import make_private_file, make_private_folder, replace_file
from agentsys.prompt import Prompt
from agentsys.records import read_records
from agentsys.roles import Role, load_prompt
from agentsys.terms.files import read_table, read_text
from agentsys.terms.tmx import read_tmx
from agentsys.traces import dump, failed_file, read_finished, read_traces, shards
from agentsys.trainers.pretrain.corpus import read_documents
from tests.support.calls import make_call, make_trace
from tests.support.extras import skip_without

TMX = """<tmx version="1.4"><header/><body><tu tuid="1">
<tuv xml:lang="en"><seg>Hello</seg></tuv><tuv xml:lang="de"><seg>Hallo</seg></tuv></tu></body></tmx>"""
FILES = {
    "run/traces-00000.jsonl": dump(make_trace(make_call("a"))).decode(),
    "say.md": "# user\n{{ text }}",
    "records.jsonl": '{"id": "1", "text": "Say it."}\n',
    "pairs.csv": "src,ref\nHello,Hallo\n",
    "memory.tmx": TMX,
    "book.txt": "The old clock in the hall coughed twice and then struck nine as if nothing had happened.\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


class State(TypedDict, total=False):
    text: str


builder = StateGraph(State)
builder.add_node("echo", lambda state: {"text": state["text"] + "!"})
builder.add_edge(START, "echo")
GRAPH = builder.compile(name="echo")

READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "read_traces": (lambda path: list(read_traces(path)), "run"),
    "read_finished": (lambda path: list(read_finished(path)), "run"),
    "shards": (shards, "run"),
    "failed_file": (failed_file, "run"),
    "read_run": (lambda path: list(sample.read_run(path, "--run")), "run"),
    "Prompt.load": (Prompt.load, "say.md"),
    "load_prompt": (load_prompt, "say.md"),
    "Role": (lambda path: Role(path).text, "say.md"),
    "read_records": (lambda path: list(read_records(path)), "records.jsonl"),
    "file_sha256": (sample.file_sha256, "records.jsonl"),
    "read_rows": (
        lambda path: list(sample.read_rows(path, sample.SampleOptions(), lambda record: record.data, "text")),
        "records.jsonl",
    ),
    "read_sample": (
        lambda path: sample.read_sample(path, lambda file, _: [file.name], sample.SampleOptions(), "text"),
        "records.jsonl",
    ),
    "sample_rows": (lambda path: sample.sample_rows([1], path, sample.SampleOptions(), "text"), "records.jsonl"),
    "read_pairs": (lambda path: read_pairs(path, Columns("src", "ref"), ("English", "German")), "pairs.csv"),
    "read_pairs of a memory": (
        lambda path: read_pairs(path, Columns("src", "ref"), ("English", "German")),
        "memory.tmx",
    ),
    "read_table": (lambda path: list(read_table(path)), "pairs.csv"),
    "read_text": (read_text, "pairs.csv"),
    "read_tmx": (lambda path: [unit.texts for unit in read_tmx(path)], "memory.tmx"),
    "read_sentences": (lambda path: list(read_sentences([path], "English")), "book.txt"),
    "read_documents": (lambda path: list(read_documents([path])), "book.txt"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_path_to_read_may_be_a_string(name: str, folder: Path) -> None:
    if "memory" in name or name in ("read_table", "read_text", "read_tmx", "read_pairs"):
        skip_without("knowledge")
    read, file = READERS[name]
    expected = read(folder / file)
    assert expected or name == "failed_file"
    assert read(str(folder / file)) == expected


def write_parquet(path: Any, folder: Path) -> None:
    to_parquet(str(folder / "run"), path)


def write_cache(path: Any, folder: Path) -> None:
    RequestCache(path).close()


def write_run(path: Any, folder: Path) -> None:
    collect(GRAPH, str(folder / "records.jsonl"), path, options=RunOptions(no_cache=True))


def write_run_folder(path: Any, folder: Path) -> None:
    RunFolder(path).close()


def write_report(path: Any, folder: Path) -> None:
    report.write_report({"a": 1}, "rows.jsonl", [{"b": 2}], path)


def write_with_options(path: Any, folder: Path) -> None:
    options = CollectOptions(input=type(path)(folder / "records.jsonl"), out=path, cache=type(path)(folder / "c.db"))
    assert isinstance(options.out, Path) and isinstance(options.input, Path)
    run_with_view(GRAPH, options.input, options, None)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_parquet, "traces.parquet"),
        (write_cache, "calls.db"),
        (write_run, "out"),
        (write_run_folder, "out"),
        (write_report, "evaluation"),
        (write_with_options, "out"),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.usefixtures("isolated_cache")
def test_a_path_to_write_may_be_a_string(
    write: Callable[[Any, Path], None], name: str, kind: Callable[[Path], Any], folder: Path
) -> None:
    write(kind(folder / name), folder)
    assert (folder / name).exists()


@pytest.mark.needs("knowledge")
def test_an_index_may_be_named_by_a_string(folder: Path) -> None:
    from agentsys.knowledge import IndexSettings, build_index, index_digest, open_retriever
    from agentsys.knowledge.manifest import read_complete_manifest
    from agentsys.knowledge.passages import Passages

    index = str(folder / "index")
    build_index(str(folder / "records.jsonl"), index, IndexSettings(kind="bm25"))
    for path in (index, Path(index)):
        assert index_digest(path) == read_complete_manifest(path).digest
        assert [passage.text for passage in Passages(path)] == ["Say it."]
        assert open_retriever(path) is not None


@pytest.mark.needs("train")
def test_rows_may_be_named_by_strings(folder: Path) -> None:
    from agentsys.trainers.row_files import read_row_file
    from agentsys.trainers.row_filter import Filters
    from agentsys.trainers.rows import TargetOptions, make_rows
    from tests.support.tiny import make_tokenizer
    from tests.support.traces import make_call, make_trace, run_folder, sft_target

    student = folder / "student"
    make_tokenizer().save_pretrained(student)
    (student / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    run_folder(folder / "run", make_trace("a", [make_call("a", "x")], [sft_target("Say it.", ("It.", True))]))
    out: Any = str(folder / "rows")
    make_rows([str(folder / "run")], TargetOptions(str(student), out), Filters(validation=0))
    assert read_row_file(str(folder / "rows/sft/train.parquet")).num_rows == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_folders_and_files_that_are_created_are_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_private_folder(tmp_path / "a" / "b")
    make_private_file(tmp_path / "a" / "b" / "file")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in (".", "a", "a/b", "a/b/file")]
    assert modes == [0o755, 0o700, 0o700, 0o600]
    for name in ("a/b", "a/b/file"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "a" / "b" / "file").write_text("kept")
    make_private_folder(tmp_path / "a" / "b")
    make_private_file(tmp_path / "a" / "b" / "file")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a/b", "a/b/file")] == [0o755, 0o755]
    assert (tmp_path / "a" / "b" / "file").read_text() == "kept"
    with pytest.raises(OSError, match="file"):
        make_private_folder(tmp_path / "a" / "b" / "file" / "c")


def test_a_file_that_cannot_be_replaced_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "file", b"old")

    def fail(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]
    replace_file(tmp_path / "file", b"newer", durable=False)
    assert (tmp_path / "file").read_bytes() == b"newer"
