"""Reading records: every format, faulty files, and memory that does not grow with the file."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsys.inputs import lines
from agentsys.records import BadRecord, InputError, Record, read_records, record_id, shuffled

BOM = b"\xef\xbb\xbf"


def read(path: Path, content: bytes, **options: Any) -> list[tuple[str, Any]]:
    """(place in the file, data of a record or reason of a bad one) of each record."""
    path.write_bytes(content)
    seen = []
    for record in read_records(path, **options):
        name, _, place = record.source.rpartition(":")
        assert name == str(path)
        if isinstance(record, BadRecord):
            assert "\n" not in record.reason
        seen.append((place, record.data if isinstance(record, Record) else record.reason))
    return seen


def parquet_bytes(path: Path, table: pyarrow.Table) -> bytes:
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text":"one \xc3\xa9"}\n{"text":"two"}\n'),
        ("a.ndjson", b'{"text":"one \xc3\xa9"}\n{"text":"two"}'),
        ("a.json", b' [{"text":"one \xc3\xa9"},\n{"text":"two"}]\n'),
        ("a.csv", b"text\none \xc3\xa9\ntwo\n"),
        ("a.TSV", b"text\none \xc3\xa9\ntwo"),
        ("a.txt", b"one \xc3\xa9\ntwo\n"),
    ],
)
@pytest.mark.parametrize("bom", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_formats(tmp_path: Path, name: str, content: bytes, bom: bytes, end: bytes) -> None:
    seen = read(tmp_path / name, bom + content.replace(b"\n", end), required=["text"])
    assert [data for _, data in seen] == [{"text": "one é"}, {"text": "two"}]
    first = 2 if name in ("a.csv", "a.TSV") else 1
    assert [place for place, _ in seen] == [str(first), str(first + 1)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("content", [b"", BOM, b"\n \r\n\n"])
def test_empty_files_yield_nothing(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(tmp_path / name, content, required=["text"]) == []


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("a.jsonl", b'{"text": "x"', "not JSON: unexpected end of data"),
        ("a.jsonl", b'{"text": "\xff"}', "byte 11 (0xff) is not UTF-8"),
        ("a.jsonl", b'["x"]', "the JSON is of type list; write an object"),
        ("a.jsonl", b'{"text": NaN}', "at character 10; write null for NaN"),
        ("a.jsonl", b'{"text": "x", "n": -Infinity}', "write null for NaN and Infinity"),
        ("a.jsonl", b'{"text": "x", "n": 1e400}', "number is infinity"),
        ("a.jsonl", b'{"text": "\\ud800"}', "no low surrogate in string"),
        ("a.jsonl", b'{"text": ' + b"[" * 500 + b"]" * 500 + b"}", "field 'text' is of type list"),
        (
            "a.jsonl",
            b'{"txt": "x", "y": 1}',
            "no field 'text'; the record has 'txt', 'y'; name the right one with --fi",
        ),
        ("a.jsonl", b"{}", "the record has no fields"),
        ("a.jsonl", b'{"text": null}', "field 'text' is null"),
        ("a.jsonl", b'{"text": " "}', "field 'text' is empty"),
        ("a.jsonl", b'{"text": 3}', "field 'text' is of type int"),
        ("a.jsonl", b'{"text": "x", "id": true}', "the id in 'id' is of type bool"),
        ("a.jsonl", b'{"text": "x", "id": 1.0}', "the id in 'id' is of type float"),
        ("a.json", b'{"text": "\\ud800"}', "no low surrogate in string"),
        ("a.json", b'{"text": "\xff"}', "byte 11 (0xff) is not UTF-8"),
        ("a.json", b'{"text": NaN}', "write null for NaN and Infinity"),
        ("a.json", b'{"text": "x"]', "not JSON"),
        ("a.json", b'["x", {"text": "y"}]', "the JSON is of type list"),
        ("a.json", b'"x, ]"', "the JSON is of type str"),
        ("a.csv", b"\xe9,1", "byte 1 (0xe9) is not UTF-8"),
        ("a.csv", b"x", "1 columns where the header has 2"),
        ("a.csv", b"x,1,", "3 columns where the header has 2"),
        ("a.csv", b'"x"y,1', "not a row: ',' expected after '\"' (at line 3)"),
        ("a.csv", b"x\ry,1", "new-line character"),
        ("a.csv", b",1", "field 'text' is empty"),
        ("a.tsv", b"x\xff\t1", "byte 2 (0xff) is not UTF-8"),
        ("a.tsv", b"x", "1 columns where the header has 2"),
        ("a.txt", b"x\xff", "byte 2 (0xff) is not UTF-8"),
    ],
)
def test_one_bad_input_costs_one_record(tmp_path: Path, name: str, bad: bytes, reason: str) -> None:
    head, good, between, tail = {
        ".jsonl": (b"", b'{"text":"ok","n":"1"}', b"\n", b"\n"),
        ".json": (b"[", b'{"text":"ok","n":"1"}', b",", b"]"),
        ".csv": (b"text,n\n", b"ok,1", b"\n", b"\n"),
        ".tsv": (b"text\tn\n", b"ok\t1", b"\n", b"\n"),
        ".txt": (b"", b"ok", b"\n", b"\n"),
    }[Path(name).suffix]
    before, broken, after = read(tmp_path / name, head + between.join([good, bad, good]) + tail, required=["text"])
    assert before[1]["text"] == after[1]["text"] == "ok"
    assert int(before[0]) + 1 == int(broken[0]) == int(after[0]) - 1
    assert isinstance(broken[1], str) and reason in broken[1]


@pytest.mark.parametrize(
    ("content", "good", "reason"),
    [
        (b'{"text": "x"}', 0, "not a JSON array"),
        (b'{"text": "x"}\n{"text": "y"}', 0, "name the file .jsonl"),
        (b"[", 0, "the file ends inside the JSON array"),
        (b'[{"text": "x"}, {"text": "y"', 1, "the file ends inside the JSON array"),
        (b'[{"text": "x"}, {"text": "y}, {"text": "z"}]', 1, "the file ends inside the JSON array"),
        (b'[{"text": "x"}, {"text": "y"}', 2, "the file ends inside the JSON array"),
        (b'[{"text": "x"}, {"text": "y"},', 2, "the file ends inside the JSON array"),
        (b'[{"text": "x"}] [', 1, "there is more after"),
        (b'[{"text": "x"}]\n[{"text": "y"}]', 1, "there is more after"),
    ],
)
def test_a_broken_json_array_gives_the_records_before(tmp_path: Path, content: bytes, good: int, reason: str) -> None:
    *before, (place, actual) = read(tmp_path / "a.json", content)
    assert [data["text"] for _, data in before] == ["x", "y"][:good]
    assert place == str(good + 1) and reason in actual


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(alphabet='a\\"[]{},é😀\n ', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    data=st.lists(st.dictionaries(st.text(alphabet='ab"\\,{'), JSON, max_size=3), max_size=4),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_json_arrays_are_split_as_a_json_parser_would(
    tmp_path_factory: pytest.TempPathFactory,
    data: list[dict[str, Any]],
    indent: int | None,
    ascii_only: bool,
    chunk: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_text(json.dumps(data, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK", chunk)
        read_back = list(read_records(path))
    assert [record.data for record in read_back if isinstance(record, Record)] == data
    assert len(read_back) == len(data)


def test_csv_quoting(tmp_path: Path) -> None:
    content = b'text,n\r\n"a, ""b""\r\nc",1\r\n\r\n,\r\n' + b"d" * 200_000 + b',2\n"open,3\nmore,4\n'
    many, long, unclosed, lost = read(tmp_path / "a.csv", content)
    assert many == ("2", {"text": 'a, "b"\r\nc', "n": "1"})
    assert long[0] == "6" and len(long[1]["text"]) == 200_000
    assert unclosed == (
        "7",
        "not a row: unexpected end of data (at line 8); its quotation mark is not closed: lines 7 to 8 are not read; "
        "check its quotation marks and line ends",
    )
    assert lost == ("8", "not read: the quotation mark in line 7 is not closed; close it")


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    seen = read(tmp_path / "a.tsv", b'text\tn\n"Come in," he said.\t1\n"Go\t"2"\n')
    assert [data for _, data in seen] == [{"text": '"Come in," he said.', "n": "1"}, {"text": '"Go', "n": '"2"'}]


@pytest.mark.parametrize(
    ("header", "reason"),
    [(b"a,b,a", "column 'a' occurs 2 times"), (b"a,\xff", "byte 3 (0xff) is not UTF-8"), (b'"a"b,c', "not a row")],
)
def test_csv_header_that_cannot_be_used(tmp_path: Path, header: bytes, reason: str) -> None:
    ((place, actual),) = read(tmp_path / "a.csv", header + b"\n1,2,3\n")
    assert place == "1" and "the header cannot be used" in actual and reason in actual


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a", None, "c"], "id": [1, 2, None], "m": [{"x": [1]}, None, None]})
    first, null, third = read(path, parquet_bytes(path, table), required=["text"])
    assert first == ("1", {"text": "a", "id": 1, "m": {"x": [1]}})
    assert null == ("2", "field 'text' is null; fill it in or remove the record")
    assert third == ("3", {"text": "c", "id": None, "m": None})
    assert read(path, parquet_bytes(path, table.slice(0, 0))) == []


def test_parquet_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for content in (b"", b"text\nhello\n"):
        ((place, reason),) = read(path, content)
        assert place == "1" and "is broken from here on" in reason
    text = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
    good, bad, after = read(path, parquet_bytes(path, pyarrow.table({"text": text})), required=["text"])
    assert (good[1], after[1]) == ({"text": "a"}, {"text": "c"}) and "a value cannot be read" in bad[1]
    duplicate = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    assert "column 'text' occurs 2 times" in read(path, parquet_bytes(path, duplicate))[0][1]


@pytest.mark.parametrize(
    ("name", "head", "good"), [("a.jsonl", b"", b'{"text":"ok"}'), ("a.csv", b"text\n", b"ok"), ("a.txt", b"", b"ok")]
)
def test_a_line_that_is_too_long_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: bytes, good: bytes
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    content = head + b"\n".join([good, b"x" * 3_000_000, good, b"x" * 1001])
    before, bad, after, last = read(tmp_path / name, content)
    assert before[1] == after[1] == {"text": "ok"}
    assert "the record is longer than" in bad[1] and "the record is longer than" in last[1]
    assert int(last[0]) == int(before[0]) + 3


def test_an_open_quotation_mark_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    seen = read(tmp_path / "a.csv", b'text\n"open\n' + b"x\n" * 1000)
    assert seen[0][0] == "2" and "field larger than field limit (1000) (at line 500)" in seen[0][1]
    assert [place for place, _ in seen] == [str(line) for line in range(2, 1003)]  # each lost line is counted
    assert all("the quotation mark in line 2 is not closed" in reason for _, reason in seen[1:499])
    assert [data for _, data in seen[499:]] == [{"text": "x"}] * 502


def test_a_json_element_that_is_too_long_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    seen = read(tmp_path / "a.json", b'[{"a": 1}, {"a": "' + b"x" * 3_000_000 + b'"}, {"a": 2}]')
    assert seen[0] == ("1", {"a": 1}) and "the record is longer" in seen[1][1] and seen[2:] == [("3", {"a": 2})]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_line_of_10_mb_is_a_record(tmp_path: Path, name: str) -> None:
    text = "long line " * 1_000_000
    line = json.dumps({"text": text})
    content = {"a.jsonl": line, "a.json": f"[{line}]", "a.csv": f"text\n{text}", "a.txt": text}[name]
    ((_, data),) = read(tmp_path / name, content.encode(), required=["text"])
    assert data == {"text": text}


def test_items() -> None:
    data = {"text": "a", "extra": 1}
    items: list[Any] = [data, "b", 3, {1: 2}, {"text": "\ud800"}, {"text": ""}]
    out = list(read_records(items, required=["text"]))
    assert out[0] == Record(record_id(data), data, "item:1") and out[0].data is not data
    assert isinstance(out[1], Record) and out[1].data == {"text": "b"}
    reasons = [bad.reason for bad in out[2:] if isinstance(bad, BadRecord)]
    assert [reason.split(";")[0] for reason in reasons] == [
        "the item is of type int",
        "no field 'text'",
        "field 'text' cannot be written as JSON: it has bytes that are not UTF-8 or half a surrogate pair",
        "field 'text' is empty",
    ]
    (named,) = read_records(["b"], text_field="line")
    assert isinstance(named, Record) and named.data == {"line": "b"}
    (keyed,) = read_records([{1: 2}])  # type: ignore[dict-item]
    assert isinstance(keyed, BadRecord) and "Dict key must be str" in keyed.reason


@pytest.mark.parametrize(
    ("fields", "data", "mapped"),
    [
        ({"text": "sentence"}, {"sentence": "a", "x": 1}, {"x": 1, "text": "a"}),
        ({"text": "sentence"}, {"sentence": "a", "text": "b"}, {"text": "a"}),
        ({"a": "b", "b": "a"}, {"a": 1, "b": 2}, {"a": 2, "b": 1}),
        ({"a": "c", "b": "c"}, {"c": 1}, {"a": 1, "b": 1}),
        ({"text": "text"}, {"text": "a"}, {"text": "a"}),
        ({"text": "sentence"}, {"text": "stands for nothing"}, {}),
    ],
)
def test_mapping(fields: dict[str, str], data: dict[str, Any], mapped: dict[str, Any]) -> None:
    (record,) = read_records([data], fields=fields)
    assert isinstance(record, Record) and record.data == mapped


def test_a_mapped_column_that_is_missing_is_named() -> None:
    (bad,) = read_records([{"text": "a"}], fields={"text": "sentence"}, required=["text"])
    assert isinstance(bad, BadRecord)
    assert bad.reason == (
        "no field 'sentence' (for 'text'); the record has 'text'; name the right one with --field text=COLUMN"
    )


@pytest.mark.parametrize(
    ("value", "expected"), [("x7", "x7"), (7, "7"), (0, "0"), (None, None), ("", None), (" ", None)]
)
def test_ids(value: Any, expected: str | None) -> None:
    data = {"text": "a", "id": value}
    (record,) = read_records([data])
    assert isinstance(record, Record) and record.id == (expected or record_id(data)) and record.data == data
    (other,) = read_records([{"text": "a", "key": value}], id_field="key")
    assert isinstance(other, Record) and other.id == (expected or record_id({"text": "a", "key": value}))


def test_an_id_field_that_is_missing_is_bad() -> None:
    (bad,) = read_records(["a"], id_field="key")
    assert isinstance(bad, BadRecord) and bad.reason == "no field 'key' to take the id from; the record has 'text'"


def test_record_id_is_the_hash_of_canonical_json() -> None:
    # sha256 of {"a":"é","b":[1]}
    assert record_id({"b": [1], "a": "é"}) == record_id({"a": "é", "b": [1]}) == "fe44b490e297c052"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("missing.jsonl", {}, "no such file"),
        (".", {}, "is a folder"),
        ("a.xlsx", {}, "unknown file type '.xlsx'; use .jsonl"),
        ("plain", {}, "unknown file type ''"),
        ("nul\0.jsonl", {}, "cannot be read"),
        (["x"], {"fields": {"text": ""}}, "write FIELD=COLUMN"),
        (["x"], {"fields": {"": "text"}}, "write FIELD=COLUMN"),
        ({"text": "x"}, {}, "records of type 'dict' cannot be read"),
        (b"x", {}, "records of type 'bytes' cannot be read"),
        (3, {}, "records of type 'int' cannot be read"),
    ],
)
def test_an_unusable_request_fails_before_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.xlsx", "plain"):
        Path(name).touch()
    with pytest.raises(InputError) as caught:
        read_records(source, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_source_is_the_name_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("\nx\n")
    assert next(read_records("./a.txt")).source == "./a.txt:2"


def peak_bytes(stream: Iterator[object]) -> tuple[int, int]:
    tracemalloc.start()
    try:
        count = sum(1 for _ in stream)
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"text":"sentence number {n}, with a few words more"}}\n' for n in range(200_000))
    count, peak = peak_bytes(shuffled(read_records(path, required=["text"]), seed=0, buffer=100))
    assert count == 200_000 and peak < 1_000_000 < path.stat().st_size / 10


@pytest.mark.parametrize("suffix", [".json", ".csv", ".tsv", ".txt"])
def test_memory_of_the_other_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    line = '{"text": "' + 500 * "x" + '"}' if suffix == ".json" else 500 * "x"
    path.write_text("[" + ",\n".join([line] * 20_000) + "]" if suffix == ".json" else "text\n" + f"{line}\n" * 20_000)
    next(read_records(path))  # the memory of the imports does not count
    count, peak = peak_bytes(read_records(path))
    assert count >= 20_000 and peak < 2_000_000 < path.stat().st_size / 5


@given(st.lists(st.integers(), max_size=60), st.integers(), st.integers(min_value=1, max_value=70))
def test_shuffled_is_a_permutation_determined_by_the_seed(items: list[int], seed: int, buffer: int) -> None:
    numbered = list(enumerate(items))
    out = list(shuffled(iter(numbered), seed=seed, buffer=buffer))
    assert sorted(out) == numbered
    assert out == list(shuffled(numbered, seed=seed, buffer=buffer))
    assert all(place > number - buffer for place, (number, _) in enumerate(out))


def test_shuffled_mixes() -> None:
    once = list(shuffled(range(1000), seed=1))
    assert once != list(range(1000)) and once != list(shuffled(range(1000), seed=2))
