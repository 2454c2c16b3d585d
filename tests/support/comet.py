"""A stand-in for unbabel-comet and torch, which the process of --comet-python imports.

A translation that is its reference has 0.25, another one 0.75; a translation without a reference 0.5. Models whose name
contains "kiwi" need no references. `LOG` gets a line for each process: the model and the number of its sentences.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

LOG: Final = "calls.txt"
COMET: Final = """
import pathlib

def download_model(name):
    if name == "gone":
        raise FileNotFoundError("no such model: gone")
    return name
class Model:
    scores = []
    def __init__(self, name):
        self.name = name
    def requires_references(self):
        return "kiwi" not in self.name
    def predict(self, data, batch_size, gpus):
        with (pathlib.Path(__file__).parent / "calls.txt").open("a") as log:
            log.write(f"{self.name} {len(data)}\\n")
        assert len({frozenset(pair) for pair in data}) == 1, "a batch is with references or without"
        self.scores = [0.25 if pair["mt"] == pair.get("ref") else 0.75 if "ref" in pair else 0.5 for pair in data]
        print("noise on stdout")
        return self
def load_from_checkpoint(path):
    return Model(path)
"""


def write_comet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the stand-in and put it on the path of Python processes. Returns comet.py, which can be rewritten."""
    folder.mkdir()
    (folder / "comet.py").write_text(COMET)
    (folder / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: False)\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / "comet.py"


def read_calls(comet: Path) -> list[str]:
    """The lines of the log, "MODEL SENTENCES" each; none without a process."""
    log = comet.parent / LOG
    return log.read_text().splitlines() if log.exists() else []
