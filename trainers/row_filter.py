"""Filtering of rows: why a row is dropped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from agentsys.commands import knob
from agentsys.targets import COMPOSED
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.row_files import Row
from agentsys.trainers.row_where import parse_condition

SHORT: Final = 32
"""Characters below which a learned text counts as an answer that many inputs may share."""


@dataclass(frozen=True)
class Filters:
    """Which rows are kept, and how they are split."""

    panel: ClassVar[str] = "Filter and split"
    min_score: float | None = knob(None, "drop sft and role targets with a lower score (on the system's scale)")
    min_margin: float = knob(0.0, "drop step targets whose scores differ by this or less")
    where: str = knob(
        "", "keep rows for which an expression over their scores is true: 'rejected_tried >= 4 and chosen_low > 0.3'"
    )
    per_input: int = knob(0, "keep at most this many step rows per input, those with the largest margins; 0: all")
    balance: bool = knob(False, "keep as many step rows of each class, which is their score `choice`")
    max_length: int = knob(4096, "drop rows longer than this, in tokens")
    near_duplicates: float = knob(
        0.9, "drop a text this similar to an earlier one (Jaccard index of 5-grams, 0-1); 1 keeps all"
    )
    validation: float = knob(
        0.1, "share of the inputs used for validation, 0-1; of few inputs at least one, unless it is 0"
    )
    seed: int = knob(0, "seed of the split")

    def __post_init__(self) -> None:
        """Raises TrainerError for a share out of range, a negative number, and an unusable expression."""
        if self.where:
            parse_condition(self.where)
        if self.per_input < 0:
            raise TrainerError(f"--per-input {self.per_input}: give the number of step rows to keep, or 0 for all")
        for name in ("near_duplicates", "validation"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainerError(f"--{name.replace('_', '-')} {getattr(self, name):g}: give a share from 0 to 1")


class RowFilter:
    """Decides for each row whether it is dropped."""

    def __init__(self, filters: Filters) -> None:
        self.filters = filters
        self._condition = parse_condition(filters.where) if filters.where else None
        self._per_input: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._indexes: dict[str, Any] = {}
        self._sketches: list[Any] = []

    def drop_reason(self, row: Row) -> str | None:
        """Return why a row is dropped, or None if it is kept."""
        filters, scores = self.filters, json.loads(row["scores"])
        if row["id"] in self._ids:
            return "the same record of the same run twice"
        self._ids.add(row["id"])
        check = {"step": self._pair_reason, "prm": self._solution_reason}.get(row["kind"], self._text_reason)
        if reason := check(row, scores):
            return reason
        if self._condition and (reason := self._condition.drop_reason({**scores, "kind": row["kind"]})):
            return reason
        if _length_of(row) > filters.max_length:
            return f"longer than {filters.max_length} tokens"
        # Solutions of one tree share their beginnings, but each has labels that no other one has.
        if filters.near_duplicates < 1 and row["kind"] != "prm" and self._is_near_duplicate(row):
            return "near-duplicate"
        return self._surplus_reason(row)

    def _solution_reason(self, row: Row, scores: Mapping[str, float]) -> str | None:
        return None if row["step_ends"] else "nothing to learn"

    def _pair_reason(self, row: Row, scores: Mapping[str, float]) -> str | None:
        if row["chosen_ids"] == row["rejected_ids"]:
            return "chosen and rejected are the same"
        limit = self.filters.min_margin
        return None if row["margin"] > limit else f"margin is not above {limit:g}"

    def _text_reason(self, row: Row, scores: Mapping[str, float]) -> str | None:
        if 1 not in row.get("loss_mask", (1,)):  # a vision row has none: its processor makes its ids
            return "nothing to learn"
        limit = self.filters.min_score
        return f"score below {limit:g}" if limit is not None and scores.get("score", float("-inf")) < limit else None

    def _surplus_reason(self, row: Row) -> str | None:
        """Why a row that is good in itself is dropped: its input has --per-input pairs. Counts the row otherwise."""
        limit = self.filters.per_input
        if row["kind"] != "step" or not limit:
            return None
        if self._per_input[row["input"]] >= limit:
            return f"more than {limit} pairs of one input"
        self._per_input[row["input"]] += 1
        return None

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


def _length_of(row: Row) -> int:
    """The tokens of a row; of a pair those of its prefix and its longer side."""
    if row["kind"] == "step":
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    return len(row.get("input_ids", ()))
