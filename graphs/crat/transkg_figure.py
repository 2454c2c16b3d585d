"""Draws a TransKG: terms on the left, their meanings in the middle, translations on the right."""

from __future__ import annotations

import re
import textwrap
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from agentsys.display import plain
from agentsys.fonts import Fonts, choose_fonts

COLUMNS: Final = ("term", "concept", "translation")
COLORS: Final = {"term": "#ffe0b2", "concept": "#cfe2f3", "translation": "#d5e8d4"}
STYLES: Final[dict[str, dict[str, Any]]] = {
    "accepted": {"linewidth": 2.6, "color": "black"},
    "rejected": {"linewidth": 0.8, "color": "#b0b0b0", "linestyle": ":"},
    "": {"linewidth": 0.9, "color": "#606060"},
}
_WIDTH: Final = 34
_LONGEST: Final = 3 * _WIDTH
_ROW: Final = 0.62
_COLUMN: Final = 4.8
_TALLEST: Final = 200.0
_DPI: Final = 110
_FARTHEST: Final = 0.25
"""How far an arc may bow out to the left, in columns: its label must stay in the picture."""
_WIDE: Final = re.compile(r"[\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\uff00-\uff60]")


def draw(graph: Any, path: str | Path) -> None:
    """Write the PNG. Its last line names the scripts of the labels that no installed font has."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    graph, fonts = _make_readable(graph)
    places = _places(graph)
    rows = 1 + max((y for _, y in places.values()), default=0.0)
    height = min(1.2 + _ROW * rows, _TALLEST)
    figure = Figure(figsize=(3 * _COLUMN, height), dpi=_DPI)
    with rc_context({"font.family": fonts.families}):
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(-0.5, 2.5), ylim=(rows - 0.3, -1.2))
        axes.set_axis_off()
        for column, kind in enumerate(COLUMNS):
            axes.text(column, -0.9, f"{kind}s", ha="center", va="center", fontsize=12)
        boxes = {node: _box(axes, places[node], data) for node, data in graph.nodes(data=True)}
        figure.draw_without_rendering()  # sets the size of the boxes, where the arrows end
        for start, end, edge in graph.edges(data=True):
            _arrow(axes, boxes[start], boxes[end], edge)
        figure.text(0.5, 0.01, fonts.note, ha="center", va="bottom", fontsize=8)
        figure.savefig(path, format="png")


def _make_readable(graph: Any) -> tuple[Any, Fonts]:
    """A copy of the graph whose texts can be drawn, and their fonts."""
    graph = graph.copy()
    texts = [(data, "label") for _, data in graph.nodes(data=True)]
    texts += [(edge, "relation") for *_, edge in graph.edges(data=True) if "relation" in edge]
    fonts = choose_fonts(plain(data[name]) for data, name in texts)
    for data, name in texts:
        data[name] = fonts.readable(plain(data[name]))
    return graph, fonts


def _places(graph: Any) -> dict[str, tuple[int, float]]:
    """Column and row of each node: terms in insertion order, the others by the mean row of their predecessors."""
    places: dict[str, tuple[int, float]] = {}
    for column, kind in enumerate(COLUMNS):
        nodes = [node for node, data in graph.nodes(data=True) if data["kind"] == kind]
        above: dict[str, float] = {}
        for order, node in enumerate(nodes):
            rows = [places[before][1] for before in graph.predecessors(node) if before in places]
            above[node] = sum(rows) / len(rows) if rows else float(order)
        for row, node in enumerate(sorted(nodes, key=lambda node: above[node])):
            places[node] = (column, float(row))
    tallest = max((row for _, row in places.values()), default=0.0)
    for column in range(len(COLUMNS)):
        inside = [node for node, place in places.items() if place[0] == column]
        spread = (tallest + 1) / max(len(inside), 1)
        for node in inside:
            places[node] = (column, (places[node][1] + 0.5) * spread - 0.5)
    return places


def _box(axes: Any, place: tuple[int, float], data: dict[str, Any]) -> Any:
    """A node's label in its box; dashed for external nodes."""
    border = {"linestyle": "-" if data["origin"] == "internal" else "--", "edgecolor": "#606060", "linewidth": 0.8}
    box = {"boxstyle": "round,pad=0.35", "facecolor": COLORS[data["kind"]], **border}
    return _text(axes, place, "\n".join(_lines(data["label"])), fontsize=8, bbox=box, zorder=3)


def _arrow(axes: Any, start: Any, end: Any, edge: dict[str, Any]) -> None:
    """An arrow between two boxes; only internal relations are labeled, the others follow from their columns."""
    (left, top), (right, bottom) = start.get_position(), end.get_position()
    # Within a column the arrow is an arc to the left, around the boxes in between; the vertical axis points down. The
    # middle of the arc lies half the bend times the arrow's length off the straight line.
    origin, unit = axes.transData.transform([(0, 0), (1, 1)])
    length = abs((bottom - top) * (unit[1] - origin[1]))
    size = min(0.4, 2 * _FARTHEST * (unit[0] - origin[0]) / length) if left == right and length else 0.0
    bend = size if top < bottom else -size
    arrow = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 1}
    patches = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch()}
    style = {**arrow, **patches, **STYLES[edge.get("verdict", "")]}
    arrow_patch = axes.annotate("", xy=(right, bottom), xytext=(left, top), arrowprops=style, zorder=2)
    if "item" not in edge:
        white = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        middle = axes.transData.transform(((left + right) / 2, (top + bottom) / 2)) - (size / 2 * length, 0)
        place = axes.transData.inverted().transform(middle)
        _text(axes, place, _shorten(edge["relation"], _WIDTH), fontsize=7, bbox=white, zorder=arrow_patch.zorder + 0.5)


def _text(axes: Any, place: Any, text: str, **style: Any) -> Any:
    return axes.text(*place, text, ha="center", va="center", parse_math=False, **style)


def _lines(label: str) -> list[str]:
    """A label in lines of about equal width."""
    width = _WIDTH // 2 if len(_WIDE.findall(label)) > len(label) / 2 else _WIDTH
    return textwrap.wrap(_shorten(label, _LONGEST), width) or [""]


def _shorten(label: str, length: int) -> str:
    """The label, shortened to a width of `length` letters; a Chinese character is two letters wide."""
    widths = list(accumulate(2 if _WIDE.match(char) else 1 for char in label))
    if not widths or widths[-1] <= length:
        return label
    return f"{label[: bisect_right(widths, length - 3)]}..."
