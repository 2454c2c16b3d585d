"""Teacher scoring against a naive forward pass, a real kill -9, and a server that speaks as vLLM does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from agentsys.commands import command, run_app
from agentsys.models.engines import ChildEngine
from agentsys.trainers import teacher
from agentsys.trainers.loading import load_causal_lm, load_tokenizer, tokenizer_digest
from agentsys.trainers.row_files import TOKENIZER_KEY
from agentsys.trainers.topk import COLUMNS, from_alternatives
from tests.support.paths import ROOT
from tests.support.tiny import SENTENCES, make_tiny

APP = command(teacher.main)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


def make_rows(path: Path, tokenizer: Any, count: int = 12, changed: dict[str, Any] | None = None) -> Path:
    """Rows of unlike length, in no order; the first half of each is prompt, and row 3 has nothing to learn."""
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


@pytest.fixture(scope="module")
def rows(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(tmp_path_factory.mktemp("rows") / "rows.parquet", load_tokenizer(str(tiny)))


def score(rows: Path, out: Path, model: Path | str, *options: object) -> int:
    given = ["--rows", rows, "--out", out, "--teacher", model, *options]
    return run_app(APP, [str(option) for option in given])


def read(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(shard) for shard in sorted(folder.glob("scored-*.parquet")))


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line that a refused command prints."""
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@lru_cache
def loaded(folder: Path) -> Any:
    return load_causal_lm(str(folder))


def naive_logprobs(folder: Path, ids: list[int], width: int | None = None) -> torch.Tensor:
    """(T, width) of one row: one forward pass, everything in memory."""
    with torch.no_grad():
        return loaded(folder)(torch.tensor([ids])).logits[0, :, :width].double().log_softmax(-1)


def test_stored_scores_are_those_of_a_naive_forward_pass(tiny: Path, rows: Path, tmp_path: Path) -> None:
    k = 32
    assert score(rows, tmp_path / "out", tiny, "--top-k", k, "--batch-tokens", 300) == 0
    width = len(load_tokenizer(str(tiny)))
    assert width < loaded(tiny).config.vocab_size, "the head has padding rows, or this tests nothing"
    table = read(tmp_path / "out")
    given = pq.read_table(rows)
    assert table.select(given.column_names).equals(given), "all columns, in the rows' order"
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


def test_at_most_200_bytes_a_token(tiny: Path, rows: Path, tmp_path: Path) -> None:
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


def test_kill_9_and_the_same_command_gives_the_same_rows(tiny: Path, tmp_path: Path) -> None:
    many = make_rows(tmp_path / "many.parquet", load_tokenizer(str(tiny)), count=400)
    out = tmp_path / "killed"

    def command(folder: Path) -> list[str]:
        """A process for every run: the last digits depend on the number of threads, which other tests change here."""
        given = ["--rows", many, "--out", folder, "--teacher", tiny, "--batch-tokens", 100, "--shard-tokens", 300]
        return [sys.executable, str(ROOT / "trainers" / "teacher.py"), *map(str, given)]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    process = subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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

    subprocess.run(command(out), check=True, capture_output=True)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept, "what was finished is not scored again"
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


def test_out_of_memory_is_one_line_with_what_to_lower(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentsys.trainers import scorers

    def full(self: Any, states: Any, tokens: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(scorers.ModelScorer, "_through_head", full)
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
    said = capsys.readouterr().out
    assert "nothing was left to score" in said and "tokens/s" not in said
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
        ({"loss_mask": [[0, 1]] * 12}, "must be as long as each other"),
        ({"input_ids": [[1, 2]] * 12, "loss_mask": [[1, 1]] * 12}, "0 at the first position"),
        ({"input_ids": [[1, 511]] * 12, "loss_mask": [[0, 1]] * 12}, "holds token id 511"),
        ({"input_ids": [[1] * 600] * 12, "loss_mask": [[0] * 600] * 12}, "12 of 12 rows are longer than the teacher's"),
        ({"id": ["same"] * 12}, "row 1 (id 'same'): every row needs an id of its own"),
    ],
)
def test_rows_that_cannot_be_scored(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: Change, says: str
) -> None:
    bad = make_rows(tmp_path / "bad.parquet", load_tokenizer(str(tiny)), changed=changed)
    assert says in refused(capsys, score(bad, tmp_path / "out", tiny))
    assert not (tmp_path / "out").exists()


