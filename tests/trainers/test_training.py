"""The trainers on a tiny model: invariants of the loss, output files, and bad input."""

from __future__ import annotations

import resource
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from agentsys.trainers import miniplm, sft
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.output import refuse_changes, write_settings
from agentsys.trainers.pretrain.train import PretrainingOptions
from agentsys.trainers.row_files import RowOptions, limit_length, read_row_file
from agentsys.trainers.sft import SFTOptions, train
from agentsys.trainers.training import StudentOptions, TrainingOptions, make_config
from tests.support.paths import ROOT
from tests.support.tiny import make_tiny, make_tokenizer
from tests.support.training import (
    HEAVY,
    QUICK,
    in_a_process,
    in_two_processes,
    losses,
    metrics,
    same,
    sft_row,
    weights,
    write_rows,
)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train.parquet", [sft_row(i) for i in range(12)])
    write_rows(folder / "validation.parquet", [sft_row(i) for i in range(12, 16)])
    return folder


def fine_tune(rows: Path, student: Path, out: Path, *, lora: int = 0, packing: bool = False, **training: Any) -> Path:
    """Run SFT with QUICK settings. Returns the output folder."""
    options = RowOptions(rows, max_length=training.pop("max_length", 512), too_long=training.pop("too_long", "drop"))
    train(options, StudentOptions(str(student), lora), SFTOptions(packing), TrainingOptions(out, **QUICK | training))
    return out


def plain_loss(model: Any, batch: list[dict[str, Any]]) -> float:
    """Mean over the learned tokens of all rows, one row at a time."""
    total, count = 0.0, 0
    for row in batch:
        logits = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for t in range(1, len(row["input_ids"])):
            if row["loss_mask"][t]:
                total -= float(logits[t - 1, row["input_ids"][t]])
                count += 1
    return total / count


@pytest.mark.usefixtures("without_plots")
def test_the_loss_is_that_of_the_learned_tokens_however_it_is_batched(
    rows: Path, student: Path, tmp_path: Path
) -> None:
    data = pq.read_table(rows / "train.parquet").to_pylist()
    with torch.no_grad():
        expected = plain_loss(AutoModelForCausalLM.from_pretrained(student), data)
    whole = fine_tune(rows, student, tmp_path / "whole", batch=12, micro_batch=12, steps=1)
    accumulated = fine_tune(rows, student, tmp_path / "accumulated", batch=12, micro_batch=1, steps=1)
    packed = fine_tune(rows, student, tmp_path / "packed", batch=12, micro_batch=12, steps=1, packing=True)
    for out in (whole, accumulated, packed):
        assert losses(out)[0] == pytest.approx(expected, abs=1e-4), out.name
    assert same(weights(whole), weights(accumulated), 2e-5)
    assert same(weights(whole), weights(packed), 2e-5)
    assert not same(weights(whole), AutoModelForCausalLM.from_pretrained(student).state_dict(), 1e-6)


@pytest.mark.usefixtures("without_plots")
def test_gradient_checkpointing_changes_nothing(rows: Path, student: Path, tmp_path: Path) -> None:
    plain = fine_tune(rows, student, tmp_path / "plain", batch=4, micro_batch=4, steps=2)
    saved = fine_tune(rows, student, tmp_path / "saved", batch=4, micro_batch=4, steps=2, gradient_checkpointing=True)
    assert same(weights(plain), weights(saved), 1e-6)


def test_gradient_checkpointing_is_set_by_its_current_name(tmp_path: Path) -> None:
    from transformers import TrainingArguments
    from trl import DistillationConfig, DPOConfig, SFTConfig

    for kind in (TrainingArguments, SFTConfig, DPOConfig, DistillationConfig):
        for wanted in (False, True):
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)
                settings = make_config(kind, TrainingOptions(tmp_path, gradient_checkpointing=wanted))
            assert settings.gradient_checkpointing is wanted, "the trainers of TRL read the old name"


