"""Reports of a training: metrics.jsonl while it runs; at the end a table, report.json, curves.png and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from agentsys.display import markdown
from agentsys.fonts import fit_fonts
from agentsys.trainers.output import write_settings
from agentsys.trainers.schedule import Schedule
from agentsys.view.command import show_page

FEW_POINTS = 40
"""A curve with fewer points shows each of them, so that a single one is seen."""

RESTARTED = {"num_tokens", "train_loss"}
"""TRL's token count and the mean loss of a whole run, which a resumed training would count from zero."""


class MetricsFile(TrainerCallback):
    """Writes one JSON line per log of the trainer. A resumed training drops the lines after its checkpoint."""

    def __init__(self, out: Path) -> None:
        self.file = out / "metrics.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Keep the lines up to the step at which the training resumes."""
        if state.is_world_process_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read_metrics(self.file) if line["step"] <= state.global_step > 0]
            self.file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        """Append one line with step, epoch and measures, without those that a resumed training would restart."""
        if state.is_world_process_zero and logs:
            kept = {name: value for name, value in logs.items() if name.removeprefix("eval_") not in RESTARTED}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **kept}) + "\n")


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without an incomplete last line of a killed training."""
    if not file.exists():
        return []
    complete = file.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]


def write_results(
    out: Path, settings: Mapping[str, Any], schedule: Schedule, validation_rows: int, final: Mapping[str, float]
) -> None:
    """Write report.json, curves.png, README.md (the model card) and the page, and print the report."""
    metrics = read_metrics(out / "metrics.jsonl")
    report = make_report(metrics, schedule, validation_rows, final)
    write_settings(out / "report.json", report)
    plot_curves(metrics, out / "curves.png")
    (out / "README.md").write_text(model_card(settings, metrics, final), encoding="utf-8")
    print_report(report, out)
    show_page(out)


def make_report(
    metrics: Sequence[Mapping[str, Any]], schedule: Schedule, validation_rows: int, final: Mapping[str, float]
) -> dict[str, Any]:
    """Steps, learning rates, and the losses of the first and the last step and before and after the training."""
    logs = [line for line in metrics if "loss" in line]
    rates = [line["learning_rate"] for line in logs if "learning_rate" in line]
    before = next((line["eval_loss"] for line in metrics if line["step"] == 0 and "eval_loss" in line), None)
    return {
        "steps": max((line["step"] for line in metrics), default=0),
        "rows_per_step": schedule.rows_per_step,
        "warmup_steps": schedule.warmup,
        "train_rows": schedule.rows,
        "validation_rows": validation_rows,
        "learning_rate_peak": max(rates, default=None),
        "learning_rate_last": rates[-1] if rates else None,
        "train_loss_first_step": logs[0]["loss"] if logs else None,
        "train_loss_last_step": logs[-1]["loss"] if logs else None,
        "validation_loss_before": before,
        "validation_loss_after": final.get("eval_loss"),
    }


def print_report(report: Mapping[str, Any], out: Path) -> None:
    """Print the report as a table, and a line if the validation loss did not fall, or was not measured."""
    from rich.table import Table

    from agentsys.console import Console

    table = Table("", "before", "after")
    peak, last = report["learning_rate_peak"], report["learning_rate_last"]
    before, after = report["validation_loss_before"], report["validation_loss_after"]
    table.add_row("optimizer steps", "0", str(report["steps"]))
    table.add_row("learning rate (peak, last)", _format_number(peak), _format_number(last))
    losses = (report["train_loss_first_step"], report["train_loss_last_step"])
    table.add_row("training loss (first and last step)", *(_format_number(loss) for loss in losses))
    count = report["validation_rows"]
    rows = "1 row" if count == 1 else f"{count:,} rows"
    table.add_row(f"validation loss ({rows})", _format_number(before), _format_number(after))
    console = Console()
    console.print(table)
    console.print(f"{out}: curves.png, report.json, and the student in model/", highlight=False, soft_wrap=True)
    if not count:
        console.print("no validation rows: the training loss is of other rows in each step", highlight=False)
    elif before is not None and after is not None and after >= before:
        advice = "train on more rows, or change --epochs or --learning-rate"
        console.print(f"the validation loss did not fall: {advice}", highlight=False)


def plot_curves(metrics: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Plot training and validation loss, the learning rate, and every other measure of a run over its steps."""
    from matplotlib.figure import Figure

    names = sorted({name.removeprefix("eval_") for line in metrics for name in line} - _NOT_CURVES)
    names.sort(key=lambda name: (name != "loss", name))
    figure = Figure(figsize=(8, 2.4 * max(1, len(names))), layout="constrained")
    for row, name in enumerate(names, 1):
        axes = figure.add_subplot(len(names), 1, row)
        for key, label, many in ((name, "training", ""), (f"eval_{name}", "validation", "o")):
            points = [(line["step"], line[key]) for line in metrics if key in line]
            if points:
                marker = "o" if len(points) < FEW_POINTS else many
                axes.plot(*zip(*points, strict=True), label=label, marker=marker)
        axes.set_ylabel(name)
        axes.set_xlabel("step")
        axes.legend()
    fit_fonts(figure)
    figure.savefig(file, dpi=110)


_NOT_CURVES = {
    "step", "epoch", "runtime", "samples_per_second", "steps_per_second", "total_flos", "train_runtime",
    "train_samples_per_second", "train_steps_per_second", "num_input_tokens_seen",
}  # fmt: skip


def model_card(settings: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], final: Mapping[str, float]) -> str:
    """The model card in Markdown: base, data, results, settings; names and values are shown as they are."""
    last = next((line["loss"] for line in reversed(metrics) if "loss" in line), None)
    results = {"training loss (last step)": last, **final}
    rows = [f"| {markdown(name)} | {_format_number(value)} |" for name, value in results.items() if value is not None]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [agentsys, synthetic]",
            "---",
            f"# {markdown(settings.get('method', 'student'))} of {markdown(settings.get('student'))}",
            "",
            f"Trained by agentsys on {markdown(settings.get('rows'))} ({settings['train_examples']} examples). The "
            "license and terms of the base and the data are those of their owners; state them here.",
            "",
            "![curves](curves.png)",
            "",
            "| result | value |",
            "|---|---|",
            *rows,
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {markdown(name)} | {markdown(value)} |" for name, value in settings.items()),
            "",
        ]
    )


def _format_number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
