"""Step-level DPO: TRL's loss on the engine's ids, and TRL's own tokens of the same pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl import DPOConfig

from agentsys.trainers.dpo import (
    DPOOptions,
    DPOTraining,
    PairOptions,
    limit_pairs,
    make_pair_trainer,
    train_dpo,
    with_label_smoothing,
)
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.row_files import read_row_file
from agentsys.trainers.training import StudentOptions, make_config
from tests.support.tiny import make_tiny
from tests.support.traces import END, TOKENIZER, make_call, step_rows
from tests.support.training import DIGEST, QUICK, in_two_processes, metrics, same, step_metrics, weights, write_rows

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train.parquet", step_rows(4), "step", DIGEST)
    write_rows(folder / "validation.parquet", step_rows(2), "step", DIGEST)
    return folder


def trainer_on(rows: Path, student: Path, out: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(student)
    reference = AutoModelForCausalLM.from_pretrained(student)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)  # away from the reference, where the loss would be log 2 whatever the ids
    training = DPOTraining(out, batch=4, micro_batch=4)
    data = limit_pairs(read_row_file(rows / "train.parquet"), PairOptions(rows))
    settings = make_config(DPOConfig, training, beta=0.1, max_length=None)
    return make_pair_trainer(
        model=model, ref_model=reference, args=settings, train_dataset=data, processing_class=TOKENIZER
    )


def log_probability(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return torch.stack([logits[at, token] for at, token in zip(places, answer, strict=True)]).sum()


def test_loss_and_gradients_are_those_of_the_formula(rows: Path, student: Path, tmp_path: Path) -> None:
    trainer = trainer_on(rows, student, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    theirs = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()

    reference = AutoModelForCausalLM.from_pretrained(student)
    plain_model = AutoModelForCausalLM.from_pretrained(student)
    plain_model.load_state_dict(trainer.model.state_dict())
    total = torch.zeros(())
    for row in step_rows(4):
        ratios = []
        for side in ("chosen_ids", "rejected_ids"):
            policy = log_probability(plain_model, row["prompt_ids"], row[side])
            ratios.append(policy - log_probability(reference, row["prompt_ids"], row[side]).detach())
        total = total - torch.nn.functional.logsigmoid(0.1 * (ratios[0] - ratios[1])) / 4
    total.backward()
    assert float(loss) == pytest.approx(float(total), abs=1e-5)
    assert abs(float(loss) - 0.6931) > 1e-3, "the student is not its reference"
    for name, parameter in plain_model.named_parameters():
        assert torch.allclose(theirs[name], parameter.grad, atol=1e-5), name


def test_the_batch_holds_the_engines_ids_and_no_end_of_turn(rows: Path, student: Path, tmp_path: Path) -> None:
    trainer = trainer_on(rows, student, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    parents = [make_call("root", f"First, number {i}.\n", ended=False) for i in range(4)]
    sent_to_engine = [[*(parent.prompt_ids or ()), *(parent.ids or ())] for parent in parents]
    for ids, mask in zip(batch["input_ids"].tolist(), batch["completion_mask"].tolist(), strict=True):
        assert ids[: mask.index(1)] in sent_to_engine
        assert END not in [i for i, m in zip(ids, mask, strict=True) if m]


def test_trl_alone_changes_the_tokens_of_a_pair(student: Path, tmp_path: Path) -> None:
    """Why ids are used: plain strings end every step, a conversation closes the turn inside the reasoning."""
    from datasets import Dataset
    from trl import DPOTrainer

    row = step_rows(1)[0]
    step_texts = {"chosen": row["text"], "rejected": row["rejected"]}
    strings = {"prompt": row["prompt"], **step_texts}
    turns = [
        {"role": "user", "content": "Translate: the kettle sang"},
        {"role": "assistant", "content": "First, number 0.\n"},
    ]
    talk = {"prompt": turns} | {k: [{"role": "assistant", "content": v}] for k, v in step_texts.items()}
    trl_rows = {}
    for name, data in {"strings": strings, "talk": talk}.items():
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(student),
            ref_model=AutoModelForCausalLM.from_pretrained(student),
            args=make_config(DPOConfig, DPOTraining(tmp_path / name)),
            train_dataset=Dataset.from_list([data]),
            processing_class=TOKENIZER,
        )
        trl_rows[name] = trainer.train_dataset[0]
    assert trl_rows["strings"]["chosen_ids"] == [*row["chosen_ids"], END], "an end of turn after a step"
    opened = TOKENIZER("<|im_end|>\n<|im_start|>assistant\n").input_ids
    assert trl_rows["talk"]["prompt_ids"][-len(opened) :] == opened, "the turn is closed and a new one opened"
    assert trl_rows["talk"]["prompt_ids"] != row["prompt_ids"]
    assert END in trl_rows["talk"]["chosen_ids"]


def test_training_prefers_the_chosen_side(rows: Path, student: Path, tmp_path: Path) -> None:
    settings = QUICK | {"learning_rate": 1e-3, "epochs": 15, "batch": 4}
    final = train_dpo(PairOptions(rows), StudentOptions(str(student)), DPOOptions(), DPOTraining(tmp_path, **settings))
    assert final["eval_rewards/accuracies"] == 1
    assert final["eval_rewards/margins"] > 0
    assert step_metrics(tmp_path)[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "the student begins as its reference"
    assert json.loads((tmp_path / "settings.json").read_text())["beta"] == 0.1


def test_two_processes_prefer_what_one_prefers(rows: Path, student: Path, tmp_path: Path) -> None:
    """Two pairs per step in each of two processes are four pairs per step in one; the reference is computed by both."""
    both = ["--rows", rows, "--student", student, "--out", tmp_path / "two", "--steps", 2, "--batch", 2]
    in_two_processes("trainers/step_dpo.py", *both)
    training = DPOTraining(tmp_path / "one", **QUICK | {"steps": 2, "batch": 4})
    train_dpo(PairOptions(rows), StudentOptions(str(student)), DPOOptions(), training)
    measured = ("loss", "grad_norm", "rewards/margins", "eval_loss", "eval_rewards/margins")
    one, two = ([{n: line[n] for n in measured if n in line} for line in metrics(tmp_path / n)] for n in ("one", "two"))
    for lone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(lone, rel=1e-3, abs=1e-5)
    assert one[2]["loss"] < 0.69, "the student has left its reference"
    assert same(weights(tmp_path / "two"), weights(tmp_path / "one"), 2e-5)


SMOOTHING = (0.0, 0.2, 0.5, 0.1)


def smoothed_rows(folder: Path) -> Path:
    """The four pairs with a label smoothing in their scores."""
    pairs = [row | {"scores": json.dumps({"margin": 1.0, "label_smoothing": e})}
             for row, e in zip(step_rows(4), SMOOTHING, strict=True)]  # fmt: skip
    write_rows(folder / "train.parquet", pairs, "step", DIGEST)
    return folder


def test_the_conservative_loss_smooths_each_pair_by_its_own_score(student: Path, tmp_path: Path) -> None:
    """Loss and gradients of a batch are those of cDPO: (1 - e) and e as weights of the two labels."""
    rows = read_row_file(smoothed_rows(tmp_path) / "train.parquet")
    options = PairOptions(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(student)
    settings = make_config(
        DPOConfig, DPOTraining(tmp_path / "out", batch=4, micro_batch=4), beta=0.5, max_length=None,
        precompute_ref_log_probs=True,
    )  # fmt: skip
    trainer = make_pair_trainer(
        model=model, args=settings, train_dataset=limit_pairs(with_label_smoothing(rows), options),
        processing_class=TOKENIZER,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
    loss.backward()

    reference, plain = (AutoModelForCausalLM.from_pretrained(student) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    total = torch.zeros(())
    for row, e in zip(step_rows(4), SMOOTHING, strict=True):
        chosen, rejected = (
            log_probability(plain, row["prompt_ids"], row[side])
            - log_probability(reference, row["prompt_ids"], row[side]).detach()
            for side in ("chosen_ids", "rejected_ids")
        )
        h = 0.5 * (chosen - rejected)
        total = total - ((1 - e) * torch.nn.functional.logsigmoid(h) + e * torch.nn.functional.logsigmoid(-h)) / 4
    total.backward()
    assert float(loss) == pytest.approx(float(total), abs=1e-5)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(dict(model.named_parameters())[name].grad, parameter.grad, atol=1e-5), name


@pytest.mark.parametrize("lora", [0, 4])
def test_a_conservative_training_differs_by_the_smoothing(lora: int, student: Path, tmp_path: Path) -> None:
    """A pair with e = 0.5 has no preferred side: a student trained on such pairs only keeps its margin near 0."""
    certain, even = tmp_path / "certain", tmp_path / "even"
    for folder, e in ((certain, 0.0), (even, 0.5)):
        folder.mkdir()
        pairs = [row | {"scores": json.dumps({"label_smoothing": e})} for row in step_rows(4)]
        write_rows(folder / "train.parquet", pairs, "step", DIGEST)
        write_rows(folder / "validation.parquet", pairs, "step", DIGEST)
    settings = QUICK | {"learning_rate": 1e-2 if lora else 1e-3, "epochs": 8, "batch": 4}
    margins = [
        train_dpo(
            PairOptions(folder), StudentOptions(str(student), lora=lora), DPOOptions(conservative=True),
            DPOTraining(folder / "out", **settings),
        )["eval_rewards/margins"]
        for folder in (certain, even)
    ]  # fmt: skip
    assert margins[0] > 20 * abs(margins[1])


def test_conservative_needs_a_smoothing_and_the_sigmoid_loss(rows: Path, student: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="has no score label_smoothing; each pair needs"):
        train_dpo(PairOptions(rows), StudentOptions(str(student)), DPOOptions(conservative=True), DPOTraining(tmp_path))
    with pytest.raises(TrainerError, match="--conservative goes with --loss sigmoid, not with --loss ipo"):
        DPOOptions(conservative=True, loss="ipo")


def test_long_pairs_are_dropped_or_truncated(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_row_file(rows / "train.parquet")
    prompt = max(len(ids) for ids in data["prompt_ids"])
    with pytest.raises(TrainerError, match="no pair has at most"):
        limit_pairs(data, PairOptions(rows, max_length=prompt + 2))
    truncated = limit_pairs(data, PairOptions(rows, max_length=prompt + 2, too_long="truncate"))
    assert all(len(row["chosen_ids"]) == 2 for row in truncated)
    assert "4 of 4 pairs are longer" in capsys.readouterr().out