def test_what_is_no_row_file(tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    text = tmp_path / "rows.txt"
    text.write_text("not a table")
    assert "no Parquet file" in refused(capsys, score(text, out, tiny))
    assert "no Parquet file" in refused(capsys, score(tmp_path / "missing.parquet", out, tiny))
    pq.write_table(pq.read_table(rows).slice(0, 0), tmp_path / "empty.parquet")
    assert "has no rows" in refused(capsys, score(tmp_path / "empty.parquet", out, tiny))
    pq.write_table(pq.read_table(rows).drop_columns(["loss_mask"]), tmp_path / "narrow.parquet")
    assert "has no column loss_mask" in refused(capsys, score(tmp_path / "narrow.parquet", out, tiny))
    pq.write_table(pq.read_table(rows).replace_schema_metadata({}), tmp_path / "unknown.parquet")
    assert "does not say whose token ids" in refused(capsys, score(tmp_path / "unknown.parquet", out, tiny))
    assert "--top-k 0" in refused(capsys, score(rows, out, tiny, "--top-k", 0))
    assert "--out is needed" in refused(capsys, run_app(APP, ["--rows", str(rows)]))
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
    code = (
        "import sys, trainers.teacher; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- a server that speaks as vLLM does ---


@dataclass
class FakeVLLM:
    """Answers with a real tiny model's log-probabilities over its whole head, padding rows included."""

    folder: Path
    most: int = 64
    prompt_logprobs: bool = True
    high_water: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    _busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.bodies.append(body)
            self._busy += 1
            self.high_water = max(self.high_water, self._busy)
        time.sleep(0.05)
        try:
            return self._answer(body)
        finally:
            with self._lock:
                self._busy -= 1

    def _answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        k = body["prompt_logprobs"]
        if k > self.most:
            message = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.most}"
            return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}
        ids = body["prompt"]
        logprobs = naive_logprobs(self.folder, ids)
        told: list[dict[str, Any] | None] = [None]
        for before, token in zip(logprobs[:-1], ids[1:], strict=True):
            likeliest = [token, *(int(i) for i in before.topk(k).indices)]
            ranks = (before[None] > before[likeliest][:, None]).sum(1) + 1
            told.append(
                {
                    str(i): {"logprob": float(before[i]), "rank": int(rank), "decoded_token": "x"}
                    for i, rank in zip(likeliest, ranks, strict=True)
                }
            )
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": told}
        if not self.prompt_logprobs:
            choice.pop("prompt_logprobs")
        return 200, {"object": "text_completion", "choices": [choice], "usage": {"prompt_tokens": len(ids)}}


@pytest.fixture
def serve(tiny: Path) -> Iterator[Callable[..., FakeVLLM]]:
    started = []

    def start(**settings: Any) -> FakeVLLM:
        loaded(tiny)  # not in several threads at once
        fake = FakeVLLM(tiny, **settings)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                entry = {"id": "tiny", "owned_by": "vllm", "root": str(tiny)}
                self._reply(200, {"data": [entry]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._reply(*fake.answer(body))

            def _reply(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        return fake

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_server_gives_the_same_scores(tiny: Path, rows: Path, tmp_path: Path, serve: Callable[..., FakeVLLM]) -> None:
    fake, k = serve(), 32
    assert score(rows, tmp_path / "out", fake.url, "--teacher-tokenizer", tiny, "--in-flight", 4) == 0
    assert 1 < fake.high_water <= 4
    width = len(load_tokenizer(str(tiny)))
    filled = 0
    table = read(tmp_path / "out")
    assert table["id"].to_pylist() == [f"r{i}" for i in range(12)], "in the rows' order"
    for row in table.to_pylist():
        positions = [t for t, flag in enumerate(row["loss_mask"]) if flag]
        logprobs = naive_logprobs(tiny, row["input_ids"])
        for n, t in enumerate(positions):
            ids = row["teacher_ids"][n * k : (n + 1) * k]
            values = np.array(row["teacher_logprobs"][n * k : (n + 1) * k], dtype=np.float64)
            assert len(set(ids)) == k and max(ids) < width
            own = int(row["input_ids"][t])
            likeliest = [int(i) for i in logprobs[t - 1].topk(k).indices if i < width]
            known = sorted({*likeliest, own}, key=lambda i: -float(logprobs[t - 1, i]))[:k]
            filled += k - len(known)
            assert ids[: len(known)] == known
            np.testing.assert_allclose(values[: len(known)], logprobs[t - 1, known], rtol=2**-10)
            np.testing.assert_allclose(np.exp(values).sum() + row["teacher_tail"][n], 1, atol=2e-3)
            np.testing.assert_allclose(row["teacher_token_logprob"][n], logprobs[t - 1, own], rtol=2**-10)
    assert filled > 0, "no padding row was among the likeliest, and this tests less than it says"
    manifest = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["teacher"] == "tiny" and manifest["scored_by"] == "server, vllm"


def test_places_of_padding_rows_are_filled_from_the_tail() -> None:
    stored = from_alternatives([{0: -1.0, 2: -2.0, 11: -1.5, 12: -3.0}], [2], k=4, width=10)
    known = np.exp([-1.0, -2.0]).sum()
    mean = (1 - known) / 8
    assert stored.ids.tolist() == [[0, 2, 1, 3]]
    np.testing.assert_allclose(np.exp(stored.logprobs.astype(float))[0, 2:], mean, rtol=2e-3)
    np.testing.assert_allclose(stored.tail, [1 - known - 2 * mean], rtol=1e-5)


def test_a_server_for_twenty_says_how_to_start_it_for_more(
    tiny: Path, rows: Path, tmp_path: Path, serve: Callable[..., FakeVLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    fake = serve(most=20)
    line = refused(capsys, score(rows, tmp_path / "out", fake.url, "--teacher-tokenizer", tiny))
    assert "--max-logprobs 32" in line
    assert score(rows, tmp_path / "few", fake.url, "--teacher-tokenizer", tiny, "--top-k", 20) == 0


def test_a_server_that_is_no_vllm(
    tiny: Path, rows: Path, tmp_path: Path, serve: Callable[..., FakeVLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    fake = serve(prompt_logprobs=False)
    line = refused(capsys, score(rows, tmp_path / "out", fake.url, "--teacher-tokenizer", tiny))
    assert "no prompt_logprobs" in line
    assert "--teacher-tokenizer" in refused(capsys, score(rows, tmp_path / "out", fake.url))


def test_vllm_is_started_for_as_many_as_are_asked(tiny: Path) -> None:
    shown = ChildEngine("vllm", str(tiny), context=301, max_logprobs=32)._command(1)
    assert shown[shown.index("--max-logprobs") + 1] == "32"
    assert "--max-logprobs" not in ChildEngine("vllm", str(tiny))._command(1)
