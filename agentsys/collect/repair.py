"""Repairs a run's folder: what is damaged is moved aside, so that a resumed run does its records again.

Damaged lines are moved, byte for byte, to files of the same names in the folder `damaged/` of the run, which nothing
reads, and damaged files as they are. Counts and totals of the manifest are made again from the traces.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys import traces
from agentsys.collect.damage import FAILED_FILES, Damage, find_damage
from agentsys.collect.manifest import MANIFEST, MANIFEST_COPY, MANIFEST_VERSION, load_manifest
from agentsys.collect.store import Finished
from agentsys.collect.summary import CALL_TOTALS, Summary
from agentsys.paths import hold_lock, make_private_folder, replace_file, sync_file, sync_folder
from agentsys.shards import is_compressed, open_shard
from agentsys.traces import RunFolderError

DAMAGED: Final = "damaged"
"""The folder in a run's folder for what is moved aside."""


def repair_run(folder: Path) -> tuple[list[str], bool]:
    """Repair a run's folder. Returns lines that say what was damaged and done, and whether nothing is damaged any more.

    Raises RunFolderError if it is no run, if a collector holds it, or if it has traces of a later version.
    """
    damage = find_damage(folder)  # before a lock file is made in what may be no run's folder
    busy = RunFolderError(f"{folder}: another run is writing to this folder; wait for it, then repair")
    with hold_lock(folder, busy):
        damage = find_damage(folder)
        if newer := next((one for one in damage if one.fix == "none"), None):
            raise RunFolderError(f"{newer}; nothing was repaired")
        lines = [str(one) for one in damage] + (_repair(folder, damage) if damage else [])
        left = find_damage(folder)
        return [*lines, *(f"still damaged: {one}" for one in left)], not left


def _repair(folder: Path, damage: list[Damage]) -> list[str]:
    manifest = _read_good_manifest(folder)
    for path in dict.fromkeys(one.path for one in damage if one.fix in ("move line", "cut")):
        _move_lines(path, [one for one in damage if one.path == path], folder / DAMAGED)
    for one in damage:
        if one.fix == "move file":
            _move_file(one.path, folder / DAMAGED)
        elif one.fix == "create":
            one.path.touch()
    done = _count(folder)
    replace_file(folder / MANIFEST, _dump(_rebuild(folder, manifest, done)))
    if manifest and not (folder / MANIFEST_COPY).exists():
        replace_file(folder / MANIFEST_COPY, _dump(manifest))
    sync_folder(folder)
    counts = ", ".join(f"{count:,} {name}" for name, count in {**done.outcomes, "failed": done.failed}.items())
    return [
        *([f"moved to {folder / DAMAGED}"] if (folder / DAMAGED).exists() else []),
        *([] if manifest else [f"{folder / MANIFEST}: the settings are lost; the same settings resume the run"]),
        f"{counts} records are left; a resumed run does the others",
    ]


def _move_lines(path: Path, damage: list[Damage], folder: Path) -> None:
    """Move damaged lines from a file to the end of one in the folder. After a kill, they may be in both.

    A compressed shard is left as lines. One that cannot be read to its end is moved to the folder as a whole too.
    """
    numbers = {one.line for one in damage if one.fix == "move line"}
    end = min((one.line or 1 for one in damage if one.fix == "cut"), default=None)
    make_private_folder(folder)
    target = path.with_suffix("") if is_compressed(path) else path
    temporary, aside = target.with_name(f".{target.name}.tmp"), folder / target.name
    try:
        with open_shard(path) as lines, temporary.open("wb") as good, aside.open("ab") as bad:
            if bad.tell() and not aside.read_bytes().endswith(b"\n"):
                bad.write(b"\n")
            for number, line in enumerate(islice(lines, end - 1 if end else None), 1):
                (bad if number in numbers else good).write(line)
            sync_file(bad)
            sync_file(good)
        shutil.copymode(path, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if not aside.stat().st_size:
        aside.unlink()
    if end:
        _move_file(path, folder)
    elif target != path:
        path.unlink()


def _move_file(path: Path, folder: Path) -> None:
    """Move a file, or what is in its place, under its own name, with a number if that is taken."""
    make_private_folder(folder)
    target, number = folder / path.name, 0
    while target.exists():
        number += 1
        target = folder / f"{path.name}.{number}"
    path.rename(target)


def _read_good_manifest(folder: Path) -> dict[str, Any]:
    """The manifest or its copy, as far as one can be used; {} without."""
    for name in (MANIFEST, MANIFEST_COPY):
        if (folder / name).is_file() and isinstance(manifest := load_manifest(folder / name), dict):
            return manifest
    return {}


def _count(folder: Path) -> Finished:
    done = Finished()
    for shard in traces.shards(folder):
        for _, trace in traces.read_lines(shard, traces.parse_finished):
            done.add(trace)
    for entry in _failed_entries(folder):
        done.add_failed(entry)
    done.failed += len(done.failed_ids.keys() - done.ids)
    return done


def _failed_entries(folder: Path) -> Iterable[dict[str, Any]]:
    for name in FAILED_FILES:
        if (folder / name).exists():
            yield from (entry for _, entry in traces.read_lines(folder / name, traces.parse_failed))


def _rebuild(folder: Path, manifest: dict[str, Any], done: Finished) -> dict[str, Any]:
    """The manifest with counts from the traces, and totals that are not below theirs.

    What a lost manifest had beyond that cannot be made again: the settings, the seconds and the cost.
    """
    summary = Summary(folder, "")
    runs = set()
    for trace in traces.read_finished(folder):
        runs.add(trace.run)
        for call in trace.calls:
            summary.add_call(call)
    totals = {name: count for name in CALL_TOTALS if (count := getattr(summary, name))}
    old = manifest.get("totals") or {}
    lost = {"version": MANIFEST_VERSION, "run": min(runs, default="")} if not manifest else {}
    return {
        **manifest,
        **lost,
        "counts": {**done.outcomes, "failed": done.failed},
        "totals": old | {name: max(old.get(name, 0), total) for name, total in totals.items()},
    }


def _dump(manifest: dict[str, Any]) -> bytes:
    return orjson.dumps(manifest, option=orjson.OPT_INDENT_2)
