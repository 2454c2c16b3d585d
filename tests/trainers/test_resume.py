"""A training that kill -9 stopped and --resume continued gives the result of an undisturbed one, in every trainer."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentsys.trainers.output import last_checkpoint
from tests.support.corpora import make_chunks, make_corpus
from tests.support.tiny import make_tiny
from tests.support.traces import step_rows
from tests.support.training import in_a_process, metrics, same, sft_row, weights, write_rows

CHECKPOINT, KILL, STEPS = 4, 7, 9
"""Five rows, two per step: three steps per pass. The checkpoint is inside a pass, the kill in the next one."""

ON_ROWS = ["--epochs", 3, "--batch", 2, "--lora", 0]
CASES: dict[str, tuple[str, list[Any]]] = {
    "sft": ("sft", [*ON_ROWS, "--rows", "sft"]),
    "sft, lora": ("sft", [*ON_ROWS, "--rows", "sft", "--lora", 4]),
    "sft, packing": ("sft", ["--rows", "sft", "--steps", STEPS, "--packing", "--max-length", 256]),
    "step_dpo": ("step_dpo", [*ON_ROWS, "--rows", "step"]),
    "step_dpo, lora": ("step_dpo", [*ON_ROWS, "--rows", "step", "--lora", 4]),
    "distill": ("distill", [*ON_ROWS, "--rows", "scored/train", "--validation", "scored/validation"]),
    "distill, lora": ("distill", [*ON_ROWS, "--rows", "scored/train", "--lora", 4]),
    "on-policy": ("distill", ["--rows", "sft", "--steps", STEPS, "--batch", 2, "--teacher", "teacher",
                              "--divergence", "reverse_kl", "--answer-tokens", 8]),
    "pre-training": ("miniplm", ["train", "--corpus", "chunks", "--steps", STEPS, "--from-config", "student"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with dropout, so that the random state matters, and rows of every kind."""
    from agentsys.trainers.teacher import SpeedOptions, TeacherOptions
    from agentsys.trainers.teacher import main as score

    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("student", "teacher")):
        config = make_tiny(folder / name, seed=seed) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.1}))
    for split, numbers in (("train", range(5)), ("validation", range(5, 8))):
        file = write_rows(folder / "sft" / f"{split}.parquet", [sft_row(i) for i in numbers])
        write_rows(folder / "step" / f"{split}.parquet", step_rows(len(numbers)), "step")
        score(TeacherOptions(file, folder / "scored" / split, str(folder / "teacher"), top_k=8), SpeedOptions())
    make_chunks(make_corpus(folder), folder / "student", folder / "chunks")
    return folder


def run(data: Path, case: str, out: Path, *more: Any, kill_at: int | None = None) -> tuple[int, str]:
    """Run the trainer's command in its own process, which SIGKILL ends at the log of step `kill_at`."""
    script, options = CASES[case]
    usual = ["--checkpoint-every", CHECKPOINT, "--evaluate-every", 2, "--learning-rate", 1e-3, "--out", out]
    if script != "miniplm":
        usual += ["--student", "student"]
    return in_a_process(script, [*options, *usual, *more], data, partial(prepare, kill_at))


def prepare(kill_at: int | None) -> None:
    """Skip the plots, which take longer than the training; kill at a step."""
    from agentsys.trainers import reporting

    log = reporting.MetricsFile.on_log

    def log_and_die(self: Any, args: Any, state: Any, *rest: Any, **options: Any) -> None:
        log(self, args, state, *rest, **options)
        if state.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    reporting.MetricsFile.on_log = log_and_die  # type: ignore[method-assign]
    reporting.plot_curves = lambda metrics, file: None


def without_times(out: Path) -> list[dict[str, float]]:
    """metrics.jsonl without measured times."""
    clock = ("runtime", "per_second", "step_time")
    return [{name: v for name, v in line.items() if not name.endswith(clock)} for line in metrics(out)]


@pytest.mark.parametrize("case", CASES)
def test_a_killed_training_resumes_exactly(case: str, data: Path, tmp_path: Path) -> None:
    code, output = run(data, case, tmp_path / "calm")
    assert code == 0, output[-2000:]
    code, output = run(data, case, tmp_path / "killed", kill_at=KILL)
    assert code == -signal.SIGKILL, output[-2000:]
    assert metrics(tmp_path / "killed")[-1]["step"] == KILL and not (tmp_path / "killed" / "model").exists()
    code, output = run(data, case, tmp_path / "killed", "--resume")
    assert code == 0, output[-2000:]
    calm, killed = without_times(tmp_path / "calm"), without_times(tmp_path / "killed")
    assert [line["step"] for line in calm if "loss" in line] == list(range(1, STEPS + 1))
    for one, other in zip(calm, killed, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert same(weights(tmp_path / "calm"), weights(tmp_path / "killed"), 1e-6)


def test_a_resumed_training_needs_the_same_settings(data: Path, tmp_path: Path) -> None:
    code, output = run(data, "sft", tmp_path / "out", kill_at=KILL)
    assert code == -signal.SIGKILL, output[-2000:]
    torn = tmp_path / "out" / "checkpoint-6"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"epoch": 1.')
    assert last_checkpoint(tmp_path / "out") == tmp_path / "out" / f"checkpoint-{CHECKPOINT}"
    code, output = run(data, "sft", tmp_path / "out")
    assert code == 2 and "give --resume to continue" in output
    code, output = run(data, "sft", tmp_path / "out", "--seed", 3, "--resume")
    assert code == 2 and "seed was 0 and is 3" in output
