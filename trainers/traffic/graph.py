"""Which sensors are neighbors: the mask of local attention (papers file, section 3.2).

From an edge list or a matrix in a CSV file, the links of a JSON data set, coordinates, or, with none of these, from the
correlation of what the scaled profile leaves in the training part. Weights are ignored, an edge counts in both
directions, and every sensor is its own neighbor, as in the released code.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agentsys.trainers.traffic.arrays import read_links
from agentsys.trainers.traffic.baselines import ScaledProfile
from agentsys.trainers.traffic.formats import read_csv
from agentsys.trainers.traffic.grid import join_names
from agentsys.trainers.traffic.numbers import to_numbers
from agentsys.trainers.traffic.options import GraphOptions
from agentsys.trainers.traffic.series import SeriesError
from agentsys.trainers.traffic.splits import Parts

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

NEIGHBORS = 5
"""Neighbors of a sensor in a graph from coordinates or correlation; being one counts in both directions."""

EARTH_RADIUS = 6371.0
"""Kilometers."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Neighbors among N sensors."""

    mask: Bools
    """(N, N) whether two sensors are neighbors: symmetric, with a diagonal of True."""
    source: str
    """Where it comes from, for the report."""
    notes: tuple[str, ...] = ()


def make_graph(parts: Parts, options: GraphOptions) -> Graph:
    """The graph of the sensors of a series, from the source that the options name. Raises SeriesError."""
    sensors = parts.train.series.sensors
    if options.edges:
        return read_graph(Path(options.edges), sensors)
    if options.coordinates:
        return nearest_graph(Path(options.coordinates), sensors)
    return correlation_graph(parts)


def read_graph(path: Path, sensors: Sequence[str]) -> Graph:
    """The graph of a file. Edges with a sensor that the data lacks are left out and noted; none left is an error."""
    if not path.is_file():
        raise SeriesError(f"--edges {path}: no such file")
    if path.name.removesuffix(".gz").endswith(".json"):
        edges = read_links(path)
    else:
        matrix = _read_matrix(path, sensors)
        if matrix is not None:
            return Graph(_symmetric(matrix), f"the matrix in {path.name}")
        edges = _csv_edges(read_csv(path)[0], path.name)
    positions = {name: index for index, name in enumerate(sensors)}
    known = [(positions[a], positions[b]) for a, b in edges if a in positions and b in positions]
    unknown = sorted({name for edge in edges for name in edge if name not in positions})
    if not known:
        raise SeriesError(
            f"--edges {path}: no edge between two sensors of the data; its sensors are {join_names(unknown, 3)}, "
            f"those of the data {join_names(sensors, 3)}: use the same names"
        )
    notes = []
    if unknown:
        left_out = len(edges) - len(known)
        notes.append(f"{path.name}: left out {left_out} of {len(edges)} edges, the data lacks {join_names(unknown)}")
    mask = np.zeros((len(sensors), len(sensors)), bool)
    mask[tuple(np.array(known).T)] = True
    return Graph(_symmetric(mask), f"{len(known)} edges of {path.name}", tuple(notes))


def _symmetric(mask: Bools) -> Bools:
    return mask | mask.T | np.eye(len(mask), dtype=bool)


def _csv_edges(table: pa.Table, name: str) -> list[tuple[str, str]]:
    """Pairs of sensors from the columns `from` and `to` (or `source` and `target`), or else the first two columns."""
    names = {column.strip().lower(): column for column in table.column_names}
    pair = next((pair for pair in (("from", "to"), ("source", "target")) if names.keys() >= set(pair)), None)
    columns = [names[part] for part in pair] if pair else table.column_names[:2]
    first, second = (table[column].to_pylist() for column in columns)
    edges = [(a.strip(), b.strip()) for a, b in zip(first, second, strict=True)]
    if bad := next((row for row, edge in enumerate(edges, 1) if not all(edge)), 0):
        raise SeriesError(f"{name}, row {bad}: an edge needs two sensors: name them or remove the row")
    return edges


