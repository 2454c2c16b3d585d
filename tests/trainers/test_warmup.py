"""Warmup-Distill: which tokens are flagged, how they are corrected, and what the warm-up does to a tiny student."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from agentsys.trainers.corrections import (
    CheckedSample,
    Edit,
    check_samples,
    flag_tokens,
    replace_and_truncate,
    replace_tokens,
)
from agentsys.trainers.distill_offline import DistillOptions
from agentsys.trainers.generate import SamplingOptions
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.row_files import RowOptions
from agentsys.trainers.training import StudentOptions, TrainingOptions
from agentsys.trainers.warmup import Warmup, WarmupOptions
from agentsys.trainers.warmup_distill import main
from tests.support.tiny import make_tiny
from tests.support.training import QUICK, sft_row, write_rows

pytestmark = pytest.mark.usefixtures("without_plots")

RNG = np.random.default_rng(0)
CHECKED = CheckedSample(
    ids=[7, 8, 9, 5],
    log_p=np.log([0.5, 0.01, 0.3, 0.04]),
    log_q=np.log([0.4, 0.5, 0.9, 0.03]),
    top_ids=np.array([[7, 1], [2, 8], [3, 9], [5, 6]], np.int32),
    top_log_p=np.log([[0.5, 0.2], [0.9, 0.01], [0.6, 0.3], [0.04, 0.03]]),
)


def test_each_margin_flags_what_its_formula_says() -> None:
    def places(margin: str, eta: float) -> list[int]:
        return np.flatnonzero(flag_tokens(CHECKED, margin, eta)).tolist()  # type: ignore[arg-type]

    assert places("teacher_prob", 0.05) == [1], "0.04 is below too, but it is the teacher's likeliest token"
    assert places("gap_to_top", 0.2) == [1, 2]
    assert places("gap_to_top", 0.5) == [1]
    assert places("p_minus_q", 0.5) == [2]
    assert places("p_minus_q", 0.4) == [1, 2]
    assert places("log_ratio", 0.05) == [1]
    assert places("log_ratio", 0.5) == [1, 2]


def test_replacements_are_the_teachers_and_never_the_same_token() -> None:
    assert replace_tokens(CHECKED, [1, 2], "argmax", RNG) == [7, 2, 3, 5]
    assert replace_and_truncate(CHECKED, 2, "argmax", RNG) == [7, 8, 3]
    assert {replace_and_truncate(CHECKED, 1, "sample", RNG)[-1] for _ in range(50)} == {2}, "8 is there already"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm")
    for seed, name in enumerate(("student", "teacher")):
        make_tiny(folder / name, seed=seed)
    write_rows(folder / "rows" / "train.parquet", [sft_row(i) for i in range(16)])
    write_rows(folder / "rows" / "validation.parquet", [sft_row(i) for i in range(16, 24)])
    return folder


def warmup(folder: Path, out: Path, **changes: object) -> Warmup:
    settings = {"teacher": str(folder / "teacher"), "eta": 0.02, "warm_learning_rate": 1e-2, "warm_epochs": 8}
    out.mkdir(parents=True, exist_ok=True)
    return Warmup(
        RowOptions(folder / "rows"),
        StudentOptions(str(folder / "student")),
        WarmupOptions(**settings | changes),  # type: ignore[arg-type]
        SamplingOptions(answer_tokens=12),
        TrainingOptions(out, **QUICK | {"batch": 4}),
    )


@pytest.mark.parametrize("edit", ["replace_token", "replace_and_teacher_continue", "replace_and_student_continue"])
def test_pairs_agree_up_to_the_first_flagged_token(edit: Edit, folder: Path, tmp_path: Path) -> None:
    warm = warmup(folder, tmp_path, edit=edit, max_edits=2)
    pairs = pq.read_table(warm.make_pairs() / "train.parquet").to_pylist()
    assert pairs
    samples = warm.sample_answers()
    checked = check_samples(samples, warm._scorer(str(folder / "teacher")), warm._scorer(str(folder / "student")))
    for pair in pairs:
        number = int(pair["id"].partition("#")[2])
        chosen, rejected = pair["chosen_ids"], pair["rejected_ids"]
        assert rejected == samples[number][1]
        first = next(i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
        assert first == np.flatnonzero(flag_tokens(checked[number], "teacher_prob", 0.02))[0]
        assert chosen[first] == checked[number].top_ids[first][0], "the teacher's likeliest token"
        if edit == "replace_token":
            assert len(chosen) == len(rejected)
            assert sum(a != b for a, b in zip(chosen, rejected, strict=True)) <= 2
        assert len(chosen) <= 12


def test_the_warm_up_brings_the_student_closer_to_the_teacher(folder: Path, tmp_path: Path) -> None:
    warm = warmup(folder, tmp_path)
    warmed = warm.train_dpo()
    before, after = warm.measure(str(folder / "student")), warm.measure(str(warmed))
    assert after["teacher_logprob"] > before["teacher_logprob"]
    with pytest.raises(TrainerError, match=r"warm-up: eta was 0.02 and is 0.5: give another --out"):
        warmup(folder, tmp_path, eta=0.5)
    again = warmup(folder, tmp_path)
    stamp = (warmed / "model.safetensors").stat().st_mtime_ns
    assert again.train_dpo() == warmed
    assert (warmed / "model.safetensors").stat().st_mtime_ns == stamp, "a finished stage is not done again"


def test_the_whole_command_reports_with_and_without(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentsys.trainers.teacher import SpeedOptions, TeacherOptions
    from agentsys.trainers.teacher import main as score

    for split in ("train", "validation"):
        file = folder / "rows" / f"{split}.parquet"
        score(TeacherOptions(file, tmp_path / split, str(folder / "teacher"), top_k=8), SpeedOptions())
    warm = WarmupOptions(
        str(folder / "teacher"), eta=0.02, distill=tmp_path / "train", distill_validation=tmp_path / "validation"
    )
    student, training = (
        StudentOptions(str(folder / "student")),
        TrainingOptions(tmp_path / "out", **QUICK | {"steps": 2}),
    )
    main(RowOptions(folder / "rows"), student, warm, SamplingOptions(answer_tokens=8), DistillOptions(), training)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report) == {"before", "after", "distilled", "distilled-without"}
    assert report["distilled"]["eval_divergence"] != report["distilled-without"]["eval_divergence"]
    assert "teacher_logprob" in capsys.readouterr().out


def test_bad_settings_get_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"--eta 1.5: give a probability"):
        WarmupOptions(eta=1.5)
    other = make_tiny(tmp_path / "other", vocab=400)
    with pytest.raises(TrainerError, match=r"--teacher .*: the tokenizers differ"):
        warmup(folder, tmp_path, teacher=str(other))
    with pytest.raises(TrainerError, match="no answer has a token below --eta"):
        warmup(folder, tmp_path / "o", eta=1e-9).make_pairs()
    write_rows(tmp_path / "only" / "train.parquet", [sft_row(1)])
    with pytest.raises(TrainerError, match=r"has no validation.parquet; the report needs held-out prompts"):
        main(
            RowOptions(tmp_path / "only"),
            StudentOptions(str(folder / "student")),
            WarmupOptions(str(folder / "teacher")),
            SamplingOptions(),
            DistillOptions(),
            TrainingOptions(tmp_path / "out"),
        )
