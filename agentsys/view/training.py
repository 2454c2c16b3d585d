"""A training's part of the page: its curves, settings and report, and the run that its rows came from."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Final

from agentsys.traces import RunFolderError

NOT_MEASURES: Final = frozenset({"step", "epoch"})


def is_training(folder: Path) -> bool:
    """Whether a folder is that of a training."""
    return (folder / "metrics.jsonl").is_file() and (folder / "settings.json").is_file()


def read_training(folder: Path) -> dict[str, Any]:
    """Curves by measure as [[step, value], ...], settings, report, and where its rows came from.

    Raises RunFolderError for a damaged file.
    """
    settings, report = _read_json(folder / "settings.json"), _read_json(folder / "report.json")
    curves: dict[str, list[list[float]]] = {}
    for number, line in enumerate(_complete_lines(folder / "metrics.jsonl"), 1):
        try:
            values = json.loads(line)
            step = values["step"]
        except (ValueError, KeyError, TypeError) as err:
            raise RunFolderError(f"{folder / 'metrics.jsonl'}:{number}: not a line of measures ({err})") from None
        for name, value in values.items():
            if name not in NOT_MEASURES and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append([step, value])
    return {
        "folder": folder.resolve().name,
        "settings": settings,
        "report": report,
        "curves": curves,
        "lineage": _lineage(folder, settings.get("rows")),
    }


def _complete_lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as err:
        raise RunFolderError(f"{file}: not JSON ({err})") from None
    return content if isinstance(content, dict) else {}


def _lineage(folder: Path, rows: Any) -> dict[str, Any] | None:
    """Runs, systems and models that the rows came from, with the number of rows of each; None if they are not there."""
    if not isinstance(rows, str):
        return None
    place = next((path for path in (Path(rows), folder.parent / rows) if path.exists()), None)
    if place is None:
        return None
    import pyarrow.parquet as pq

    runs: Counter[str] = Counter()
    models: Counter[str] = Counter()
    files = [place] if place.is_file() else sorted(place.glob("*.parquet"))
    for file in [file for file in files if file.suffix == ".parquet"]:
        if "lineage" not in pq.read_schema(file).names:  # a corpus for pre-training
            continue
        for text in pq.read_table(file, columns=["lineage"])["lineage"].to_pylist():
            lineage = json.loads(text or "{}")
            runs[f"{lineage.get('system', '')} {lineage.get('run', '')}".strip() or "no run"] += 1
            models.update({call["model"] for call in lineage.get("calls", ())})
    return {"rows": rows, "runs": dict(runs.most_common()), "models": dict(models.most_common())}