def _read_matrix(path: Path, sensors: Sequence[str]) -> Bools | None:
    """A matrix of N x N weights, with or without a header; None if the file's first row has not N > 3 cells."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines or len(lines[0]) != len(sensors) or len(sensors) <= 3:
        return None
    body = lines[1:] if len(lines) == len(sensors) + 1 else lines
    try:
        matrix = np.array(body, np.float64)
    except ValueError:
        raise SeriesError(f"--edges {path}: a matrix of weights has a cell that is no number: correct it") from None
    if matrix.shape != (len(sensors), len(sensors)):
        raise SeriesError(f"--edges {path}: a matrix must have a row per sensor: {len(sensors)}, not {len(matrix)}")
    return np.asarray(matrix != 0)


def nearest_graph(path: Path, sensors: Sequence[str], neighbors: int = NEIGHBORS) -> Graph:
    """Neighbors are the nearest sensors by great-circle distance; a CSV file has their coordinates in degrees."""
    if not path.is_file():
        raise SeriesError(f"--coordinates {path}: no such file")
    table, _ = read_csv(path)
    names = {column.strip().lower(): column for column in table.column_names}
    columns = {
        part: next((names[name] for name in options if name in names), "") for part, options in _COORDINATES.items()
    }
    if missing := [part for part, column in columns.items() if not column]:
        raise SeriesError(f"--coordinates {path}: no column {missing[0]}; it has {', '.join(table.column_names)}")
    latitude, longitude = (to_numbers(table[columns[part]], path.name, part, []) for part in ("latitude", "longitude"))
    if (np.abs(latitude) > 90).any() or (np.abs(longitude) > 180).any():
        raise SeriesError(f"--coordinates {path}: latitude and longitude must be in degrees")
    labels = [label.strip() for label in table[columns["sensor"]].to_pylist()]
    place = {label: (latitude[row], longitude[row]) for row, label in enumerate(labels)}
    points = np.radians(np.array([place.get(name, (np.nan, np.nan)) for name in sensors], np.float64))
    absent = [name for name, point in zip(sensors, points, strict=True) if np.isnan(point).any()]
    if len(absent) == len(sensors):
        raise SeriesError(f"--coordinates {path}: none of the sensors {join_names(sensors, 3)} is in it")
    closeness = -great_circle(points)
    notes = (f"{path.name}: no coordinates of {join_names(absent)}, which get no neighbors",) if absent else ()
    return Graph(_top(closeness, neighbors), f"the {neighbors} nearest sensors by {path.name}", notes)


_COORDINATES = {
    "sensor": ("sensor", "sensor_id", "station", "station_id", "id", "name", "node"),
    "latitude": ("latitude", "lat", "y"),
    "longitude": ("longitude", "lon", "lng", "long", "x"),
}


def great_circle(points: Floats) -> Floats:
    """(N, N) distances in kilometers of points (N, 2) of latitude and longitude in radians (haversine formula)."""
    latitude, longitude = points[:, 0], points[:, 1]
    half = np.sin((latitude[:, None] - latitude) / 2) ** 2
    half = half + np.cos(latitude[:, None]) * np.cos(latitude) * np.sin((longitude[:, None] - longitude) / 2) ** 2
    distance: Floats = 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.clip(half, 0, 1)))
    return distance


def correlation_graph(parts: Parts, neighbors: int = NEIGHBORS) -> Graph:
    """Neighbors are the sensors whose deviations from the scaled profile correlate most in the training part.

    Raw values all correlate by the hour of the day, which says nothing about who is near.
    """
    windows, steps = parts.train, parts.train_steps
    profile = ScaledProfile.fit(parts)
    rest = (windows.target - profile.shape * profile.level[:-1])[:steps] * windows.observed[:steps]
    size = rest.norm(dim=0)
    correlation = (rest.T @ rest / (size[:, None] * size)).nan_to_num(nan=-1.0).double().numpy()
    correlation[correlation <= 0] = np.nan
    return Graph(_top(correlation, neighbors), f"the {neighbors} most correlated sensors of the training part")


def _top(closeness: Floats, neighbors: int) -> Bools:
    """(N, N) mask of each sensor's `neighbors` closest others, symmetric; NaN is no neighbor."""
    closeness = closeness.copy()
    np.fill_diagonal(closeness, np.nan)
    ranked = np.argsort(np.where(np.isnan(closeness), -np.inf, closeness), axis=1)[:, ::-1][:, :neighbors]
    mask = np.zeros(closeness.shape, bool)
    np.put_along_axis(mask, ranked, True, axis=1)
    return _symmetric(mask & ~np.isnan(closeness))
