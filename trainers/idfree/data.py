"""Texts of users: read, cleaned, split per user, and written as split/.

A user is a number from here on. The names are in users.json, which belongs to the simulation and to nothing else.
With times, each user's last texts are the test (the published code cuts all users at one date); without, random ones.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from agentsys.display import show
from agentsys.paths import replace_file
from agentsys.records import BadRecord, read_records
from agentsys.trainers.idfree.options import DataOptions, Task
from agentsys.trainers.idfree.published import read_published
from agentsys.trainers.loading import TrainerError

IntArray = npt.NDArray[np.int64]
PARTS: Final = ("train", "validation", "test")
CHARACTERS_PER_TOKEN: Final = 32
"""A text is cut to so many characters per token of --max-length before it is tokenized: a 10 MB text costs no more."""


@dataclass(frozen=True, slots=True)
class Item:
    """One text of a user. Rows of traces have token ids and a mask of the learned ones."""

    user: str
    text: str
    label: str = ""
    time: float = 0.0
    ids: tuple[int, ...] = ()
    learned: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of one part: indices of texts, classes and users, each (N,). A class unseen in training is -1."""

    text: IntArray
    label: IntArray
    user: IntArray

    def __len__(self) -> int:
        return len(self.text)

    def take(self, rows: Any) -> Examples:
        """The rows of an index or a mask."""
        return Examples(self.text[rows], self.label[rows], self.user[rows])


@dataclass(frozen=True)
class Data:
    """Distinct texts, and the examples of the three parts."""

    texts: list[str]
    tokens: list[tuple[tuple[int, ...], tuple[int, ...]]] | None
    """Ids and learned mask of each text, for rows of traces; None: texts are tokenized."""
    labels: tuple[str, ...]
    users: int
    new_users: IntArray
    """Users without a device, whose texts are all in the test."""
    train: Examples
    validation: Examples
    test: Examples

    @property
    def known_test(self) -> npt.NDArray[np.bool_]:
        """Which test rows are of users with a device."""
        return ~np.isin(self.test.user, self.new_users)


@dataclass
class Notes:
    """Counts of what was left out, and why."""

    counts: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """One line for each reason."""
        return [f"{count:,} texts left out: {reason}" for reason, count in self.counts.items()]


def write_split(options: DataOptions, task: Task, max_length: int, seed: int, folder: Path, users_file: Path) -> None:
    """Write the three parts into `folder`, and the users' names to `users_file`. Raises TrainerError."""
    notes = Notes()
    items, tests = read_items(options, task, max_length, notes)
    items, tests = choose_users(items, tests, options)
    for line in notes.lines():
        show(line)
    names = sorted({item.user for item in (*items, *tests)}, key=lambda name: (len(name), name))
    random = np.random.default_rng(seed)
    number_of = {name: int(number) for name, number in zip(names, random.permutation(len(names)), strict=True)}
    count = round(options.cold * len(names))
    new_users = set(random.permutation(len(names))[:count].tolist())
    parts = split_users(items, tests, number_of, new_users, options, random)
    classes = {item.label for item, _ in parts["train"]} if task == "classify" else set()
    labels = sorted(classes, key=_label_key)
    if not parts["train"]:
        raise TrainerError("no texts to train on: give more texts, or lower --test, --validation or --cold")
    if task == "classify" and len(labels) < 2:
        raise TrainerError(
            f"--label {options.label}: all texts have the class {labels[0]!r}: give at least two classes"
        )
    _write_parts(folder, parts, labels)
    info = {"labels": labels, "users": len(names), "new_users": sorted(new_users)}
    (folder / "data.json").write_text(json.dumps(info), encoding="utf-8")
    replace_file(users_file, json.dumps({str(n): name for name, n in number_of.items()}, ensure_ascii=False).encode())
    users_file.chmod(0o600)
    sizes = ", ".join(f"{len(parts[part]):,} {part}" for part in PARTS)
    show(f"{len(names):,} users ({count:,} of them new at the test), {len(labels):,} classes; texts: {sizes}")


