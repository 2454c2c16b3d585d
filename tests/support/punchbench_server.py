"""Task files of PunchBench with pictures, and a server that looks at each picture that it gets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentsys.graphs.punchbench.tasks import Item, file_name
from tests.support.images import png, received
from tests.support.punchbench import item
from tests.support.servers import Answer, Seen


def items_of(number: int) -> list[Item]:
    image = f"images/{number}.png"
    two, four = ["right one", "wrong one"], ["p q", "r s", "t u", "v w"]
    common: dict[str, Any] = {"image": image}
    return [
        item(number, answer="Yes" if number % 2 else "No", **common),
        item(number, "perception", "matching", options=two, answer="A", caption="", **common),
        item(number, "perception", "multi_option", options=four, answer="B", **common),
        item(number, "reasoning", "yes_no", sentence=f"sentence {number}", answer="Yes", **common),
        item(number, "reasoning", "matching", options=two, answer="A", **common),
        item(number, "reasoning", "generation", answer="reference", **common),
    ]


def write_benchmark(folder: Path, count: int = 3) -> Path:
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        (folder / "images" / f"{number}.png").write_bytes(png(number))
        for one in items_of(number):
            with (folder / file_name(one.task, one.format)).open("a") as file:
                file.write(json.dumps(asdict(one)) + "\n")
    return folder


def plan(seen: Seen) -> Answer:
    """Looks at the picture: its number is in its first pixel; without one, it says Yes and A."""
    if "prompt" in seen.body:  # token mode
        return Answer('{"answer": "Yes"}' if "structured_outputs" in seen.body else "because")
    digests = received(seen.body)
    numbers = {hashlib.sha256(png(n)).hexdigest(): n for n in range(5)}
    assert all(digest in numbers for digest in digests)
    last = seen.body["messages"][-1]["content"]
    question = last if isinstance(last, str) else last[-1]["text"]
    if "same reason" in str(seen.body["messages"][0]["content"]):
        return Answer('{"answer": "Yes"}')
    if "in one sentence" in question:
        return Answer("because")
    if "Yes or No" in question:
        is_odd = bool(digests) and numbers[digests[-1]] % 2 == 1
        return Answer(json.dumps({"answer": "Yes" if is_odd or not digests else "No"}))
    return Answer('{"answer": "A"}')
