"""Every notebook in docs/notebooks runs from top to bottom, without a network, and is stored without outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.extras import skip_without
from tests.support.paths import ROOT

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SECONDS = 300
"""For one cell, when many tests share the cores. Each notebook takes less than two minutes on an idle machine."""


CONNECT = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80))
except OSError as error:
    print(error)
"""


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def execute(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook in a folder. The kernel inherits the environment, and with it the refusal of the network."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "AGENTSYS_CACHE"):
        (folder / name).mkdir()
        monkeypatch.setenv(name, str(folder / name))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    work = folder / "work"
    work.mkdir()
    client = nbclient.NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(work)}})
    return client.execute()


def shown(notebook: Any) -> str:
    """All that the cells of an executed notebook show, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_there_are_notebooks() -> None:
    assert "compose.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem == "student":
        skip_without("train")
    notebook = execute(read(path), tmp_path, monkeypatch)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not list((ROOT / "docs" / "notebooks").glob("runs"))


def test_the_compose_notebook_shows_a_trace_and_its_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(execute(read(ROOT / "docs/notebooks/compose.ipynb"), tmp_path, monkeypatch))
    assert "(4, 0, 0)" in text, "all records are kept"
    for part in (
        "rewrite/1  rewriter",
        "judge      judge",
        "rejected  learned",
        "must not contain the prompt of a call",
    ):
        assert part in text, part


def test_a_kernel_has_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import NETWORK_LOG

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CONNECT)])
    assert "tests reach loopback addresses only" in shown(execute(notebook, tmp_path, monkeypatch))
    assert "192.0.2.1" in NETWORK_LOG.read_text(encoding="utf-8")
    NETWORK_LOG.write_text("", encoding="utf-8")  # this attempt was meant


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.source
    assert notebook.metadata.kernelspec.name == "python3"
    assert "version" not in notebook.metadata.language_info


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]+)?\)", text):
        assert link.startswith("http") or (path.parent / link).exists(), link
