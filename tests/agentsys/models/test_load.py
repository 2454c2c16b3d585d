"""The load of other processes, and the threads that the embedded engine starts with beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentsys.models import embedded
from agentsys.models.embedded import _llamacpp_threads
from agentsys.models.load import SECONDS, measure_other_load


class Machine:
    """A /proc/stat whose busy seconds and this process's grow while the measurement sleeps."""

    def __init__(self, folder: Path, *, busy: float, own: float) -> None:
        self.stat = folder / "stat"
        self._busy, self._own = busy, own
        self._elapsed = 0.0
        self._write()

    def _write(self) -> None:
        ticks = [round(self._elapsed * self._busy * os.sysconf("SC_CLK_TCK")), 5, 7, 1000, 20, 0, 0, 900, 0, 0]
        self.stat.write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3\nintr 5\n")

    def own_seconds(self) -> float:
        return 3.0 + self._elapsed * self._own

    def sleep(self, seconds: float) -> None:
        self._elapsed += seconds
        self._write()


@pytest.mark.parametrize(("busy", "own", "load"), [(0, 0, 0), (1, 0, 1), (1.5, 0.5, 1), (0.5, 0.5, 0), (0.2, 0.5, 0)])
def test_own_time_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: float, own: float, load: float
) -> None:
    machine = Machine(tmp_path, busy=busy, own=own)
    clock = iter([0.0, SECONDS])
    monkeypatch.setattr("agentsys.models.load.time.perf_counter", lambda: next(clock))
    assert measure_other_load(machine.stat, machine.own_seconds, machine.sleep) == pytest.approx(load)


@pytest.mark.parametrize("text", ["", "cpu  1 2\n", "cpu  a b c d e f g\n", "load 1 2 3 4 5 6 7\n"])
def test_a_machine_without_that_file_has_no_known_load(tmp_path: Path, text: str) -> None:
    assert measure_other_load(tmp_path / "missing") is None
    (tmp_path / "stat").write_text(text)
    assert measure_other_load(tmp_path / "stat") is None


@pytest.mark.parametrize(
    ("cores", "load", "threads"), [(2, 1.0, 1), (2, 0.3, None), (8, 3.0, 7), (2, None, None), (1, 1.0, None)]
)
def test_the_engine_leaves_a_core_to_other_processes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cores: int,
    load: float | None,
    threads: int | None,
) -> None:
    monkeypatch.delenv("LLAMA_ARG_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(embedded, "measure_other_load", lambda: load)
    assert _llamacpp_threads() == threads
    said = capsys.readouterr().err
    assert said.startswith(f"other processes use {load:.1f} of {cores} cores") if threads else said == ""


def test_a_number_of_threads_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_THREADS", "2")
    monkeypatch.setattr(embedded, "measure_other_load", lambda: 2.0)
    assert _llamacpp_threads() == 2
