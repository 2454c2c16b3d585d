"""The doctor's lines on the engine, weights, extras, torch and vLLM, with facts that are set by the test."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentsys.doctor import installed
from agentsys.doctor.finding import ChildError, run_child
from agentsys.doctor.installed import (
    check_engine,
    check_extra,
    check_extras,
    check_torch,
    check_vllm,
    check_weights,
    list_nvidia_gpus,
)
from agentsys.installation import DISTRIBUTION, install_command
from agentsys.models import weights
from tests.support.extras import skip_without


def set_installed(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: object() if name in modules else None)


def set_child(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    monkeypatch.setattr(installed, "run_child", lambda code, python=sys.executable: result)


# Engine and weights


def test_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    set_installed(monkeypatch)
    finding = check_engine()
    assert (finding.status, finding.local, finding.fix) == ("problem", True, install_command("local"))
    set_installed(monkeypatch, "xllamacpp")
    set_child(monkeypatch, ChildError("it ended by signal 4"))
    finding = check_engine()
    assert finding.status == "problem" and "it ended by signal 4" in finding.text and "--force-reinstall" in finding.fix
    set_child(monkeypatch, "2026.10")
    finding = check_engine()
    assert (finding.status, finding.text, finding.fix) == ("ok", "xllamacpp 2026.10", "")


def test_the_real_engine() -> None:
    skip_without("local")
    assert check_engine().text == f"xllamacpp {metadata.version('xllamacpp')}"


@pytest.mark.parametrize(
    ("state", "text"),
    [("verified", "verified"), ("unchecked", "to be checked"), ("packages", "at the first use")],
)
def test_weights_that_are_there(state: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "find_state", lambda entry: state)
    finding = check_weights()
    assert (finding.status, finding.fix) == ("ok", "") and text in finding.text


@pytest.mark.parametrize(("client", "offline"), [(False, "0"), (True, "0"), (True, "1")])
def test_missing_weights(client: bool, offline: str, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_files_of_package", lambda package, entry: [])
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    set_installed(monkeypatch, *(["huggingface_hub"] if client else []))
    hub = client and offline == "0"
    finding = check_weights()
    assert (finding.status, finding.local) == (("warning", False) if hub else ("problem", True))
    assert "22 of 22 packages are missing" in finding.text and ("downloads 1.1 GB" in finding.text) == hub
    assert finding.fix == install_command("weights")


# Extras

REQUIREMENTS = [
    "core-one>=1",
    "core-two>=2; sys_platform != 'none'",
    "one>=1.5; extra == 'single'",
    "one>=1.5; extra == 'pair'",
    "two==2.0; extra == 'pair'",
    "never; extra == 'pair' and python_version < '3'",
    f"{DISTRIBUTION}[pair]; extra == 'nested'",
    "three; extra == 'nested'",
]


@pytest.mark.parametrize(
    ("versions", "extra", "status", "text"),
    [
        ({"one": "1.5", "two": "2.0"}, "pair", "ok", "installed"),
        ({}, "single", "ok", "not installed (optional)"),
        ({"one": "1.5"}, "pair", "ok", "incomplete (optional), without two"),
        ({"one": "1.4", "two": "2.0"}, "pair", "warning", "one is 1.4, not >=1.5"),
        ({"one": "1.5", "two": "2.0"}, "nested", "ok", "incomplete (optional), without three"),
        ({}, "nested", "ok", "not installed (optional)"),
        ({"one": "2.0rc1"}, "single", "ok", "installed"),
    ],
)
def test_an_extra(
    versions: dict[str, str], extra: str, status: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    finding = check_extra(extra, REQUIREMENTS)
    assert (finding.area, finding.status, finding.text) == (f"extra {extra}", status, text)
    assert finding.fix == ("" if text == "installed" else install_command(extra))


def test_extras_come_from_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    distribution = SimpleNamespace(
        metadata=SimpleNamespace(get_all=lambda name: ["single", "pair"]), requires=REQUIREMENTS
    )
    monkeypatch.setattr(metadata, "distribution", lambda name: {DISTRIBUTION: distribution}[name])
    monkeypatch.setattr(metadata, "version", lambda name: "2.0")
    assert [finding.area for finding in check_extras()] == ["extra single", "extra pair"]


def test_a_copy_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    [finding] = check_extras()
    assert finding.status == "warning" and DISTRIBUTION in finding.text


# Torch


@pytest.mark.parametrize(
    ("result", "driver", "status", "text"),
    [
        ({"version": "2.13", "gpus": [["H200", 150e9]], "mps": False}, ["H200"], "ok", "2.13, GPU: H200, 150.0 GB"),
        ({"version": "2.13", "gpus": [], "mps": True}, [], "ok", "2.13, GPU: Apple's MPS"),
        ({"version": "2.13", "gpus": [], "mps": False}, [], "ok", "2.13, no GPU (training runs on the CPU)"),
        ({"version": "2.13", "gpus": [], "mps": False}, ["H200"], "warning", "2.13 sees no GPU, the driver sees H200"),
        (ChildError("OSError: libcudart"), [], "warning", "installed, but cannot be imported: OSError: libcudart"),
    ],
)
def test_torch(result: Any, driver: list[str], status: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_installed(monkeypatch, "torch")
    set_child(monkeypatch, result)
    monkeypatch.setattr(installed, "list_nvidia_gpus", lambda: driver)
    finding = check_torch()
    assert (finding.status, finding.text, bool(finding.fix)) == (status, text, status != "ok")


def test_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    set_installed(monkeypatch)
    monkeypatch.setattr(installed, "list_nvidia_gpus", lambda: ["H200, 143771 MiB"])
    finding = check_torch()
    assert (finding.status, finding.fix) == ("ok", install_command("train")) and "H200, 143771 MiB" in finding.text


TORCH = """
from types import SimpleNamespace as Space
__version__ = "9.9"
class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    get_device_properties = staticmethod(lambda i: Space(name=f"GPU{i}", total_memory=8_000_000_000))
backends = Space()
"""


def test_the_code_for_torch_with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch; the real one without a GPU is in the test of the whole report."""
    (tmp_path / "torch.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    set_installed(monkeypatch, "torch")
    assert check_torch().text == "9.9, GPU: GPU0, 8.0 GB; GPU1, 8.0 GB"


@pytest.mark.parametrize(
    ("script", "names"),
    [
        (
            "#!/bin/sh\necho 'NVIDIA H200, 143771 MiB'\necho 'NVIDIA T4, 15360 MiB'\n",
            ["NVIDIA H200, 143771 MiB", "NVIDIA T4, 15360 MiB"],
        ),
        ("#!/bin/sh\necho 'no driver'\nexit 9\n", []),
    ],
)
def test_gpus_of_the_driver(script: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert list_nvidia_gpus() == names


# vLLM


def test_vllm_in_another_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENTSYS_VLLM_PYTHON", "/opt/vllm/bin/python")
    set_child(monkeypatch, "0.32.0")
    assert check_vllm().text == "0.32.0 at AGENTSYS_VLLM_PYTHON=/opt/vllm/bin/python"
    set_child(monkeypatch, "")
    finding = check_vllm()
    assert finding.status == "warning" and "has no vllm" in finding.text and finding.fix
    monkeypatch.undo()
    monkeypatch.setenv("AGENTSYS_VLLM_PYTHON", str(tmp_path / "none"))
    finding = check_vllm()
    assert finding.status == "warning" and "cannot be run: No such file" in finding.text


def test_the_code_for_vllm_runs() -> None:
    assert isinstance(run_child(installed._VLLM), str)


def test_vllm_here_or_on_the_path_or_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTSYS_VLLM_PYTHON", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    set_installed(monkeypatch)
    assert check_vllm().text.startswith("not installed")
    (tmp_path / "vllm").write_text("")
    (tmp_path / "vllm").chmod(0o755)
    assert str(tmp_path / "vllm") in check_vllm().text and "AGENTSYS_VLLM_PYTHON" in check_vllm().fix
    set_installed(monkeypatch, "vllm")
    assert check_vllm().text == "installed in this environment"


# Child processes


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise ImportError('broken\\nlibrary')", "library"),
        ("import os; os.kill(os.getpid(), 9)", "it ended by signal 9"),
        ("print('not JSON')", "it printed no result"),
        ("pass", "it printed no result"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_child_that_fails(code: str, error: str) -> None:
    result = run_child(code)
    assert isinstance(result, ChildError) and result == error


def test_a_child_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("python", options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    assert run_child("") == "no result within 60 s"


def test_a_child_does_not_import_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chatter.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "No module named" in run_child("import chatter")
    assert run_child("print('noise'); print([1])") == [1]
