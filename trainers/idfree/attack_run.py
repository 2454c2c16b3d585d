"""All attacks on a run, or on simulated users: curves over linked uploads and over the spread, table and picture.

The output folder gets attacks.json and attacks.png.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from agentsys.commands import knob
from agentsys.knobs import split_names
from agentsys.trainers.idfree.attacks import ATTACKS, Score, Users, attack, simulate_users
from agentsys.trainers.idfree.device import Design
from agentsys.trainers.idfree.text_attacks import Texts, TextScores, attack_texts, log_probabilities
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.output import write_settings

SIMULATED_SPREADS: Final = (0.005, 0.05, 0.2)
SHARES: Final = (1.0, 0.25, 0.0625)
"""Spreads of a run's curves where none are given, as shares of its own spread."""
TEXT_ATTACKS: Final = ("text", "text and embedding", "embedding adds")
"""Attack 4, attack 5, and attack 5 minus attack 4."""

Curve = dict[int, Score]
"""Score by number of linked uploads."""


@dataclass(frozen=True)
class AttackOptions:
    """What is attacked, and how."""

    panel: ClassVar[str] = "Attacks"
    linked: str = knob("1,3,10,30,100", "uploads that are known to come from one user")
    spreads: str = knob(
        "",
        "spreads of the curves, such as 0.5,0.1: a run's parameters are moved to within each of the prior; default: "
        "its own, a quarter and a sixteenth of it",
    )
    attacked: int = knob(1_000, "users at most: the first ones")
    attack_seed: int = knob(0, "seed of draws, samples and bootstrap")

    def __post_init__(self) -> None:
        """Raises TrainerError for numbers that cannot be."""
        _numbers("linked", self.linked, int)
        if self.spreads:
            _numbers("spreads", self.spreads, float)
        if self.attacked < 2:
            raise TrainerError(f"--attacked {self.attacked}: an attack needs at least 2 users")

    @property
    def sizes(self) -> list[int]:
        """Numbers of linked uploads."""
        return [int(one) for one in _numbers("linked", self.linked, int)]

    def spread_values(self, own: float | None) -> list[float]:
        """The spreads of the curves for a run with its `own` spread, or for simulated users (None)."""
        if self.spreads:
            return _numbers("spreads", self.spreads, float)
        return list(SIMULATED_SPREADS) if own is None else [own * share for share in SHARES]


def _numbers(option: str, setting: str, kind: type[int] | type[float]) -> list[float]:
    try:
        numbers = [kind(part) for part in split_names(setting)]
    except ValueError:
        raise TrainerError(f"--{option} {setting}: give numbers separated by commas") from None
    if not numbers or min(numbers) <= 0:
        raise TrainerError(f"--{option} {setting}: give numbers above 0")
    return sorted(set(numbers))


@dataclass(frozen=True, slots=True)
class Target:
    """What of a run is attacked: its users, the prior, and texts of both parts."""

    users: Users
    prior: Users
    spread: float
    train: Texts
    validation: Texts
    test: Texts


def read_target(run: Path, most: int) -> Target:
    """The first `most` users with a device of a run of `agentsys train idfree-pl`.

    Raises TrainerError for a folder without devices or with fewer than two users.
    """
    files = run / "devices" / "parameters.npz", run / "cloud" / "idfree.json", run / "split" / "data.json"
    if missing := [file for file in files if not file.is_file()]:
        raise TrainerError(f"{run} has no {missing[0].relative_to(run)}: give the output folder of `train idfree-pl`")
    with np.load(files[0], allow_pickle=False) as arrays:
        first, second = (arrays[name].astype(np.float32) for name in ("first", "second"))
    settings, data = (json.loads(file.read_text(encoding="utf-8")) for file in files[1:])
    known = np.setdiff1d(np.arange(len(first)), data["new_users"])[:most]
    if len(known) < 2:
        raise TrainerError(f"{run}: the attacks need at least two users with a device")
    first, second = (values[known].reshape(len(known), -1) for values in (first, second))
    names = ("prior_first", "prior_second")
    prior = (np.full((1, first.shape[1]), settings[name], np.float32) for name in names)
    design: Design = settings["design"]
    parts = (_read_texts(run / "split" / f"{part}.parquet", known) for part in ("train", "validation", "test"))
    return Target(Users(design, first, second), Users(design, *prior), float(settings["spread"]), *parts)


def _read_texts(path: Path, known: npt.NDArray[np.intp]) -> Texts:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["user", "text"])
    users = table["user"].to_numpy().astype(np.int64)
    rows = np.flatnonzero(np.isin(users, known))
    texts = table["text"].to_pylist()
    return Texts([texts[row] for row in rows], np.searchsorted(known, users[rows]))


@dataclass(frozen=True)
class Report:
    """Scores of all attacks: spread -> attack -> number of linked uploads."""

    design: Design
    users: int
    entries: int
    """Values of one embedding."""
    curves: Mapping[float, Mapping[str, Curve]]
    text_users: Mapping[int, int]
    """Users with enough test texts for attacks 4 and 5, by number of linked uploads."""

    @property
    def main(self) -> tuple[float, Mapping[str, Curve]]:
        """The largest spread, which is the run's own unless others were given, and its curves."""
        spread = max(self.curves)
        return spread, self.curves[spread]

    def to_json(self) -> dict[str, Any]:
        """[value, low, high] for each spread, attack and number of linked uploads."""
        curves = {
            f"{spread:g}": {
                name: {str(size): score.to_json() for size, score in curve.items()} for name, curve in by_name.items()
            }
            for spread, by_name in self.curves.items()
        }
        chance = {"attribution": 1 / self.users, "linkage": 0.5}
        facts = {"design": self.design, "users": self.users, "entries": self.entries, "chance": chance}
        return {**facts, "text_users": {str(size): count for size, count in self.text_users.items()}, "curves": curves}


