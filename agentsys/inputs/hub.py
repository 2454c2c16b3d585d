"""Data sets of the hub and their like: hf:NAME[:CONFIG][@SPLIT], read by the package `datasets` as a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from agentsys.inputs.lines import Fault, InputError, Raw
from agentsys.installation import install_command

_SPEC: Final = re.compile(r"hf:(?P<name>[^:@]+)(?::(?P<config>[^:@]+))?(?:@(?P<split>\S+))?")


def read_hub(spec: str) -> Iterator[Raw]:
    """The rows of a data set; NAME is the hub's, or a local folder. Pictures and sound stay bytes.

    Raises InputError for a malformed name, an unknown data set, configuration or split, and without `datasets`.
    """
    parts = _SPEC.fullmatch(spec)
    if parts is None:
        raise InputError(f"{spec}: write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG@SPLIT")
    try:
        import datasets
    except ImportError:
        command = install_command("inputs")
        raise InputError(f"{spec}: data sets of the hub are read by the package datasets: {command}") from None
    faults = (OSError, ValueError, ImportError, datasets.exceptions.DatasetsError)
    try:
        splits = _load(datasets, parts["name"], parts["config"])
    except faults as error:
        raise InputError(f"{spec}: the data set cannot be read: {' '.join(str(error).split())[:400]}") from None
    split = parts["split"] or (next(iter(splits)) if len(splits) == 1 else "")
    if split not in splits:
        names = ", ".join(splits)
        raise InputError(
            f"{spec}: the data set has the splits {names}; name one: hf:NAME@{next(iter(splits), 'SPLIT')}"
        )
    rows = splits[split]
    return _read_rows(rows.decode(False) if hasattr(rows, "decode") else rows, faults)


def _load(datasets: Any, name: str, config: str | None) -> dict[str, Any]:
    folder = Path(name)
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():  # from save_to_disk
        stored = datasets.load_from_disk(name)
        splits = dict(stored) if isinstance(stored, dict) else {"train": stored}
        return {split: rows.to_iterable_dataset() for split, rows in splits.items()}
    return dict(datasets.load_dataset(name, config, streaming=True))


def _read_rows(rows: Any, faults: tuple[type[Exception], ...]) -> Iterator[Raw]:
    number = 0
    try:
        for row in rows:
            number += 1
            yield number, dict(row)
    except faults as error:
        reason = " ".join(str(error).split())[:400]
        yield number + 1, Fault(f"the data set cannot be read from here on: {reason}; the records before were read")
