"""Readers of the data that the paper names, as its files are published.

Each yields mappings with user, text, label and time, as a table has them after `--user`, `--text` and so on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from agentsys.records import BadRecord, read_records
from agentsys.trainers.loading import TrainerError

_SENTIMENT140_DATE: Final = "%a %b %d %H:%M:%S %Y"
_LEAF_MARKS: Final = frozenset({"<PAD>", "<BOS>", "<EOS>"})


def read_published(name: str, path: str) -> Iterator[dict[str, Any]]:
    """The texts of a published file. Raises TrainerError for a file that is not in its format."""
    if not Path(path).exists():
        raise TrainerError(f"--data {path}: no such file")
    readers = {"sentiment140": read_sentiment140, "amazon": read_amazon, "reddit": read_reddit}
    return readers[name](path)


def read_sentiment140(path: str) -> Iterator[dict[str, Any]]:
    """training.1600000.processed.noemoticon.csv: Latin-1, no header; polarity, id, date, query, user, text.

    Polarity 0 is negative and 4 positive; the time zone of the dates (PDT) is the same in all rows and left out.
    """
    with Path(path).open(encoding="latin-1", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            try:
                polarity, _, date, _, user, text = row
                words = date.split()
                time = datetime.strptime(" ".join([*words[:4], words[-1]]), _SENTIMENT140_DATE).timestamp()
            except (ValueError, IndexError):
                raise TrainerError(f"--format sentiment140: line {number} of {path} is not in that format") from None
            yield {"user": user, "text": text, "label": polarity, "time": time}


def read_amazon(path: str) -> Iterator[dict[str, Any]]:
    """Amazon reviews as JSON lines, of 2023 (user_id, rating, timestamp) or of 2014 and 2018 (reviewerID, overall).

    Classes as in the released code: rating up to 3, 4, and 5.
    """
    for record in read_records(path):
        if isinstance(record, BadRecord):
            raise TrainerError(f"--format amazon: {record.source}: {record.reason}")
        row = record.data
        try:
            new = "user_id" in row
            rating = float(row["rating" if new else "overall"])
            yield {
                "user": row["user_id" if new else "reviewerID"],
                "text": row.get("text" if new else "reviewText"),
                "label": "<= 3" if rating <= 3 else f"{rating:g}",
                "time": row["timestamp" if new else "unixReviewTime"],
            }
        except (KeyError, TypeError, ValueError):
            raise TrainerError(f"--format amazon: {record.source} has no user, rating or time of that format") from None


def read_reddit(path: str) -> Iterator[dict[str, Any]]:
    """LEAF's Reddit: a JSON file, or a folder of them, with `user_data`: per user x, the chunks of tokens of each text.

    LEAF has no times: the order of a user's texts in the file stands for them.
    """
    place = Path(path)
    for file in sorted(place.glob("*.json")) if place.is_dir() else [place]:
        try:
            users = json.loads(file.read_bytes())["user_data"]
            for user, data in users.items():
                for number, chunks in enumerate(data["x"]):
                    words = [word for chunk in chunks for word in chunk if word not in _LEAF_MARKS]
                    yield {"user": user, "text": " ".join(words), "label": "", "time": float(number)}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise TrainerError(f"--format reddit: {file} is no data file of LEAF") from None