def read_items(options: DataOptions, task: Task, max_length: int, notes: Notes) -> tuple[list[Item], list[Item]]:
    """All usable texts, and those that are for the test whatever the split. Raises TrainerError if there are none."""
    if options.rows:
        return _read_rows(options.rows, task)
    if options.format == "table":
        records = _read_table(options, task, notes)
    else:
        records = read_published(options.format, options.data)
    items = []
    for record in records:
        item = _to_item(record, options, task, notes)
        if item:
            limit = CHARACTERS_PER_TOKEN * max_length
            items.append(item if len(item.text) <= limit else Item(item.user, item.text[:limit], item.label, item.time))
    if not items:
        reasons = "; ".join(notes.lines()) or "it is empty"
        raise TrainerError(f"--data {options.data}: no usable texts: {reasons}")
    return items, []


def _read_table(options: DataOptions, task: Task, notes: Notes) -> Iterator[dict[str, Any]]:
    fields = {"text": options.text, "user": options.user}
    fields |= {"label": options.label} if task == "classify" else {}
    fields |= {"time": options.time} if options.time else {}
    first = True
    for record in read_records(options.data, fields=fields):
        if isinstance(record, BadRecord):
            notes.counts[record.reason] += 1
            continue
        if first and (missing := [name for name in fields if name not in record.data]):
            option, column = f"--{missing[0]}", fields[missing[0]]
            plain = next((one.data for one in read_records(options.data) if not isinstance(one, BadRecord)), {})
            raise TrainerError(f"{option} {column}: {options.data} has no such column; it has {', '.join(plain)}")
        first = False
        yield record.data


def _to_item(record: dict[str, Any], options: DataOptions, task: Task, notes: Notes) -> Item | None:
    """A text with its user, class and time; None for one that cannot be used, which is counted."""
    values = {name: _plain(record.get(name)) for name in ("user", "text", "label", "time")}
    needed = ["user", "text", *(["label"] if task == "classify" else []), *(["time"] if options.time else [])]
    for name in needed:
        if not values[name].strip():
            notes.counts[f"no {name}"] += 1
            return None
    label = values["label"]
    if task == "classify" and options.bounds:
        number = _number(label)
        if not math.isfinite(number):
            notes.counts[f"the class {label!r} is no number, which --bins needs"] += 1
            return None
        label = bin_name(options.bounds, number)
    time = _time(values["time"]) if values["time"] else 0.0
    if not math.isfinite(time):
        notes.counts["the time is neither a number nor ISO 8601"] += 1
        return None
    return Item(values["user"], values["text"], label if task == "classify" else "", time)


