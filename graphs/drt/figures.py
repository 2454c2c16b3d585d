"""The figures of a DRT run's report.png, and the numbers of the paper's figures 3 and 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from agentsys.collect.statistics import Panel
from agentsys.display import plain
from agentsys.graphs.drt.measures import LABELS, YES_NO, released_range

PAPER_STEPS: Final = {3: 16301, 4: 4430, 5: 1174, 6: 350, 7: 8, 8: 1}
"""Figure 3: samples by their number of steps."""
PAPER_TOTAL: Final = sum(PAPER_STEPS.values())
PAPER_DISTANCES: Final = (21.44, 13.16, 10.90)
"""Mean character edit distance of the first three refinements."""
PAPER_SCORES: Final = {
    3: (72.74, 84.78, 92.37),
    4: (69.95, 84.81, 88.56, 91.94),
    5: (71.04, 85.03, 88.46, 89.52, 91.60),
    6: (70.27, 84.72, 87.25, 89.18, 89.52, 90.79),
}
"""Figure 4: mean score at each step, by the number of steps."""

_RUN: Final = "C0"
_PAPER: Final = "#b8b8b8"
_KEPT, _DROPPED, _OPEN = "#4c9f70", "#e0a458", "#dddddd"
_BIN: Final = 5
_BAR: Final = 0.4


def panels(data: Mapping[str, Any]) -> list[Panel]:
    """The figures of a run, from the numbers of its report; none for what it does not have."""
    pages: list[tuple[str, Callable[[Any, Any], None], Any]] = [
        ("scores of all drafts", _draw_scores, data["scores"]),
        ("steps per kept record (figure 3)", _draw_steps, data["steps_per_record"]),
        ("edit distance to the step before", _draw_distances, data["edit_distance"]),
        ("mean score of kept steps (figure 4; paper dashed)", _draw_by_steps, data["mean_score_by_steps"]),
        ("mean score by round, the same records per line", _draw_by_rounds, data["mean_score_by_rounds"]),
        ("what other settings would keep", _draw_other_settings, data["other_settings"]),
        ("why the rounds ended", _draw_stops, data["stops"]),
        (
            "shape of thoughts: this run's mean (dot) in the released range, with the released mean (line)",
            _draw_thoughts,
            data["thoughts"]["measures"],
        ),
    ]
    if not data["mean_score_by_steps"]:
        pages = [page for page in pages if page[2] is not data["steps_per_record"]]
    return [
        Panel(title, partial(draw, numbers), 2 if draw is _draw_thoughts else 1)
        for title, draw, numbers in pages
        if numbers
    ]


def _draw_scores(scores: Mapping[str, Mapping[str, int]], axes: Any) -> None:
    values = {kind: [int(score) for score in counts] for kind, counts in scores.items()}
    low = min(min(numbers) for numbers in values.values()) // _BIN * _BIN
    high = max(max(numbers) for numbers in values.values())
    edges = [*range(low, high + _BIN + 1, _BIN)]
    for kind, numbers in values.items():
        outline = {"histtype": "step", "linewidth": 1.8, "color": "C1"} if kind == "expected" else {"color": _RUN}
        axes.hist(numbers, edges, weights=[*scores[kind].values()], label=kind, **outline)
    axes.set_xlabel("score")
    axes.set_ylabel("drafts")
    axes.legend(loc="upper left", frameon=False)


def _draw_pair(axes: Any, places: Sequence[int], run: Sequence[float], paper: Sequence[float], form: str) -> None:
    """Bars of the run beside those of the paper, with their values above."""
    for offset, heights, color, label in ((-_BAR / 2, run, _RUN, "this run"), (_BAR / 2, paper, _PAPER, "paper")):
        bars = axes.bar([place + offset for place in places], heights, _BAR, color=color, label=label)
        axes.bar_label(bars, labels=[form.format(height) if height else "" for height in heights], fontsize=8)
    axes.set_xticks(places)
    axes.margins(y=0.12)
    axes.legend(frameon=False)


def _draw_steps(steps: Mapping[str, Mapping[str, Any]], axes: Any) -> None:
    run = [100 * (entry["share"] or 0) for entry in steps.values()]
    _draw_pair(axes, [*map(int, steps)], run, [100 * entry["paper"] for entry in steps.values()], "{:.2g}")
    axes.set_xlabel("steps")
    axes.set_ylabel("% of kept records")


def _draw_distances(distances: Sequence[Mapping[str, Any]], axes: Any) -> None:
    places = [entry["refinement"] for entry in distances]
    paper = [entry["paper"] or 0 for entry in distances]
    _draw_pair(axes, places, [entry["mean"] for entry in distances], paper, "{:.1f}")
    axes.set_xlabel("refinement")
    axes.set_ylabel("characters")


def _draw_by_steps(rows: Sequence[Mapping[str, Any]], axes: Any) -> None:
    for i, row in enumerate(rows):
        places = [*range(1, len(row["means"]) + 1)]
        color = f"C{i % 10}"
        axes.plot(places, row["means"], "o-", color=color, label=f"{row['steps']} drafts (n={row['records']:,})")
        if paper := PAPER_SCORES.get(row["steps"]):
            axes.plot([*range(1, len(paper) + 1)], paper, "--", color=color, alpha=0.6, linewidth=1)
    _whole_ticks(axes, max(len(row["means"]) for row in rows), first=1)
    axes.set_xlabel("draft")
    axes.set_ylabel("mean score")
    axes.legend(frameon=False, fontsize=8)


def _draw_by_rounds(rows: Sequence[Mapping[str, Any]], axes: Any) -> None:
    for row in rows:
        label = f"at least {row['rounds_at_least']} (n={row['records']:,})"
        axes.plot([*range(len(row["means"]))], row["means"], "o-", label=label)
    _whole_ticks(axes, max(len(row["means"]) for row in rows))
    axes.set_xlabel("round (0: the first draft)")
    axes.set_ylabel("mean score")
    axes.legend(frameon=False, fontsize=8, title="records with rounds", title_fontsize=8)


def _whole_ticks(axes: Any, count: int, first: int = 0) -> None:
    axes.set_xticks([*range(first, first + count)])
    axes.grid(axis="y", alpha=0.3)


def _draw_other_settings(rules: Sequence[Mapping[str, Any]], axes: Any) -> None:
    names = [rule["name"] for rule in rules]
    left = [0.0] * len(rules)
    for verdict, label, color in (
        ("kept", "passes the filter", _KEPT),
        ("open", "cannot tell", _OPEN),
        ("dropped", "dropped", _DROPPED),
    ):
        widths = [100 * rule[verdict] / max(rule["kept"] + rule["dropped"] + rule["open"], 1) for rule in rules]
        axes.barh(names, widths, left=left, color=color, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("% of records")
    axes.set_ylim(len(rules) + 0.8, -0.6)  # from the top, with room for the legend
    axes.legend(loc="lower center", ncols=3, frameon=False, fontsize=8)


def _draw_stops(stops: Mapping[str, int], axes: Any) -> None:
    bars = axes.barh([plain(stop) for stop in stops], [*stops.values()], 0.6, color=_RUN)
    axes.bar_label(bars, labels=[f"{count:,}" for count in stops.values()], padding=3)
    axes.set_ylim(max(len(stops), 4) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.set_xlabel("records")


def _draw_thoughts(measures: Mapping[str, Mapping[str, Any]], axes: Any) -> None:
    """Each measure on its own scale: the bar is the released range, the line its mean, the dot this run's mean."""
    labels = [(name, label) for name, label in {**LABELS, **YES_NO}.items() if name in measures]
    released = {name: measures[name]["released"] for name, _ in labels}
    for place, (name, label) in enumerate(labels):
        low, high = released_range(name, released)
        means = [measures[name]["mean"], released[name]["mean"]]
        run, middle = ((mean - low) / ((high - low) or 1.0) for mean in means)
        axes.barh(place, 1, height=0.55, color="#dfe8f3")
        axes.plot([middle, middle], [place - 0.28, place + 0.28], color="#7a8aa0", linewidth=2)
        marker = "o" if -0.5 < run < 1.5 else "<" if run <= -0.5 else ">"
        color = _KEPT if measures[name]["in_range"] else "#c0392b"
        axes.plot(min(max(run, -0.5), 1.5), place, marker, color=color, markersize=7)
        numbers = "{:,.1f} / {:,.1f}" if name in LABELS else "{:.0%} / {:.0%}"
        axes.text(-1.9, place, label, va="center", fontsize=8)
        axes.text(1.7, place, numbers.format(*means), va="center", fontsize=8)
    axes.text(1.7, -1, "here / released", va="center", fontsize=8, color="#7a8aa0")
    axes.set_xlim(-1.95, 2.3)
    axes.set_ylim(len(labels) - 0.4, -1.5)
    axes.set_xticks([0, 1], ["5th percentile", "95th"], fontsize=8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
