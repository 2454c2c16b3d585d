"""A text-only model on PunchBench: it answers with the pictures withheld, and is refused at the first picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentsys.commands import run_app
from agentsys.graphs.punchbench_evaluate import app
from tests.support.punchbench_server import plan, write_benchmark
from tests.support.servers import FakeServer, serving, write_model_folder


@pytest.mark.parametrize(("pictures", "code", "requests"), [("withheld", 0, 2 * 18), ("shown", 1, 0)])
def test_a_text_only_model(
    pictures: str, code: int, requests: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_model_folder(tmp_path / "model")
    (root / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    folder = write_benchmark(tmp_path / "benchmark", 2)
    server = FakeServer("vllm", root=str(root), plan=plan)
    with serving(server):
        arguments = ["--benchmark", str(folder), "--model", server.url, "--out", str(tmp_path / "eval")]
        assert run_app(app, [*arguments, "--pictures", pictures, "--no-judge"]) == code
    assert len(server.seen) == requests
    assert ("takes text only, and the prompt shows a picture" in capsys.readouterr().err) is (code == 1)
