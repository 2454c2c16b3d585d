"""MiniPLM: scores that survive a kill, and the selection."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agentsys.trainers.loading import TrainerError, load_causal_lm, load_tokenizer
from agentsys.trainers.pretrain import nll
from agentsys.trainers.pretrain import scores as chunk_scores
from agentsys.trainers.pretrain.corpus import (
    ChunkFolder,
    read_chunks,
    read_documents,
)
from agentsys.trainers.pretrain.difference import read_differences, select, top_share, write_selection
from agentsys.trainers.pretrain.scores import (
    RECORD,
    ScoringJob,
    is_finished,
    read_records,
    read_scores,
    score_all,
    score_shards,
    scored_chunks,
)
from tests.support.corpora import (
    ROOT,
    all_rows,
    by_domain,
    documents_of,
    make_chunks,
    make_corpus,
    make_models,
    naive,
    run,
    start,
)
from tests.support.tiny import make_tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def chunks(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in shards of 100 chunks."""
    folder = tmp_path_factory.mktemp("chunks")
    return make_chunks(make_corpus(folder), models / "teacher", folder / "chunks", shard=100).folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def scores(chunks: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models' scores of the chunks."""
    folder = tmp_path_factory.mktemp("scores")
    for name in ("teacher", "reference"):
        score_all(ScoringJob(chunks, str(models / name), folder / name, batch_tokens=512))
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}


