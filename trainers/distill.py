"""Distillation: pull the student's next-token distribution towards a teacher's.

    python trainers/teacher.py --rows rows/sft/train.parquet --teacher qwen2.5-coder-1.5b --out scored
    python trainers/distill.py --rows scored --student qwen2.5-coder-0.5b --out student

Without --teacher: off-policy, from the top-k that trainers/teacher.py stored (trainers/distill_offline.py). With
--teacher: on-policy, on answers that the student samples itself (trainers/distill_on_policy.py).

The loss of a learned token is

    kd D(p, q) + (1 - kd) (-log q(token))

with D one of the divergences of trainers/losses.py between teacher p and student q.
"""

from __future__ import annotations

import sys

from agentsys.commands import command, run_app
from agentsys.trainers.distill_offline import DistillOptions, ScoredOptions, train_offline
from agentsys.trainers.distill_on_policy import OnPolicyOptions, train_on_policy
from agentsys.trainers.training import StudentOptions, TrainingOptions, memory_errors


def main(
    rows: ScoredOptions,
    student: StudentOptions,
    distill: DistillOptions,
    on_policy: OnPolicyOptions,
    training: TrainingOptions,
) -> None:
    """Distill a teacher into a student: from stored top-k, or on-policy with --teacher."""
    with memory_errors(training.micro_batch):
        if on_policy.teacher:
            train_on_policy(rows, student, distill, on_policy, training)
        else:
            train_offline(rows, student, distill, training)


app = command(main, name="train distill")

if __name__ == "__main__":
    sys.exit(run_app(app))
