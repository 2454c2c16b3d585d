"""The load of other processes, and the threads that the embedded engine chooses by it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agentsys.models import embedded
from agentsys.models.errors import EndpointDown
from agentsys.models.load import BUSY_SECONDS, PAUSE_SECONDS, QUIET_SECONDS, LoadMeter, ThreadChoice, count_cores


class Machine:
    """A /proc/stat and a clock: `busy` cores compute, `own` of them for this process."""

    def __init__(self, folder: Path, *, busy: float = 0.0, own: float = 0.0) -> None:
        self.stat = folder / "stat"
        self.busy, self.own = busy, own
        self.now = self._busy_seconds = self._own_seconds = 0.0
        self.pass_time(3.0)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self._busy_seconds += seconds * self.busy
        self._own_seconds += seconds * self.own
        ticks = [round(self._busy_seconds * os.sysconf("SC_CLK_TCK")), 5, 7, 1000, 20, 0, 0, 900, 0, 0]
        self.stat.write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3\nintr 5\n")

    def meter(self) -> LoadMeter:
        return LoadMeter(self.stat, lambda: self._own_seconds, lambda: self.now)


@pytest.mark.parametrize(("busy", "own", "load"), [(0, 0, 0), (1, 0, 1), (1.5, 0.5, 1), (0.5, 0.5, 0), (0.2, 0.5, 0)])
def test_own_time_does_not_count(tmp_path: Path, busy: float, own: float, load: float) -> None:
    machine = Machine(tmp_path, busy=busy, own=own)
    meter = machine.meter()
    meter.mark()
    machine.pass_time(5)
    meter.mark()
    assert meter.load(5) == pytest.approx(load)


def test_the_load_is_that_of_the_last_seconds(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter()
    for busy in (2.0, 2.0, 0.5, 0.5):
        meter.mark()
        machine.busy = busy
        machine.pass_time(4)
    assert meter.mark()
    assert not meter.mark(after=1.0), "read less than a second ago"
    assert [meter.load(seconds) for seconds in (4, 8, 12, 16, 17)] == [
        pytest.approx(0.5), pytest.approx(0.5), pytest.approx(1.0), pytest.approx(1.25), None
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "cpu  1 2\n", "cpu  a b c d e f g\n", "load 1 2 3 4 5 6 7\n"])
def test_a_machine_without_that_file_has_no_known_load(tmp_path: Path, text: str) -> None:
    (tmp_path / "stat").write_text(text)
    for stat in (tmp_path / "missing", tmp_path / "stat"):
        choice = ThreadChoice(2, LoadMeter(stat))
        choice.start(sleep=lambda seconds: pytest.fail("nothing to wait for"))
        assert choice.threads is None and not choice.revise()


@pytest.mark.parametrize(
    ("cores", "load", "threads"), [(2, 1.0, 1), (2, 0.3, None), (8, 3.0, 7), (2, 0.0, None), (1, 1.0, 1)]
)
def test_the_engine_starts_with_a_thread_fewer_beside_other_processes(
    tmp_path: Path, cores: int, load: float, threads: int | None
) -> None:
    machine = Machine(tmp_path, busy=load)
    choice = ThreadChoice(cores, machine.meter())
    choice.start(sleep=machine.pass_time)
    assert choice.threads == threads
    assert choice.load == pytest.approx(load, abs=0.05)


def revise(machine: Machine, choice: ThreadChoice, seconds: int) -> list[float]:
    """The seconds after which the choice changed, of so many in which it is asked twice a second."""
    changes = []
    for half in range(2 * seconds):
        machine.pass_time(0.5)
        if choice.revise():
            changes.append((half + 1) / 2)
    return changes


def test_a_running_engine_follows_the_load(tmp_path: Path) -> None:
    machine = Machine(tmp_path, own=2.0, busy=2.0)
    choice = ThreadChoice(2, machine.meter())
    choice.start(sleep=machine.pass_time)
    assert choice.threads is None
    assert revise(machine, choice, 60) == []
    machine.own = 1.2  # another process takes its part
    (after,) = revise(machine, choice, 60)
    assert BUSY_SECONDS / 2 < after <= BUSY_SECONDS + 1 and choice.threads == 1
    machine.own = 1.5  # half a core: neither busy nor quiet
    assert revise(machine, choice, 60) == []
    machine.own = 1.2
    assert revise(machine, choice, 60) == []
    machine.own = 2.0
    (after,) = revise(machine, choice, 60)
    assert QUIET_SECONDS / 2 < after <= QUIET_SECONDS + 1 and choice.threads is None


def test_a_short_load_changes_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    choice = ThreadChoice(2, machine.meter())
    choice.start(sleep=machine.pass_time)
    for _ in range(5):
        machine.busy = 1.0
        assert revise(machine, choice, 3) == []
        machine.busy = 0.0
        assert revise(machine, choice, 10) == []


@pytest.mark.parametrize(
    ("siblings", "cores"), [(["0", "1"], 2), (["0,4", "1,5", "0,4", "1,5"], 2), (["0-1", "0-1"], 1), ([], 6)]
)
def test_a_core_with_two_hardware_threads_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: list[str], cores: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    for number, text in enumerate(siblings):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n")
    assert count_cores(tmp_path) == cores


class FakeServer:
    """What `_start_llamacpp` returns."""

    def __init__(self, started: list[dict[str, int | None]], **settings: int | None) -> None:
        started.append(settings)
        self.listening_address = f"http://127.0.0.1:{settings.get('port') or 4321}"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int | None]]:
    """The settings with which servers were started, on a machine of 2 cores."""
    started: list[dict[str, int | None]] = []
    monkeypatch.delenv("LLAMA_ARG_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(embedded, "count_cores", lambda: 2)
    monkeypatch.setattr(embedded, "_start_llamacpp", lambda *_, **settings: FakeServer(started, **settings))
    return started


Watched = tuple[Machine, ThreadChoice, embedded.LlamaServer]


@pytest.fixture
def watched(tmp_path: Path, started: list[dict[str, int | None]], monkeypatch: pytest.MonkeyPatch) -> Watched:
    """A server that was started on a quiet machine, with its choice of threads."""
    machine = Machine(tmp_path)
    choice = ThreadChoice(2, machine.meter())
    monkeypatch.setattr(choice, "start", lambda: None)
    monkeypatch.setattr(embedded, "ThreadChoice", lambda cores: choice)
    return machine, choice, embedded.LlamaServer("model.gguf", 4, 8192)


def wait_for_choice(machine: Machine, server: embedded.LlamaServer) -> None:
    """Let time pass until the load asks for another number of threads."""
    while not server.revise_threads():
        machine.pass_time(1)


def test_a_server_starts_again_on_its_port(
    watched: Watched, started: list[dict[str, int | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    machine, _, server = watched
    assert capsys.readouterr().err == ""
    machine.busy = 1.0
    wait_for_choice(machine, server)
    server.restart()
    machine.busy = 0.0
    wait_for_choice(machine, server)
    server.restart()
    assert started == [{"threads": None}, {"threads": 1, "port": 4321}, {"threads": None, "port": 4321}]
    assert capsys.readouterr().err.splitlines() == [
        "other processes use 1.0 of 2 cores: the embedded engine goes on with 1 thread "
        "(LLAMA_ARG_THREADS=2 always uses all cores)",
        "other processes use 0.0 of 2 cores: the embedded engine goes on with 2 threads",
    ]


def test_a_server_that_cannot_be_restarted_now_is_asked_again(
    watched: Watched, started: list[dict[str, int | None]]
) -> None:
    machine, choice, server = watched
    machine.busy = 1.0
    for _ in range(2):
        before = machine.now
        wait_for_choice(machine, server)
        assert choice.threads == 1
        server.keep_threads()
        assert choice.threads is None
    assert machine.now - before > PAUSE_SECONDS
    assert len(started) == 1


def test_a_server_that_does_not_start_again_starts_as_it_was(
    watched: Watched, started: list[dict[str, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, choice, server = watched
    original = embedded._start_llamacpp

    def start(*arguments: Any, **settings: Any) -> Any:
        if settings["threads"] == 1:
            raise EndpointDown("no memory")
        return original(*arguments, **settings)

    monkeypatch.setattr(embedded, "_start_llamacpp", start)
    machine.busy = 1.0
    wait_for_choice(machine, server)
    server.restart()
    assert started == [{"threads": None}, {"threads": None, "port": 4321}] and choice.threads is None


def test_a_number_of_threads_that_is_set_stays(
    started: list[dict[str, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ThreadChoice", lambda cores: pytest.fail("the load does not matter"))
    monkeypatch.setenv("LLAMA_ARG_THREADS", "2")
    assert not embedded.LlamaServer("model.gguf", 4, 8192).revise_threads()
    monkeypatch.delenv("LLAMA_ARG_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1})
    assert not embedded.LlamaServer("model.gguf", 4, 8192).revise_threads()
    assert started == [{"threads": 2}, {"threads": 1}]
