"""Readers of CSV, Parquet, npz, h5 and JSON files, and what they say about files that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agentsys.trainers.traffic.formats import DataOptions, read_series
from agentsys.trainers.traffic.series import Series, SeriesError
from tests.support.traffic import read_text

WIDE = "time,a,b\n2024-01-01 00:00,1,10\n2024-01-01 01:00,2,\n2024-01-01 02:00,3,30\n"
VALUES = [[1, 10], [2, -1], [3, 30]]


def filled(series: Series) -> list[list[float]]:
    values: list[list[float]] = np.nan_to_num(series.target, nan=-1).tolist()
    return values


def test_wide_csv(tmp_path: Path) -> None:
    series = read_text(tmp_path, WIDE)
    assert filled(series) == VALUES and series.sensors == ("a", "b") and series.step == 3600
    assert str(series.times[0]) == "2024-01-01T00:00:00"
    assert set(series.corrections) == {"sensors that miss many values: b (33%)"}


def test_gzip_byte_order_mark_and_other_separators(tmp_path: Path) -> None:
    (tmp_path / "counts.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + WIDE.replace(",", ";").encode()))
    assert filled(read_series(DataOptions(data=tmp_path / "counts.csv.gz"))) == VALUES
    assert filled(read_text(tmp_path, WIDE.replace(",", "\t"), "counts.tsv")) == VALUES


def test_long_csv_with_its_sensors_in_any_order(tmp_path: Path) -> None:
    text = "station;Zeit;wert\nb;01.01.2024 00:00;10\na;01.01.2024 01:00;2\na;01.01.2024 00:00;1\n"
    text += "b;01.01.2024 02:00;30\na;01.01.2024 02:00;3\n"
    series = read_text(tmp_path, text)
    assert filled(series) == VALUES and series.sensors == ("a", "b")


def test_long_csv_with_channels_and_columns_by_option(tmp_path: Path) -> None:
    text = "when,where,flow,rain\n2024-01-01 00:00,a,1,0.5\n2024-01-01 01:00,a,2,0\n"
    options = {"time_column": "when", "sensor_column": "where", "value_columns": "flow, rain"}
    assert read_text(tmp_path, text, **options).values.tolist() == [[[1, 0.5]], [[2, 0]]]
    with pytest.raises(SeriesError, match=r"--sensor-column place: counts.csv has no such column; it has a, b"):
        read_text(tmp_path, WIDE, sensor_column="place")
    with pytest.raises(SeriesError, match="which of x, y is the value"):
        read_text(tmp_path, "time,sensor,x,y\n2024-01-01 00:00,a,1,2\n")


def test_csv_without_times_needs_a_start(tmp_path: Path) -> None:
    text = "773869,767541\n64.375,67.625\n62.5,60\n"
    series = read_text(tmp_path, text, start="2012-03-01", step="5min")
    assert series.target.tolist() == [[64.375, 67.625], [62.5, 60]]
    assert series.sensors == ("773869", "767541") and str(series.times[1]) == "2012-03-01T00:05:00"
    with pytest.raises(SeriesError, match="no column of times: give --time-column, or --start and --step"):
        read_text(tmp_path, text)
    with pytest.raises(SeriesError, match=r"give --start .* and --step"):
        read_text(tmp_path, text, start="2012-03-01")


def test_an_unnamed_first_column_of_times(tmp_path: Path) -> None:
    assert filled(read_text(tmp_path, WIDE.replace("time", "", 1))) == VALUES


def test_three_formats_of_times_in_one_column(tmp_path: Path) -> None:
    text = "time,a\n2024-01-30 22:00,1\n30.01.2024 23:00,2\n1/31/2024 12:00 AM,3\n2024-01-31T01:00:00,4\n"
    series = read_text(tmp_path, text)
    assert series.target[:, 0].tolist() == [1, 2, 3, 4]
    assert any("times in 3 formats (ISO 8601 2 rows, day.month.year 1 rows, month/day/year 1 rows)" in note
               for note in series.corrections)  # fmt: skip


@pytest.mark.parametrize(
    ("times", "hours"),
    [
        (["2024-01-01T01:00+01:00", "2024-01-01T01:00Z"], ["2024-01-01T00", "2024-01-01T01"]),
        (["1704067200", "1704070800"], ["2024-01-01T00", "2024-01-01T01"]),
        (["1704067200000", "1704070800000"], ["2024-01-01T00", "2024-01-01T01"]),
        (["2024-01-01 01:00+01", "2024-01-01 01:00+00"], ["2024-01-01T00", "2024-01-01T01"]),
        (["2024010100", "2024010101"], ["2024-01-01T00", "2024-01-01T01"]),
        (["202401010000", "20240101010000"], ["2024-01-01T00", "2024-01-01T01"]),
        (["13/1/2024 11:00 PM", "14/1/2024 12:00 AM"], ["2024-01-13T23", "2024-01-14T00"]),
        (["2024-02-28 23:00", "2024-02-28 24:00"], ["2024-02-28T23", "2024-02-29T00"]),
    ],
)
def test_formats_of_times(tmp_path: Path, times: list[str], hours: list[str]) -> None:
    series = read_text(tmp_path, "time,a\n" + "".join(f"{time},{row}\n" for row, time in enumerate(times)))
    assert [str(time)[:13] for time in series.times] == hours and series.target[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("times", "error"),
    [
        (["2024-01-01 00:00", "yesterday"], r"column time, row 2: 'yesterday' is no time: write it as"),
        (["2023-02-28 00:00", "2023-02-29 00:00"], r"column time, row 2: there is no time 2023-02-29 00:00"),
        (["2024-01-01 00:00", "2024-01-01 25:00"], r"row 2: there is no time 2024-01-01 25:00"),
        (["1/2/2024 00:00", "1/2/2024 01:00"], r"1/2/...: no row tells day from month; write them as"),
        (["13/2/2024 00:00", "2/13/2024 00:00"], r"some rows have the day first, some the month"),
        (["2024-01-01 00:00", ""], r"row 2: '' is no time"),
    ],
)
def test_bad_times(tmp_path: Path, times: list[str], error: str) -> None:
    with pytest.raises(SeriesError, match=error):
        read_text(tmp_path, "time,a\n" + "".join(f"{time},1\n" for time in times))


@pytest.mark.parametrize(
    "text",
    [
        "date,hour,a\n2024-01-01,22,1\n2024-01-01,23,2\n2024-01-02,0,3\n",
        "a,Time,Date\n1,22:00,01.01.2024\n2,23:00,01.01.2024\n3,00:00,02.01.2024\n",
        "Datum;Uhrzeit;a\n2024-01-01;22:00:00;1\n2024-01-01;23:00:00;2\n2024-01-02;00:00:00;3\n",
        "date,time,a\n12/31/2023,10:00 PM,0\n01/01/2024,10:00 PM,1\n01/01/2024,11:00 PM,2\n01/02/2024,12:00 AM,3\n",
    ],
)
def test_dates_and_times_of_day_in_two_columns(tmp_path: Path, text: str) -> None:
    series = read_text(tmp_path, text, step="1h")
    last = series.between(len(series) - 3, len(series))
    assert last.target[:, 0].tolist() == [1, 2, 3] and series.sensors == ("a",)
    assert str(last.times[0]) == "2024-01-01T22:00:00" and any("date and time of day" in c for c in series.corrections)


def test_a_column_of_whole_times_beside_one_of_dates(tmp_path: Path) -> None:
    """The time alone is the time; a column of dates that is no number is refused by its name."""
    text = "day,time,a\n1,2024-01-01 22:00,1\n1,2024-01-01 23:00,2\n"
    assert read_text(tmp_path, text).sensors == ("day", "a")


def test_decimal_commas_and_words_for_missing_values(tmp_path: Path) -> None:
    series = read_text(tmp_path, "time;a;b\n2024-01-01 00:00;1,5;n/a\n2024-01-01 01:00;2;-\n2024-01-01 02:00; ;7\n")
    assert filled(series) == [[1.5, -1], [2, -1], [-1, 7]]
    assert "counts.csv, column a: 1 decimal commas read as points" in series.corrections


@pytest.mark.parametrize(
    ("cells", "error"),
    [
        (["1", "twelve"], r"counts.csv, column a, row 2: 'twelve' is no number: correct it, leave the cell empty"),
        (["1,234", "2,500"], r"row 1: '1,234' may be thousands or a decimal comma: write decimal points"),
        (["1,5", "2.5"], r"row 2: the column has decimal commas and points"),
        (["1.234,5", "2"], r"row 1: '1.234,5' is no number"),
    ],
)
def test_bad_numbers(tmp_path: Path, cells: list[str], error: str) -> None:
    with pytest.raises(SeriesError, match=error):
        read_text(tmp_path, "time;a\n" + "".join(f"2024-01-01 0{row}:00;{cell}\n" for row, cell in enumerate(cells)))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "the file is empty"),
        ("time,a\n", "no rows below the header"),
        ("time\n2024-01-01\n", "found one column"),
        ("time,a,a\n2024-01-01,1,2\n", "the header has 'a' twice"),
        ("time,a\n2024-01-01 00:00,1,2\n", "Expected 2 columns, got 3"),
        ("2024-01-01 00:00,1\n2024-01-01 01:00,2\n", "the first row is no header, it begins with the time"),
        ("time,sensor,value\n2024-01-01 00:00,,1\n", "column sensor, row 1: the sensor is missing"),
    ],
)
def test_bad_csv_files(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(SeriesError, match=error) as caught:
        read_text(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for name in ("x.csv.gz", "x.parquet", "x.npz", "x.json"):
        (tmp_path / name).write_bytes(b"\x1f\x8bnonsense")
        with pytest.raises(SeriesError, match=name):
            read_series(DataOptions(data=tmp_path / name))
    with pytest.raises(SeriesError, match="no such file"):
        read_series(DataOptions(data=tmp_path / "absent.csv"))
    with pytest.raises(SeriesError, match=r"give a .csv, .csv.gz"):
        read_text(tmp_path, WIDE, "counts.xlsx")


def test_windows_1252(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_bytes("time,Königstraße\n2024-01-01 00:00,1\n2024-01-01 01:00,2\n".encode("cp1252"))
    series = read_series(DataOptions(data=tmp_path / "c.csv"))
    assert series.sensors == ("Königstraße",) and "c.csv: not UTF-8, read as Windows-1252" in series.corrections


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_parquet(tmp_path: Path, zone: str | None) -> None:
    times = pa.array([0, 3600, 7200], pa.timestamp("s")).cast(pa.timestamp("us", zone))
    table = pa.table({"stamp": times, "a": [1, 2, 3], "b": [10.0, None, 30.0]})
    pq.write_table(table, tmp_path / "counts.parquet")
    series = read_series(DataOptions(data=tmp_path / "counts.parquet", zone="Europe/Berlin"))
    assert filled(series) == VALUES
    assert str(series.times[0]) == ("1970-01-01T00:00:00" if zone else "1969-12-31T23:00:00")


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, data=np.arange(12.0).reshape(3, 2, 2))
    series = read_series(DataOptions(data=path, start="2024-01-01", step="5min"))
    assert series.values[1].tolist() == [[4, 5], [6, 7]] and series.sensors == ("0", "1") and series.step == 300
    with pytest.raises(SeriesError, match=r"data.npz has no times: give --start"):
        read_series(DataOptions(data=path))
    np.savez(path, data=np.array(["a", "b"]))
    with pytest.raises(SeriesError, match=r"of shape \(2,\): give numbers"):
        read_series(DataOptions(data=path, start="2024-01-01", step="5min"))
    np.savez(path, x=np.zeros(2), y=np.zeros(2))
    with pytest.raises(SeriesError, match="which of x, y is it"):
        read_series(DataOptions(data=path))
    np.savez(path, data=np.array([{"a": 1}], object))
    with pytest.raises(SeriesError, match="not an npz file of plain arrays"):
        read_series(DataOptions(data=path))


def test_npz_of_flows_between_nodes(tmp_path: Path) -> None:
    """(T, N, N): a sensor is a pair, from the first node to the second."""
    flows = np.arange(3 * 16).reshape(3, 4, 4)
    np.savez(tmp_path / "od.npz", od=flows)
    series = read_series(DataOptions(data=tmp_path / "od.npz", start="2024-01-01", step="1h"))
    assert len(series.sensors) == 16 and series.sensors[:5] == ("0-0", "0-1", "0-2", "0-3", "1-0")
    assert series.target[1, series.sensors.index("2-3")] == flows[1, 2, 3]
    assert any("flows from the first to the second: 16 sensors" in sentence for sentence in series.corrections)
    np.savez(tmp_path / "channels.npz", data=np.ones((3, 3, 3)))
    channels = read_series(DataOptions(data=tmp_path / "channels.npz", start="2024-01-01", step="1h"))
    assert channels.values.shape == (3, 3, 3)


def test_npz_of_extralonger_has_its_clock_in_channels(tmp_path: Path) -> None:
    steps = np.arange(3 * 288) + 100
    data = np.stack([steps, steps % 288 / 288, (steps // 288 + 4) % 7], axis=1)[:, None].repeat(2, axis=1)
    np.savez(tmp_path / "data.npz", data=data.astype(np.float32))
    series = read_series(DataOptions(data=tmp_path / "data.npz"))
    assert series.values.shape == (864, 2, 1) and series.step == 300
    assert series.time_of_day.tolist() == (steps % 288).tolist()
    assert series.day_of_week.tolist() == ((steps // 288 + 4) % 7).tolist()
    assert any("channels 1 and 2 are time of day and day of the week" in note for note in series.corrections)


@pytest.mark.needs("traffic")
def test_h5_of_pandas_and_plain(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "metr-la.h5", "w") as file:
        group = file.create_group("df")
        group["axis0"] = np.array([b"773869", b"767541"])
        group["axis1"] = np.array([0, 300, 600], np.int64) * 10**9
        group["axis1"].attrs["kind"] = np.bytes_("datetime64")
        group["block0_items"] = np.array([b"767541", b"773869"])
        group["block0_values"] = np.array([[10, 1], [20, 2], [30, 0]], np.float64)
    series = read_series(DataOptions(data=tmp_path / "metr-la.h5", missing=0.0))
    assert series.sensors == ("773869", "767541") and filled(series) == [[1, 10], [2, 20], [-1, 30]]
    assert series.step == 300 and str(series.times[1]) == "1970-01-01T00:05:00"
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["data"] = np.ones((4, 3))
    plain = read_series(DataOptions(data=tmp_path / "plain.h5", start="2024-01-01", step="1h"))
    assert plain.values.shape == (4, 3, 1)
    (tmp_path / "bad.h5").write_bytes(b"no")
    with pytest.raises(SeriesError, match="not an HDF5 file"):
        read_series(DataOptions(data=tmp_path / "bad.h5"))


def test_json_of_pytorch_geometric_temporal(tmp_path: Path) -> None:
    nodes = [{"bus_stop": 5, "y": [1, 2, 3]}, {"bus_stop": 7, "y": [10, 20, 30]}]
    options = {"start": "2020-10-01", "step": "1h"}
    series = read_text(tmp_path, json.dumps({"nodes": nodes, "links": []}), "bus.json", **options)
    assert series.sensors == ("5", "7") and series.target.tolist() == [[1, 10], [2, 20], [3, 30]]
    counties = {"FX": [[1, 10], [2, 20]], "edges": [[0, 1]], "node_ids": {"B": 1, "A": 0}}
    series = read_text(tmp_path, json.dumps(counties), "pox.json", **options)
    assert series.sensors == ("A", "B") and series.target.tolist() == [[1, 10], [2, 20]]
    with pytest.raises(SeriesError, match="nodes with series 'y' of equal length"):
        read_text(tmp_path, json.dumps({"nodes": [{"y": [1]}, {"y": [1, 2]}]}), "bad.json", **options)
    with pytest.raises(SeriesError, match="under FX or X"):
        read_text(tmp_path, json.dumps({"a": 1}), "bad.json", **options)


def test_since_leave_out_and_most_missing(tmp_path: Path) -> None:
    lines = [
        f"2024-01-{day:02} 00:00,{day},{day if day % 2 else ''},{day},{day if day < 4 else ''}" for day in range(1, 11)
    ]
    text = "time,a,b,c,d\n" + "\n".join(lines)
    options = {"since": "04.01.2024", "leave_out": "c", "most_missing": 0.5, "step": "1d"}
    series = read_text(tmp_path, text, **options)
    assert series.sensors == ("a",) and series.target[:, 0].tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert series.corrections == (
        "dropped c: as --leave-out says",
        "dropped d: no value at all",
        "dropped b: more than 50% missing",
    )
    assert read_text(tmp_path, text, since="2024-01-05").sensors == ("a", "b", "c")
    for wrong, error in (
        ({"since": "2025-01-01"}, r"--since 2025-01-01: the data ends at 2024-01-10T00:00:00"),
        ({"since": "then"}, r"--since, row 1: 'then' is no time"),
        ({"leave_out": "e"}, r"there is no sensor e: the sensors are a, b, c, d"),
        ({"most_missing": 0.0, "leave_out": "a,c"}, r"no sensor is left \(more than 0% missing\)"),
        ({"most_missing": 15}, r"--most-missing 15: give a share from 0 to 1"),
    ):
        with pytest.raises(SeriesError, match=error):
            read_text(tmp_path, text, **wrong)


def test_since_is_a_local_time(tmp_path: Path) -> None:
    text = "time,a\n" + "".join(f"2024-01-01T{hour:02}:00Z,{hour}\n" for hour in range(24))
    series = read_text(tmp_path, text, zone="America/New_York", since="2024-01-01 03:00")
    assert series.target[0, 0] == 8 and str(series.local[0]) == "2024-01-01T03:00:00"


def test_a_sensor_that_is_down_can_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "latest.csv"
    path.write_text("time,a,b,c\n2024-01-01 00:00,1,,\n2024-01-01 01:00,2,,\n")
    assert read_series(DataOptions(data=path)).sensors == ("a",)
    series = read_series(DataOptions(data=path), keep=["b"])
    assert series.sensors == ("a", "b") and np.isnan(series.target[:, 1]).all()
    assert set(series.corrections) == {"dropped c: no value at all", "sensors that miss many values: b (100%)"}
