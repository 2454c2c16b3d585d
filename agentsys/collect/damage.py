"""Finds the damage in a run's folder: in every line of its traces, in its manifest, and files that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from agentsys import config, traces
from agentsys.collect.manifest import MANIFEST, MANIFEST_COPY, load_manifest
from agentsys.collect.store import Finished, second_trace
from agentsys.shards import NO_SHARD, ShardError, find_shards, is_compressed, open_shard, shard_path

FAILED_FILES: Final = ("failed.jsonl", "rejected.jsonl")


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged line of a file, or a whole file, and what a repair does.

    A repair moves the line or the file aside, keeps the lines before it and moves the file aside ("cut"), creates a
    lost shard (empty), or counts the records again. "none": only the user can repair it.
    """

    path: Path
    fault: str
    line: int | None = None
    fix: Literal["move line", "move file", "cut", "create", "count", "none"] = "move line"

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.fault}" if self.line else f"{self.path}: {self.fault}"


def is_locked(folder: Path) -> bool:
    """Whether a collector writes to a folder."""
    if not (folder / ".lock").is_file():
        return False
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError) as err:
        return isinstance(err, Timeout)
    lock.release()
    return False


def find_damage(folder: Path, *, is_running: bool = False) -> list[Damage]:
    """All damage in a run's folder. Raises RunFolderError if it is not one.

    While a collector writes there, a last line without newline is none.
    """
    _check_is_run(folder)
    done = Finished()
    damage: list[Damage] = []

    def parse_shard_line(line: bytes) -> None:
        if not done.add(trace := traces.parse_finished(line)):
            raise ValueError(second_trace(trace))

    shards = find_shards(folder)
    for path, number in shards.items():
        if number is None:
            damage.append(Damage(path, NO_SHARD, fix="move file"))
        else:
            damage += _damaged_lines(path, parse_shard_line, is_running=is_running)
    damage += _missing_shards(folder, shards)
    for name in FAILED_FILES:
        if (folder / name).exists():
            damage += _damaged_lines(folder / name, traces.parse_failed, is_running=is_running)
    manifest_damage = _damaged_manifests(folder)
    if not (is_running or damage or manifest_damage):
        manifest_damage = _lost_records(folder / MANIFEST, done)
    return [*damage, *manifest_damage, *_damaged_config(folder)]


def _check_is_run(folder: Path) -> None:
    names = (MANIFEST, MANIFEST_COPY, *FAILED_FILES)
    if not any((folder / name).exists() for name in names) and not find_shards(folder):
        missing = "no run there" if folder.is_dir() else "no such folder"
        raise traces.RunFolderError(f"{folder}: {missing}; name the output folder of a collect run")


def _damaged_lines(path: Path, parse: Callable[[bytes], Any], *, is_running: bool) -> Iterator[Damage]:
    if not path.is_file():
        yield Damage(path, "not a file", fix="move file")
        return
    number = 0
    try:
        with open_shard(path) as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    if not is_running or is_compressed(path):
                        yield Damage(path, "cut off: the line has no end", number)
                    return
                try:
                    parse(line)
                except traces.NewerVersionError as err:
                    yield Damage(path, str(err), number, fix="none")
                except ValueError as err:
                    yield Damage(path, traces.describe_fault(line, err), number)
    except ShardError as err:
        yield Damage(path, str(err), number + 1, "cut")
    except OSError as err:
        yield Damage(path, f"cannot be read from here on: {err.strerror}; copy the file elsewhere", number + 1, "none")


def _missing_shards(folder: Path, shards: Mapping[Path, int | None]) -> Iterator[Damage]:
    """Shards are numbered from 0 without gaps; the last ones may be missing too, which the manifest's counts show."""
    numbers = {number for path, number in shards.items() if path.is_file() and number is not None}
    for number in sorted(set(range(max(numbers, default=-1) + 1)) - numbers):
        fault = "this shard is missing: its records are lost, and due again"
        yield Damage(shard_path(folder, number), fault, fix="create")


def _damaged_manifests(folder: Path) -> list[Damage]:
    damage: list[Damage] = []
    if not (folder / MANIFEST).exists():
        damage.append(Damage(folder / MANIFEST, "the file is missing", fix="count"))
    for name in (MANIFEST, MANIFEST_COPY):
        path = folder / name
        try:
            manifest = load_manifest(path) if path.exists() else {}
        except OSError as err:
            manifest = f"cannot be read: {err.strerror}"
        if isinstance(manifest, str):
            damage.append(Damage(path, manifest, fix="move file"))
    return damage


def _lost_records(path: Path, done: Finished) -> list[Damage]:
    """The counts of a manifest may be behind the shards after a kill, but not ahead of them."""
    manifest = load_manifest(path)
    counts = manifest.get("counts") or {} if isinstance(manifest, dict) else {}
    lost = sum(counts.get(name, 0) for name in done.outcomes) - sum(done.outcomes.values())
    if lost <= 0:
        return []
    fault = f"it counts {lost} more finished records than the shards have: they are lost, and due again"
    return [Damage(path, fault, fix="count")]


def _damaged_config(folder: Path) -> Iterator[Damage]:
    path = folder / config.FILE
    try:
        if path.exists():
            config.read_config(path)
    except config.ConfigError as err:
        fault = str(err).removeprefix(f"--config {path}: ")
        yield Damage(path, f"{fault} (only `agentsys rerun` needs it, and a run writes it anew)", fix="move file")
