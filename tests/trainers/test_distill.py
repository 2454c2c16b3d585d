"""Distillation on a tiny model: the loss from stored top-k in a real Trainer, off-policy and on-policy, bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentsys.trainers.distill_offline import DistillOptions, ScoredOptions, measure, train_offline
from agentsys.trainers.distill_on_policy import OnPolicyOptions, train_on_policy
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.losses import KINDS
from agentsys.trainers.teacher import SpeedOptions, TeacherOptions
from agentsys.trainers.teacher import main as score
from agentsys.trainers.training import StudentOptions, TrainingOptions
from tests.support.tiny import make_tiny, make_tokenizer
from tests.support.training import (
    DIGEST,
    QUICK,
    in_two_processes,
    losses,
    metrics,
    same,
    sft_row,
    step_metrics,
    weights,
    write_rows,
)

pytestmark = pytest.mark.usefixtures("without_plots")

TOKENS = len(make_tokenizer())
"""The models' heads have more rows, which are padding."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_tiny(folder / name, seed=seed) for seed, name in enumerate(("student", "teacher"))}


@pytest.fixture(scope="module")
def scored(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    for split, numbers in (("train", range(8)), ("validation", range(8, 12))):
        file = write_rows(folder / f"{split}.parquet", [sft_row(i) for i in numbers], digest=DIGEST)
        score(TeacherOptions(file, folder / split, str(models["teacher"]), top_k=8), SpeedOptions())
    return folder


def distill(scored: Path, models: dict[str, Path], out: Path, *, lora: int = 0, **given: Any) -> Path:
    names = DistillOptions.__dataclass_fields__
    options = DistillOptions(**{name: value for name, value in given.items() if name in names})
    training = QUICK | {name: value for name, value in given.items() if name not in names}
    rows = ScoredOptions(rows=scored / "train", validation=scored / "validation", max_length=512)
    train_offline(rows, StudentOptions(str(models["student"]), lora), options, TrainingOptions(out, **training))
    return out


def by_hand(models: dict[str, Path], numbers: range, k: int) -> tuple[float, float]:
    """Mean KL(teacher, student) over the teacher's top k and the rest, and mean cross-entropy, from all logits.

    The teacher has no mass on padding rows of its head.
    """
    both = [AutoModelForCausalLM.from_pretrained(models[name]) for name in ("teacher", "student")]
    kl, ce, count = 0.0, 0.0, 0
    for row in map(sft_row, numbers):
        ids = torch.tensor([row["input_ids"]])
        learned = torch.tensor(row["loss_mask"][1:], dtype=torch.bool)
        with torch.no_grad():
            p_logits, q_logits = (m(ids).logits[0, :-1][learned] for m in both)
        p, log_q = p_logits[:, :TOKENS].softmax(-1), q_logits.log_softmax(-1)
        top = p.topk(k)
        q_top = log_q.exp().gather(1, top.indices)
        kl += float((top.values * (top.values / q_top).log()).sum())
        if k < TOKENS:
            rest_p, rest_q = 1 - top.values.sum(1), 1 - q_top.sum(1)
            kl += float((rest_p * (rest_p / rest_q).log()).sum())
        ce -= float(log_q.gather(1, ids[0, 1:][learned][:, None]).sum())
        count += int(learned.sum())
    return kl / count, ce / count


def test_the_loss_is_the_formula_however_it_is_batched(scored: Path, models: dict[str, Path], tmp_path: Path) -> None:
    kl, ce = by_hand(models, range(8), k=8)
    whole = distill(scored, models, tmp_path / "whole", batch=8, micro_batch=8, steps=1, kd=0.7)
    parts = distill(scored, models, tmp_path / "parts", batch=8, micro_batch=2, steps=1, kd=0.7)
    first = step_metrics(whole)[0]
    assert first["cross_entropy"] == pytest.approx(ce, abs=1e-4)
    assert first["divergence"] == pytest.approx(kl, rel=2e-3), "stored in fp16"
    assert first["loss"] == pytest.approx(0.7 * first["divergence"] + 0.3 * ce, abs=1e-4)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-4)
    assert step_metrics(parts)[0]["divergence"] == pytest.approx(first["divergence"], abs=1e-5), "a mean over tokens"
    assert same(weights(parts), weights(whole), 2e-5)


