"""Tables of user, text and rating for IDfree-PL, from the files of two public data sets.

    python benchmarks/idfree_tables.py jester ratings.csv.gz jokes.jsonl > jester.csv
    python benchmarks/idfree_tables.py movielens ratings.csv.gz movies.csv.gz > movielens.csv

Jester: ratings with the columns user, joke and rating; jokes with the fields joke and text. MovieLens: the columns of
the published files. Any of them may be compressed with gzip.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


def open_text(path: Path) -> TextIO:
    """A text file, which may be compressed."""
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def read_jester(ratings: Path, jokes: Path) -> Iterator[dict[str, str]]:
    """A row for each rating of a joke."""
    with open_text(jokes) as file:
        texts = {str(joke["joke"]): joke["text"] for joke in map(json.loads, file)}
    with open_text(ratings) as file:
        for row in csv.DictReader(file):
            yield {"user": row["user"], "joke": texts[row["joke"]], "class": row["rating"]}


def read_movielens(ratings: Path, movies: Path) -> Iterator[dict[str, str]]:
    """A row for each rating of a film: title and genres are the text."""
    with open_text(movies) as file:
        texts = {row["movieId"]: f"{row['title']}, {row['genres']}" for row in csv.DictReader(file)}
    with open_text(ratings) as file:
        for row in csv.DictReader(file):
            text = texts[row["movieId"]]
            yield {"user": row["userId"], "text": text, "label": row["rating"], "time": row["timestamp"]}


READERS = {"jester": read_jester, "movielens": read_movielens}


def main(name: str, ratings: Path, texts: Path) -> None:
    """Write the table to standard output."""
    rows = READERS[name](ratings, texts)
    first = next(rows)
    writer = csv.DictWriter(sys.stdout, list(first), lineterminator="\n")
    writer.writeheader()
    writer.writerow(first)
    writer.writerows(rows)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in READERS:
        sys.exit("usage: idfree_tables.py jester|movielens RATINGS TEXTS")
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
