"""The six task files of PunchBench from the pairs of a run (section 3.3, table 1).

| task | format | question | built from |
|---|---|---|---|
| perception | yes_no | does the pair have a punchline | P^x, L^x |
| perception | matching | which caption makes the punchline with the picture | C^x with a punchline, C^d |
| perception | multi_option | which statement describes the pair | the optioner's four statements |
| reasoning | yes_no | does the sentence explain the punchline | R^a or R^d, for P^o and P^s |
| reasoning | matching | which sentence explains it | R^a, R^d |
| reasoning | generation | explain it | R^a as reference |

Yes and No are balanced: of the two reasoning items of a pair one has R^a and one R^d, and what remains of a surplus is
dropped. Which ones, and the order of options, follow from a hash of the record's id, so that a second run gives the
same files.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from agentsys.collect.pictures import FOLDER as IMAGES
from agentsys.graphs.punchbench.state import CaptionType, captions_of
from agentsys.graphs.punchbench.system import without_faulty
from agentsys.paths import link_file
from agentsys.records import InputError
from agentsys.traces import Trace

Task = Literal["perception", "reasoning"]
Format = Literal["yes_no", "matching", "multi_option", "generation"]
FILES: Final[tuple[tuple[Task, Format], ...]] = (
    ("perception", "yes_no"),
    ("perception", "matching"),
    ("perception", "multi_option"),
    ("reasoning", "yes_no"),
    ("reasoning", "matching"),
    ("reasoning", "generation"),
)
"""The tasks and formats in the paper's order, simple to complex."""
LETTERS: Final = "ABCD"
YES_NO: Final = ("Yes", "No")
CHANCE: Final[Mapping[Format, float]] = {"yes_no": 0.5, "matching": 0.5, "multi_option": 0.25}
"""The accuracy of guessing."""


@dataclass(frozen=True, slots=True)
class Item:
    """A question on a pair P_i^x.

    `caption` is "" where captions are the options; `sentence` is that of a reasoning Yes/No question. `answer` is Yes
    or No, the letter of an option, or a reference text; "" where the gold answers are withheld.
    """

    id: str
    pair: str
    caption_type: CaptionType
    task: Task
    format: Format
    image: str
    caption: str
    sentence: str
    options: list[str]
    answer: str
    label: int | None = None
    domain: str = ""


def file_name(task: Task, format: Format) -> str:
    """The name of a task file."""
    return f"{task}_{format}.jsonl"


def seeded(*parts: str) -> random.Random:
    """Random numbers that depend on the parts alone."""
    return random.Random(hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).digest())


def make_items(pairs: Mapping[str, Mapping[str, Any]]) -> dict[tuple[Task, Format], list[Item]]:
    """The items of each task file; `pairs` are the results of the builder by the id of their record."""
    items: dict[tuple[Task, Format], list[Item]] = {file: [] for file in FILES}
    for name in sorted(pairs):
        for item in _items_of(name, without_faulty(pairs[name])):
            items[item.task, item.format].append(item)
    for task in ("perception", "reasoning"):
        items[task, "yes_no"] = balance(items[task, "yes_no"])
    return items


def balance(items: Sequence[Item]) -> list[Item]:
    """As many items with the answer Yes as with No; the surplus is dropped in the order of a hash of the ids."""
    by_answer = {answer: [item for item in items if item.answer == answer] for answer in YES_NO}
    count = min(map(len, by_answer.values()))
    kept = {item.id for group in by_answer.values() for item in sorted(group, key=_hash)[:count]}
    return [item for item in items if item.id in kept]


def _hash(item: Item) -> str:
    return hashlib.sha256(item.id.encode("utf-8", "surrogatepass")).hexdigest()


