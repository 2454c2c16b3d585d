"""Filtering of rows: why a row is dropped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from agentsys.commands import knob
from agentsys.targets import COMPOSED
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.row_files import Row

SHORT: Final = 32
"""Characters below which a learned text counts as an answer that many inputs may share."""


@dataclass(frozen=True)
class Filters:
    """Which rows are kept, and how they are split."""

    panel: ClassVar[str] = "Filter and split"
    min_score: float | None = knob(None, "drop sft and role targets with a lower score (on the system's scale)")
    min_margin: float = knob(0.0, "drop step targets whose scores differ by this or less")
    max_length: int = knob(4096, "drop rows longer than this, in tokens")
    near_duplicates: float = knob(
        0.9, "drop a text this similar to an earlier one (Jaccard index of 5-grams, 0-1); 1 keeps all"
    )
    validation: float = knob(
        0.1, "share of the inputs used for validation, 0-1; of few inputs at least one, unless it is 0"
    )
    seed: int = knob(0, "seed of the split")

    def __post_init__(self) -> None:
        """Raises TrainerError for a share out of range."""
        for name in ("near_duplicates", "validation"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainerError(f"--{name.replace('_', '-')} {getattr(self, name):g}: give a share from 0 to 1")


class RowFilter:
    """Decides for each row whether it is dropped."""

    def __init__(self, filters: Filters) -> None:
        self.filters = filters
        self._ids: set[str] = set()
        self._indexes: dict[str, Any] = {}
        self._sketches: list[Any] = []

    def drop_reason(self, row: Row) -> str | None:
        """Return why a row is dropped, or None if it is kept."""
        filters, scores = self.filters, json.loads(row["scores"])
        if row["id"] in self._ids:
            return "the same record of the same run twice"
        self._ids.add(row["id"])
        if row["kind"] == "step":
            length = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            if row["chosen_ids"] == row["rejected_ids"]:
                return "chosen and rejected are the same"
            if row["margin"] <= filters.min_margin:
                return f"margin is not above {filters.min_margin:g}"
        else:
            length = len(row.get("input_ids", ()))  # a vision row has none: its processor makes them
            if 1 not in row.get("loss_mask", (1,)):
                return "nothing to learn"
            if filters.min_score is not None and scores.get("score", float("-inf")) < filters.min_score:
                return f"score below {filters.min_score:g}"
        if length > filters.max_length:
            return f"longer than {filters.max_length} tokens"
        return "near-duplicate" if filters.near_duplicates < 1 and self._is_near_duplicate(row) else None

    def _is_near_duplicate(self, row: Row) -> bool:
        """Whether an earlier text is as similar as --near-duplicates.

        Only longer sft rows are compared across inputs: a judge may give two inputs the same answer, and "true", a name
        or a number answers many questions.
        """
        from datasketch import MinHash, MinHashLSH

        limit = self.filters.near_duplicates
        text = " ".join((row["text"] + row.get("rejected", "")).split())
        prefix = "" if row["kind"] in COMPOSED and len(text) >= SHORT else row["input"]
        if row["kind"] == "step":  # the same decision after another prefix is a different pair
            prefix += hashlib.sha256(row["prompt"].encode()).hexdigest()
        sketch = MinHash(num_perm=128)
        sketch.update_batch([(prefix + text[i : i + 5]).encode() for i in range(max(1, len(text) - 4))])
        index = self._indexes.setdefault(row["kind"], MinHashLSH(threshold=limit, num_perm=128))
        if any(sketch.jaccard(self._sketches[near]) >= limit for near in index.query(sketch)):
            return True
        self._sketches.append(sketch)
        index.insert(len(self._sketches) - 1, sketch)
        return False