def test_the_whole_vocabulary_stored_is_the_full_divergence(models: dict[str, Path], tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.parquet", [sft_row(i) for i in range(4)])
    score(TeacherOptions(file, tmp_path / "scored", str(models["teacher"]), top_k=TOKENS), SpeedOptions())
    rows = ScoredOptions(rows=tmp_path / "scored")
    out = TrainingOptions(tmp_path / "out", **QUICK | {"batch": 4, "steps": 1})
    train_offline(rows, StudentOptions(str(models["student"])), DistillOptions(), out)
    full, top_8 = (by_hand(models, range(4), k)[0] for k in (TOKENS, 8))
    assert losses(tmp_path / "out")[0] == pytest.approx(full, rel=2e-3)
    assert top_8 < full, "merging tokens into the rest lowers the divergence"


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_comes_closer_to_the_teacher(
    kind: str, scored: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    out = distill(scored, models, tmp_path, divergence=kind, batch=4, epochs=10, learning_rate=5e-3, evaluate_every=10)
    measured = [line["eval_divergence"] for line in metrics(out) if "eval_divergence" in line]
    assert measured[-1] < 0.8 * measured[0]


def test_adapters_learn_too(scored: Path, models: dict[str, Path], tmp_path: Path) -> None:
    out = distill(scored, models, tmp_path, lora=4, batch=4, epochs=6, learning_rate=2e-2)
    divergence = [line["divergence"] for line in metrics(out) if "divergence" in line]
    assert sum(divergence[-2:]) < 0.9 * sum(divergence[:2])
    assert (out / "adapter" / "adapter_model.safetensors").exists()


def test_truncated_rows_keep_the_scores_of_their_tokens(scored: Path, models: dict[str, Path], tmp_path: Path) -> None:
    rows = ScoredOptions(rows=scored / "train", max_length=40, too_long="truncate")
    out = TrainingOptions(tmp_path, **QUICK | {"steps": 1, "batch": 8})
    train_offline(rows, StudentOptions(str(models["student"])), DistillOptions(kd=0.5), out)
    truncated = [
        {**row, **{name: row[name][:40] for name in ("input_ids", "loss_mask")}} for row in map(sft_row, range(8))
    ]
    write_rows(tmp_path / "truncated.parquet", truncated)
    score(
        TeacherOptions(tmp_path / "truncated.parquet", tmp_path / "truncated", str(models["teacher"]), top_k=8),
        SpeedOptions(),
    )
    again = replace(out, out=tmp_path / "again")
    train_offline(
        replace(rows, rows=tmp_path / "truncated"),
        StudentOptions(str(models["student"])),
        DistillOptions(kd=0.5),
        again,
    )
    assert losses(tmp_path)[0] == pytest.approx(losses(tmp_path / "again")[0], abs=1e-5)


def test_a_student_is_measured_row_by_row(scored: Path, models: dict[str, Path]) -> None:
    measures = measure(ScoredOptions(rows=scored / "train"), StudentOptions(str(models["student"])), DistillOptions())
    tokens = sum(count for *_, count in measures)
    kl, ce = by_hand(models, range(8), k=8)
    assert sum(divergence for divergence, *_ in measures) / tokens == pytest.approx(kl, rel=2e-3)
    assert sum(cross for _, cross, _ in measures) / tokens == pytest.approx(ce, abs=1e-4)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_validation_is_a_mean_over_tokens(
    scored: Path, models: dict[str, Path], tmp_path: Path, micro_batch: int
) -> None:
    """With rows of different lengths in any batches; the Trainer's mean over rows differs."""
    out = distill(
        scored,
        models,
        tmp_path,
        kd=0.7,
        batch=4,
        micro_batch=micro_batch,
        steps=1,
        learning_rate=1e-12,
        evaluate_every=1,
    )
    kl, ce = by_hand(models, range(8, 12), k=8)
    [first, *_, last] = [line for line in metrics(out) if "eval_loss" in line]
    assert (first["step"], last["step"]) == (0, 1)
    assert first["eval_divergence"] == pytest.approx(kl, rel=2e-3)
    assert first["eval_cross_entropy"] == pytest.approx(ce, abs=1e-4)
    assert first["eval_loss"] == pytest.approx(0.7 * first["eval_divergence"] + 0.3 * ce, abs=1e-4)
    assert last["eval_loss"] == pytest.approx(first["eval_loss"], abs=1e-6)
    rows = [by_hand(models, range(i, i + 1), k=8) for i in range(8, 12)]
    assert abs(sum(0.7 * kl + 0.3 * ce for kl, ce in rows) / 4 - first["eval_loss"]) > 5e-4


def test_two_processes_distill_what_one_does(scored: Path, models: dict[str, Path], tmp_path: Path) -> None:
    """Two rows per step in each of two processes are four in one; both measure the same validation rows."""
    both = ["--rows", scored / "train", "--validation", scored / "validation", "--student", models["student"]]
    both += ["--kd", 0.7, "--steps", 2, "--batch", 2, "--out", tmp_path / "two"]
    in_two_processes("trainers/distill.py", *both)
    distill(scored, models, tmp_path / "one", kd=0.7, steps=2, batch=4)
    measured = ("loss", "divergence", "cross_entropy", "grad_norm", "eval_loss", "eval_divergence")
    one, two = ([{n: line[n] for n in measured if n in line} for line in metrics(tmp_path / n)] for n in ("one", "two"))
    for lone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(lone, rel=1e-4)
    assert same(weights(tmp_path / "two"), weights(tmp_path / "one"), 2e-5)


def test_a_partly_scored_folder_is_refused(scored: Path, models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(scored / "train", tmp_path / "half")
    manifest = json.loads((tmp_path / "half" / "manifest.json").read_text())
    (tmp_path / "half" / "manifest.json").write_text(json.dumps(manifest | {"complete": False, "rows_scored": 3}))
    with pytest.raises(TrainerError, match=r"3 of 8 rows are scored; rerun trainers/teacher.py"):
        train_offline(
            ScoredOptions(rows=tmp_path / "half"),
            StudentOptions(str(models["student"])),
            DistillOptions(),
            TrainingOptions(tmp_path / "out"),
        )


def test_on_policy_through_trl(scored: Path, models: dict[str, Path], tmp_path: Path) -> None:
    about, teacher = DistillOptions(divergence="reverse_kl"), OnPolicyOptions(str(models["teacher"]), 8)
    rows = ScoredOptions(rows=scored / "train.parquet")
    out = TrainingOptions(tmp_path, **QUICK | {"steps": 2, "batch": 4, "micro_batch": 4})
    train_on_policy(rows, StudentOptions(str(models["student"])), about, teacher, out)
    assert len(losses(tmp_path)) == 2
    assert not [line for line in metrics(tmp_path) if "eval_loss" in line], "no validation rows"
    assert not same(weights(tmp_path), AutoModelForCausalLM.from_pretrained(models["student"]).state_dict(), 1e-6)


def test_on_policy_validation_is_of_the_validation_rows(scored: Path, models: dict[str, Path], tmp_path: Path) -> None:
    """A student that is its own teacher has divergence 0; from another teacher, training lowers it."""
    options = DistillOptions(divergence="forward_kl")
    training = QUICK | {"batch": 4, "micro_batch": 4, "evaluate_every": 10, "learning_rate": 5e-3}
    itself = TrainingOptions(tmp_path / "itself", **training | {"steps": 1, "learning_rate": 1e-12})
    rows, student = ScoredOptions(scored / "train.parquet"), StudentOptions(str(models["student"]))
    rows = replace(rows, validation=scored / "validation.parquet")
    final = train_on_policy(rows, student, options, OnPolicyOptions(str(models["student"]), 8), itself)
    assert final["eval_loss"] == pytest.approx(0, abs=1e-5)
    folder = ScoredOptions(rows=scored)
    out = TrainingOptions(tmp_path / "other", **training | {"steps": 30})
    train_on_policy(folder, student, options, OnPolicyOptions(str(models["teacher"]), 16), out)
    losses_by_step = [(line["step"], line["eval_loss"]) for line in metrics(tmp_path / "other") if "eval_loss" in line]
    assert [step for step, _ in losses_by_step] == [0, 10, 20, 30]
    assert losses_by_step[-1][1] < 0.9 * losses_by_step[0][1]
    assert "eval_loss" in (tmp_path / "other" / "README.md").read_text()


def test_bad_input_is_refused_before_training(scored: Path, models: dict[str, Path], tmp_path: Path) -> None:
    student, out = StudentOptions(str(models["student"])), TrainingOptions(tmp_path / "out")
    with pytest.raises(TrainerError, match=r"has no teacher's scores; trainers/teacher.py adds them"):
        train_offline(ScoredOptions(rows=scored / "train.parquet"), student, DistillOptions(), out)
    with pytest.raises(TrainerError, match=r"has no teacher's scores; trainers/teacher.py adds them: agentsys train"):
        train_offline(ScoredOptions(rows=tmp_path), student, DistillOptions(), out)
    with pytest.raises(TrainerError, match="and --kd 1; TRL has no other"):
        train_on_policy(ScoredOptions(), student, DistillOptions(kd=0.5), OnPolicyOptions(), out)
    other = make_tiny(tmp_path / "other", vocab=400)
    with pytest.raises(TrainerError, match=r"the tokenizers differ \(\d+ and \d+ tokens; .* take a teacher of the"):
        teacher, given = OnPolicyOptions(str(other)), ScoredOptions(rows=scored / "train.parquet")
        train_on_policy(given, student, DistillOptions(), teacher, out)
    with pytest.raises(TrainerError, match="ids of another tokenizer"):
        train_offline(ScoredOptions(rows=scored / "train"), StudentOptions(str(other)), DistillOptions(), out)
    with pytest.raises(TrainerError, match="--kd 2: give a share"):
        DistillOptions(kd=2)


def test_the_command_lists_all_divergences() -> None:
    assert get_args(get_type_hints(DistillOptions)["divergence"]) == KINDS
