"""Teacher scoring by a server that speaks as vLLM does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from agentsys.models.child import ChildEngine
from agentsys.trainers.loading import load_tokenizer
from agentsys.trainers.topk import from_alternatives
from tests.support.teacher import loaded, make_rows, naive_logprobs, read, refused, score
from tests.support.tiny import make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def rows(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(tmp_path_factory.mktemp("rows") / "rows.parquet", load_tokenizer(str(tiny)))


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
        entries: list[dict[str, Any] | None] = [None]
        for before, token in zip(logprobs[:-1], ids[1:], strict=True):
            likeliest = [token, *(int(i) for i in before.topk(k).indices)]
            ranks = (before[None] > before[likeliest][:, None]).sum(1) + 1
            entries.append(
                {
                    str(i): {"logprob": float(before[i]), "rank": int(rank), "decoded_token": "x"}
                    for i, rank in zip(likeliest, ranks, strict=True)
                }
            )
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": entries}
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
            expected_ids = sorted({*likeliest, own}, key=lambda i: -float(logprobs[t - 1, i]))[:k]
            filled += k - len(expected_ids)
            assert ids[: len(expected_ids)] == expected_ids
            np.testing.assert_allclose(values[: len(expected_ids)], logprobs[t - 1, expected_ids], rtol=2**-10)
            np.testing.assert_allclose(np.exp(values).sum() + row["teacher_tail"][n], 1, atol=2e-3)
            np.testing.assert_allclose(row["teacher_token_logprob"][n], logprobs[t - 1, own], rtol=2**-10)
    assert filled > 0, "no padding row was among the likeliest, and this tests less than it says"
    manifest = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["teacher"] == "tiny" and manifest["scored_by"] == "server, vllm"


def test_padding_rows_are_replaced_from_the_tail() -> None:
    stored = from_alternatives([{0: -1.0, 2: -2.0, 11: -1.5, 12: -3.0}], [2], k=4, width=10)
    mass = np.exp([-1.0, -2.0]).sum()
    mean = (1 - mass) / 8
    assert stored.ids.tolist() == [[0, 2, 1, 3]]
    np.testing.assert_allclose(np.exp(stored.logprobs.astype(float))[0, 2:], mean, rtol=2e-3)
    np.testing.assert_allclose(stored.tail, [1 - mass - 2 * mean], rtol=1e-5)


def test_too_few_log_probabilities_name_the_server_option(
    tiny: Path, rows: Path, tmp_path: Path, serve: Callable[..., FakeVLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    fake = serve(most=20)
    line = refused(capsys, score(rows, tmp_path / "out", fake.url, "--teacher-tokenizer", tiny))
    assert "--max-logprobs 32" in line
    assert score(rows, tmp_path / "few", fake.url, "--teacher-tokenizer", tiny, "--top-k", 20) == 0


def test_a_server_other_than_vllm_is_refused(
    tiny: Path, rows: Path, tmp_path: Path, serve: Callable[..., FakeVLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    fake = serve(prompt_logprobs=False)
    line = refused(capsys, score(rows, tmp_path / "out", fake.url, "--teacher-tokenizer", tiny))
    assert "no prompt_logprobs" in line
    assert "--teacher-tokenizer" in refused(capsys, score(rows, tmp_path / "out", fake.url))


def test_vllm_is_started_with_the_requested_number(tiny: Path) -> None:
    arguments = ChildEngine("vllm", str(tiny), context=301, max_logprobs=32)._command(1)
    assert arguments[arguments.index("--max-logprobs") + 1] == "32"
    assert "--max-logprobs" not in ChildEngine("vllm", str(tiny))._command(1)
