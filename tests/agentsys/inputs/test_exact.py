"""Nothing changes silently: numbers, keys, encodings and values of tables are kept exactly or refused in one line."""

from __future__ import annotations

import codecs
import datetime
import json
from decimal import Decimal
from enum import IntEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsys.inputs.json_text import parse_object
from agentsys.inputs.lines import Fault
from agentsys.inputs.plain import make_plain, to_plain
from agentsys.records import BadRecord, InputError, Record, read_records, record_id

HUGE = 2**100


def data_of(source: Any, **options: Any) -> list[Any]:
    """The fields of each record, or the reason of a bad one."""
    seen = list(read_records(source, **options))
    assert all("\n" not in record.reason for record in seen if isinstance(record, BadRecord))
    return [record.data if isinstance(record, Record) else record.reason for record in seen]


# integers


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, HUGE, -HUGE, 10**4000])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_integers_are_exact(tmp_path: Path, number: int, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    line = json.dumps({"id": "a", "n": number, "deep": {"x": [1.5, {"y": number}]}})
    path.write_text({".jsonl": line, ".json": f"[{line}]", ".csv": f"id,n\na,{number}\n"}[suffix])
    (data,) = data_of(path)
    assert str(data["n"]) == str(number) and not isinstance(data["n"], float)
    if suffix != ".csv":
        assert str(data["deep"]["x"][1]["y"]) == str(number) and data["deep"]["x"][0] == 1.5
        assert isinstance(data["n"], int) == (-(2**63) <= number < 2**64)
    assert record_id(data)


def test_an_integer_that_python_cannot_read_is_refused() -> None:
    fault = parse_object(b'{"n": 1' + b"0" * 10_000 + b"}")
    assert isinstance(fault, Fault) and ("a number cannot be read" in fault.reason or "infinity" in fault.reason)


def test_large_floats_stay_floats() -> None:
    assert parse_object(b'{"n": 1e25, "m": [-2.5e300]}') == {"n": 1e25, "m": [-2.5e300]}


def test_an_integer_as_id_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"id": {HUGE}, "text": "x"}}')
    (record,) = read_records(path)
    assert isinstance(record, Record) and record.id == str(HUGE)


# keys


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "a", "text": "b"}',
        '{"text": "a", "text" : "a"}',
        '{"a": {"x": 1, "x": 2}}',
        '{"a": [1, {"x": [], "x": "at 12:30"}]}',
        '{"a": "\\u003a", "b": 1, "b": 2, "c": "\\u003A"}',
        '{"a": 1, "\\u0061": 2}',
        '{"a:b": 1, "a:b": 2}',
    ],
)
def test_a_repeated_key_is_refused(line: str) -> None:
    fault = parse_object(line.encode())
    assert isinstance(fault, Fault) and "occurs 2 times in one object; keep one of them" in fault.reason


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
KEYS = st.text(alphabet='a:b"\\u003 ', max_size=4)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@given(st.dictionaries(KEYS, JSON, max_size=4), st.booleans(), st.sampled_from([None, (",", ":"), (" , ", " : ")]))
def test_an_object_is_what_the_json_module_reads(fields: dict[str, Any], ascii_only: bool, separators: Any) -> None:
    line = json.dumps(fields, ensure_ascii=ascii_only, separators=separators)
    assert parse_object(line.encode(errors="surrogatepass")) == json.loads(line)


# encodings

TEXT = "The clock coughed. 早上好 😀\nHope: a poor lodger.\n"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".json"])
def test_a_marked_encoding_is_read(tmp_path: Path, encoding: str, suffix: str) -> None:
    sentences = TEXT.splitlines()
    contents = {
        ".txt": TEXT,
        ".csv": "text\n" + TEXT,
        ".jsonl": "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in sentences),
        ".json": json.dumps([{"text": text} for text in sentences], ensure_ascii=False),
    }
    path = tmp_path / f"a{suffix}"
    path.write_bytes(("\ufeff" + contents[suffix]).encode(encoding))
    assert data_of(path) == [{"text": text} for text in sentences]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".json"])
