"""COMET and related models (Rei et al., 2020, 2022), which run in a Python of their own; scores are cached.

unbabel-comet's dependencies conflict with ours, so `--comet-python` names the Python of another environment. One
process per model reads sentences from stdin and writes their scores to a file. The model itself says whether it needs
references: CometKiwi and XCOMET do not. Scores are kept in the request cache by model, source, translation and
reference.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.graphs.translate.rows import TranslatedPair
from agentsys.models.cache import RequestCache
from agentsys.recorder import identity
from agentsys.records import InputError

DEFAULT_MODEL: Final = "Unbabel/wmt22-comet-da"
COMET_IMPORT: Final = "from comet import download_model, load_from_checkpoint"
COMET_SCRIPT: Final = f"""
import json, os, sys, torch
from importlib import metadata
{COMET_IMPORT}
name, result = sys.argv[1:]
model = load_from_checkpoint(name if os.path.exists(name) else download_model(name))
needs_references = getattr(model, "requires_references", lambda: True)()
data = json.load(sys.stdin)
scores = [None] * len(data)
for with_reference in (True, False):
    chosen = [i for i, pair in enumerate(data) if ("ref" in pair) == with_reference]
    if chosen and (with_reference or not needs_references):
        gpus = int(torch.cuda.is_available())
        values = model.predict([data[i] for i in chosen], batch_size=8, gpus=gpus).scores
        for i, value in zip(chosen, values):
            scores[i] = float(value)
try:
    version = metadata.version("unbabel-comet")
except metadata.PackageNotFoundError:
    version = "unknown"
with open(result, "w") as file:
    json.dump({{"scores": scores, "version": version, "needs_references": needs_references}}, file)
"""
"""Runs in the environment of --comet-python. A batch has references for all of its sentences, or for none."""

Item = tuple[str, str, str]
"""Source, translation, and reference, which is empty if there is none."""


@dataclass(frozen=True, slots=True)
class CometRun:
    """What a model did: `failed` is why it has no scores, `computed` and `cached` count sentences."""

    model: str
    failed: str = ""
    version: str = ""
    needs_references: bool = False
    computed: int = 0
    cached: int = 0

    @property
    def signature(self) -> str:
        """The model, the version of unbabel-comet, and what the model sees."""
        references = "first" if self.needs_references else "first, if any"
        return f"model:{self.model}|refs:{references}|unbabel-comet:{self.version}"


def column_names(models: Iterable[str]) -> dict[str, str]:
    """The metric of each model, its name without the owner, and the model. Raises InputError for a repeated name."""
    columns: dict[str, str] = {}
    for model in models:
        name = _column_name(model)
        if name in columns:
            raise InputError(f"--comet-model {model}: another model is called {name} too; leave one out")
        columns[name] = model
    return columns


def _column_name(model: str) -> str:
    """The last part of a hub name; for a checkpoint file the folder that says what it is."""
    parts = [part for part in re.split(r"[/\\]+", model) if part]
    if not parts:
        raise InputError("--comet-model: it is empty; name a model such as Unbabel/wmt22-comet-da")
    if cached := [part for part in parts if part.startswith("models--")]:
        return cached[-1].rpartition("--")[2]  # a file in the hub's cache
    while len(parts) > 1 and (parts[-1] == "checkpoints" or parts[-1].endswith(".ckpt")):
        parts.pop()
    return parts[-1]


def check_comet(python: Path) -> None:
    """Raises InputError if that interpreter cannot import unbabel-comet."""
    try:
        tried = subprocess.run([python, "-c", COMET_IMPORT], capture_output=True, check=False)
    except OSError as err:
        raise InputError(f"--comet-python {python}: {err.strerror}; give a Python that has unbabel-comet") from None
    if tried.returncode:
        raise InputError(f"--comet-python {python}: unbabel-comet cannot be imported: {_last_line(tried.stderr)}")


def add_comet(
    rows: Sequence[TranslatedPair], python: Path, columns: Mapping[str, str], cache_path: Path
) -> dict[str, CometRun]:
    """Add the score of each model, times 100 as in DRT's paper, to the rows under the name of its column.

    A row without a reference gets none from a model that needs one. Raises CacheError.
    """
    items = [(row.pair.text, str(row.translation), (row.pair.references or ("",))[0]) for row in rows]
    cache = RequestCache(cache_path)
    try:
        runs = {}
        for column, model in columns.items():
            runs[column], scores = _score(items, python, model, cache)
            for row, item in zip(rows, items, strict=True):
                if (score := scores.get(item)) is not None:
                    row.scores[column] = 100 * score
    finally:
        cache.close()
    return runs


def _score(
    items: Sequence[Item], python: Path, model: str, cache: RequestCache
) -> tuple[CometRun, dict[Item, float | None]]:
    """The scores of a model by item: from the cache, and for all others from one process."""
    keys = {item: identity(comet=_model_identity(model), item=item) for item in items}
    entries = {item: orjson.loads(stored) for item, key in keys.items() if (stored := cache.get(key))}
    due = [item for item in keys if item not in entries]
    if due:
        try:
            reply = _predict(due, python, model)
        except _CometError as err:
            return CometRun(model, failed=str(err)), {}
        shared = {"version": reply["version"], "needs_references": reply["needs_references"]}
        new = {item: {"score": score, **shared} for item, score in zip(due, reply["scores"], strict=True)}
        asyncio.run(_store(cache, [(keys[item], orjson.dumps(entry)) for item, entry in new.items()]))
        entries |= new
    last = entries[due[-1] if due else items[-1]]
    run = CometRun(
        model,
        version=last["version"],
        needs_references=last["needs_references"],
        computed=len(due),
        cached=len(entries) - len(due),
    )
    return run, {item: entry["score"] for item, entry in entries.items()}


def _model_identity(model: str) -> list[Any]:
    """The model's name, and for a checkpoint file its size and time."""
    path = Path(model)
    return [model, path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else [model]


async def _store(cache: RequestCache, entries: Sequence[tuple[bytes, bytes]]) -> None:
    await asyncio.gather(*(cache.put(key, value) for key, value in entries))


class _CometError(Exception):
    """Why the process of a model has no scores, in one line."""


def _predict(items: Sequence[Item], python: Path, model: str) -> dict[str, Any]:
    """Raises _CometError."""
    data = [
        {"src": source, "mt": text, **({"ref": reference} if reference else {})} for source, text, reference in items
    ]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "scores.json"
        command: list[str | Path] = [python, "-c", COMET_SCRIPT, model, result]
        done = subprocess.run(command, input=orjson.dumps(data), capture_output=True, check=False)
        if done.returncode:
            raise _CometError(f"{model} failed: {_last_line(done.stderr)}")
        reply: dict[str, Any] = orjson.loads(result.read_bytes())
        return reply


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["no message"])[-1].strip()
