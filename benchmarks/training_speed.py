"""Cost of training: tokens per second and peak memory of each trainer, against what a user would use instead.

    python benchmarks/training_speed.py                                (0.5B student, 1.5B teacher, LoRA, fp32)
    python benchmarks/training_speed.py --student FOLDER --teacher FOLDER --rows 64 --length 1024 --lora 0
    python benchmarks/training_speed.py --sides SFT "SFT, TRL alone" --repeats 3 --rows 16

Every side runs in its own process, one after the other, on the same rows, with the same batch, length, dtype and
adapters. Distillation from stored top-k is compared with TRL's GKD (lmbda 0: no sampling) with the teacher in memory;
SFT and step-level DPO with TRL alone, which tokenizes the same texts. Seconds are those of training without the first
step, scaled to all steps; memory is the peak of the process (on a GPU, of the allocator); tokens are those of the rows,
prompt included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from agentsys.trainers.loading import folder_of, load_causal_lm, load_tokenizer, tokenizer_digest
from agentsys.trainers.row_files import row_schema
from agentsys.trainers.training import StudentOptions, TrainingOptions, load_student, make_config

TEXT = "The old clock in the hall coughed twice, like a butler with bad news, and then struck nine. "


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of `--length` tokens: half prompt, half learned, all different."""
    tokenizer = load_tokenizer(args.student)
    rows = []
    for i in range(args.rows):
        ids = tokenizer(f"Record {i}. " + TEXT * args.length).input_ids[: args.length]
        half = args.length // 2
        rows.append({"id": str(i), "input_ids": ids, "loss_mask": [0] * half + [1] * (args.length - half)})
    return rows


def write(args: argparse.Namespace, folder: Path) -> Path:
    """Write the rows as a file of kind sft."""
    digest = tokenizer_digest(load_tokenizer(args.student))
    columns = dict.fromkeys(("kind", "source", "input", "prompt", "text", "ids_source"), "sft")
    rows = [{**row, **columns, "lineage": "{}", "scores": "{}"} for row in rows_of(args)]
    pq.write_table(pa.Table.from_pylist(rows, row_schema("sft", digest)), folder / "rows.parquet")
    return folder / "rows.parquet"


def settings(args: argparse.Namespace, folder: Path) -> TrainingOptions:
    """Training options: one epoch, one row per forward pass."""
    return TrainingOptions(
        folder / "out", batch=args.batch, micro_batch=1, checkpoint_every=10_000, set=["report_to=[]"]
    )


def student(args: argparse.Namespace) -> tuple[Any, Any]:
    return load_student(StudentOptions(args.student, args.lora)), load_tokenizer(args.student)


def teacher_scoring(args: argparse.Namespace, folder: Path) -> float:
    from agentsys.trainers.teacher import SpeedOptions

    return time_scoring(args.teacher, folder / "scored", SpeedOptions())


def teacher_in_bfloat16(args: argparse.Namespace, folder: Path) -> float:
    from agentsys.trainers.teacher import SpeedOptions

    return time_scoring(args.teacher, folder / "scored-bf16", SpeedOptions(dtype="bfloat16"))


def teacher_in_vllm(args: argparse.Namespace, folder: Path) -> float:
    """vLLM in bfloat16, started as a child process in its environment ($AGENTSYS_VLLM_PYTHON)."""
    from agentsys.trainers.teacher import SpeedOptions

    return time_scoring(f"vllm:{folder_of(args.teacher)}", folder / "scored-vllm", SpeedOptions(in_flight=8))


def time_scoring(teacher: str, out: Path, speed: Any) -> float:
    """Seconds of scoring, without the start of the teacher."""
    from agentsys.trainers.teacher import TeacherOptions, main

    main(TeacherOptions(out.parent / "rows.parquet", out, teacher), speed)
    return float(json.loads((out / "manifest.json").read_text())["seconds"])


def stored(args: argparse.Namespace, folder: Path) -> float:
    from transformers import TrainingArguments

    from agentsys.trainers.distill_offline import (
        ScoredCollator,
        ScoredOptions,
        add_topk_loss,
        make_offline_trainer,
        read_scored_splits,
    )
    from agentsys.trainers.losses import Divergence

    model, tokenizer = student(args)
    add_topk_loss(model, Divergence("forward_kl"), 1.0)
    rows = read_scored_splits(ScoredOptions(rows=folder / "scored"), tokenizer)["train"]
    config = make_config(TrainingArguments, settings(args, folder), label_names=["labels"])
    collator = ScoredCollator(tokenizer.pad_token_id)
    return time_training(make_offline_trainer(model=model, args=config, train_dataset=rows, data_collator=collator))


def gkd(args: argparse.Namespace, folder: Path) -> float:
    import torch
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        ids, mask = (torch.tensor([row[name] for row in rows]) for name in ("input_ids", "loss_mask"))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.masked_fill(mask == 0, -100)}

    model, tokenizer = student(args)
    config = make_config(GKDConfig, settings(args, folder), lmbda=0.0, beta=0.0, temperature=1.0)
    trainer = GKDTrainer(
        model=model,
        teacher_model=load_causal_lm(args.teacher),
        args=config,
        data_collator=collate,
        train_dataset=Dataset.from_list(rows_of(args)),
        processing_class=tokenizer,
    )
    return time_training(trainer)