def attack_run(run: Path, options: AttackOptions) -> Report:
    """All five attacks on a run at each spread. Raises TrainerError, see `read_target`."""
    target = read_target(run, options.attacked)
    logs = log_probabilities(target.train, target.validation, target.test, len(target.users), options.attack_seed)
    curves: dict[float, dict[str, Curve]] = {}
    by_size: dict[int, TextScores] = {}
    for spread in options.spread_values(target.spread):
        users = target.users.within(target.prior, spread)
        by_size = attack_texts(users, logs, target.test.users, options.sizes, options.attack_seed)
        curves[spread] = attack(users, options.sizes, seed=options.attack_seed)
        values = {size: (one.text, one.both, one.difference) for size, one in by_size.items()}
        for index, name in enumerate(TEXT_ATTACKS):
            curves[spread][name] = {size: scores[index] for size, scores in values.items()}
    counts = {size: one.users for size, one in by_size.items()}
    return Report(target.users.design, len(target.users), target.users.first.shape[1], curves, counts)


def attack_simulated(design: Design, width: int, options: AttackOptions) -> Report:
    """Attacks 1 to 3 on simulated users whose parameters have each spread as their standard deviation."""
    curves = {
        spread: attack(
            simulate_users(design, options.attacked, width, spread, options.attack_seed),
            options.sizes,
            seed=options.attack_seed,
        )
        for spread in options.spread_values(None)
    }
    return Report(design, options.attacked, width, curves, {})


def write_report(report: Report, out: Path) -> None:
    """Write attacks.json and attacks.png."""
    write_settings(out / "attacks.json", report.to_json())
    plot_curves(report, out / "attacks.png")


def print_report(report: Report) -> None:
    """Print a line per spread and attack, a column per number of linked uploads, and the main result."""
    from rich.table import Table

    from agentsys.console import Console

    sizes = sorted({size for curves in report.curves.values() for curve in curves.values() for size in curve})
    table = Table("spread", "attack", *(f"{size} linked" for size in sizes), box=None, padding=(0, 1, 0, 0))
    for column in table.columns[2:]:
        column.justify = "right"
    for spread, curves in sorted(report.curves.items(), reverse=True):
        for name, curve in curves.items():
            cells = (f"{100 * curve[size].value:.1f}" if size in curve else "" for size in sizes)
            table.add_row(f"{spread:g}", name, *cells)
    lines = [
        f"{report.users:,} users, {report.entries:,} values per embedding; per cent. Chance: attribution "
        f"{100 / report.users:.2g} %, linkage (AUC) 50 %, clustering (F1) near 0 %.",
        *main_result(report),
    ]
    console = Console()
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def main_result(report: Report) -> list[str]:
    """What the embeddings add to the texts, with intervals; nothing for simulated users, who have no texts."""
    spread, curves = report.main
    return [
        f"What embeddings of spread {spread:g} add to the texts (attack 5 minus attack 4), {size} linked: "
        f"{100 * added.value:.1f} points ({100 * added.low:.1f} to {100 * added.high:.1f}), from "
        f"{100 * curves['text'][size].value:.1f} to {100 * curves['text and embedding'][size].value:.1f} % of "
        f"{report.text_users[size]:,} users"
        for size, added in curves.get("embedding adds", {}).items()
    ]


def accuracy_gained(run: Path) -> list[str]:
    """What the own embedding gains in accuracy, of the report of a run; nothing before there is one."""
    file = run / "report.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["table"] if file.is_file() else []
    return [
        f"What the own embedding gains in accuracy over the central model: {100 * row['gain']:.1f} points "
        f"({100 * row['gain_low']:.1f} to {100 * row['gain_high']:.1f})"
        for row in rows
        if row["system"] == "own embedding"
    ]


def plot_curves(report: Report, file: Path) -> None:
    """A panel for each attack: the score over the linked uploads, a line per spread with its interval."""
    from matplotlib.figure import Figure

    spreads = sorted(report.curves, reverse=True)
    names = [name for name in (*ATTACKS, *TEXT_ATTACKS[1:]) if report.curves[spreads[0]].get(name)]
    figure = Figure(figsize=(11, 3.2 * -(-len(names) // 2)), layout="constrained")
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(-(-len(names) // 2), 2, place)
        for spread in spreads:
            _plot_curve(axes, report.curves[spread][name], f"spread {spread:g}")
        if name == "text and embedding":
            _plot_curve(axes, report.curves[spreads[0]]["text"], "text alone", color="black", linestyle="--")
        axes.set_xscale("log")
        sizes = sorted(report.curves[spreads[0]][name])
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_xlabel("linked uploads", fontsize=8)
        axes.set_ylabel("per cent", fontsize=8)
        axes.legend(fontsize=7)
    figure.savefig(file, dpi=120)


def _plot_curve(axes: Any, curve: Curve, label: str, **style: Any) -> None:
    sizes = sorted(curve)
    scores: Sequence[Score] = [curve[size] for size in sizes]
    (line,) = axes.plot(sizes, [100 * one.value for one in scores], marker="o", markersize=3, label=label, **style)
    bounds = [[100 * one.low for one in scores], [100 * one.high for one in scores]]
    axes.fill_between(sizes, *bounds, alpha=0.15, color=line.get_color())