def test_an_encoding_without_mark_is_refused(tmp_path: Path, encoding: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(("text\n" + TEXT).encode(encoding))
    with pytest.raises(InputError, match="zero bytes, like UTF-16 without a byte order mark; convert it to UTF-8"):
        read_records(path)


@pytest.mark.parametrize(
    "encoding", ["gb18030", "shift-jis", "euc-kr", "big5", "koi8-r", "cp1251", "iso2022_jp", "iso2022_kr"]
)
def test_text_in_another_encoding_is_refused_line_by_line(tmp_path: Path, encoding: str) -> None:
    korean, russian = "안녕하세요", "Часы"
    samples = {"euc-kr": korean, "iso2022_kr": korean, "koi8-r": russian, "cp1251": russian}
    line = samples.get(encoding, "早上好")
    path = tmp_path / "a.txt"
    path.write_bytes("\n".join([line * 20] * 3).encode(encoding))
    reasons = data_of(path)
    assert reasons and all(isinstance(reason, str) and "convert the file to UTF-8" in reason for reason in reasons)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_chinese_utf16_without_mark_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(("早上好" * 20 + "\n" + "上海" * 30 + "\n").encode(encoding))
    with pytest.raises(InputError, match="like UTF-16 without a byte order mark"):
        read_records(path)


def test_a_zero_byte_costs_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"The first line is long enough.\nA zero\0 here.\nThe last one.\n")
    first, zero, last = data_of(path)
    assert (first["text"], last["text"]) == ("The first line is long enough.", "The last one.")
    assert zero == "byte 7 is zero, like in UTF-16 and binary files; convert the file to UTF-8"


@pytest.mark.parametrize("lone", ["\ud83d", "\ude00"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8"])
def test_half_a_surrogate_pair_costs_its_line(tmp_path: Path, lone: str, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f"\ufeffA clock\nA{lone} clock\nA door\n".encode(encoding, "surrogatepass"))
    first, lost, last = data_of(path)
    assert (first, last) == ({"text": "A clock"}, {"text": "A door"}) and "is not UTF-8" in lost


def test_a_torn_utf16_file_costs_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(codecs.BOM_UTF16_LE + "A clock\nA door".encode("utf-16-le")[:-1])
    first, last = data_of(path)
    assert first == {"text": "A clock"} and "is not UTF-8" in last


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x1f\x8b\x08\0\0\0\0\0", "compressed with gzip; let its name end in .gz"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "compressed with zstd"),
        (b"BZh91AY&SY\0\0", "compressed with bzip2"),
        (b"\xfd7zXZ\0\0", "compressed with xz"),
        (b"PK\x03\x04\x14\0", "a ZIP archive or a spreadsheet"),
        (b"PAR1\x15\x04", "a Parquet file; let its name end in .parquet"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".csv"])
def test_a_binary_file_is_named(tmp_path: Path, content: bytes, kind: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=kind):
        read_records(path)


# values


class Level(IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (HUGE, str(HUGE)),
        (float("nan"), None),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E+3"), "1000"),
        (Decimal("NaN"), None),
        (b"\x89PNG", "iVBORw=="),
        (bytearray(b"x"), "eA=="),
        (datetime.datetime(2020, 1, 2, 3, 4, 5, 600_000), "2020-01-02T03:04:05.600000"),
        (datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), "2020-01-02T00:00:00+00:00"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (datetime.time(3, 4), "03:04:00"),
        (datetime.timedelta(days=1, seconds=7200, milliseconds=500), "PT93600.5S"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("a") / "b", "a/b"),
        (Level.LOW, 1),
        ((1, [HUGE]), [1, [str(HUGE)]]),
        (np.int64(7), 7),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float64("nan"), None),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.datetime64("2020-01-02T03:04:05.123456789"), "2020-01-02T03:04:05.123456789"),
        (np.datetime64("NaT"), None),
    ],
)
def test_plain_values(value: Any, expected: Any) -> None:
    plain = to_plain(value)
    assert plain == expected and type(plain) is type(expected)
    (data,) = data_of([{"text": "x", "value": value, "list": [value]}])
    assert data == {"text": "x", "value": expected, "list": [expected]}