@pytest.mark.usefixtures("without_plots")
def test_the_seed_decides_new_adapters(rows: Path, student: Path, tmp_path: Path) -> None:
    one, same_seed, other = (
        weights(fine_tune(rows, student, tmp_path / name, lora=4, steps=1, seed=seed))
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert same(one, same_seed, 0)
    assert not same(one, other, 1e-7)


def test_the_files_of_a_training(rows: Path, student: Path, tmp_path: Path) -> None:
    out = fine_tune(
        rows,
        student,
        tmp_path / "out",
        lora=4,
        batch=4,
        epochs=2,
        evaluate_every=3,
        checkpoint_every=2,
        learning_rate=1e-2,
    )
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "runs").glob("**/events*"))
    assert b'"trainings":[{"folder":"out",' in (out / "view.html").read_bytes()
    assert [line["step"] for line in metrics(out) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    evaluated = [(line["step"], line["eval_loss"]) for line in metrics(out) if "eval_loss" in line]
    assert [step for step, _ in evaluated][:2] == [0, 3], "before the first step, and every third"
    assert evaluated[-1][1] < evaluated[0][1]
    card = (out / "README.md").read_text()
    for word in ("SFT", str(rows), "eval_loss", "lora | 4", str(student), "12 examples"):
        assert word in card, word
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    from peft import PeftModel

    merged = AutoModelForCausalLM.from_pretrained(out / "model")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(student), out / "adapter")
    ids = torch.tensor([sft_row(3)["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
        base = AutoModelForCausalLM.from_pretrained(student)(ids).logits
        assert not torch.allclose(merged(ids).logits, base, atol=1e-2)


HEAVY += ["trl.trainer.distillation_trainer", "trl.trainer.sft_trainer"]


@pytest.mark.usefixtures("without_plots")
def test_two_processes_learn_what_one_learns(rows: Path, student: Path, tmp_path: Path) -> None:
    """Four rows per step in each of two processes are eight rows per step in one."""
    both = ("--rows", rows, "--student", student, "--out", tmp_path / "two", "--steps", 1)
    in_two_processes("trainers/sft.py", *both, "--batch", 4, "--micro-batch", 2)
    fine_tune(rows, student, tmp_path / "one", batch=8, steps=1)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert same(weights(tmp_path / "two"), weights(tmp_path / "one"), 2e-5)


def test_a_loss_that_is_not_finite_stops_the_training(rows: Path, student: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(student)
    with torch.no_grad():
        model.model.embed_tokens.weight[sft_row(5)["input_ids"][-3]] = float("nan")
    model.save_pretrained(tmp_path / "bad")
    make_tokenizer().save_pretrained(tmp_path / "bad")
    with pytest.raises(
        TrainerError, match=r"the loss is nan at step \d+: lower --learning-rate; there is no checkpoint"
    ):
        fine_tune(rows, tmp_path / "bad", tmp_path / "out", batch=1)
    assert not (tmp_path / "out" / "model").exists()


def test_long_rows_are_counted_then_dropped_or_truncated(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_row_file(rows / "train.parquet")
    lengths = sorted(len(ids) for ids in data["input_ids"])
    limit = lengths[5]
    kept = limit_length(data, RowOptions(rows, max_length=limit))
    assert len(kept) == sum(length <= limit for length in lengths)
    assert f"{12 - len(kept)} of 12 rows are longer than {limit} tokens: dropped" in capsys.readouterr().out
    truncated = limit_length(data, RowOptions(rows, max_length=limit, too_long="truncate"))
    assert len(truncated) == 12
    assert max(len(ids) for ids in truncated["input_ids"]) == limit
    prompt_length = sft_row(0)["loss_mask"].index(1)
    with pytest.raises(TrainerError, match=f"no row has at most {prompt_length} tokens; raise --max-length"):
        limit_length(data, RowOptions(rows, max_length=prompt_length, too_long="truncate"))


def test_malformed_rows_get_one_line(student: Path, tmp_path: Path, rows: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 not really")
    cases = {
        tmp_path / "absent": r"no such folder; trainers/rows.py \(agentsys rows\) writes it",
        tmp_path / "torn.parquet": "is not a Parquet file",
        write_rows(tmp_path / "empty.parquet", []): "has no rows",
        write_rows(
            tmp_path / "step.parquet", [], "step"
        ): "step.parquet holds preference pairs; sft needs rows of kind sft or role",
        write_rows(tmp_path / "other.parquet", [sft_row(1)], digest="00"): "holds ids of another tokenizer",
    }
    for path, words in cases.items():
        with pytest.raises(TrainerError, match=words):
            fine_tune(path, student, tmp_path / "out")
    with pytest.raises(TrainerError, match="SFTConfig has no field 'learning_speed'"):
        fine_tune(rows, student, tmp_path / "out", set=["learning_speed=3"])
    with pytest.raises(TrainerError, match="--batch 3: give a multiple of --micro-batch 2"):
        TrainingOptions(batch=3, micro_batch=2)
    with pytest.raises(TrainerError, match="this is a LoRA adapter"):
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
        fine_tune(rows, tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(TrainerError, match="has no checkpoint"):
        fine_tune(rows, student, tmp_path / "out", resume=True)


def test_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentsys.trainers.training import memory_errors

    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        with (
            pytest.raises(TrainerError, match=r"lower --micro-batch \(now 2\)"),
            memory_errors(micro_batch=2),
        ):
            raise error
    with pytest.raises(RuntimeError, match="shape"), memory_errors(micro_batch=1):
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize(
    ("module", "command", "worker", "options"),
    [
        (sft, "main", "train", (RowOptions(), StudentOptions(), sft.SFTOptions())),
        (miniplm, "train", "pretrain", (PretrainingOptions(Path("c"), model="m"),)),
    ],
)
def test_every_part_of_a_training_may_run_out_of_memory(
    module: Any, command: str, worker: str, options: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the move of the weights to a GPU, which is before the first step."""

    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, worker, fail)
    with pytest.raises(TrainerError, match=r"lower --micro-batch \(now 4\)"):
        getattr(module, command)(*options, TrainingOptions(micro_batch=4))


def a_quarter_gigabyte_more() -> None:
    """Limit this process, from the first step on, to 256 MB more than it has."""
    from agentsys.trainers.reporting import MetricsFile

    begin = MetricsFile.on_train_begin

    def limit(*given: Any, **options: Any) -> None:
        begin(*given, **options)
        torch.set_num_threads(1)  # a thread that cannot start would end the process without a Python error
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2**28
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    MetricsFile.on_train_begin = limit  # type: ignore[method-assign]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of a process from Linux")
def test_a_step_that_really_runs_out_of_memory_ends_with_one_line(student: Path, tmp_path: Path) -> None:
    """A step of 128 rows of more than 300 tokens needs over 700 MB."""
    write_rows(tmp_path / "train.parquet", [sft_row(i, "a b c d " * 60) for i in range(128)])
    sizes = ["--rows", ".", "--student", student, "--steps", 1, "--batch", 128, "--micro-batch", 128]
    code, output = in_a_process("sft", [*sizes, "--out", "short"], tmp_path, a_quarter_gigabyte_more)
    assert code == 2, output[-2000:]
    [line] = [line for line in output.splitlines() if "error: " in line]
    assert line.endswith(
        "error: out of memory: lower --micro-batch (now 128) or --max-length, or turn on --gradient-checkpointing, "
        "--bf16 or --lora 16"
    )
    assert "Traceback" not in output
    assert not (tmp_path / "short" / "model").exists()
    code, output = in_a_process("sft", [*sizes, "--out", "enough"], tmp_path)
    assert code == 0, output[-2000:]


def test_any_setting_of_trl_can_be_given(rows: Path, student: Path, tmp_path: Path) -> None:
    changed = replace(TrainingOptions(), set=["weight_decay=0.5", "optim=sgd"])
    from trl import SFTConfig

    settings = make_config(SFTConfig, changed)
    assert (settings.weight_decay, settings.optim) == (0.5, "sgd")


@pytest.mark.parametrize(
    "name", ["rows", "sft", "step_dpo", "distill", "warmup_distill", "teacher", "miniplm", "export"]
)
def test_help_groups_options_and_loads_no_torch(name: str) -> None:
    script = str(ROOT / "trainers" / f"{name}.py")
    done = subprocess.run([sys.executable, "-X", "importtime", script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("╭─") >= 2, "options stand in groups"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported and not {"torch", "transformers"} & imported


def test_former_names_and_values_are_accepted(rows: Path, tmp_path: Path) -> None:
    assert RowOptions(rows, too_long="cut").too_long == "truncate"
    with pytest.raises(TrainerError, match="--too-long shorten: give drop or truncate"):
        RowOptions(rows, too_long="shorten")
    write_settings(tmp_path / "settings.json", {"too_long": "cut", "retokenise": False, "seed": 0})
    now = {"too_long": "truncate", "retokenize": False, "seed": 0}
    refuse_changes(tmp_path / "settings.json", now, "")
    with pytest.raises(TrainerError, match="retokenize was False and is True"):
        refuse_changes(tmp_path / "settings.json", now | {"retokenize": True}, "")


def test_accelerate_reads_the_fsdp_configuration() -> None:
    """Only read: accelerate shards over GPUs only, and tests have none."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "trainers" / "fsdp.yaml"))
    assert config.distributed_type == "FSDP"
    assert config.fsdp_config["fsdp_version"] == 2
