"""The split of rows into train and validation by their inputs, so that no input is on both sides.

An input's position in a random order decides, whatever its file, run or kind of row. With few inputs that would often
leave no row for validation, or none for training; then as few inputs as possible change sides.
"""

from __future__ import annotations

import hashlib
from typing import Final

from agentsys.trainers.row_files import Row

FEWEST_INPUTS: Final = 3
"""A kind with rows of this many inputs gets a validation row."""

FEW_INPUTS: Final = 200
"""A kind with more inputs than this is not looked at: a share of 5 % leaves one side empty once in 30,000 times."""


class InputSplit:
    """Decides the split of each row, and keeps the inputs of kinds with few of them."""

    def __init__(self, share: float, seed: int) -> None:
        """`share`: the part of the inputs for validation (0-1); 0 and 1 are never changed."""
        self.share, self.seed = share, seed
        self._positions: dict[str, dict[str, float]] = {}

    def split_of(self, row: Row) -> str:
        """`train` or `validation`, from the row's input alone."""
        digest = hashlib.sha256(f"{self.seed}:{row['input']}".encode()).digest()
        position = int.from_bytes(digest[:6]) / 2**48
        inputs = self._positions.setdefault(row["kind"], {})
        if len(inputs) <= FEW_INPUTS:
            inputs[row["input"]] = position
        return "validation" if position < self.share else "train"

    def inputs_to_move(self) -> set[str]:
        """Inputs whose rows of every kind change sides, so that no kind with few inputs lacks one."""
        if not 0 < self.share < 1:
            return set()
        kinds = [inputs for inputs in self._positions.values() if len(inputs) <= FEW_INPUTS]
        first = {name for inputs in kinds for name, position in inputs.items() if position < self.share}
        validation = set(first)
        for inputs in kinds:
            if not inputs.keys() - validation:  # nothing to train on
                validation.discard(max(inputs, key=lambda name: inputs[name]))
        for inputs in kinds:
            if len(inputs) >= FEWEST_INPUTS and not inputs.keys() & validation:
                for name in sorted(inputs, key=lambda name: inputs[name]):
                    if all(other.keys() - validation - {name} for other in kinds):
                        validation.add(name)
                        break
        return first ^ validation
