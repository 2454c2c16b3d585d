"""Array files of research data sets: npz (T, N, C), h5 of METR-LA and PEMS-BAY, JSON of PyTorch Geometric Temporal."""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agentsys.installation import install_command
from agentsys.trainers.traffic.grid import Rows, describe_seconds
from agentsys.trainers.traffic.series import DAY, SeriesError
from agentsys.trainers.traffic.timestamps import Stamps, count_times

Array = npt.NDArray[Any]

MOST_CHANNELS = 3
"""An array of N nodes and as many channels has two axes of nodes if N is above it."""


def read_npz(path: Path, start: str, step: int | None) -> Rows:
    """An array (T, N, C), (T, N) or (T, N, N) under the key `data`, or the only one of the file.

    Sensors are named 0 to N - 1. With two axes of N > 3 nodes the values are flows, and a sensor is a pair such as 0-1.

    The files of Extralonger's code have the time of day and the day of the week as channels 1 and 2 (papers file,
    section 3.2): without `start` and `step`, times are taken from them, and begin on a Monday of 2018 at the earliest.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            key = "data" if "data" in names else names[0] if len(names) == 1 else ""
            if not key:
                raise SeriesError(f"{path.name}: which of {', '.join(names)} is it? Save the array as 'data'")
            array = file[key]
    except SeriesError:
        raise
    except (OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error, *_DAMAGE) as err:
        raise SeriesError(f"{path.name}: not an npz file of plain arrays: {_one_line(err)}") from None
    return _rows_of_array(array, path.name, start, step)


def _rows_of_array(array: Array, name: str, start: str, step: int | None) -> Rows:
    if array.ndim not in (2, 3) or not np.issubdtype(array.dtype, np.number) or not array.size:
        raise SeriesError(f"{name}: {array.dtype} of shape {array.shape}: give numbers of (times, sensors, channels)")
    if array.ndim == 3 and array.shape[1] == array.shape[2] > MOST_CHANNELS:
        return _rows_of_flows(array, name, start, step)
    values = array.reshape(*array.shape[:2], -1).astype(np.float32)
    sensors = tuple(str(index) for index in range(values.shape[1]))
    if values.shape[2] != 3 or not _has_clock(values):
        return Rows(count_times(len(values), start, step, name), values, sensors)
    own_step, first = _read_clock(values)
    note = f"{name}: channels 1 and 2 are time of day and day of the week, not values: left out"
    if start:
        stamps = count_times(len(values), start, step or own_step, name)
    else:
        note += f"; by them steps of {describe_seconds(own_step)} begin at {first} (the week is made up)"
        stamps = Stamps(first + np.arange(len(values)) * np.timedelta64(own_step, "s"), np.ones(len(values), bool))
    return Rows(stamps, values[:, :, :1], sensors, None, (note,))


def _rows_of_flows(array: Array, name: str, start: str, step: int | None) -> Rows:
    """Flows (T, N, N) from each node to each node."""
    nodes = array.shape[1]
    sensors = tuple(f"{origin}-{end}" for origin in range(nodes) for end in range(nodes))
    values = array.reshape(len(array), nodes * nodes, 1).astype(np.float32)
    note = f"{name}: two axes of {nodes} nodes are read as flows from the first to the second: {len(sensors)} sensors"
    return Rows(count_times(len(values), start, step, name), values, sensors, None, (note,))


def _has_clock(values: Array) -> bool:
    """Whether channel 1 is the time of day as a fraction and channel 2 the day of the week, both growing with time."""
    day_share, weekday = values[:, 0, 1], values[:, 0, 2]
    whole = np.isin(weekday, np.arange(7)).all() and ((day_share >= 0) & (day_share < 1)).all()
    same = (values[:, :, 1:] == values[:, :1, 1:]).all()
    steps = np.diff(day_share)
    return bool(whole and same and len(steps) and np.median(steps) > 0)


def _read_clock(values: Array) -> tuple[int, np.datetime64]:
    """Step in seconds, and the first time in the week from Monday, 2018-01-01."""
    step = int(np.round(np.median(np.diff(values[:, 0, 1].astype(np.float64))) * DAY))
    seconds = int(values[0, 0, 2]) * DAY + int(np.round(float(values[0, 0, 1]) * DAY / step)) * step
    return step, np.datetime64("2018-01-01T00:00:00", "s") + np.timedelta64(seconds, "s")


def read_h5(path: Path, start: str, step: int | None) -> Rows:
    """A pandas data frame in HDF5 (METR-LA: key df, PEMS-BAY: key speed), or a data set of (T, N[, C]) numbers."""
    try:
        import h5py
    except ImportError:
        raise SeriesError(f"{path.name}: h5 files need h5py: {install_command('traffic')}") from None
    try:
        with h5py.File(path, "r") as file:
            frames = [group for group in (file, *file.values()) if isinstance(group, h5py.Group) and "axis1" in group]
            if frames:
                return _rows_of_frame(frames[0], path.name)
            arrays = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            key = "data" if "data" in arrays else next(iter(arrays), "") if len(arrays) == 1 else ""
            if not key:
                raise SeriesError(f"{path.name}: no data frame in pandas' fixed format, and no data set named 'data'")
            return _rows_of_array(arrays[key][()], path.name, start, step)
    except SeriesError:
        raise
    except (OSError, *_DAMAGE) as err:
        raise SeriesError(f"{path.name}: not an HDF5 file, or damaged: {_one_line(err)}") from None


_DAMAGE = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)
"""What damaged or unforeseen content raises."""


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())[:200]


def _rows_of_frame(group: Any, name: str) -> Rows:
    """A data frame in the fixed format of pandas: axis0 names the columns, axis1 the times, blocks hold the values."""
    sensors = [_text(label) for label in group["axis0"][()]]
    index = group["axis1"]
    kind = _text(index.attrs.get("kind", ""))
    if not kind.startswith("datetime64"):
        raise SeriesError(f"{name}: its rows are not times ({kind or 'no kind'}): save a frame with a DatetimeIndex")
    unit = kind.partition("[")[2].rstrip("]") or "ns"
    times = index[()].astype(f"datetime64[{unit}]").astype("datetime64[s]")
    values = np.full((len(times), len(sensors), 1), np.nan, np.float32)
    columns = {label: position for position, label in enumerate(sensors)}
    for key in (key for key in group if key.startswith("block") and key.endswith("_values")):
        items = [_text(label) for label in group[key.replace("_values", "_items")][()]]
        values[:, [columns[item] for item in items], 0] = group[key][()]
    zone = "tz" in index.attrs and _text(index.attrs["tz"]) not in ("", "None")
    return Rows(Stamps(times, np.full(len(times), zone)), values, tuple(sensors))


def _text(label: Any) -> str:
    return label.decode() if isinstance(label, bytes) else str(label)


def read_json(path: Path, start: str, step: int | None) -> Rows:
    """A data set of PyTorch Geometric Temporal: nodes with a series `y` (Montevideo), or (T, N) rows under FX or X.

    `read_links` reads the edges of the same file.
    """
    content = load_json(path)
    try:
        if "nodes" in content:
            values = np.array([node["y"] for node in content["nodes"]], np.float32).T
        else:
            key = next(key for key in ("FX", "X", "block") if key in content)
            values = np.array(content[key], np.float32)
        sensors = node_names(content) or tuple(str(index) for index in range(values.shape[1]))
        values = values.reshape(len(values), len(sensors), -1)
    except (*_DAMAGE, StopIteration):
        raise SeriesError(
            f"{path.name}: it needs nodes with series 'y' of equal length, or (times, nodes) numbers under FX or X"
        ) from None
    return Rows(count_times(len(values), start, step, path.name), values, sensors)


def load_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, gzipped or not. Raises SeriesError."""
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as err:
        raise SeriesError(f"{path.name}: not a JSON file: {_one_line(err)}") from None
    if not isinstance(content, dict):
        raise SeriesError(f"{path.name}: a JSON object is needed, with nodes or FX")
    return content


def node_names(content: dict[str, Any]) -> tuple[str, ...]:
    """Names of the nodes: `bus_stop` or `id` of each, or the keys of `node_ids` in order of their numbers.

    Raises a KeyError, TypeError or ValueError for content that is not so.
    """
    if "nodes" in content:
        key = next((key for key in ("id", "bus_stop", "name") if key in content["nodes"][0]), "")
        return tuple(str(node.get(key, index)) for index, node in enumerate(content["nodes"]))
    ids = content.get("node_ids", {})
    return tuple(sorted(ids, key=lambda name: int(ids[name])))


def read_links(path: Path) -> list[tuple[str, str]]:
    """Links of a node-link file by the nodes' names, or `edges` of node numbers. Raises SeriesError."""
    content = load_json(path)
    try:
        if "links" in content:
            return [(str(link["source"]), str(link["target"])) for link in content["links"]]
        names = node_names(content)
        return [(names[int(a)], names[int(b)]) if names else (str(a), str(b)) for a, b in content["edges"]]
    except _DAMAGE:
        raise SeriesError(f"{path.name}: it needs 'links' with source and target, or 'edges' of node numbers") from None
