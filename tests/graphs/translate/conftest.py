"""The evaluation command over the scripted pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsys.graphs.translate_evaluate import main
from tests.support.comet import write_comet
from tests.support.evaluations import Run, run_command
from tests.support.toys import write_lines
from tests.support.translations import CALLS, FAILING, MODEL, PAIRS, TRUNCATED


@pytest.fixture
def run(
    isolated_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """graphs/translate_evaluate.py on the scripted pairs."""
    monkeypatch.setenv("COLUMNS", "200")
    pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    for log in (CALLS, FAILING, TRUNCATED):
        log.clear()

    def call(*options: object) -> tuple[int, str, str]:
        return run_command(main, capsys, "--pairs", pairs, "--model", MODEL, *options)

    return call


@pytest.fixture
def comet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file comet.py of a stand-in for unbabel-comet."""
    return write_comet(tmp_path / "comet_path", monkeypatch)
