"""API keys, and servers that are named on the command line or allowed in Studio."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from agentsys.doctor.finding import Finding
from agentsys.models.probe import ServerReport, probe_server

API_KEY: Final = "AGENTSYS_API_KEY"
HUB_KEY: Final = "HF_TOKEN"


def check_keys() -> list[Finding]:
    """Which API keys are set. Their values are never printed."""
    return [_check_key(API_KEY, "for servers"), _check_key(HUB_KEY, "for the model hub")]


def _check_key(name: str, purpose: str) -> Finding:
    value, area = os.environ.get(name, ""), f"key {name}"
    if is_usable_key(value):
        return Finding(area, "ok", f"{'set' if value else 'not set'} ({purpose})")
    text = "set, but it has a line break, a space or another character that an HTTP header cannot carry"
    return Finding(area, "problem" if name == API_KEY else "warning", text, f"set {name} without it")


def is_usable_key(value: str) -> bool:
    """Whether an HTTP header can carry the key."""
    return value.isascii() and value.isprintable() and " " not in value


def check_servers(urls: list[str]) -> list[Finding]:
    """One finding for each server: those of the command line, and those that Studio may use (AGENTSYS_ENDPOINTS)."""
    named_urls = [part for url in urls for part in _split(url)]
    both = list(dict.fromkeys([*named_urls, *_split(os.environ.get("AGENTSYS_ENDPOINTS", ""))]))
    if not is_usable_key(os.environ.get(API_KEY, "")):
        return [Finding(f"server {url}", "warning", "not asked", f"set {API_KEY} without a line break") for url in both]
    return [_describe(report, report.url in named_urls) for report in asyncio.run(_probe(both))]


def _split(spec: str) -> list[str]:
    """Return the URLs of a spec such as `http://a/v1,http://b/v1#MODEL?temperature=0`, each with its #MODEL."""
    base, mark, model = spec.partition("?")[0].partition("#")
    return [f"{url.strip().rstrip('/')}{mark}{model.strip()}" for url in base.split(",") if url.strip()]


async def _probe(urls: list[str]) -> list[ServerReport]:
    return await asyncio.gather(*(probe_server(url) for url in urls))


def _describe(report: ServerReport, is_named: bool) -> Finding:
    text = report.text if is_named else f"{report.text} (of AGENTSYS_ENDPOINTS)"
    if report.is_usable:
        return Finding(f"server {report.url}", "ok", text, report.fix)
    return Finding(f"server {report.url}", "problem" if is_named else "warning", text, report.fix)