def sft(args: argparse.Namespace, folder: Path) -> float:
    from trl import SFTConfig, SFTTrainer

    from agentsys.trainers.row_files import read_row_file
    from agentsys.trainers.sft import with_labels
    from agentsys.trainers.training import Guarded

    class Trainer(Guarded, SFTTrainer):
        pass

    model, tokenizer = student(args)
    rows = with_labels(read_row_file(folder / "rows.parquet"))
    config = make_config(SFTConfig, settings(args, folder), max_length=args.length)
    return time_training(Trainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer))


def texts(args: argparse.Namespace) -> list[dict[str, str]]:
    """The same rows as TRL's prompt-completion texts."""
    tokenizer, half = load_tokenizer(args.student), args.length // 2
    cut = [(row["input_ids"][:half], row["input_ids"][half:]) for row in rows_of(args)]
    return [{"prompt": tokenizer.decode(p), "completion": tokenizer.decode(c)} for p, c in cut]


def trl_sft(args: argparse.Namespace, folder: Path) -> float:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = student(args)
    config = make_config(SFTConfig, settings(args, folder), max_length=args.length, eos_token="<|endoftext|>")
    rows = Dataset.from_list(texts(args))
    return time_training(SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer))


def dpo(args: argparse.Namespace, folder: Path) -> float:
    from datasets import Dataset
    from trl import DPOConfig

    from agentsys.trainers.dpo import make_pair_trainer

    model, tokenizer = student(args)
    half = args.length // 2
    pairs = [
        {"prompt_ids": ids[:half], "chosen_ids": ids[half:], "rejected_ids": ids[:half]}
        for ids in (row["input_ids"] for row in rows_of(args)[: args.rows // 2])
    ]
    config = make_config(DPOConfig, settings(args, folder), max_length=None)
    return time_training(
        make_pair_trainer(model=model, args=config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    )


def trl_dpo(args: argparse.Namespace, folder: Path) -> float:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = student(args)
    pairs = [
        {"prompt": t["prompt"], "chosen": t["completion"], "rejected": t["prompt"]}
        for t in texts(args)[: args.rows // 2]
    ]
    config = make_config(DPOConfig, settings(args, folder), max_length=None)
    return time_training(
        DPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    )


def time_training(trainer: Any) -> float:
    """Seconds of training without the first step, scaled to all steps."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        started = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 1:
                self.started = time.perf_counter()

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    steps = trainer.state.global_step
    return (time.perf_counter() - clock.started) / (steps - 1) * steps


SIDES: dict[str, Callable[[argparse.Namespace, Path], float]] = {
    "teacher scoring": teacher_scoring,
    "distill, stored top-k": stored,
    "distill, TRL GKD": gkd,
    "SFT": sft,
    "SFT, TRL alone": trl_sft,
    "step DPO": dpo,
    "DPO, TRL alone": trl_dpo,
    "teacher scoring, bfloat16": teacher_in_bfloat16,
    "teacher scoring, vLLM": teacher_in_vllm,
}


def run_side(side: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run a side in its own process. Returns seconds and peak gigabytes."""
    more = ["--side", side, "--folder", str(folder)]
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], *more], stdout=subprocess.PIPE, check=True, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peak() -> float:
    """Peak memory in gigabytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="qwen2.5-coder-0.5b")
    parser.add_argument("--teacher", default="qwen2.5-coder-1.5b")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens per row, half of them learned")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lora", type=int, default=16, help="rank; 0 trains all weights")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES)[:8], help="default: all but vLLM")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side, in turns")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        seconds = SIDES[args.side](args, args.folder)
        print(json.dumps({"seconds": seconds, "gigabytes": peak()}))
        return
    tokens = args.rows * args.length
    print(
        f"student {args.student}, teacher {args.teacher}, {args.rows} rows of {args.length} tokens, "
        f"batch {args.batch}, LoRA rank {args.lora}, fp32; {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load before {os.getloadavg()[0]:.1f}"
    )
    print("| side | seconds | tokens/s | peak GB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        write(args, Path(name))
        results: dict[str, dict[str, float]] = {}
        for side in args.sides * args.repeats:
            results[side] = run_side(side, args, Path(name))
            seconds, memory = results[side]["seconds"], results[side]["gigabytes"]
            print(f"| {side} | {seconds:.1f} | {tokens / seconds:.1f} | {memory:.1f} |", flush=True)
    if set(compared := list(SIDES)[:3]) <= set(results):
        scoring, ours, theirs = (results[side]["seconds"] for side in compared)
        for epochs in (1, 3):
            print(f"{epochs} epochs with scoring: {scoring + epochs * ours:.0f} s stored, {epochs * theirs:.0f} s GKD")


if __name__ == "__main__":
    main()
