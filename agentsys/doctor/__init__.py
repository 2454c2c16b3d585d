"""`agentsys doctor`: what this machine has for a run, one line each, with the fix where something is missing.

`finding` holds the line and child processes, `machine` Python, memory and disk, `installed` the engine, weights,
extras, torch and vLLM, `servers` keys and servers. What can break at import (torch, the engine, another environment's
vLLM) is looked at in child processes, all at once. The network is not touched, except for the servers that the user
names.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated

import typer

from agentsys.display import plain
from agentsys.doctor.finding import STYLES, Finding
from agentsys.doctor.installed import check_engine, check_extras, check_torch, check_vllm, check_weights
from agentsys.doctor.machine import (
    check_cache,
    check_memory,
    check_package,
    check_platform,
    check_python,
    check_working_folder,
)
from agentsys.doctor.servers import check_keys, check_servers


def doctor(
    server: Annotated[
        list[str] | None,
        typer.Option("--server", help="a server to try, as http://host:port/v1 (repeatable)", metavar="URL"),
    ] = None,
) -> None:
    """Check this machine: Python, memory, disk, engine, weights, extras, GPU, keys, servers. Each line names the fix.

    The exit code is 1 if a run cannot start: with a named server, or with the default model if no server is reachable.
    """
    findings = diagnose(server or [])
    print_findings(findings)
    raise typer.Exit(1 if any(finding.status == "problem" for finding in findings) else 0)


def diagnose(servers: list[str]) -> list[Finding]:
    """Return all findings. A server that answers turns problems of the embedded model into warnings."""
    groups: tuple[Callable[[], list[Finding]], ...] = (
        lambda: [check_package(), check_python(), check_platform(), check_memory()],
        lambda: [check_cache(), check_working_folder()],
        lambda: [check_engine(), check_weights()],
        check_extras,
        lambda: [check_torch()],
        lambda: [check_vllm()],
        check_keys,
        lambda: check_servers(servers),
    )
    with ThreadPoolExecutor(len(groups)) as pool:
        findings = [finding for group in pool.map(lambda check: check(), groups) for finding in group]
    if any(finding.area.startswith("server ") and finding.status == "ok" for finding in findings):
        return [
            replace(finding, status="warning") if finding.local and finding.status == "problem" else finding
            for finding in findings
        ]
    return findings


def print_findings(findings: list[Finding]) -> None:
    """Print one line per finding, and a last line that sums up."""
    from rich.text import Text

    from agentsys.console import Console

    console = Console()
    for finding in findings:
        status = Text(f"{finding.status:<8}", STYLES[finding.status])
        console.print(Text.assemble(status, plain(f"{finding.area:<26} {finding.message}")), soft_wrap=True)
    problems = sum(finding.status == "problem" for finding in findings)
    console.print("a run can start" if not problems else f"fix the {problems} problem(s) before a run")
