"""Verifiers by name, and the sandbox in which generated code runs."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentsys.metrics import sandbox
from agentsys.metrics.sandbox import SandboxError, run_program
from agentsys.metrics.verifiers import check_verifier, expected_of, verify


@pytest.mark.parametrize(
    ("name", "response", "expected", "right"),
    [
        ("exact", "So the answer is Paris.", "paris", True),
        ("exact", r"\boxed{New  York}", "new york", True),
        ("exact", "The answer is London, not Paris", "Paris", False),
        ("contains", "It was built in Paris by Eiffel.", "paris", True),
        ("contains", "It was built by parisians.", "Paris", False),
        ("contains", "<think>Paris</think> London", "Paris", False),
        ("choice", "The answer is (B).", "B", True),
        ("choice", "Answer: C) 12", "B", False),
        ("choice", "no idea", "B", False),
        ("maths", r"\boxed{0.5}", r"\frac12", True),
        ("exact", " ", "x", False),
    ],
)
async def test_verdicts(name: str, response: str, expected: str, right: bool) -> None:
    assert (await verify(name, response, expected)).right is right


def is_even(response: str, record: Mapping[str, Any]) -> bool:
    """A user's verifier."""
    return int(response) % record["divisor"] == 0


async def ends_well(response: str, record: Mapping[str, Any]) -> bool:
    """A user's asynchronous verifier."""
    return response.endswith("well")


async def test_a_function_of_the_user() -> None:
    name = f"python:{__name__}:is_even"
    check_verifier(name)
    record = expected_of(name, {"divisor": 2})
    assert (await verify(name, "4", record)).right and not (await verify(name, "5", record)).right
    assert (await verify(f"python:{__name__}:ends_well", "all is well", {})).right


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("luck", "verifier: 'luck' is none of maths, exact, contains, choice, code and python:MODULE:FUNCTION"),
        ("python:no_such_module:f", "No module named 'no_such_module'; give python:MODULE:FUNCTION"),
        (f"python:{__name__}:missing", "no attribute 'missing'"),
        (f"python:{__name__}:socket", "is no function"),
    ],
)
def test_unknown_verifiers_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_verifier(name)


def test_web_pages_run_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langgraph_api", SimpleNamespace())  # type: ignore[arg-type]
    check_verifier("exact")
    for name in ("code", f"python:{__name__}:is_even"):
        with pytest.raises(ValueError, match=r"in Studio, (code|python) is not allowed, because it runs code"):
            check_verifier(name)


def test_a_record_without_tests_is_refused() -> None:
    assert expected_of("code", {"tests": ["assert f() == 1", "assert f"]}) == "assert f() == 1\nassert f"
    with pytest.raises(ValueError, match="no tests: a record needs `tests`, lines of Python"):
        expected_of("code", {"answer": "1"})


in_sandbox = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux namespaces")

RESPONSE = """I write a function.
```python
def double(x):
    return {body}
```
That is all."""


@in_sandbox
@pytest.mark.parametrize(
    ("body", "right"),
    [("2 * x", True), ("x + 2", False), ("undefined", False), ("2 *", False), ("exit(0)", False)],
)
async def test_code_is_right_if_its_tests_pass(body: str, right: bool) -> None:
    tests = "assert double(2) == 4\nassert double(5) == 10"
    verdict = await verify("code", RESPONSE.format(body=body), tests)
    assert verdict.right is right and verdict.answer.startswith("code ") and verdict.how == "text"


@in_sandbox
@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "raise SystemExit",
        "print('done')",
        "open('/tmp/x', 'w').write('it may write there'); assert open('/tmp/x').read()",
    ],
)
async def test_only_a_program_that_ends_passes(program: str) -> None:
    assert (await run_program(program)).passed is ("open" in program or "print" in program)


@in_sandbox
async def test_the_sandbox_has_no_network_and_writes_no_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        assert not (await run_program(connect)).passed
    secret = tmp_path / "file"
    secret.write_text("kept")
    for attack in (f"open({str(secret)!r}, 'w')", f"import os; os.remove({str(secret)!r})"):
        assert not (await run_program(attack)).passed
    assert secret.read_text() == "kept"
    remount = "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/', None, 32 | 4096, None) == 0"
    assert not (await run_program(remount)).passed, "the program has no privileges"


@in_sandbox
async def test_time_and_memory_are_limited() -> None:
    assert (await run_program("while True: pass", seconds=2)).reason == "timeout"
    assert (await run_program("import time; time.sleep(60)", seconds=2)).reason == "timeout"
    assert (await run_program("x = bytearray(2**30)")).reason == "error"


@in_sandbox
async def test_a_process_that_it_started_does_not_outlive_it() -> None:
    fork = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(987)"
    await run_program(fork, seconds=3)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"sandbox_worker" in command for command in commands)


async def test_without_namespaces_code_is_refused_unless_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_sandbox() -> bool:
        return False

    monkeypatch.setattr(sandbox, "has_sandbox", no_sandbox)
    with pytest.raises(SandboxError, match=r"code cannot be run safely here: .* --unsafe-code runs it"):
        await run_program("pass")
    assert (await run_program("pass", unsafe=True)).passed
    assert not (await run_program("1 / 0", unsafe=True)).passed
