"""Whether a run may be resumed in a folder: its fingerprint and its prompts against those that the folder has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from difflib import unified_diff
from pathlib import Path
from typing import Any, Final

from agentsys.collect.fingerprint import changed_settings, describe_change, digest, find_roles, printable
from agentsys.collect.manifest import MANIFEST_VERSION
from agentsys.collect.store import RunFolder
from agentsys.prompt import MAX_TEMPLATE, Prompt, without_note
from agentsys.systems import prompt_of
from agentsys.traces import RunFolderError, read_finished, shards

MAX_CHANGES: Final = 5
"""Differing settings that a refusal names."""
DIFF_LINES: Final = 40
"""Lines of a prompt's difference that a refusal shows."""
DIFF_COLUMNS: Final = 1000
"""Characters of such a line."""


def find_prompts(graph: Any, context: Any) -> dict[str, Prompt]:
    """The prompts that a graph's roles read in a context, by role. Raises PromptError for a malformed one."""
    return {name: prompt_of(context, role) for name, role in sorted(find_roles(graph).items())}


def prompt_file(role: str) -> str:
    """The file in a run's folder that has the prompt of a role: prompts/<role>.md.

    A name that cannot be a file's gets a digest, so that two roles never share a file.
    """
    name = re.sub(r"[^\w.-]+", "_", role).strip("._")[:80]
    return f"prompts/{name if name == role else f'{name}-{hashlib.sha256(role.encode()).hexdigest()[:8]}'}.md"


def write_prompts(folder: RunFolder, prompts: Mapping[str, Prompt]) -> None:
    """Write the prompts that a run uses, and remove those of an earlier run that finished no record."""
    earlier_roles = (folder.manifest().get("fingerprint") or {}).get("roles", {})
    files = {prompt_file(role): prompt for role, prompt in prompts.items()}
    for name in {prompt_file(role) for role in earlier_roles} - files.keys():
        (folder.folder / name).unlink(missing_ok=True)
    for name, prompt in files.items():
        folder.write(name, prompt.text.encode())


def check_resumable(folder: RunFolder, fingerprint: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> str:
    """The id of the run in a folder: its own if it has finished records, else the digest of the fingerprint.

    Raises RunFolderError, which names what differs and shows the differences of prompts, if it holds records of a run
    with other settings.
    """
    manifest = folder.manifest()
    old = manifest.get("fingerprint")
    if not folder.has_records():
        return digest(fingerprint)
    if not old:
        return _check_run_ids(folder.folder, digest(fingerprint))
    version = manifest.get("version") or 1
    changes = _changes(old, _comparable(fingerprint, old) if version < MANIFEST_VERSION else fingerprint)
    if not changes:
        return str(manifest.get("run") or digest(fingerprint))
    summary = "; ".join(changes[:MAX_CHANGES])
    if version < 2:
        raise RunFolderError(
            f"{folder.folder} was written by an earlier version of agentsys, whose schemas and option names differ "
            f"({summary}); finish it with that version or choose another --out"
        )
    is_all_failed = not any(path.stat().st_size for path in shards(folder.folder))
    remedy = (
        "remove it, as all its records failed, or choose another --out"
        if is_all_failed
        else ("choose another --out or restore those settings")
    )
    raise RunFolderError(
        f"{folder.folder} holds a run with other settings ({summary}); {remedy}",
        "\n".join(_prompt_differences(folder.folder, prompts)),
    )


def _check_run_ids(folder: Path, run: str) -> str:
    """The id of a run whose manifest is lost, if it is that of each trace: a digest of all settings.

    Raises RunFolderError otherwise.
    """
    if {trace.run for trace in read_finished(folder)} - {run}:
        raise RunFolderError(
            f"{folder} holds records, but no manifest.json that says with which settings they were made, and their "
            "traces are not of a run with these settings; restore them or choose another --out"
        )
    return run


def _comparable(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint with only those parts of the topology that an earlier version recorded."""
    recorded = old.get("topology", {})
    return {**new, "topology": {name: part for name, part in new["topology"].items() if name in recorded}}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differing settings; of a prompt only the name."""
    prompts, others = [], []
    for path, before, after in changed_settings(old, new):
        match path:
            case ("roles", role, "prompt"):
                prompts.append(role)
            case ("knobs", knob) if knob.endswith("_prompt") and isinstance(before, str) and isinstance(after, str):
                prompts.append(knob.removesuffix("_prompt"))
            case _:
                others.append(describe_change(path, before, after))
    return [*(f"the prompt of {printable(name)}" for name in dict.fromkeys(prompts)), *others]


def _prompt_differences(folder: Path, prompts: Mapping[str, Prompt]) -> Iterator[str]:
    """Per role whose stored prompt differs from the present one, the lines of a unified diff.

    A prompt is data: escapes replace what could control a terminal. A run that stored no prompts has no differences.
    """
    for role, prompt in prompts.items():
        path = folder / prompt_file(role)
        try:
            with path.open("rb") as file:
                stored = file.read(4 * MAX_TEMPLATE).decode(errors="replace")
        except OSError:
            continue
        before, after = (without_note(text).split("\n") for text in (stored, prompt.text))
        lines = list(unified_diff(before, after, str(path), "now", lineterm=""))
        yield from map(_cut, lines[:DIFF_LINES])
        if len(lines) > DIFF_LINES:
            yield f"... {len(lines) - DIFF_LINES} more lines"


def _cut(line: str) -> str:
    text = printable(line[:DIFF_COLUMNS])
    return text if len(line) <= DIFF_COLUMNS else f"{text} ... {len(line) - DIFF_COLUMNS} more characters"