def _plain(value: Any) -> str:
    """A value as text: 3.0 is 3, and NaN is missing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    text = "" if value is None else str(value)
    return "" if text.strip().lower() == "nan" else text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _time(text: str) -> float:
    number = _number(text)
    if math.isfinite(number):
        return number
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def bin_name(bounds: Sequence[float], value: float) -> str:
    """The class of a number: `<= 3`, `3 to 4` (above 3, up to 4), `> 4`."""
    index = int(np.searchsorted(bounds, value, side="left"))
    if index == 0:
        return f"<= {bounds[0]:g}"
    return f"> {bounds[-1]:g}" if index == len(bounds) else f"{bounds[index - 1]:g} to {bounds[index]:g}"


def _label_key(label: str) -> tuple[float, str]:
    """Bins and numbers in their order, then names."""
    if label.startswith("<= "):
        return -math.inf, label
    number = _number(label.removeprefix("> ").split(" to ")[0])
    return (number if math.isfinite(number) else math.inf), label


_USER_ADVICE: Final = "collect records with a field `user`, then make the rows again (agentsys rows)"


def _read_rows(path: Path, task: Task) -> tuple[list[Item], list[Item]]:
    """Rows of traces: those of train.parquet, and those of validation.parquet, which are the test."""
    from agentsys.trainers.row_files import TEXT_COLUMNS, Needs, read_rows

    if task != "generate":
        raise TrainerError("--rows needs --task generate")
    splits = read_rows(path, Needs("idfree-pl", TEXT_COLUMNS, ("sft", "role")))
    parts: list[list[Item]] = []
    for name in ("train", "validation"):
        rows = splits.get(name)
        if rows is not None and "user" not in rows.column_names:
            raise TrainerError(f"--rows {path}: the rows have no user; {_USER_ADVICE}")
        known = [row for row in rows or () if row["user"] is not None]
        parts.append(
            [Item(str(r["user"]), r["text"], ids=tuple(r["input_ids"]), learned=tuple(r["loss_mask"])) for r in known]
        )
    if not parts[0]:
        raise TrainerError(f"--rows {path}: no row has a user; {_USER_ADVICE}")
    return parts[0], parts[1]


def choose_users(items: list[Item], tests: list[Item], options: DataOptions) -> tuple[list[Item], list[Item]]:
    """The texts of users with --min-texts, of the --max-users with the most. Raises TrainerError if none is left."""
    counts = Counter(item.user for item in items)
    users = [user for user, count in counts.most_common() if count >= options.min_texts]
    kept = set(users[: options.max_users or None])
    if not kept:
        most = max(counts.values())
        raise TrainerError(f"--min-texts {options.min_texts}: no user has as many texts; the most is {most}")
    return [item for item in items if item.user in kept], [item for item in tests if item.user in kept]


Parts = dict[str, list[tuple[Item, int]]]
"""Items of each part with the number of their user."""


def split_users(
    items: Iterable[Item],
    tests: Sequence[Item],
    number_of: dict[str, int],
    new_users: set[int],
    options: DataOptions,
    random: np.random.Generator,
) -> Parts:
    """The three parts; each user's last texts by time, or random ones, are the test. A user's first text is trained on.

    With `tests` those are the test. All texts of a new user are in the test.
    """
    parts: Parts = {part: [] for part in PARTS}
    by_user: dict[int, list[Item]] = {number: [] for number in sorted(number_of.values())}
    for item in items:
        by_user[number_of[item.user]].append(item)
    for number, own in by_user.items():
        order = random.permutation(len(own))
        ordered = [own[index] for index in order]
        if options.time or options.format != "table":
            ordered.sort(key=lambda item: item.time)
        test = 0 if tests else int(options.test * len(own) + 0.5)
        validation = int(options.validation * len(own) + 0.5)
        train = max(1, len(own) - test - validation)
        bounds = (0, train, train + validation, len(own))
        for part, start, end in zip(PARTS, bounds, bounds[1:], strict=False):
            parts["test" if number in new_users else part] += [(item, number) for item in ordered[start:end]]
    parts["test"] += [(item, number_of[item.user]) for item in tests]
    return parts


def _write_parts(folder: Path, parts: Parts, labels: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = {label: number for number, label in enumerate(labels)}
    for part, rows in parts.items():
        columns: dict[str, Any] = {
            "user": [number for _, number in rows],
            "text": [item.text for item, _ in rows],
            "label": [index.get(item.label, -1) if labels else 0 for item, _ in rows],
        }
        if any(item.ids for item, _ in rows):
            columns |= {"ids": [item.ids for item, _ in rows], "learned": [item.learned for item, _ in rows]}
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")


def read_split(folder: Path) -> Data:
    """The parts that `write_split` wrote."""
    import pyarrow.parquet as pq

    tables = {part: pq.read_table(folder / f"{part}.parquet") for part in PARTS}
    info = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    has_ids = "ids" in tables["train"].column_names
    keys: dict[Any, int] = {}
    examples = {}
    for part, table in tables.items():
        rows = table.to_pydict()
        if has_ids:
            content: list[Any] = [
                (text, tuple(ids), tuple(learned))
                for text, ids, learned in zip(rows["text"], rows.get("ids", []), rows.get("learned", []), strict=False)
            ]
        else:
            content = rows["text"]
        text = np.array([keys.setdefault(one, len(keys)) for one in content], np.int64)
        examples[part] = Examples(text, np.array(rows["label"], np.int64), np.array(rows["user"], np.int64))
    known = examples["validation"].label >= 0
    return Data(
        texts=[key[0] if has_ids else key for key in keys],
        tokens=[(key[1], key[2]) for key in keys] if has_ids else None,
        labels=tuple(info["labels"]),
        users=info["users"],
        new_users=np.array(info["new_users"], np.int64),
        train=examples["train"],
        validation=examples["validation"].take(known),
        test=examples["test"],
    )
