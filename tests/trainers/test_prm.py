"""Process reward models: the loss by its formula, what a training learns, measures, limits, and use as `prm:`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from agentsys.models.errors import SpecError
from agentsys.models.reward import load_reward_model
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.prm import (
    NO_LABEL,
    SolutionCollator,
    SolutionOptions,
    limit_solutions,
    step_loss,
    step_measures,
    train,
)
from agentsys.trainers.row_files import read_row_file
from agentsys.trainers.training import StudentOptions
from tests.support.tiny import make_tiny
from tests.support.training import DIGEST, QUICK, TOKENIZER, metrics, write_rows

pytestmark = pytest.mark.usefixtures("without_plots")

PROMPT = TOKENIZER("<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\n").input_ids


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("student"))


def solution_row(number: int, *steps: tuple[str, float]) -> dict[str, Any]:
    ids, ends = list(PROMPT), []
    for text, _ in steps:
        ids += TOKENIZER(text, add_special_tokens=False).input_ids
        ends.append(len(ids) - 1)
    return {
        "id": str(number), "kind": "prm", "source": "s", "input": str(number), "prompt": "", "text": "",
        "ids_source": "engine", "lineage": "{}", "scores": "{}", "input_ids": ids, "step_ends": ends,
        "step_labels": [label for _, label in steps], "step_visits": [4] * len(steps),
    }  # fmt: skip


def solutions(count: int) -> list[dict[str, Any]]:
    """A solution is right until its first "bad" step."""
    rows = []
    for i in range(count):
        good, bad = (f"{i} coins in the harbour, ", 1.0), (f"{i} debts all winter, ", 0.0)
        rows.append(solution_row(i, *([good, bad] if i % 2 else [bad, bad])))
    return rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train.parquet", solutions(8), "prm", DIGEST)
    write_rows(folder / "validation.parquet", solutions(6)[4:], "prm", DIGEST)
    return folder


def test_the_loss_is_the_cross_entropy_of_soft_labels() -> None:
    batch = SolutionCollator(0)([
        {"input_ids": [5, 6, 7], "step_ends": [1, 2], "step_labels": [0.25, 1.0]},
        {"input_ids": [5, 6], "step_ends": [0], "step_labels": [0.0]},
    ])  # fmt: skip
    assert batch["labels"].tolist() == [[NO_LABEL, 0.25, 1.0], [0.0, NO_LABEL, NO_LABEL]]
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 6, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    logits = torch.tensor([[[9.0], [0.4], [-1.0]], [[2.0], [9.0], [9.0]]])
    sigmoid = [1 / (1 + math.exp(-x)) for x in (0.4, -1.0, 2.0)]
    total = -(0.25 * math.log(sigmoid[0]) + 0.75 * math.log(1 - sigmoid[0]))
    total += -math.log(sigmoid[1]) - math.log(1 - sigmoid[2])
    assert float(step_loss({"logits": logits}, batch["labels"])) == pytest.approx(total / 3, abs=1e-6)
    assert float(step_loss({"logits": logits}, batch["labels"], 12)) == pytest.approx(total / 12, abs=1e-6)


def test_measures_are_over_the_labeled_steps() -> None:
    prediction = SimpleNamespace(
        predictions=np.array([[9.0, 0.4, -1.0], [2.0, 9.0, 9.0]]),
        label_ids=np.array([[NO_LABEL, 0.25, 1.0], [0.0, NO_LABEL, NO_LABEL]]),
    )
    assert step_measures(prediction) == {"accuracy": 0.0, "auc": 0.0}
    prediction.label_ids = np.array([[NO_LABEL, 0.5, 0.0], [1.0, NO_LABEL, NO_LABEL]])
    assert step_measures(prediction) == {"accuracy": 1.0, "auc": 1.0}
    prediction.label_ids = np.array([[NO_LABEL, 0.5, 1.0], [1.0, NO_LABEL, NO_LABEL]])
    assert step_measures(prediction) == {"accuracy": pytest.approx(2 / 3)}, "one class has no AUC"


@pytest.mark.parametrize("lora", [0, 8])
async def test_a_training_tells_right_steps_from_wrong_ones(
    lora: int, rows: Path, student: Path, tmp_path: Path
) -> None:
    """Also with other numbers than those it was trained on; the saved model is the one that `prm:` uses."""
    from agentsys.trainers.training import TrainingOptions

    settings = QUICK | {"learning_rate": 1e-2 if lora else 3e-3, "epochs": 30, "batch": 4, "micro_batch": 2}
    final = train(SolutionOptions(rows), StudentOptions(str(student), lora=lora), TrainingOptions(tmp_path, **settings))
    assert final["eval_auc"] == 1 and final["eval_accuracy"] >= 0.75
    assert metrics(tmp_path)[0]["step"] == 0 and metrics(tmp_path)[0]["eval_loss"] > final["eval_loss"]
    row = solutions(2)[1]
    first, whole = row["input_ids"][: row["step_ends"][0] + 1], row["input_ids"]
    scores = await load_reward_model(f"prm:{tmp_path / 'model'}").score([first, whole])
    assert scores[0] > 0.7 and scores[1] < 0.3
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        alone = torch.sigmoid(model(torch.tensor([first])).logits[0, -1, 0])
    assert scores[0] == pytest.approx(float(alone), abs=1e-5), "padding changes nothing"


def test_long_solutions_are_dropped_or_keep_their_first_steps(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_row_file(rows / "train.parquet")
    limit = max(row["step_ends"][0] for row in data) + 1
    with pytest.raises(TrainerError, match="no solution has a step within"):
        limit_solutions(data, SolutionOptions(rows, max_length=len(PROMPT)))
    kept = limit_solutions(data, SolutionOptions(rows, max_length=limit, too_long="truncate"))
    assert {len(row["step_ends"]) for row in kept} == {1} and max(map(len, kept["input_ids"])) <= limit
    assert "8 of 8 solutions are longer than" in capsys.readouterr().out


def test_other_rows_are_refused(student: Path, tmp_path: Path) -> None:
    from agentsys.trainers.training import TrainingOptions
    from tests.support.training import sft_row

    write_rows(tmp_path / "rows" / "train.parquet", [sft_row(0)])
    with pytest.raises(TrainerError, match="no column step_ends; prm needs rows of kind prm"):
        train(SolutionOptions(tmp_path / "rows"), StudentOptions(str(student)), TrainingOptions(tmp_path / "out"))


def test_what_is_no_reward_model_is_refused(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="has no model; `agentsys train prm` writes one"):
        load_reward_model(f"prm:{tmp_path}")
    with pytest.raises(
        SpecError, match=r"is another kind of model \(.*ForCausalLM.*\); `agentsys train prm` makes one"
    ):
        load_reward_model(f"prm:{student}")
    monkeypatch.setitem(__import__("sys").modules, "langgraph_api", SimpleNamespace())
    with pytest.raises(SpecError, match="in Studio, 'prm:' with a folder is not allowed"):
        load_reward_model(f"prm:{student}")


async def test_ids_of_another_tokenizer_are_refused(student: Path, tmp_path: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(student, num_labels=1)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Qwen2ForTokenClassification"]
    reward_model = load_reward_model(f"prm:{tmp_path}")
    assert 0 < (await reward_model.score([[1, 2, 3]]))[0] < 1
    with pytest.raises(SpecError, match="knows 512 token ids and got 600: it needs the policy's tokenizer"):
        await reward_model.score([[1, 2], [600]])
