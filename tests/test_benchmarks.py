"""Benchmarks that need no engine still run, at sizes that measure nothing, and print their tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentsys.paths import cache_folder
from tests.support.extras import skip_without
from tests.support.paths import ROOT
from tests.support.toys import environment, write_lines

RUNS: dict[str, tuple[str, str]] = {
    "check_speed": ("--repeats 1", "verdicts that differ between the first rows: 0"),
    "crat_document": ("--sentences 3 --latency 0.01 --slots 8", "| document | 8 | 49 |"),
    "extralonger": ("--sensors 3 --steps 6 --size small --batch 2 --least 1 --threads 1", "\n   3     6 | "),
    "idfree_devices": ("--users 3 --texts 4 --words 4 --steps 2 --threads 1", "| loop over users, whole inputs |"),
    "idfree_server": ("--devices 4 --rounds 1 --layers 1 --width 32 --tokens 4", "| without | 4 | "),
    "longdpo_critique": (
        "--model scripted:critique.jsonl --second-judge scripted:critique.jsonl --limit 2 --width 2",
        "| accepted, n=1 | program | 1.00 | 1.95 | +0.95 (+0.95 to +0.95) | 1, 0, 0 |",
    ),
    "longdpo_memory": ("--nearest 3", "| all-MiniLM-L6-v2 | nearest 3 | 57 of 60 | 18.0 | - | - |"),
    "longdpo_speed": (
        "--trees 2 --width 2 --depth 2 --slots 4 --simulations 0 2 --token-ms 0.2 --plot in_flight.png",
        "4 slots, 2 simulations, 24 calls: four workers",
    ),
    "memory": ("--records 300", "300 records and calls"),
    "overhead": ("--calls 40 --in-flight 8 --repeats 1", "| ChatOpenAI |"),
    "pair_noise": ("--questions 2 --policies 0.7x3 --simulations 3", "| 0.7 x 3 | 38 | tree, old defaults |"),
    "pictures": ("--records 6 --in-flight 3 --latency 0.01 --repeats 1", "median ratio "),
    "retrieval": ("--passages 2000", "2,000 generated passages"),
    "terms": ("--entries 300 --sentences 5", "| 300 |"),
    "tree_search": ("--questions 2 --depth 1 --latency 0.01 --slots 8 --repeats 1", "| 8 slots |"),
}


SCORES = ("accuracy", "purpose", "safety", "logic", "variety", "reading", "insight")
CRITIQUE = [
    {"role": "writer", "key": "menu/0/rewrite", "replies": ["Day 1: soup.\nDay 2: fish.\nDay 3: apple pie.\n" * 9]},
    {"role": "writer", "key": "*/0", "replies": ["Nothing to say."]},
    {"role": "writer", "replies": ["Nothing at all, as before."]},
    {"role": "grader", "key": "*/0/judge", "replies": [json.dumps(dict.fromkeys(SCORES, 3) | {"logic": 1})]},
    {"role": "grader", "key": "*/1/judge", "replies": [json.dumps(dict.fromkeys(SCORES, 2))]},
    {"role": "grader", "key": "menu/0/rewrite/judge", "replies": [json.dumps(dict.fromkeys(SCORES, 4))]},
    {"role": "grader", "replies": [json.dumps(dict.fromkeys(SCORES, 2))]},
    {"role": "critic", "replies": ['{"analysis": "", "suggestion": "Give days.", "confidence": 3, "words": ""}']},
]
"""The critique's models: of two rewritten steps the judge prefers the one with three of seven days."""


@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_prints_its_table(name: str, tmp_path: Path, qwen_tokenizer: Path) -> None:
    if name == "longdpo_memory":
        skip_without("dense", "weights-embedding")
    options, says = RUNS[name]
    options += f" --tokenizer {qwen_tokenizer}" if name == "longdpo_speed" else ""
    write_lines(tmp_path / "critique.jsonl", CRITIQUE)
    script = ROOT / "benchmarks" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, script, *options.split()], cwd=tmp_path, env=environment(cache_folder()),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert says in done.stdout, done.stdout
    assert (tmp_path / "in_flight.png").exists() is ("--plot" in options)
