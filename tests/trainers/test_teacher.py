"""Teacher scoring against a naive forward pass, a real kill -9, and bad input."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import torch

from agentsys.commands import run_app
from agentsys.trainers import sft
from agentsys.trainers.loading import TrainerError, load_tokenizer, tokenizer_digest
from agentsys.trainers.row_files import TOKENIZER_KEY, check_row_file
from agentsys.trainers.topk import COLUMNS
from tests.support.paths import ROOT
from tests.support.teacher import APP, loaded, make_rows, naive_logprobs, read, refused, score
from tests.support.tiny import make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def rows(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(tmp_path_factory.mktemp("rows") / "rows.parquet", load_tokenizer(str(tiny)))


def test_stored_scores_are_those_of_a_naive_forward_pass(tiny: Path, rows: Path, tmp_path: Path) -> None:
    k = 32
    assert score(rows, tmp_path / "out", tiny, "--top-k", k, "--batch-tokens", 300) == 0
    width = len(load_tokenizer(str(tiny)))
    assert width < loaded(tiny).config.vocab_size, "the head has padding rows, or this tests nothing"
    table = read(tmp_path / "out")
    row_table = pq.read_table(rows)
    assert table.select(row_table.column_names).equals(row_table), "all columns, in the rows' order"
    for row in table.to_pylist():
        positions = [t for t, flag in enumerate(row["loss_mask"]) if flag]
        logprobs = naive_logprobs(tiny, row["input_ids"], width)
        before = logprobs[[t - 1 for t in positions]]
        ids = np.array(row["teacher_ids"]).reshape(-1, k)
        values = np.array(row["teacher_logprobs"], dtype=np.float64).reshape(-1, k)
        top = before.topk(k) if positions else before
        assert ids.shape[0] == len(row["teacher_tail"]) == len(row["teacher_token_logprob"]) == len(positions)
        if not positions:
            continue
        assert isinstance(top, torch.return_types.topk)
        np.testing.assert_allclose(values, top.values, rtol=2**-10)
        np.testing.assert_allclose(values, before.gather(1, torch.tensor(ids)), rtol=2**-10, atol=1e-5)
        np.testing.assert_allclose(row["teacher_tail"], 1 - top.values.exp().sum(1), rtol=1e-4, atol=1e-6)
        own = [float(logprobs[t - 1, row["input_ids"][t]]) for t in positions]
        np.testing.assert_allclose(row["teacher_token_logprob"], own, rtol=2**-10)
        np.testing.assert_allclose(np.exp(values).sum(1) + row["teacher_tail"], 1, atol=2e-3)


def test_the_tail_of_a_sure_teacher_has_digits_and_is_never_negative() -> None:
    from agentsys.trainers.topk import from_logits

    logits = torch.full((3, 1000), -30.0)
    logits[:, 7], logits[1, 8], logits[2, :2] = 5.0, 3.0, 5.0
    expected = (logits.double().softmax(-1).sort(descending=True).values[:, 2:]).sum(1)
    stored = from_logits(logits.clone(), torch.tensor([7, 8, 0]), k=2)
    assert 0 < expected[0] < 1e-11
    np.testing.assert_allclose(stored.tail, expected, rtol=1e-4)


def test_at_most_200_bytes_per_token(tiny: Path, rows: Path, tmp_path: Path) -> None:
    assert score(rows, tmp_path / "out", tiny) == 0
    table = read(tmp_path / "out")
    tokens = sum(sum(mask) for mask in table["loss_mask"].to_pylist())
    assert tokens > 200
    in_memory = sum(table[name].combine_chunks().nbytes for name in COLUMNS)
    assert 190 < in_memory / tokens <= 200, "the values, and for each row where its lists begin"
    [shard] = (tmp_path / "out").glob("scored-*.parquet")
    groups = pq.read_metadata(shard)
    columns = [groups.row_group(g).column(c) for g in range(groups.num_row_groups) for c in range(groups.num_columns)]
    on_disk = [c for c in columns if c.path_in_schema.split(".")[0] in COLUMNS]
    assert len(on_disk) == 4
    assert sum(c.total_uncompressed_size for c in on_disk) / tokens <= 210, "as written, with Parquet's own page heads"


def test_datasets_loads_it(tiny: Path, rows: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    assert score(rows, tmp_path / "out", tiny, "--top-k", 4, "--shard-tokens", 200, "--batch-tokens", 50) == 0
    assert len(list((tmp_path / "out").glob("scored-*.parquet"))) > 2
    files = str(tmp_path / "out" / "scored-*.parquet")
    loaded = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["id"] == [f"r{i}" for i in range(12)]
    assert len(loaded[0]["teacher_ids"]) == 4 * sum(loaded[0]["loss_mask"])
    metadata = pq.read_schema(tmp_path / "out" / "scored-00001.parquet").metadata
    assert metadata[TOKENIZER_KEY] == pq.read_schema(rows).metadata[TOKENIZER_KEY]
    assert metadata[b"agentsys.top_k"] == b"4"


def test_batches_do_not_change_the_scores(tiny: Path, rows: Path, tmp_path: Path) -> None:
    for name, size in (("alone", 1), ("together", 100_000)):
        assert score(rows, tmp_path / name, tiny, "--batch-tokens", size) == 0
    alone, together = read(tmp_path / "alone"), read(tmp_path / "together")
    for name in ("teacher_tail", "teacher_token_logprob"):
        pairs = zip(alone[name].to_pylist(), together[name].to_pylist(), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The last digits depend on the number of threads, which other tests change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_kill_9_and_the_same_command_gives_the_same_rows(tiny: Path, tmp_path: Path, one_thread: None) -> None:
    many = make_rows(tmp_path / "many.parquet", load_tokenizer(str(tiny)), count=400)
    out = tmp_path / "killed"
    sizes = ["--batch-tokens", 100, "--shard-tokens", 300]
    assert score(many, tmp_path / "whole", tiny, *sizes) == 0
    command = [sys.executable, ROOT / "trainers" / "teacher.py", "--rows", many, "--out", out, "--teacher", tiny]
    process = subprocess.Popen(
        [str(part) for part in (*command, *sizes)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while len(list(out.glob("scored-*.parquet"))) < 5:
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("scored-*.parquet")}
    scored = read(out).num_rows
    assert 0 < scored < 400
    (out / ".scored-99999.parquet.tmp").write_bytes(b"torn")

    assert score(many, out, tiny, *sizes) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept, "finished shards are not scored again"
    assert read(out).equals(read(tmp_path / "whole"))
    assert not list(out.glob(".scored-*"))
    manifest = orjson.loads((out / "manifest.json").read_bytes())
    assert manifest["complete"] and manifest["rows_scored"] == 400 and manifest["tokens_per_second"] > 0


def test_an_error_in_the_middle_keeps_what_is_scored(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentsys.trainers import scorers

    real, calls = scorers.ModelScorer._score_window, []

    def fails_third(self: Any, window: Any) -> Any:
        calls.append(window)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return real(self, window)

    monkeypatch.setattr(scorers.ModelScorer, "_score_window", fails_third)
    with pytest.raises(torch.OutOfMemoryError):
        score(rows, tmp_path / "out", tiny, "--batch-tokens", 20)
    kept = read(tmp_path / "out").num_rows
    assert kept == sum(len(window) for window in calls[:2])
    assert orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())["rows_scored"] == kept


def test_the_progress_counts_what_was_scored_before(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agentsys.progress.LINE_SECONDS", -1)
    out = tmp_path / "out"
    assert score(rows, out, tiny, "--batch-tokens", 20, "--shard-tokens", 1) == 0
    total = sum(len(ids) for ids in read(out)["input_ids"].to_pylist())
    counts = re.findall(": scoring: (.*)", capsys.readouterr().err)
    assert counts[-1].startswith(f"{total:,} of {total:,} tokens done, about 0 s left, ")
    sorted(out.glob("scored-*.parquet"))[-1].unlink()
    before = sum(len(ids) for ids in read(out)["input_ids"].to_pylist())
    assert score(rows, out, tiny, "--batch-tokens", 20, "--shard-tokens", 1) == 0
    resumed = re.findall(": scoring: (.*)", capsys.readouterr().err)
    assert 0 < before < int(resumed[0].partition(" of ")[0].replace(",", "")) and resumed[-1][:20] == counts[-1][:20]


def test_out_of_memory_names_the_option_to_lower(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentsys.trainers import scorers

    def full(self: Any, states: Any, tokens: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(scorers.ModelScorer, "_apply_head", full)
    assert "lower --batch-tokens (8192)" in refused(capsys, score(rows, tmp_path / "out", tiny))


def test_another_run_in_the_folder_is_refused_with_the_difference(
    tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert score(rows, out, tiny) == 0
    before = read(out)
    rate = orjson.loads((out / "manifest.json").read_bytes())["tokens_per_second"]
    assert "tokens/s in this run" in capsys.readouterr().out
    assert score(rows, out, tiny) == 0, "the same run is finished already"
    output = capsys.readouterr().out
    assert "nothing left to score" in output and "tokens/s" not in output
    assert orjson.loads((out / "manifest.json").read_bytes())["tokens_per_second"] == rate > 0
    other = make_tiny(tmp_path / "other", seed=1)
    fewer = make_rows(tmp_path / "fewer.parquet", load_tokenizer(str(tiny)), count=5)
    capsys.readouterr()
    assert "top_k: 32 -> 8" in refused(capsys, score(rows, out, tiny, "--top-k", 8))
    assert "teacher: tiny -> other; revision: " in refused(capsys, score(rows, out, other))
    assert "rows_sha256: " in refused(capsys, score(fewer, out, tiny))
    assert "transformers, float32 -> transformers, bfloat16" in refused(
        capsys, score(rows, out, tiny, "--dtype", "bfloat16")
    )
    assert read(out).equals(before)


def test_rows_of_another_tokenizer_are_refused(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = load_tokenizer(str(make_tiny(tmp_path / "narrow", vocab=400)))
    code = score(make_rows(tmp_path / "rows.parquet", other), tmp_path / "out", tiny)
    line = refused(capsys, code)
    assert tokenizer_digest(other)[:12] in line and tokenizer_digest(load_tokenizer(str(tiny)))[:12] in line
    assert not (tmp_path / "out").exists()


Change = dict[str, Any]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"loss_mask": [[0, 1]] * 12}, "must have the same length"),
        ({"input_ids": [[1, 2]] * 12, "loss_mask": [[1, 1]] * 12}, "0 at the first position"),
        ({"input_ids": [[1, 511]] * 12, "loss_mask": [[0, 1]] * 12}, "holds token id 511"),
        ({"input_ids": [[1] * 600] * 12, "loss_mask": [[0] * 600] * 12}, "12 of 12 rows are longer than the teacher's"),
        ({"id": ["same"] * 12}, "row 1 (id 'same'): every row needs a unique string id"),
    ],
)
def test_rows_that_cannot_be_scored(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: Change, says: str
) -> None:
    bad = make_rows(tmp_path / "bad.parquet", load_tokenizer(str(tiny)), changed=changed)
    assert says in refused(capsys, score(bad, tmp_path / "out", tiny))
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_row_files_are_refused(
    tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    text = tmp_path / "rows.txt"
    text.write_text("not a table")
    line = refused(capsys, score(text, out, tiny))
    with pytest.raises(TrainerError) as error:
        check_row_file(text, sft.NEEDS)
    assert "is not a Parquet file" in line and line.endswith(str(error.value)), "as every trainer says it"
    assert "no such file; trainers/rows.py" in refused(capsys, score(tmp_path / "missing.parquet", out, tiny))
    assert "is a folder; give a row file" in refused(capsys, score(tmp_path, out, tiny))
    pq.write_table(pq.read_table(rows).slice(0, 0), tmp_path / "empty.parquet")
    assert "has no rows" in refused(capsys, score(tmp_path / "empty.parquet", out, tiny))
    pq.write_table(pq.read_table(rows).drop_columns(["loss_mask"]), tmp_path / "narrow.parquet")
    assert "holds no column loss_mask" in refused(capsys, score(tmp_path / "narrow.parquet", out, tiny))
    pq.write_table(pq.read_table(rows).replace_schema_metadata({}), tmp_path / "unknown.parquet")
    assert "does not name its tokenizer" in refused(capsys, score(tmp_path / "unknown.parquet", out, tiny))
    assert "--top-k 0" in refused(capsys, score(rows, out, tiny, "--top-k", 0))
    assert "--out is required" in refused(capsys, run_app(APP, ["--rows", str(rows)]))
    assert not out.exists()


def test_a_model_that_scales_its_logits_after_the_head_is_refused(
    tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = GraniteConfig(vocab_size=512, num_key_value_heads=2, logits_scaling=8.0, **shape)
    torch.manual_seed(0)
    model = GraniteForCausalLM(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(50)
    model.save_pretrained(tmp_path / "granite")
    load_tokenizer(str(tiny)).save_pretrained(tmp_path / "granite")
    line = refused(capsys, score(rows, tmp_path / "out", tmp_path / "granite"))
    assert "GraniteForCausalLM scales or caps its logits" in line and "vllm:" in line


def test_the_command_is_light() -> None:
    code = "import sys, agentsys.trainers.teacher; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
