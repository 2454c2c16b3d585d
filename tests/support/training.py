"""Rows for tiny students, trainers in their own processes, and the results of a training."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from agentsys.commands import command, run_app
from agentsys.trainers.loading import tokenizer_digest
from agentsys.trainers.row_files import row_schema
from tests.support.paths import ROOT
from tests.support.tiny import SENTENCES, make_tokenizer

TOKENIZER = make_tokenizer()

DIGEST = tokenizer_digest(TOKENIZER)

QUICK = {"learning_rate": 1e-3, "warmup": 0, "schedule": "constant", "checkpoint_every": 1000, "evaluate_every": 1000}


def sft_row(number: int, answer: str = "") -> dict[str, Any]:
    text = (answer or SENTENCES[number % 5] * (1 + number % 3)) + f" {number}"
    prompt_ids = TOKENIZER("<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n").input_ids
    ids = [*TOKENIZER(text).input_ids, TOKENIZER.eos_token_id]
    return {
        "id": str(number),
        "kind": "sft",
        "source": "s",
        "input": str(number),
        "prompt": "",
        "text": text,
        "ids_source": "rendered",
        "lineage": "{}",
        "scores": "{}",
        "input_ids": prompt_ids + ids,
        "loss_mask": [0] * len(prompt_ids) + [1] * len(ids),
    }


def write_rows(file: Path, rows: list[dict[str, Any]], kind: str = "sft", digest: str = DIGEST) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, row_schema(kind, digest)), file)
    return file


def weights(out: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    return {name: value.clone() for name, value in model.state_dict().items()}


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def step_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of optimizer steps, without those of evaluations."""
    return [line for line in metrics(out) if "loss" in line]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in step_metrics(out)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> bool:
    return all(torch.allclose(one[name], other[name], atol=tolerance) for name in one)


PROCESSES = multiprocessing.get_context("forkserver")

HEAVY = ["datasets", "matplotlib.figure", "peft", "torch.utils.tensorboard", "trl.trainer.dpo_trainer"]


def in_a_process(
    script: str, options: Sequence[Any], folder: Path, prepare: Callable[[], None] | None = None
) -> tuple[int, str]:
    """Run a trainer's command in its own process, in a folder. Returns the exit code and the output.

    The process is forked with its imports done, and calls `prepare` before the command.
    """
    PROCESSES.set_forkserver_preload(HEAVY)
    log_path = folder / "output.txt"
    process = PROCESSES.Process(target=_trainer, args=(script, [str(option) for option in options], log_path, prepare))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, log_path.read_text()


def _trainer(script: str, options: list[str], log_path: Path, prepare: Callable[[], None] | None) -> None:
    file = os.open(log_path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(log_path.parent)
    if prepare:
        prepare()
    module = import_module(f"agentsys.trainers.{script}")
    sys.exit(run_app(command(*([module.train, module.score] if script == "miniplm" else [module.main])), options))


def in_two_processes(script: str, *options: Any) -> None:
    """Run a trainer's command with QUICK settings in two processes on the CPU (gloo)."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        str(ROOT / script),
    ]
    quick = [part for name, value in QUICK.items() for part in (f"--{name.replace('_', '-')}", value)]
    cpu = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    arguments = [str(part) for part in (*launch, *quick, *options)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | cpu)
    assert done.returncode == 0, done.stderr[-3000:]