def _items_of(name: str, pair: Mapping[str, Any]) -> Iterator[Item]:
    image = f"{IMAGES}/{pair['image']['sha256']}"
    reasoning, distractor_reasoning = pair.get("reasoning_sentence") or "", pair.get("distractor_sentence") or ""
    for kind, (caption, label) in captions_of(pair).items():
        common = {"pair": name, "caption_type": kind, "image": image, "label": label}
        common["domain"] = str(pair.get("domain") or "")

        def item(task: Task, format: Format, common: Mapping[str, Any] = common, **fields: Any) -> Item:
            number = f"{common['pair']}/{common['caption_type']}/{task}/{format}"
            texts: dict[str, Any] = {"caption": "", "sentence": "", "options": []}
            return Item(**{**common, **texts, **fields}, id=number, task=task, format=format)

        yield item("perception", "yes_no", caption=caption, answer=YES_NO[1 - label])
        if label and pair.get("distractor_caption"):
            options, answer = shuffle_options(f"{name}/{kind}/captions", [caption, pair["distractor_caption"]])
            yield item("perception", "matching", options=options, answer=answer)
        if statements := (pair.get("options") or {}).get(kind):
            options, answer = shuffle_options(
                f"{name}/{kind}/statements", [statements["correct"], *statements["wrong"]]
            )
            yield item("perception", "multi_option", caption=caption, options=options, answer=answer)
        if not label or kind == "a" or not reasoning:
            continue
        if distractor_reasoning:
            is_right = (seeded(f"{name}/sentence").random() < 0.5) == (kind == "o")  # one of two captions has R^a
            sentence = reasoning if is_right else distractor_reasoning
            yield item("reasoning", "yes_no", caption=caption, sentence=sentence, answer=YES_NO[not is_right])
            options, answer = shuffle_options(f"{name}/{kind}/sentences", [reasoning, distractor_reasoning])
            yield item("reasoning", "matching", caption=caption, options=options, answer=answer)
        yield item("reasoning", "generation", caption=caption, answer=reasoning)


def shuffle_options(seed: str, options: Sequence[str]) -> tuple[list[str], str]:
    """The options in an order that the seed determines, and the letter of the first of the given ones."""
    order = list(range(len(options)))
    seeded(seed).shuffle(order)
    return [options[i] for i in order], LETTERS[order.index(0)]


def read_pairs(traces: Iterable[Trace]) -> dict[str, dict[str, Any]]:
    """The results of the kept records of a builder's run, by the record's id. Raises InputError for another run."""
    pairs: dict[str, dict[str, Any]] = {}
    for trace in traces:
        if trace.system != "punchbench":
            raise InputError(f"the run is of {trace.system}, not of punchbench; name the --out of collect punchbench")
        if trace.outcome == "kept" and trace.result:
            pairs[trace.id] = trace.result
    return pairs


def write_tasks(items: Mapping[tuple[Task, Format], Sequence[Item]], run: Path, out: Path) -> None:
    """Write the six files, and beside them the pictures, linked or copied from the run's folder."""
    out.mkdir(parents=True, exist_ok=True)
    files = {file.stem: file for file in (run / IMAGES).glob("*.*")}
    for (task, format), of_file in items.items():
        with (out / file_name(task, format)).open("wb") as lines:
            for item in of_file:
                source = files[item.image.rpartition("/")[2]]
                link_file(source, out / IMAGES / source.name)
                line = {**asdict(item), "image": f"{IMAGES}/{source.name}"}
                lines.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def count_answers(items: Sequence[Item]) -> dict[str, int]:
    """How often each answer is correct; empty for references."""
    if items and items[0].format == "generation":
        return {}
    return dict(sorted(Counter(item.answer for item in items).items()))


def read_items(folder: Path) -> list[Item]:
    """All items of a folder of task files. Raises InputError for a folder without them, and for a damaged line."""
    paths = [folder / file_name(*file) for file in FILES]
    if not any(path.is_file() for path in paths):
        raise InputError(f"{folder}: no task files; name the folder benchmark that collect punchbench writes")
    items: list[Item] = []
    for path in paths:
        for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
            try:
                items.append(Item(**json.loads(line)))
            except (ValueError, TypeError) as err:
                raise InputError(f"{path}:{number}: not a question of PunchBench ({err})") from None
    return items
