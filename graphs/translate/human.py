"""Human evaluation: a blinded sheet of translations to fill in, and the scores of the filled ones.

Best-Worst Scaling (Kiritchenko and Mohammad, 2017; DRT's human evaluation): an annotator names the best and the worst
translation of each item, and a system's score is the share of its items where it is the best minus the share where it
is the worst, from -1 to 1. Each translation may also get a score from 0 to 100. The systems of an item are shuffled;
the key has their order.
"""

from __future__ import annotations

import csv
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.evaluation.report import mean_score
from agentsys.metrics.agreement import fleiss_kappa
from agentsys.metrics.corpus import ratio_statistic, with_interval
from agentsys.records import InputError

SHEET: Final = "sheet.csv"
KEY: Final = "key.csv"
_FORMULA: Final = ("=", "+", "-", "@")
"""A cell that begins so is a formula to a spreadsheet, unless a quotation mark precedes it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a sheet: a source and its translations by system, in the order of the sheet."""

    name: str
    id: str
    source: str
    translations: Mapping[str, str]


@dataclass(slots=True)
class Annotation:
    """What one annotator says of an item: for each criterion the best and the worst system, and scores by system."""

    item: str
    choices: dict[str, tuple[str, str]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


def read_items(evaluation: Path, limit: int | None, seed: int) -> list[Item]:
    """The items of an evaluation's translations.jsonl that all systems translated, drawn and shuffled with the seed.

    Raises InputError for a folder without translations, and for fewer than two systems.
    """
    file = evaluation / "translations.jsonl" if evaluation.is_dir() else evaluation
    try:
        content = file.read_bytes()
        lines = [orjson.loads(line) for line in content.splitlines()]
        rows = [(line["id"], line["source"], _translations(line["systems"])) for line in lines]
    except OSError as err:
        raise InputError(
            f"--evaluation {file}: {err.strerror}; name the --out of agentsys evaluate translate"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--evaluation {file}: not the translations.jsonl of agentsys evaluate translate") from None
    rows = [row for row in rows if len(row[2]) > 1 and all(row[2].values())]
    if not rows:
        raise InputError(f"--evaluation {file}: no sentence with translations of two systems or more; compare several")
    rng = random.Random(seed)
    rng.shuffle(rows)
    digest = hashlib.sha256(content + str(seed).encode()).hexdigest()[:4]
    items = []
    for number, (name, source, translations) in enumerate(rows[:limit], 1):
        order = [*translations.items()]
        rng.shuffle(order)
        items.append(Item(f"{digest}-{number}", name, source, dict(order)))
    return items


def _translations(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: result["translation"] or "" for name, result in systems.items()}


def write_sheet(items: Sequence[Item], criteria: Sequence[str], folder: Path) -> None:
    """Write sheet.csv, which does not name the systems, and key.csv, which does. Raises InputError if they exist."""
    if existing := [name for name in (SHEET, KEY) if (folder / name).exists()]:
        raise InputError(f"--out {folder}: it has a {existing[0]} already; choose another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(1, len(items[0].translations) + 1)
    translations = [f"translation {n}" for n in numbers]
    choices = [f"{end}: {criterion}" for criterion in criteria for end in ("best", "worst")]
    answers = [*choices, *(f"score {n}" for n in numbers), "comment"]
    texts = [(item.name, map(_as_text, (item.source, *item.translations.values()))) for item in items]
    sheet = [[name, *cells, *[""] * len(answers)] for name, cells in texts]
    _write_csv(folder / SHEET, ["item", "source", *translations, *answers], sheet)
    _write_csv(folder / KEY, ["item", "id", *translations], [[i.name, i.id, *i.translations] for i in items])


def _write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A CSV file that spreadsheets open as UTF-8."""
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([header, *rows])


def _as_text(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def read_key(file: Path) -> dict[str, list[str]]:
    """The systems of each item, in the order of the sheet. Raises InputError."""
    rows = _read_csv(file, "--key")
    if not rows or "translation 1" not in rows[0]:
        raise InputError(f"--key {file}: this is no key; name the key.csv that `export` wrote")
    return {row["item"]: [system for name, system in row.items() if name.startswith("translation ")] for row in rows}


def read_sheet(file: Path, key: Mapping[str, Sequence[str]]) -> list[Annotation]:
    """The annotations of a filled sheet; rows without any answer are left out.

    Raises InputError, which names the row, for an unknown item and an answer that is not of the asked form.
    """
    annotations = []
    seen: set[str] = set()
    for number, row in enumerate(_read_csv(file, "sheet"), 2):
        place = f"{file}, row {number}"
        item = row.get("item", "")
        if item not in key:
            raise InputError(f"{place}: item {item!r} is not in the key; give the key.csv of this sheet")
        if item in seen:
            raise InputError(f"{place}: item {item} stands there twice")
        seen.add(item)
        annotation = _read_row(row, item, key[item], place)
        if annotation.choices or annotation.scores:
            annotations.append(annotation)
    if not annotations:
        raise InputError(f"{file}: nothing is filled in; best and worst take the number of a translation")
    return annotations


def _read_row(row: Mapping[str, str], item: str, systems: Sequence[str], place: str) -> Annotation:
    annotation = Annotation(item)
    for column, answer in row.items():
        if column.startswith("best: "):
            criterion = column.removeprefix("best: ")
            other = row.get(f"worst: {criterion}", "")
            if answer or other:
                best, worst = (_number(text, len(systems), f"{place}, {criterion}") for text in (answer, other))
                if best == worst:
                    raise InputError(f"{place}, {criterion}: translation {best} is the best and the worst")
                annotation.choices[criterion] = systems[best - 1], systems[worst - 1]
        elif column.startswith("score ") and answer:
            n = _number(column.removeprefix("score "), len(systems), f"{place}, column {column!r}")
            annotation.scores[systems[n - 1]] = _percent(answer, f"{place}, {column}")
    return annotation


def _number(text: str, highest: int, place: str) -> int:
    """The number of a translation. Raises InputError."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if number not in range(1, highest + 1):
        raise InputError(f"{place}: {text!r} is not the number of a translation, 1 to {highest}")
    return int(number)


def _percent(text: str, place: str) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise InputError(f"{place}: {text!r} is not a score from 0 to 100")
    return value


def _read_csv(file: Path, option: str) -> list[dict[str, str]]:
    """The rows of a CSV file that a spreadsheet saved, with commas, semicolons or tabs. Raises InputError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise InputError(f"{option} {file}: {err.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{option} {file}: not UTF-8 text; save it as CSV in UTF-8") from None
    header = text.partition("\n")[0]
    reader = csv.DictReader(StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    if "item" not in (reader.fieldnames or ()):
        raise InputError(f"{option} {file}: no column 'item'; name a CSV file that `export` wrote")
    return [{name: (cell or "").strip() for name, cell in row.items() if name} for row in reader]


def measure_annotations(sheets: Mapping[str, Sequence[Annotation]], key: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Best-Worst scores and agreement for each criterion, and the mean scores; `sheets` are by annotator."""
    systems = list(dict.fromkeys(sorted(next(iter(key.values())))))
    annotations = [one for of_annotator in sheets.values() for one in of_annotator]
    criteria = dict.fromkeys(name for one in annotations for name in one.choices)
    scores = {name: [one.scores[name] for one in annotations if name in one.scores] for name in systems}
    return {
        "items": len(key),
        "annotators": {name: len(of_annotator) for name, of_annotator in sheets.items()},
        "criteria": {name: _measure_criterion(name, systems, annotations, len(sheets)) for name in criteria},
        "scores": {name: {**mean_score(values), "n": len(values)} for name, values in scores.items() if values},
    }


def _measure_criterion(
    criterion: str, systems: Sequence[str], annotations: Iterable[Annotation], annotators: int
) -> dict[str, Any]:
    by_item: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for annotation in annotations:
        if criterion in annotation.choices:
            by_item[annotation.item].append(annotation.choices[criterion])
    complete = [choices for choices in by_item.values() if len(choices) == annotators]
    return {
        "systems": {name: _best_worst(name, list(by_item.values())) for name in systems},
        "complete_items": len(complete),
        "kappa_best": _kappa([[best for best, _ in choices] for choices in complete], systems),
        "kappa_worst": _kappa([[worst for _, worst in choices] for choices in complete], systems),
    }


def _best_worst(system: str, items: Sequence[Sequence[tuple[str, str]]]) -> dict[str, float]:
    """The shares of best and worst, and their difference with its 95 % bootstrap interval over items."""
    total = sum(map(len, items))
    wins = [sum(best == system for best, _ in choices) for choices in items]
    losses = [sum(worst == system for _, worst in choices) for choices in items]
    net = [(win - loss, len(choices)) for win, loss, choices in zip(wins, losses, items, strict=True)]
    score = with_interval(ratio_statistic(net), len(items))
    shares = {"best": sum(wins) / total, "worst": sum(losses) / total}
    return {**shares, "value": score.value / 100, "low": score.low / 100, "high": score.high / 100, "n": total}


def _kappa(choices: Sequence[Sequence[str]], systems: Sequence[str]) -> float | None:
    """Fleiss' kappa of the choices of all annotators for each item; None for one annotator or no common item."""
    if not choices or len(choices[0]) < 2:
        return None
    return fleiss_kappa([[Counter(of_item)[name] for name in systems] for of_item in choices])
