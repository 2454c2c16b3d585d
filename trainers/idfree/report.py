"""The report of a run: table, report.json, pictures and the model card. No user's name is in any of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from agentsys.display import markdown, show
from agentsys.trainers.idfree.backbone import read_info
from agentsys.trainers.idfree.evaluate import (
    CENTRAL,
    OTHER,
    OWN,
    Results,
    Score,
    gains_by_entropy,
    load_predictions,
    score_systems,
)
from agentsys.trainers.idfree.options import STAGES
from agentsys.trainers.output import write_settings

USER_ALONE: Final = "user alone"
_PRIVATE: Final = {"data", "rows"}
"""Settings that name files of users' texts."""


def load_results(out: Path) -> Results:
    """The predictions of evaluate/ and of each baseline."""
    file = out / "evaluate" / "predictions.npz"
    systems = load_predictions(file)
    for baseline in sorted((out / "baselines").glob("[!.]*.npz")):
        systems |= load_predictions(baseline)
    with np.load(file) as arrays:
        return Results(arrays["user"], arrays["label"], arrays["known"], systems, arrays["other_labels"])


def write_report(out: Path, settings: Mapping[str, Any]) -> None:
    """Write report.json, pictures and README.md, and print the table."""
    results, info = load_results(out), read_info(out / "cloud")
    samples, seed = int(settings["bootstrap"]), int(settings["seed"])
    scores = score_systems(results, results.known, CENTRAL, samples, seed)
    new = score_systems(results, ~results.known, CENTRAL, samples, seed)
    stages = _read_stages(out)
    facts = describe(results, scores, settings)
    losses = {name: stage["losses"] for name, stage in stages.items() if "losses" in stage}
    entropy = gains_by_entropy(results, len(info.labels)) if info.task == "classify" else {}
    report = {
        "facts": facts,
        "test_texts": int(results.known.sum()),
        "test_users": len(np.unique(results.user[results.known])),
        "table": [asdict(score) for score in scores],
        "new_users": [asdict(score) for score in new],
        "entropy": entropy,
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "losses": losses,
    }
    if USER_ALONE in results.systems:
        against = score_systems(results, results.known, USER_ALONE, samples, seed)
        report["against_user_alone"] = [asdict(score) for score in against if score.system == OWN]
    write_settings(out / "report.json", report)
    pictures = ["accuracy.png", "losses.png"]
    plot_accuracy(scores, out / "accuracy.png")
    plot_losses(losses, out / "losses.png")
    if entropy:
        plot_entropy(entropy["bins"], out / "entropy.png")
        pictures.append("entropy.png")
    (out / "README.md").write_text(model_card(settings, facts, scores, pictures), encoding="utf-8")
    print_table(scores, f"{report['test_texts']:,} test texts of {report['test_users']:,} users")
    for line in facts:
        show(line)
    show(f"{out}: cloud/ is the model, devices/ the users' parameters; report.json, README.md, {', '.join(pictures)}")


def describe(results: Results, scores: Sequence[Score], settings: Mapping[str, Any]) -> list[str]:
    """The main result in words: what the own embedding gains, and whether another user's does."""
    by_name = {score.system: score for score in scores}
    own, other = by_name[OWN], by_name[OTHER]
    lines = [
        f"own embedding: {100 * own.gain:+.1f} points over central (95 % interval {100 * own.gain_low:+.1f} to "
        f"{100 * own.gain_high:+.1f}, paired test p = {own.p:.2g}); another user's: {100 * other.gain:+.1f}"
    ]
    new = ~results.known
    if new.any():
        parts = [results.systems[name] for name in (CENTRAL, OWN)]
        values = [100 * part.correct[new].sum() / part.count[new].sum() for part in parts]
        lines.append(f"new users: central {values[0]:.1f} %, the prior's embedding {values[1]:.1f} %")
    lines.append(
        f"design {settings['design']}, spread {settings['spread']:g}: see attacks for what the uploads give away"
    )
    return lines


def _read_stages(out: Path) -> dict[str, dict[str, Any]]:
    files = {stage: out / stage / "stage.json" for stage in STAGES}
    return {stage: json.loads(file.read_text(encoding="utf-8")) for stage, file in files.items() if file.is_file()}


