"""The classes of step rows: which of a few possible decisions each pair prefers, the score `choice` of its target.

Pairs of one class teach one decision, whatever the context. So their numbers are shown, and can be made equal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.row_files import Row


class ClassBalance:
    """Counts step rows by class. With `balance` it holds them back, to keep as many of each class."""

    def __init__(self, balance: bool) -> None:
        self.balance = balance
        self.counts: Counter[float] = Counter()
        """Rows by class."""
        self.surplus = 0
        """Rows that were left out."""
        self._held: dict[float, list[Row]] = {}

    def choose(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows to write: all, or with `balance` as many of each class as the rarest one has, the first ones.

        Raises TrainerError if there are no classes to balance.
        """
        empty = True
        for row in rows:
            empty = False
            choice = json.loads(row["scores"]).get("choice") if row["kind"] == "step" else None
            if choice is not None:
                self.counts[choice] += 1
            if choice is None or not self.balance:
                yield row
            else:
                self._held.setdefault(choice, []).append(row)
        if self.balance and not empty:
            yield from self._equal_parts()

    def _equal_parts(self) -> list[Row]:
        if len(self._held) < 2:
            only = next(iter(self._held), None)
            found = "none has one" if only is None else f"all {self.counts.total()} are of class {only:g}"
            raise TrainerError(f"--balance needs step rows of two classes (their score `choice`): {found}")
        count = min(map(len, self._held.values()))
        self.surplus = self.counts.total() - count * len(self._held)
        self.counts = Counter(dict.fromkeys(self.counts, count))
        return [row for rows in self._held.values() for row in rows[:count]]
