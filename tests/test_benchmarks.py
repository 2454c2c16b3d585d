"""Benchmarks that need no engine still run, at sizes that measure nothing, and print their tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentsys.paths import cache_folder
from tests.support.paths import ROOT
from tests.support.toys import environment

RUNS: dict[str, tuple[str, str]] = {
    "check_speed": ("--repeats 1", "verdicts that differ between the first rows: 0"),
    "crat_document": ("--sentences 3 --latency 0.01 --slots 8", "| document | 8 | 49 |"),
    "extralonger": ("--sensors 3 --steps 6 --size small --batch 2 --least 1 --threads 1", "\n   3     6 | "),
    "longdpo_speed": (
        "--trees 2 --width 2 --depth 2 --slots 4 --simulations 0 2 --token-ms 0.2 --plot in_flight.png",
        "4 slots, 2 simulations, 24 calls: four workers",
    ),
    "memory": ("--records 300", "300 records and calls"),
    "overhead": ("--calls 40 --in-flight 8 --repeats 1", "| ChatOpenAI |"),
    "pair_noise": ("--questions 2 --policies 0.7x3 --simulations 3", "| 0.7 x 3 | 38 | tree, old defaults |"),
    "retrieval": ("--passages 2000", "2,000 generated passages"),
    "terms": ("--entries 300 --sentences 5", "| 300 |"),
    "tree_search": ("--questions 2 --depth 1 --latency 0.01 --slots 8 --repeats 1", "| 8 slots |"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_prints_its_table(name: str, tmp_path: Path, qwen_tokenizer: Path) -> None:
    options, says = RUNS[name]
    options += f" --tokenizer {qwen_tokenizer}" if name == "longdpo_speed" else ""
    script = ROOT / "benchmarks" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, script, *options.split()], cwd=tmp_path, env=environment(cache_folder()),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert says in done.stdout, done.stdout
    assert (tmp_path / "in_flight.png").exists() is ("--plot" in options)