@pytest.mark.parametrize(
    "value", [object(), {1}, 1j, {1: 2}, "\ud800", np.complex128(1), np.longdouble(1), [10**5000], [[object()]]]
)
def test_a_value_without_plain_form_costs_a_needed_field_only(value: Any) -> None:
    (data,) = data_of([{"text": "x", "other": value}], required=["text"])
    assert data["text"] == "x" and list(data["other"]) == ["unreadable"]
    (reason,) = data_of([{"text": "x", "other": value}], fields={"label": "other"})
    assert reason.startswith("field 'label' cannot be written as JSON: ")


def test_a_list_in_itself_has_no_plain_form() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert make_plain({"text": endless}, ["text"])[1].startswith("field 'text' cannot be written as JSON")


@pytest.mark.parametrize("value", [b"text", Decimal(1), HUGE, datetime.date(2020, 1, 1), [1], np.array([1, 2])])
def test_a_required_field_is_text_already(value: Any) -> None:
    (reason,) = data_of([{"text": value}], required=["text"])
    assert reason == f"field 'text' is of type {type(value).__name__}; make it a string"


# Parquet


def write(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pyarrow.array([Decimal("12345678901234567890.50")], pyarrow.decimal128(30, 2)), "12345678901234567890.50"),
        (pyarrow.array([Decimal(HUGE)], pyarrow.decimal256(50, 0)), str(HUGE)),
        (pyarrow.array([2**64 - 1], pyarrow.uint64()), 2**64 - 1),
        (pyarrow.array([b"\x89"], pyarrow.binary()), "iQ=="),
        (pyarrow.array([datetime.date(2020, 1, 2)]), "2020-01-02"),
        (pyarrow.array([1], pyarrow.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
        (
            pyarrow.array([2**60], pyarrow.timestamp("us")),
            {"unreadable": "a value cannot be read: date value out of range"},
        ),
        (pyarrow.array([1_500_000], pyarrow.duration("us")), "PT1.5S"),
        (pyarrow.array([float("nan")]), None),
        (pyarrow.array([float("inf")]), "Infinity"),
        (pyarrow.array([[("k", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())), [["k", 1]]),
        (pyarrow.array([{"bytes": b"x", "path": None}]), {"bytes": "eA==", "path": None}),
        (pyarrow.array(["a"]).dictionary_encode(), "a"),
    ],
)
def test_parquet_values(tmp_path: Path, column: Any, expected: Any) -> None:
    (data,) = data_of(write(tmp_path / "a.parquet", text=["x"], value=column), required=["text"])
    assert data == {"text": "x", "value": expected}


def test_a_decimal_is_an_id(tmp_path: Path) -> None:
    ids = pyarrow.array([Decimal(7), Decimal(HUGE)], pyarrow.decimal128(38, 0))
    seen = list(read_records(write(tmp_path / "a.parquet", id=ids, text=["x", "y"])))
    assert [record.id for record in seen if isinstance(record, Record)] == ["7", str(HUGE)]


def test_a_broken_parquet_column_costs_a_needed_field_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"clock {n}" for n in range(1000)], "other": [f"o{n}" * 50 for n in range(1000)]})
    pyarrow.parquet.write_table(table, path, row_group_size=500, compression="zstd", use_dictionary=False)
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start, size = column.data_page_offset, column.total_compressed_size
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    seen = data_of(path, required=["text"])
    assert [data["text"] for data in seen] == [f"clock {n}" for n in range(1000)]
    assert seen[499]["other"] == "o499" * 50 and list(seen[999]["other"]) == ["unreadable"]
    reasons = data_of(path, required=["other"])
    assert len(reasons) == 1000 and reasons[999].startswith("field 'other': ")


def test_text_that_is_not_utf8_in_a_column_that_is_not_needed(tmp_path: Path) -> None:
    other = pyarrow.array([b"a", b"\xff"]).view(pyarrow.string())
    good, kept = data_of(write(tmp_path / "a.parquet", text=["x", "y"], other=other), required=["text"])
    assert good == {"text": "x", "other": "a"} and list(kept["other"]) == ["unreadable"]
