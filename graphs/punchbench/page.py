"""Questions for people: one HTML file without a server, and the agreement of the files that they save (section 3.4)."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.graphs.punchbench.tasks import LETTERS, YES_NO, Item, seeded
from agentsys.metrics.agreement import fleiss_kappa, gwet_ac1
from agentsys.records import InputError

CANNOT: Final = "CBA"
"""The answer "cannot be answered"."""
_QUESTIONS: Final = {
    ("perception", "yes_no"): "Do the picture and this caption together have a punchline?",
    ("perception", "matching"): "Which caption makes a punchline with the picture?",
    ("perception", "multi_option"): "Which statement describes the picture and this caption correctly?",
    ("reasoning", "yes_no"): "Does the last sentence explain why the picture and the caption are funny together?",
    ("reasoning", "matching"): "Which sentence explains why the picture and the caption are funny together?",
}


def sample_items(items: Sequence[Item], per_file: int, seed: int) -> list[Item]:
    """At most `per_file` items of each file with options, drawn and mixed with the seed."""
    files: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        if (item.task, item.format) in _QUESTIONS:
            files[item.task, item.format].append(item)
    rng = seeded("page", str(seed))
    drawn = [item for of_file in files.values() for item in rng.sample(of_file, min(per_file, len(of_file)))]
    rng.shuffle(drawn)
    return drawn


def write_page(items: Sequence[Item], folder: Path, file: Path) -> str:
    """Write the page with its pictures, which are in the folder of the task files. Returns the page's digest.

    Raises InputError without items, and for a picture that is not there.
    """
    if not items:
        raise InputError(f"{folder}: there are no questions with options; run collect punchbench over more pairs")
    digest = hashlib.sha256("\n".join(item.id for item in items).encode()).hexdigest()[:12]
    data = {"digest": digest, "items": [_entry(item, folder) for item in items]}
    text = orjson.dumps(data).decode().replace("<", "\\u003c")  # no text of a record ends the script
    page = resources.files("agentsys.graphs.punchbench").joinpath("page.html").read_text("utf-8")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page.replace("/*DATA*/", text), encoding="utf-8")
    return digest


def _entry(item: Item, folder: Path) -> dict[str, Any]:
    answers = YES_NO if item.format == "yes_no" else LETTERS
    path = folder / item.image
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}; the task files need their folder of pictures") from None
    kind = "png" if path.suffix == ".png" else "jpeg"
    return {
        "id": item.id,
        "picture": f"data:image/{kind};base64,{content}",
        "caption": item.caption,
        "sentence": item.sentence,
        "question": _QUESTIONS[item.task, item.format],
        "choices": list(zip(answers, item.options or YES_NO, strict=False)),
    }


def read_annotations(files: Sequence[Path]) -> dict[str, dict[str, str]]:
    """The answers of each file by item. Raises InputError for a file of something else, or of another page."""
    pages: dict[str, Path] = {}
    annotations: dict[str, dict[str, str]] = {}
    for file in files:
        answers: dict[str, str] = {}
        try:
            for line in file.read_bytes().splitlines():
                entry = orjson.loads(line)
                pages.setdefault(str(entry["page"]), file)
                answers[str(entry["id"])] = str(entry["answer"])
        except OSError as err:
            raise InputError(f"{file}: {err.strerror}; name a file that the page saved") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file}: not a file that the page saved") from None
        if len(pages) > 1:
            raise InputError(f"{file} is of another page than {next(iter(pages.values()))}; compare files of one page")
        if not answers:
            raise InputError(f"{file}: no answers; save the page again")
        annotations[str(file)] = answers
    return annotations


def measure_agreement(annotations: Mapping[str, Mapping[str, str]], items: Mapping[str, Item]) -> list[dict[str, Any]]:
    """For each task file: items, accuracy by majority, answers CBA, Fleiss' kappa and Gwet's AC1.

    Items that all annotators answered count for the two coefficients; they are None with one annotator. Raises
    InputError if none of the items is in the files.
    """
    files: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for name in sorted({name for answers in annotations.values() for name in answers}):
        if name in items:
            files[items[name].task, items[name].format].append(items[name])
    if not files:
        raise InputError("none of the annotated questions is in the task files; name the folder that the page is of")
    return [_file_agreement(file, of_file, annotations) for file, of_file in sorted(files.items())]


def _file_agreement(
    file: tuple[str, str], items: Sequence[Item], annotations: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    answers = [[given[item.id] for given in annotations.values() if item.id in given] for item in items]
    categories = sorted({answer for of_item in answers for answer in of_item} | {item.answer for item in items})
    complete = [row for row in answers if len(row) == len(annotations)]
    counts = [[row.count(category) for category in categories] for row in complete]
    is_compared = len(annotations) > 1 and bool(counts)
    majority = [Counter(row).most_common(1)[0][0] for row in answers]
    return {
        "task": file[0],
        "format": file[1],
        "items": len(items),
        "accuracy": 100 * sum(a == item.answer for a, item in zip(majority, items, strict=True)) / len(items),
        "cannot_be_answered": sum(row.count(CANNOT) for row in answers),
        "fleiss_kappa": fleiss_kappa(counts) if is_compared else None,
        "gwet_ac1": gwet_ac1(counts) if is_compared else None,
        "complete": len(complete),
    }
