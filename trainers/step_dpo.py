"""Step-level DPO: learn to prefer one step of an answer to another after the same prefix.

    python trainers/step_dpo.py --rows rows/step --student qwen2.5-coder-0.5b --lora 16 --out student

See trainers/dpo.py for the loss, and for why the token ids of the rows are used as they are.
"""

from __future__ import annotations

import sys

from agentsys.commands import command, run_app
from agentsys.trainers.dpo import DPOOptions, DPOTraining, PairOptions, train_dpo
from agentsys.trainers.training import StudentOptions, memory_errors


def main(rows: PairOptions, student: StudentOptions, dpo: DPOOptions, training: DPOTraining) -> None:
    """Step-level DPO on rows of kind step. Token ids are used as they are: nothing is tokenized again."""
    with memory_errors(training.micro_batch):
        train_dpo(rows, student, dpo, training)


app = command(main, name="train step-dpo")

if __name__ == "__main__":
    sys.exit(run_app(app))
