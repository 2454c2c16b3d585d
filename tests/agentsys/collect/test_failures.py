"""Bugs of a graph: the place in the reason, and the traceback of the first failure of each kind."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import Summary, collect
from agentsys.collect.failures import FRAMES, MAX_TRACEBACK, Failures, find_place, format_traceback
from agentsys.models import ModelError
from agentsys.prompt import PromptError
from agentsys.traces import read_finished
from tests.support.greeter import GREETER, UNCACHED
from tests.support.paths import ROOT
from tests.support.toys import environment, one_node, read_failed

GRAPH = """
def helper(secret):
    return secret["missing"]

async def node(state):
    if state["text"].startswith("json"):
        import json
        json.loads("{")
    if state["text"].startswith("model"):
        from agentsys.models import ModelError
        raise ModelError("no reply")
    if state["text"].startswith("surrogate"):
        raise ValueError("\\udc80")
    helper({"password": "hunter" + str(2)})
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """Runs the node of a file mine.py in the working folder."""
    (tmp_path / "mine.py").write_text(GRAPH)
    monkeypatch.chdir(tmp_path)
    node = runpy.run_path(str(tmp_path / "mine.py"))["node"]
    return lambda *texts: collect(one_node(node), texts, "run", options=UNCACHED)


def test_the_reason_names_the_line_and_the_first_failure_has_the_traceback(run: Callable[..., Summary]) -> None:
    summary = run("a", "b", "c", "json 1", "json 2")
    first, *others = [line for line in read_failed(Path("run")) if line["reason"].startswith("KeyError")]
    assert first["reason"] == "KeyError: 'missing' (mine.py:3)"
    text = first["measured"]["traceback"]
    assert text.startswith("Traceback (most recent call last):")
    assert 'mine.py", line 3, in helper\n    return secret["missing"]' in text
    assert text.rstrip().splitlines()[-1].startswith(("KeyError: 'missing'", "During task with name 'node'"))
    assert "hunter2" not in text
    assert len(others) == 2
    assert all("traceback" not in line["measured"] for line in others)
    assert summary.failed_reasons["KeyError: 'missing' (mine.py:3)"] == 3
    [decode, _] = [line for line in read_failed(Path("run")) if line["reason"].startswith("JSONDecodeError")]
    assert decode["reason"].endswith("(mine.py:8)")  # not the line of the standard library
    assert "json/decoder.py" in decode["measured"]["traceback"]
    assert {trace.outcome for trace in read_finished(Path("run"))} == {"failed"}  # the format is the same


def test_an_error_of_a_model_has_neither(run: Callable[..., Summary]) -> None:
    run("model")
    [line] = read_failed(Path("run"))
    assert line["reason"] == "ModelError: no reply"
    assert set(line["measured"]) == {"content", "seconds"}


def test_a_route_to_a_node_that_does_not_exist_is_explained(tmp_path: Path) -> None:
    from langgraph.graph import END, START, StateGraph

    builder = StateGraph(dict)
    builder.add_node("write", lambda state: state)
    builder.add_edge(START, "write")
    builder.add_conditional_edges("write", lambda state: "finsh", ["write", END])
    summary = collect(builder.compile(name="toy"), ["a"], tmp_path / "run", options=UNCACHED)
    assert list(summary.reasons) == [
        "KeyError: 'finsh' (a route returned this name, and add_conditional_edges does not list it)"
    ]


def test_a_traceback_that_json_cannot_hold_is_escaped(run: Callable[..., Summary]) -> None:
    run("surrogate", "a")
    [line] = [line for line in read_failed(Path("run")) if line["input"]["text"] == "surrogate"]
    assert "written as JSON" in line["reason"]
    assert "\\udc80" in line["measured"]["traceback"]


def test_a_bug_is_placed_in_the_graph_and_not_in_agentsys(tmp_path: Path) -> None:
    async def node(state: Any) -> dict[str, Any]:
        return {"reply": await GREETER(None, key="greet", text=state["text"])}  # type: ignore[arg-type]

    collect(one_node(node), ["Ann"], tmp_path / "run", options=UNCACHED)
    [line] = read_failed(tmp_path / "run")
    number = GREETER and node.__code__.co_firstlineno + 1
    assert line["reason"].endswith(f"(tests/agentsys/collect/test_failures.py:{number})")
    assert "agentsys/roles.py" in line["measured"]["traceback"]


def raised(error: Exception, depth: int = 0) -> Exception:
    """The error, raised that deep."""

    def fall(levels: int) -> None:
        if levels:
            fall(levels - 1)
        raise error

    try:
        fall(depth)
    except Exception as err:
        return err
    raise AssertionError


def test_a_traceback_is_bounded() -> None:
    text = format_traceback(raised(RuntimeError("deep"), 200))
    assert text.count("raise error") <= FRAMES
    assert text.rstrip().endswith("RuntimeError: deep")
    assert len(format_traceback(raised(RuntimeError("x" * 10**6)))) == MAX_TRACEBACK


@pytest.mark.parametrize("error", [ModelError("m"), PromptError("p")])
def test_expected_errors(error: Exception) -> None:
    assert Failures().describe(raised(error)) == (f"{type(error).__name__}: {error}", "")


def test_an_error_without_frames_of_a_graph_has_no_place() -> None:
    assert find_place(ValueError("never raised")) == ""
    assert Failures().describe(ValueError("never\nraised"))[0] == "ValueError: never raised"


def test_a_shipped_graph_of_an_installed_package_counts_as_a_graph(tmp_path: Path) -> None:
    """In site-packages too, where the frames of other packages do not count."""
    package = tmp_path / "lib" / "site-packages" / "agentsys"
    (package / "collect").mkdir(parents=True)
    code = (ROOT / "agentsys" / "collect" / "failures.py").read_text()
    (package / "collect" / "failures.py").write_text(code)
    script = f"""
import json, runpy
from pathlib import Path
names = runpy.run_path({str(package / "collect" / "failures.py")!r})
paths = ["graphs/drt/system.py", "roles.py", "../pydantic/main.py", "../../../mine.py"]
print(json.dumps([names["_is_graph_code"](Path({str(package)!r}, path).resolve()) for path in paths]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [True, False, False, True]
