"""Where records come from: compressed files, folders, patterns, pipes, addresses, data sets and tables in memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from agentsys.inputs import files as input_files
from agentsys.records import BadRecord, InputError, Record, read_records

ROWS = [{"id": "a", "text": "The clock coughed."}, {"id": "b", "text": "A door without a lock."}]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def read(source: Any, **options: Any) -> tuple[list[Any], list[str]]:
    """The fields (or reasons) and the sources of the records."""
    seen = list(read_records(source, **options))
    assert all("\n" not in record.reason for record in seen if isinstance(record, BadRecord))
    return [record.data if isinstance(record, Record) else record.reason for record in seen], [r.source for r in seen]


def compress(content: bytes, packing: str) -> bytes:
    if packing == ".zst":
        return bytes(zstandard.compress(content))
    return {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, "": bytes}[packing](content)


# compressed files


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_a_compressed_file(tmp_path: Path, packing: str, suffix: str) -> None:
    texts = [row["text"] for row in ROWS]
    content = {
        ".jsonl": LINES,
        ".json": json.dumps(ROWS).encode(),
        ".csv": "\n".join(["text", *texts]).encode("utf-8-sig"),
        ".txt": "\n".join(texts).encode("utf-16"),
    }[suffix]
    half = len(content) // 4 * 2
    path = tmp_path / f"a{suffix}{packing.upper()}"
    path.write_bytes(compress(content[:half], packing) + compress(content[half:], packing))  # two members
    rows, sources = read(path)
    assert [row["text"] for row in rows] == texts
    assert sources[0].startswith(f"{path}:")


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst"])
def test_a_torn_compressed_file_gives_the_records_before(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.jsonl{packing}"
    whole = compress(b"".join(b'{"text": "clock %d"}\n' % (n * n * 7919) for n in range(200_000)), packing)
    path.write_bytes(whole[: len(whole) // 2])
    rows, _ = read(path)
    assert "the file cannot be read from here on" in rows[-1]
    assert all(row == {"text": f"clock {n * n * 7919}"} for n, row in enumerate(rows[:-1]))


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("content", [LINES, b"\0" * 100])
def test_a_file_that_is_not_compressed_as_its_name_says(tmp_path: Path, packing: str, content: bytes) -> None:
    compress(b"", packing)
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_records(path)


def test_a_packed_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(InputError, match="a packed Parquet file cannot be read; unpack it"):
        read_records(tmp_path / "a.parquet.gz")


@pytest.mark.parametrize(
    ("module", "source", "match"),
    [
        ("datasets", "hf:clocks", r"by the package datasets: pip install .*inputs\]"),
        ("fsspec.core", "s3://bucket/a.jsonl", r"by the package fsspec: pip install .*inputs\]"),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str, match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=match):
        read_records(source)


# folders and patterns


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("data/more").mkdir(parents=True)
    for name, row in zip(("data/b.jsonl", "data/a.jsonl.gz", "data/more/c.jsonl"), [*ROWS, {"id": "c"}], strict=True):
        Path(name).write_bytes(compress(json.dumps(row).encode(), ".gz" if name.endswith(".gz") else ""))
    Path("data/LICENSE").write_text("no record")
    Path("data/.hidden.jsonl").write_text("no record")
    return tmp_path


@pytest.mark.parametrize("source", ["data", "data/", Path("data"), "data/**/*.jsonl*"])
def test_a_folder_or_pattern_is_read_in_order(folder: Path, source: str | Path) -> None:
    rows, sources = read(source)
    assert [row["id"] for row in rows] == ["b", "a", "c"]
    assert sources == ["data/a.jsonl.gz:1", "data/b.jsonl:1", "data/more/c.jsonl:1"]


def test_a_damaged_file_among_others_is_one_bad_record(folder: Path) -> None:
    Path("data/b.jsonl").write_text("text", encoding="utf-16-le")
    rows, sources = read("data")
    assert [isinstance(row, dict) for row in rows] == [True, False, True] and sources[1] == "data/b.jsonl:1"
    assert "zero bytes" in rows[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data/*.csv", "data/*.csv: no file matches this pattern"),
        ("data/*", "data/LICENSE: unknown file type ''"),
        ("mixed", "mixed is a folder with files of several formats (.csv, .jsonl); say 'mixed/**/*.csv'"),
        ("empty", "empty is a folder without record files (.jsonl, "),
        ("a[1].jsonl", ""),
    ],
)
def test_what_a_folder_or_pattern_cannot_be(folder: Path, source: str, message: str) -> None:
    for name in ("mixed", "empty"):
        Path(name).mkdir()
    for name in ("mixed/a.csv", "mixed/a.jsonl", "a[1].jsonl"):
        Path(name).touch()
    if not message:  # a file whose name looks like a pattern
        assert read(source) == ([], [])
        return
    with pytest.raises(InputError) as caught:
        read_records(source)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/in.jsonl", "in"),
        ("in.v2.csv", "in.v2"),
        ("in.jsonl.gz", "in"),
        ("data/", "data"),
        ("data/*.jsonl", "data"),
        ("data/part-*.jsonl", "part"),
        ("-", "pipe"),
        ("hf:org/clocks:small@train", "clocks-small-train"),
        ("hf:clocks", "hf-clocks"),
        ("s3:/bucket/in.jsonl", "in"),
        ("*", "input"),
    ],
)
def test_the_name_of_an_input(source: str, name: str) -> None:
    assert input_files.name_input(source) == name


# a pipe


@pytest.mark.parametrize(
    "content",
    [LINES, gzip.compress(LINES), b"\n" + json.dumps(ROWS).encode(), b"\xef\xbb\xbf" + LINES],
    ids=["lines", "gzip", "array", "byte order mark"],
)
def test_a_pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    rows, sources = read("-")
    assert rows == ROWS and sources in (["-:1", "-:2"],)


@pytest.mark.parametrize("content", [b"id,text\na,b\n", b"text"])
def test_a_pipe_of_another_format_is_refused(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(InputError, match="the pipe must have JSON lines or a JSON array"):
        read_records(Path("-"))


def test_without_a_pipe_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="nothing is piped into the command"):
        read_records("-")


# addresses


@pytest.fixture
def bucket() -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/b.jsonl.gz", gzip.compress(json.dumps(ROWS[1]).encode()))
    store.pipe("/bucket/a.jsonl", json.dumps(ROWS[0]).encode())
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    store.pipe("/tables/a.parquet", sink.getvalue())
    yield store
    for name in ("/bucket", "/tables"):
        store.rm(name, recursive=True)


@pytest.mark.parametrize(
    "source", ["memory://bucket", "memory://bucket/*.jsonl*", "memory://tables/a.parquet", Path("memory://bucket")]
)
def test_an_address(bucket: Any, source: str | Path) -> None:
    rows, sources = read(source)
    assert rows == ROWS and all(place.startswith("memory://") for place in sources)


def test_a_file_address(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "a.jsonl").write_bytes(LINES)
    for source in (f"file://{tmp_path}/a.jsonl", Path(f"file://{tmp_path}/a.jsonl")):
        assert read(source)[0] == ROWS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("memory://bucket/missing.jsonl", "no such file; check the address"),
        ("memory://bucket/*.csv", "no file matches this pattern"),
        ("nowhere://bucket/a.jsonl", "cannot be read: Protocol not known: nowhere"),
    ],
)
def test_an_address_that_cannot_be_read(bucket: Any, source: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_records(source)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_address_is_shown_without_its_keys() -> None:
    masked = input_files.mask("https://user:secret@host/a.jsonl?X-Signature=secret#secret")
    assert masked == "https://host/a.jsonl"


# data sets


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A local folder that `datasets` reads as it reads a data set of the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, rows in (("clocks/train.jsonl", ROWS), ("clocks/test.jsonl", ROWS[:1]), ("one/train.jsonl", ROWS)):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return datasets


def test_a_data_set(hub: Any, tmp_path: Path) -> None:
    assert read("hf:clocks@train") == (ROWS, ["hf:clocks@train:1", "hf:clocks@train:2"])
    assert read("hf:./clocks:default@test")[0] == ROWS[:1]
    assert read(Path("hf:one"))[0] == ROWS
    assert read(f"hf:{tmp_path}/one")[0] == ROWS
    hub.Dataset.from_list(ROWS).save_to_disk("saved")
    assert read("hf:saved")[0] == ROWS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:clocks", "the data set has the splits train, test; name one: hf:NAME@"),
        ("hf:clocks@dev", "the data set has the splits train, test"),
        ("hf:clocks:german", "the data set cannot be read: "),
        ("hf:missing/clocks", "the data set cannot be read: "),
        ("hf:", "write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG@SPLIT"),
    ],
)
def test_a_data_set_that_cannot_be_read(hub: Any, source: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_records(source)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_data_set_in_python(hub: Any) -> None:
    table = hub.Dataset.from_list(ROWS)
    assert read(table) == (ROWS, ["item:1", "item:2"])
    assert read(table.to_iterable_dataset())[0] == ROWS
    with pytest.raises(InputError, match=r"'DatasetDict' cannot be read; take one of its splits \('train'\)"):
        read_records(hub.DatasetDict(train=table))


# tables in memory


def test_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["x", None], "n": [1, 2], "t": [pandas.Timestamp("2020-01-02"), pandas.NaT]})
    rows, sources = read(frame, required=["text"])
    assert rows == [
        {"text": "x", "n": 1, "t": "2020-01-02T00:00:00"},
        "field 'text' is null; fill it in or remove the record",
    ]
    assert sources == ["item:1", "item:2"]
    frame["maybe"] = pandas.array([1, None], dtype="Int64")
    frame["kind"] = pandas.Categorical(["k", None])
    assert [{**row} for row in read(frame[["n", "maybe", "kind"]])[0]] == [
        {"n": 1, "maybe": 1, "kind": "k"},
        {"n": 2, "maybe": None, "kind": None},
    ]
    (first, *_) = read_records(pandas.DataFrame(ROWS).set_index("id"))
    assert isinstance(first, Record) and first.id == "a"
    assert read(pandas.DataFrame(ROWS)["text"])[0] == [{"text": row["text"]} for row in ROWS]


def test_a_data_frame_without_good_column_names() -> None:
    pandas = pytest.importorskip("pandas")
    for frame, message in (
        (pandas.DataFrame([["x", 1]]), "the column 0, which is no text"),
        (pandas.DataFrame([["x", "y"]], columns=["a", "a"]), "column 'a' occurs 2 times"),
    ):
        with pytest.raises(InputError, match=message):
            read_records(frame)


def test_an_arrow_table() -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    for source in (table, table.to_batches()[0], table.to_reader()):
        assert read(source)[0] == ROWS
    with pytest.raises(InputError, match="column 'a' occurs 2 times"):
        read_records(pyarrow.table([pyarrow.array(["x"])] * 2, names=["a", "a"]))


def test_a_polars_frame() -> None:
    polars = pytest.importorskip("polars")
    assert read(polars.DataFrame(ROWS))[0] == ROWS


@pytest.mark.parametrize("source", [{"text": ["x", "y"]}, {"text": "x"}, b"x", 3, None, object()])
def test_what_is_no_source_is_refused_in_one_line(source: Any) -> None:
    with pytest.raises(InputError, match=f"records of type '{type(source).__name__}' cannot be read") as caught:
        read_records(source)
    assert "\n" not in str(caught.value) and "give a list" in str(caught.value)
