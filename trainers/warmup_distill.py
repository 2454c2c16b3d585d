"""Warmup-Distill: bring the student's distribution closer to the teacher's before distillation (Sun et al. 2025).

    python trainers/warmup_distill.py --rows rows/sft --student qwen2.5-coder-0.5b --teacher qwen2.5-coder-1.5b

1. Sample: the student answers the rows' prompts. 2. Score: teacher and student give each token's probability.
3. Check: tokens that the teacher finds too unlikely are flagged (trainers/corrections.py). 4. Correct: the teacher's
token replaces them, and a model may continue from there. 5. Warm up: DPO with the corrected answer as chosen and the
student's own as rejected. 6. Distill (--distill) from stored top-k, with and without the warm-up.

The output folder: `warmup.json` (settings), `samples.json`, `pairs/train.parquet`, `warm/` (the DPO run; the warmed
student is `warm/model`), `report.json`; with --distill also `distilled/` and `distilled-without/`. Finished stages are
not repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentsys.commands import command, run_app
from agentsys.config import without_config
from agentsys.trainers.distill_offline import DistillOptions, ScoredOptions, find_scored_files, train_offline
from agentsys.trainers.generate import SamplingOptions
from agentsys.trainers.output import last_checkpoint
from agentsys.trainers.row_files import RowOptions
from agentsys.trainers.training import StudentOptions, TrainingOptions, memory_errors
from agentsys.trainers.warmup import Warmup, WarmupOptions


def main(
    rows: RowOptions,
    student: StudentOptions,
    warm: WarmupOptions,
    sampling: SamplingOptions,
    distill: DistillOptions,
    training: TrainingOptions,
) -> None:
    """Warm up a student with DPO on its own corrected answers, and report its distance from the teacher."""
    if warm.distill:
        find_scored_files(scored_options(warm, rows))  # before hours of sampling
    warmup = Warmup(rows, student, warm, sampling, training)
    with memory_errors(training.micro_batch):
        warmed = warmup.train_dpo()
        report: dict[str, Any] = {"before": warmup.measure(student.student), "after": warmup.measure(str(warmed))}
        if warm.distill:
            report |= distill_both(warmup, warmed, distill, training)
    (training.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print_report(report, print)


def scored_options(warm: WarmupOptions, rows: RowOptions) -> ScoredOptions:
    """The scored rows of stage 6, with the length limit of the others."""
    return ScoredOptions(
        rows=warm.distill or Path(),
        validation=warm.distill_validation,
        max_length=rows.max_length,
        too_long=rows.too_long,
    )


def distill_both(
    warmup: Warmup, warmed: Path, distill: DistillOptions, training: TrainingOptions
) -> dict[str, dict[str, float]]:
    """Stage 6: the same distillation of the warmed and the original student. Returns the validation metrics of both."""
    scored = scored_options(warmup.warm, warmup.rows)
    students = {"distilled": str(warmed), "distilled-without": warmup.student.student}
    metrics = {}
    for name, start in students.items():
        out = training.out / name
        settings = replace(training, out=out, resume=last_checkpoint(out) is not None)
        with without_config():
            metrics[name] = train_offline(scored, replace(warmup.student, student=start), distill, settings)
    return metrics


def print_report(report: dict[str, dict[str, float]], show: Callable[[str], None]) -> None:
    """Show one line per model, with its measures."""
    for name, values in report.items():
        show(f"{name}: " + ", ".join(f"{measure} {value:.4f}" for measure, value in values.items()))


app = command(main, name="train warmup-distill")

if __name__ == "__main__":
    sys.exit(run_app(app))