def test_scores_are_those_of_a_naive_loop(chunks: Path, models: Path, scores: Path) -> None:
    folder = ChunkFolder(chunks)
    differences = read_differences(folder, scores / "teacher", scores / "reference")
    teacher, reference = (load_causal_lm(str(models / name)).eval() for name in ("teacher", "reference"))
    rows = all_rows(chunks)
    assert any(folder.end_id in row["input_ids"][:-1] for row in rows)  # the rule for a document's first token matters
    for place in range(0, len(rows), 7):
        ids = rows[place]["input_ids"]
        expected = naive(reference, ids, folder.end_id)[0] - naive(teacher, ids, folder.end_id)[0]
        assert differences.values[place] == pytest.approx(expected, abs=1e-4)
    tokens = [n for _, table in read_scores(scores / "teacher", folder) for n in table.column("tokens").to_pylist()]
    assert tokens[::7] == [naive(teacher, row["input_ids"], folder.end_id)[1] for row in rows[::7]]


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_the_logits_of_a_batch_never_exist_at_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(str(models / "reference"))
    ids = torch.randint(0, 400, (8, 64))
    learned = torch.ones_like(ids, dtype=torch.bool)
    monkeypatch.setattr(nll, "HEAD_ELEMENTS", 512 * 64)
    saved = [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[0] = max(saved[0], tensor.numel())
        return tensor

    with Largest() as seen, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nll.sum_nll(model, ids, learned).sum().backward()
    assert 512 * 64 <= seen.elements < 8 * 63 * 512 / 4
    assert 0 < saved[0] < 512 * 64  # no slice's logits wait for the backward pass
    with Largest() as seen:
        model(ids[:, :-1])
    assert seen.elements == 8 * 63 * 512


def test_several_processes_give_the_scores_of_one(chunks: Path, models: Path, scores: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    score_all(ScoringJob(chunks, str(models / "teacher"), tmp_path, batch_tokens=512), processes=2, watch=seen.append)
    folder = ChunkFolder(chunks)
    assert seen[0] == 0 and seen[-1] == folder.chunks and seen == sorted(seen)
    for (_, one), (_, several) in zip(
        read_scores(scores / "teacher", folder), read_scores(tmp_path, folder), strict=True
    ):
        np.testing.assert_allclose(one.column("nll").to_numpy(), several.column("nll").to_numpy(), atol=1e-6)
        assert one.column("tokens") == several.column("tokens")


def test_concurrent_scorers_share_the_work(
    chunks: Path, models: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal_lm(str(models / "teacher")).eval()
    monkeypatch.setattr(chunk_scores, "_load", lambda *given: model)  # transformers does not load in two threads
    job = ScoringJob(chunks, str(models / "teacher"), tmp_path, batch_tokens=64)
    scored: list[list[int]] = [[], []]
    complete: list[bool] = []

    def work(mine: list[int]) -> None:
        score_shards(job, mine.append)
        complete.append(is_finished(tmp_path, ChunkFolder(chunks)))

    threads = [Thread(target=work, args=(mine,)) for mine in scored]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert complete == [True, True]  # the first to finish waits for the other's shard
    assert all(scored) and sum(map(sum, scored)) == ChunkFolder(chunks).chunks  # both worked, none twice
    assert digests(tmp_path).keys() == digests(scores / "teacher").keys()


def test_other_weights_under_the_same_name_are_refused(chunks: Path, tmp_path: Path) -> None:
    job = ScoringJob(chunks, str(make_tiny(tmp_path / "model", hidden=16)), tmp_path / "scores")
    score_all(job)
    make_tiny(tmp_path / "model", hidden=16, seed=9)
    with pytest.raises(TrainerError, match="weights_sha256"):
        score_all(job)


def test_a_killed_command_resumes_with_identical_scores(corpus: Path, models: Path, tmp_path: Path) -> None:
    folder = make_chunks(corpus, models / "teacher", tmp_path / "chunks", shard=80)
    job = ScoringJob(folder.folder, str(models / "teacher"), tmp_path / "whole", batch_tokens=33, threads=1)
    score_all(job)
    options = ("--chunks", folder.folder, "--model", models / "teacher", "--batch-tokens", 33, "--processes", 2)
    killed = start("score", *options, "--out", tmp_path, "--name", "killed")
    out = tmp_path / "killed"
    while not any(part.stat().st_size > 12 * 20 for part in out.glob("*.part")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)  # returns once its processes have ended too, and closed the pipes
    part = max(out.glob("*.part"), key=lambda part: part.stat().st_size)
    with part.open("ab") as file:
        file.write(b"torn")
    kept = scored_chunks(out, folder)
    assert 20 < kept < folder.chunks
    assert score_all(replace(job, out=out)) == folder.chunks - kept
    assert digests(out) == digests(tmp_path / "whole") != {}
    assert not list(out.glob("*.part"))


def test_an_incomplete_record_is_removed(tmp_path: Path) -> None:
    records = np.array([(0, 1.5, 7), (2, 0.5, 9)], RECORD)
    (tmp_path / "part").write_bytes(records.tobytes() + b"torn")
    assert read_records(tmp_path / "part").tolist() == records.tolist()
    assert (tmp_path / "part").read_bytes() == records.tobytes()  # the next record is appended in its place


def test_scores_that_are_not_finite_are_refused(chunks: Path, models: Path, tmp_path: Path) -> None:
    model = load_causal_lm(str(models / "teacher"))
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    load_tokenizer(str(models / "teacher")).save_pretrained(tmp_path / "broken")
    with pytest.raises(TrainerError, match="not finite"):
        score_all(ScoringJob(chunks, str(tmp_path / "broken"), tmp_path / "scores"))


def test_the_error_of_another_process_is_reported(chunks: Path, models: Path, tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "short", hidden=16)
    config = orjson.loads((model / "config.json").read_bytes())
    (model / "config.json").write_bytes(orjson.dumps({**config, "max_position_embeddings": 16}))
    with pytest.raises(TrainerError, match="reads 16 tokens"):
        score_all(ScoringJob(chunks, str(model), tmp_path / "scores"), processes=2)


def test_alpha_one_is_the_corpus_byte_for_byte(corpus: Path, chunks: Path, scores: Path, tmp_path: Path) -> None:
    folder = select(chunks, scores / "teacher", scores / "reference", 1.0, tmp_path / "all")
    before, after = all_rows(chunks), all_rows(tmp_path / "all")
    assert [{name: row[name] for name in before[0]} for row in after] == before
    texts = documents_of(read_chunks(folder))
    corpus_texts = by_domain(read_documents([corpus]))
    assert {domain: "\0".join(t).encode() for domain, t in texts.items()} == {
        domain: "\0".join(t).encode() for domain, t in corpus_texts.items()
    }


def test_the_highest_differences_are_kept_in_their_order(chunks: Path, scores: Path, tmp_path: Path) -> None:
    differences = read_differences(ChunkFolder(chunks), scores / "teacher", scores / "reference").values
    select(chunks, scores / "teacher", scores / "reference", 0.3, tmp_path / "some")
    rows, before = all_rows(tmp_path / "some"), all_rows(chunks)
    places = {row["id"]: place for place, row in enumerate(before)}
    kept = [places[row["id"]] for row in rows]
    assert kept == sorted(kept) and len(kept) == int(0.3 * len(before))
    assert min(differences[kept]) >= max(np.delete(differences, kept))
    assert [row["difference"] for row in rows] == differences[kept].tolist()
    assert all(r["difference"] == pytest.approx(r["reference_nll"] - r["teacher_nll"], abs=1e-6) for r in rows)


def test_ties_and_chunks_without_a_score() -> None:
    values = np.array([1.0, np.nan, 1.0, 0.5, 1.0, -2.0])
    assert np.flatnonzero(top_share(values, 1 / 3)).tolist() == [0, 2]
    assert np.flatnonzero(top_share(values, 5 / 6)).tolist() == [0, 2, 3, 4, 5]
    assert top_share(values, 1.0).all()
    assert top_share(np.arange(100.0), 0.29).sum() == 29  # 0.29 * 100 is 28.999...


def test_the_plot_and_the_samples(chunks: Path, scores: Path, tmp_path: Path) -> None:
    folder = select(chunks, scores / "teacher", scores / "reference", 0.5, tmp_path / "half", samples=3)
    assert (folder.folder / "difference.png").read_bytes().startswith(b"\x89PNG")
    differences = read_differences(ChunkFolder(chunks), scores / "teacher", scores / "reference").values
    ids = [row["id"] for row in all_rows(chunks)]
    page = (folder.folder / "samples.md").read_text(encoding="utf-8")
    high, low, *_ = page.split("\n## ")[1:]
    assert f"### {ids[int(np.argmax(differences))]}:" in high and f"### {ids[int(np.argmin(differences))]}:" in low
    assert page.count("### ") == 12


def test_datasets_reads_a_selected_corpus(chunks: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    keep = np.arange(ChunkFolder(chunks).chunks) % 3 == 0
    write_selection(ChunkFolder(chunks), keep, tmp_path / "third")
    loaded = load_dataset("parquet", data_files=str(tmp_path / "third" / "*.parquet"), cache_dir=str(tmp_path / "c"))
    assert loaded["train"]["text"][:] == [row["text"] for row in all_rows(chunks)[::3]]


def spoil(scores: Path, what: str) -> None:
    file = sorted(scores.glob("*.parquet"))[0]
    table = pq.read_table(file)
    if what == "missing":
        file.unlink()
    elif what == "short":
        pq.write_table(table.slice(1), file)
    elif what == "order":
        pq.write_table(table.take(list(range(table.num_rows))[::-1]), file)
    elif what == "damaged":
        file.write_bytes(file.read_bytes()[:100])
    else:
        manifest = orjson.loads((scores / "manifest.json").read_bytes())
        (scores / "manifest.json").write_bytes(orjson.dumps({**manifest, "chunks_sha256": "0"}))


@pytest.mark.parametrize(
    ("what", "words"),
    [("missing", "rerun score to finish"), ("short", "99 scores for the 100 chunks"), ("order", "another order"),
     ("damaged", "cannot be read"), ("corpus", "scores of other chunks")],
)  # fmt: skip
def test_scores_that_do_not_fit_are_an_error(
    chunks: Path, scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, words: str
) -> None:
    """The released code prints a warning, and its scripts score one corpus and select from another."""
    import shutil

    shutil.copytree(scores, tmp_path / "scores")
    spoil(tmp_path / "scores" / "teacher", what)
    folders = ("--teacher", tmp_path / "scores" / "teacher", "--reference", scores / "reference")
    assert run("select", "--chunks", chunks, *folders, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chunk"], "--corpus"),
        (["chunk", "--corpus", "none.txt", "--tokenizer", "{teacher}"], "none.txt"),
        (["chunk", "--corpus", "{bad}", "--tokenizer", "{teacher}"], "bad.jsonl:2"),
        (["chunk", "--corpus", "{wrong}", "--tokenizer", "{teacher}"], "wrong.jsonl:1: no text"),
        (["chunk", "--corpus", "{corpus}", "--max-length", "2"], "--max-length 2"),
        (["score", "--chunks", "{chunks}"], "--model"),
        (["score", "--chunks", "{chunks}", "--model", "{llama}"], "another tokenizer"),
        (["score", "--chunks", "{chunks}", "--model", "{teacher}", "--batch-tokens", "8"], "--batch-tokens 8"),
        (["score", "--chunks", "{empty}", "--model", "{teacher}"], "not a finished corpus"),
        (["score", "--chunks", "{chunks}", "--model", "{reference}", "--out", "{scores}"], "give another --out"),
        (["score", "--chunks", "{chunks}", "--model", "{teacher}", "--name", "a/b"], "--name"),
        (["select", "--chunks", "{chunks}", "--teacher", "{empty}"], "has no scores"),
        (["select", "--alpha", "0", "{both}"], "--alpha 0"),
        (["select", "--alpha", "1.5", "{both}"], "--alpha 1.5"),
        (["select", "--alpha", "0.0001", "{both}"], "keeps none"),
        (["train", "--corpus", "{chunks}"], "--from-config"),
        (["train", "--corpus", "{empty}", "--model", "{teacher}"], "not a finished corpus"),
    ],
)
def test_a_mistake_gets_one_line(
    arguments: list[str], words: str, models: Path, corpus: Path, chunks: Path, scores: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": ')
    (tmp_path / "wrong.jsonl").write_text('{"body": "a"}\n')
    places = {"corpus": corpus, "chunks": chunks, "scores": scores, "empty": tmp_path / "empty"}
    places |= {name: models / name for name in ("teacher", "reference", "llama")}
    places |= {name: tmp_path / f"{name}.jsonl" for name in ("bad", "wrong")}
    both = ["--chunks", chunks, "--teacher", scores / "teacher", "--reference", scores / "reference"]
    filled = [a for part in arguments for a in (both if part == "{both}" else [part.format(**places)])]
    assert run(*filled) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1 and error.startswith("error: ")


def test_the_command_is_light() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'matplotlib'}"
    code = f"import sys, agentsys.trainers.miniplm; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "set()", result.stderr
