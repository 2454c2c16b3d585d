"""Pre-training on chunks: the loss, its gradients, and students from a configuration, from weights, from text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from agentsys.trainers.loading import TrainerError, load_causal_lm, load_tokenizer
from agentsys.trainers.pretrain import nll
from agentsys.trainers.pretrain.corpus import ChunkFolder, read_chunks, write_json
from agentsys.trainers.pretrain.difference import write_selection
from agentsys.trainers.pretrain.train import PretrainingOptions, chunk_loss, pretrain, retokenize, use_nll_forward
from agentsys.trainers.reporting import read_metrics
from agentsys.trainers.training import TrainingOptions
from tests.support.corpora import (
    LENGTH,
    all_rows,
    documents_of,
    make_chunks,
    make_corpus,
    make_models,
    naive,
)
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def chunks(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in shards of 100 chunks."""
    folder = tmp_path_factory.mktemp("chunks")
    return make_chunks(make_corpus(folder), models / "teacher", folder / "chunks", shard=100).folder


def test_the_loss_is_the_mean_of_the_chunks_means(models: Path, chunks: Path) -> None:
    folder = ChunkFolder(chunks)
    rows = [row["input_ids"] for row in all_rows(chunks)[:6]]
    model = load_causal_lm(str(models / "teacher"))
    expected = np.mean([naive(model, ids, folder.end_id)[0] for ids in rows])
    use_nll_forward(model)
    loss = chunk_loss(model, *nll.pad_chunks([np.array(ids) for ids in rows], folder.end_id))
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)


def test_gradients_are_those_of_full_logits(models: Path, chunks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nll, "HEAD_ELEMENTS", 512 * 16)
    folder = ChunkFolder(chunks)
    ids, learned = nll.pad_chunks([np.array(row["input_ids"]) for row in all_rows(chunks)[:4]], folder.end_id)
    plain, sliced = (load_causal_lm(str(models / "teacher")) for _ in range(2))
    logits = plain(ids[:, :-1]).logits
    losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * learned[:, 1:]
    (losses.sum(1) / learned.sum(1)).mean().backward()
    use_nll_forward(sliced)
    chunk_loss(sliced, ids, learned).backward()
    for (name, one), other in zip(plain.named_parameters(), sliced.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4, msg=name)


def mean_loss(model: Path, folder: ChunkFolder) -> float:
    student = load_causal_lm(str(model)).eval()
    rows = [np.array(chunk.input_ids) for chunk in read_chunks(folder)]
    values, counts = nll.mean_nll(student, rows, folder.end_id)
    return float(np.mean([value for value, n in zip(values, counts, strict=True) if n]))


def training(out: Path, **changes: Any) -> TrainingOptions:
    settings = {
        "steps": 30,
        "batch": 8,
        "micro_batch": 4,
        "learning_rate": 1e-2,
        "checkpoint_every": 30,
        "log_every": 10,
    }
    return TrainingOptions(out=out, **settings | changes)


def test_train_from_a_configuration(chunks: Path, models: Path, tmp_path: Path) -> None:
    """New weights learn, and the saved folder has the loss that the training reported."""
    keep = np.arange(ChunkFolder(chunks).chunks) < 40
    held_out = write_selection(ChunkFolder(chunks), keep, tmp_path / "held-out")
    options = PretrainingOptions(corpus=chunks, validation=held_out.folder, from_config=str(models / "reference"))
    final = pretrain(options, training(tmp_path / "student"))
    loss = mean_loss(tmp_path / "student" / "model", held_out)
    assert loss == pytest.approx(final["eval_loss"], rel=1e-3)
    assert loss < np.log(512) - 1  # at the start every token is about as likely as every other
    assert (tmp_path / "student" / "curves.png").exists()


def test_train_starts_from_weights(chunks: Path, models: Path, tmp_path: Path) -> None:
    options = PretrainingOptions(corpus=chunks, model=str(models / "teacher"))
    pretrain(options, training(tmp_path / "same", steps=1, learning_rate=1e-60))  # 0 in fp32
    before = load_causal_lm(str(models / "teacher")).state_dict()
    after = load_causal_lm(str(tmp_path / "same" / "model")).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_another_family_learns_from_the_text(chunks: Path, models: Path, tmp_path: Path) -> None:
    options = {"corpus": chunks, "from_config": str(models / "llama")}
    with pytest.raises(TrainerError, match="--retokenize"):
        pretrain(PretrainingOptions(**options), training(tmp_path / "student"))
    pretrain(PretrainingOptions(**options, retokenize=True), training(tmp_path / "student", steps=2))
    made = ChunkFolder(tmp_path / "student" / "corpus-train")
    tokenizer = load_tokenizer(str(models / "llama"))
    assert documents_of(read_chunks(made)) == documents_of(read_chunks(ChunkFolder(chunks)))
    for chunk in read_chunks(made):
        assert tokenizer.decode([i for i in chunk.input_ids if i != made.end_id]) == chunk.text
    assert max(len(chunk.input_ids) for chunk in read_chunks(made)) <= LENGTH
    assert made.chunks > ChunkFolder(chunks).chunks  # a smaller vocabulary: some chunks became several
    assert retokenize(ChunkFolder(chunks), tokenizer, "llama", made.folder).manifest == made.manifest
    old_manifest = {name.replace("retokenized_from", "retokenised_from"): v for name, v in made.manifest.items()}
    write_json(made.folder / "manifest.json", old_manifest)
    assert retokenize(ChunkFolder(chunks), tokenizer, "llama", made.folder).manifest == old_manifest


def test_a_configuration_alone_is_enough(chunks: Path, models: Path, tmp_path: Path) -> None:
    """A folder with only a config.json gets the corpus's tokenizer."""
    (tmp_path / "bare").mkdir()
    shutil.copy(models / "reference" / "config.json", tmp_path / "bare")
    options = PretrainingOptions(corpus=chunks, from_config=str(tmp_path / "bare"))
    pretrain(options, training(tmp_path / "student", steps=1))
    made = load_tokenizer(str(tmp_path / "student" / "model"))
    assert made.get_vocab() == load_tokenizer(str(models / "teacher")).get_vocab()


def test_two_processes_take_the_step_of_one(chunks: Path, models: Path, tmp_path: Path) -> None:
    """The same chunks in one process and in two (gloo), both with gradients accumulated: the same loss and gradient."""
    options = PretrainingOptions(corpus=chunks, from_config=str(models / "teacher"))
    pretrain(options, training(tmp_path / "one", steps=2, micro_batch=2, log_every=1))
    arguments = ["--corpus", chunks, "--from-config", models / "teacher", "--steps", 2, "--learning-rate", 1e-2]
    sizes = ["--batch", 4, "--micro-batch", 2, "--log-every", 1, "--out", tmp_path / "two"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    result = subprocess.run(
        [str(part) for part in (*launch, ROOT / "trainers" / "miniplm.py", "train", *arguments, *sizes)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for before, after in zip(one[:2], two[:2], strict=True):
        assert before["loss"] == pytest.approx(after["loss"], rel=1e-5)
        assert before["grad_norm"] == pytest.approx(after["grad_norm"], rel=1e-4)