def print_table(scores: Sequence[Score], title: str) -> None:
    """Print accuracy, its interval, and the difference from the central model with its interval and p."""
    from rich.table import Table

    from agentsys.console import Console

    table = Table("system", "accuracy %", "95 %", "over central", "95 %", "p", title=title)
    for score in scores:
        table.add_row(*cells(score))
    Console().print(table)


def cells(score: Score) -> list[str]:
    """A row of the table."""
    interval = f"{100 * score.low:.1f} to {100 * score.high:.1f}"
    gain = f"{100 * score.gain_low:+.1f} to {100 * score.gain_high:+.1f}"
    if score.system == CENTRAL:
        return [score.system, f"{100 * score.accuracy:.1f}", interval, "-", "-", "-"]
    return [score.system, f"{100 * score.accuracy:.1f}", interval, f"{100 * score.gain:+.1f}", gain, f"{score.p:.2g}"]


def plot_accuracy(scores: Sequence[Score], file: Path) -> None:
    """Accuracies with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.4 * len(scores)), layout="constrained")
    axes = figure.add_subplot()
    values = np.array([score.accuracy for score in scores])
    errors = np.array([[s.accuracy - s.low, s.high - s.accuracy] for s in scores]).T.clip(min=0)
    axes.barh(range(len(scores)), 100 * values, xerr=100 * errors, color="#8ab", ecolor="#333")
    axes.set_yticks(range(len(scores)), [score.system for score in scores])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on the test, % (95 % bootstrap over users)")
    axes.set_xlim(left=max(0.0, 100 * float(values.min()) - 10))
    figure.savefig(file, dpi=110)


def plot_entropy(bins: Sequence[Mapping[str, float]], file: Path) -> None:
    """Accuracy by the entropy of a text with respect to users."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    centers = [(one["from"] + one["to"]) / 2 for one in bins]
    for name in (CENTRAL, OWN, OTHER):
        axes.plot(centers, [100 * one[name] for one in bins], marker="o", label=name)
    for center, one in zip(centers, bins, strict=True):
        axes.annotate(f"{one['texts']:,}", (center, 100 * one[CENTRAL]), textcoords="offset points", xytext=(0, -14))
    axes.set_xlabel("entropy of the classes under random users' embeddings, nats (numbers: test texts)")
    axes.set_ylabel("accuracy, %")
    axes.legend()
    figure.savefig(file, dpi=110)


def plot_losses(losses: Mapping[str, Sequence[Mapping[str, float]]], file: Path) -> None:
    """Training and validation loss of each stage; of the devices, the groups one after the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.4 * max(1, len(losses))), layout="constrained")
    for row, (name, lines) in enumerate(losses.items(), 1):
        axes = figure.add_subplot(len(losses), 1, row)
        for key, label in (("loss", "training"), ("eval_loss", "validation")):
            axes.plot(range(1, len(lines) + 1), [line[key] for line in lines], marker="o", label=label)
        axes.set_ylabel(f"{name}: loss")
        axes.set_xlabel("check")
        axes.legend()
    figure.savefig(file, dpi=110)


def model_card(
    settings: Mapping[str, Any], facts: Sequence[str], scores: Sequence[Score], pictures: Sequence[str]
) -> str:
    """The model card in Markdown. It names no user and no file of users' texts."""
    shown = {name: value for name, value in settings.items() if name not in _PRIVATE}
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [agentsys]",
            "---",
            f"# Personalized model of {markdown(settings['model'])} (IDfree-PL)",
            "",
            "Reads a text and an embedding that the user's device draws for each request (arXiv 2501.06062). Trained "
            "by agentsys. The license and terms of the base and the data are those of their owners; state them here. "
            "That requests carry no name does not make them anonymous: read the attacks' results beside the accuracy.",
            "",
            *(f"- {markdown(line)}" for line in facts),
            "",
            *(f"![{picture}]({picture})" for picture in pictures),
            "",
            "| system | accuracy % | 95 % | over central | 95 % | p |",
            "|---|---|---|---|---|---|",
            *(f"| {' | '.join(markdown(cell) for cell in cells(score))} |" for score in scores),
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {markdown(name)} | {markdown(value)} |" for name, value in shown.items()),
            "",
        ]
    )
