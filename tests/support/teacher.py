"""Rows for a teacher to score, the scoring command, and log-probabilities of a naive forward pass."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from agentsys.commands import command, run_app
from agentsys.trainers import teacher
from agentsys.trainers.loading import load_causal_lm, tokenizer_digest
from agentsys.trainers.row_files import TOKENIZER_KEY
from tests.support.tiny import SENTENCES

APP = command(teacher.main)


def make_rows(path: Path, tokenizer: Any, count: int = 12, changed: dict[str, Any] | None = None) -> Path:
    """Rows of different lengths; the first half of each is the prompt, and row 3 has nothing to learn."""
    table: dict[str, list[Any]] = {name: [] for name in ("id", "kind", "source", "input_ids", "loss_mask", "text")}
    for i in range(count):
        text = " ".join(SENTENCES[(i + j) % len(SENTENCES)] for j in range(1 + (i * 7) % 4))
        ids = tokenizer(f"{i} {text}").input_ids
        prompt = len(ids) if i == 3 else len(ids) // 2
        row = (f"r{i}", "sft", "tests", ids, [0] * prompt + [1] * (len(ids) - prompt), text)
        for name, value in zip(table, row, strict=True):
            table[name].append(value)
    types = {"input_ids": pa.list_(pa.int32()), "loss_mask": pa.list_(pa.int8())}
    columns = {name: pa.array(values, types.get(name)) for name, values in (table | (changed or {})).items()}
    metadata = {TOKENIZER_KEY: tokenizer_digest(tokenizer).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def score(rows: Path, out: Path, model: Path | str, *options: object) -> int:
    arguments = ["--rows", rows, "--out", out, "--teacher", model, *options]
    return run_app(APP, [str(option) for option in arguments])


def read(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(shard) for shard in sorted(folder.glob("scored-*.parquet")))


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The only line that a refused command prints."""
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@lru_cache
def loaded(folder: Path) -> Any:
    return load_causal_lm(str(folder))


def naive_logprobs(folder: Path, ids: list[int], width: int | None = None) -> torch.Tensor:
    """Log-probabilities (T, width) of one row in one forward pass."""
    with torch.no_grad():
        return loaded(folder)(torch.tensor([ids])).logits[0, :, :width].double().log_softmax(-1)
