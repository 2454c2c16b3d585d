"""Graphs of sensors: edge lists, matrices, JSON links, coordinates and correlation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agentsys.trainers.traffic.graph import correlation_graph, great_circle, make_graph, nearest_graph, read_graph
from agentsys.trainers.traffic.options import GraphOptions
from agentsys.trainers.traffic.series import SeriesError
from agentsys.trainers.traffic.splits import split_windows
from tests.support.traffic import make_series, weekly

SENSORS = ("a", "b", "c", "d")


def write(folder: Path, text: str, name: str = "edges.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_edges_count_in_both_directions_and_weights_do_not_count(tmp_path: Path) -> None:
    graph = read_graph(write(tmp_path, "from,to,cost\na,b,352.6\nc,b,0\nb,a,1\n"), SENSORS)
    assert graph.mask.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert graph.source == "3 edges of edges.csv" and graph.notes == ()
    swapped = read_graph(write(tmp_path, "weight,Source,Target\n1,a,d\n"), SENSORS)
    assert swapped.mask[0, 3] and swapped.mask.sum() == 6


def test_edges_with_unknown_sensors(tmp_path: Path) -> None:
    graph = read_graph(write(tmp_path, "from,to\na,b\na,x\ny,z\n"), SENSORS)
    assert graph.mask.sum() == 6
    assert graph.notes == ("edges.csv: left out 2 of 3 edges, the data lacks x, y, z",)
    with pytest.raises(
        SeriesError, match=r"no edge between two sensors of the data; its sensors are 0, 1, those of the"
    ):
        read_graph(write(tmp_path, "from,to\n0,1\n"), SENSORS)
    with pytest.raises(SeriesError, match=r"edges.csv, row 2: an edge needs two sensors"):
        read_graph(write(tmp_path, "from,to\na,b\na,\n"), SENSORS)
    with pytest.raises(SeriesError, match="no such file"):
        read_graph(tmp_path / "absent.csv", SENSORS)


@pytest.mark.parametrize("header", ["", "a,b,c,d\n"])
def test_matrix(tmp_path: Path, header: str) -> None:
    body = "1,0.5,0,0\n0,1,0,0\n0,0,1,0\n0.1,0,0,1\n"
    graph = read_graph(write(tmp_path, header + body), SENSORS)
    assert graph.mask.astype(int).tolist() == [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    assert graph.source == "the matrix in edges.csv"
    with pytest.raises(SeriesError, match="a matrix must have a row per sensor: 4, not 2"):
        read_graph(write(tmp_path, "1,0,0,0\n0,1,0,0\n"), SENSORS)
    with pytest.raises(SeriesError, match="a cell that is no number"):
        read_graph(write(tmp_path, body.replace("0.5", "x")), SENSORS)


def test_json_links_and_edges(tmp_path: Path) -> None:
    nodes = [{"bus_stop": name} for name in SENSORS]
    links = {"nodes": nodes, "links": [{"source": "a", "target": "c", "weight": 3}]}
    assert read_graph(write(tmp_path, json.dumps(links), "bus.json"), SENSORS).mask[2, 0]
    edges = {"edges": [[0, 1]], "node_ids": {"b": 0, "d": 1}}
    graph = read_graph(write(tmp_path, json.dumps(edges), "pox.json"), SENSORS)
    assert graph.mask[1, 3] and graph.mask.sum() == 6
    with pytest.raises(SeriesError, match="it needs 'links' with source and target"):
        read_graph(write(tmp_path, "{}", "empty.json"), SENSORS)


def test_distances_on_the_globe() -> None:
    berlin, paris = (52.52, 13.405), (48.8566, 2.3522)
    distances = great_circle(np.radians(np.array([berlin, paris, berlin])))
    assert distances[0, 1] == pytest.approx(878, abs=2) and distances[0, 2] == 0
    assert np.array_equal(distances, distances.T)


def test_nearest_sensors(tmp_path: Path) -> None:
    path = write(tmp_path, "lon,lat,station\n7.00,52,a\n7.01,52,b\n7.03,52,c\n7.50,52,d\n", "places.csv")
    graph = nearest_graph(path, SENSORS, neighbors=1)
    assert graph.mask.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    partly = nearest_graph(path, ("a", "b", "x"), neighbors=1)
    assert partly.mask.astype(int).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert partly.notes == ("places.csv: no coordinates of x, which get no neighbors",)
    with pytest.raises(SeriesError, match="none of the sensors x, y is in it"):
        nearest_graph(path, ("x", "y"))
    with pytest.raises(SeriesError, match="must be in degrees"):
        nearest_graph(write(tmp_path, "sensor,lat,lon\na,5289000,400000\n", "utm.csv"), SENSORS)
    with pytest.raises(SeriesError, match="no column longitude; it has sensor, lat"):
        nearest_graph(write(tmp_path, "sensor,lat\na,52\n", "half.csv"), SENSORS)


def test_correlation_is_of_deviations_from_the_profile() -> None:
    """a and b share their deviations, c and d theirs, though all four follow the same week."""
    rng = np.random.default_rng(0)
    base = weekly(24 * 7 * 12, sensors=4)
    shared = np.repeat(rng.normal(0, 8, (len(base), 2)), 2, axis=1)
    values = np.maximum(base.target + shared + rng.normal(0, 2, base.target.shape), 0)
    values[24 * 7 * 10 :] = rng.random((24 * 7 * 2, 4))  # what the test part holds does not count
    parts = split_windows(make_series(values), 24, 24)
    graph = correlation_graph(parts, neighbors=1)
    assert graph.mask.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert make_graph(parts, GraphOptions()).source == "the 5 most correlated sensors of the training part"


def test_constant_sensors_and_a_single_sensor_have_no_neighbors() -> None:
    values = np.random.default_rng(0).random((24 * 30, 3))
    values[:, 1] = 4
    assert not correlation_graph(split_windows(make_series(values), 24, 24)).mask[1, [0, 2]].any()
    assert correlation_graph(split_windows(make_series(values[:, :1]), 24, 24)).mask.tolist() == [[True]]


def test_one_source_at_a_time() -> None:
    with pytest.raises(SeriesError, match="--edges and --coordinates: give one of them"):
        GraphOptions(edges="a.csv", coordinates="b.csv")
