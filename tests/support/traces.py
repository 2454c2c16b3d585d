"""Traces with hand-made calls, targets and segments, as an engine in token mode would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentsys.traces import Call, Segment, Target, Trace, dump
from agentsys.trainers.rows import rows_of
from agentsys.trainers.tokenize_rows import RowTokenizer
from tests.support.tiny import make_tokenizer

TOKENIZER = make_tokenizer()

END = TOKENIZER.eos_token_id

ASKED = [{"role": "user", "content": "Translate: the kettle sang"}]


def encode_plain(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def encode_special(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False).input_ids)


def make_call(key: str, text: str, *, ended: bool = True, **changes: Any) -> Call:
    """A call as an engine in token mode would write it."""
    prompt = (
        encode_special("<|im_start|>user\n")
        + encode_plain(ASKED[0]["content"])
        + encode_special("<|im_end|>\n<|im_start|>assistant\n")
    )
    values: dict[str, Any] = {
        "key": key,
        "role": key.partition("/")[0],
        "prompt_sha256": "ab",
        "model": "teacher",
        "revision": "r1",
        "mode": "token",
        "sampling": {"temperature": 1.0},
        "seed": 7,
        "schema_sha256": None,
        "messages": ASKED,
        "text": text,
        "finish": "stop" if ended else "length",
        "prompt_tokens": len(prompt),
        "completion_tokens": 1,
        "prompt_ids": prompt,
        "ids": encode_plain(text) + ([END] if ended else []),
        "stop_ids": int(ended),
    }
    return Call(**values | changes)


def make_trace(name: str, calls: list[Call], targets: list[Target], **changes: Any) -> Trace:
    values: dict[str, Any] = {
        "id": name,
        "system": "drt",
        "run": "f00",
        "outcome": "kept",
        "reason": None,
        "source": f"a.jsonl:{name}",
        "input": {"text": f"sentence {name}"},
        "result": {},
        "targets": targets,
        "calls": calls,
    }
    return Trace(**values | changes)


def prompt_of(key: str) -> Segment:
    return Segment("user", False, prompt=key)


def reply_of(key: str) -> Segment:
    return Segment("assistant", True, call=key)


def sft_target(prompt: str, *pieces: tuple[str, bool]) -> Target:
    answer = [Segment("assistant", learned, text=text) for text, learned in pieces]
    return Target("sft", (Segment("user", False, text=prompt), *answer), scores={"score": 80.0})


def step_target(chosen: str, rejected: str, margin: float = 10.0) -> Target:
    return Target(
        "step",
        (prompt_of(rejected), reply_of(chosen)),
        (prompt_of(rejected), reply_of(rejected)),
        scores={"margin": margin},
    )


def run_folder(folder: Path, *traces: Trace) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traces-00000.jsonl").write_bytes(b"".join(dump(t) for t in traces))
    return folder


def step_rows(count: int) -> list[dict[str, Any]]:
    """Rows of pairs inside an answer: neither the parent step nor its two children end the turn."""
    rows = []
    for i in range(count):
        parent = make_call("root", f"First, number {i}.\n", ended=False)
        good = make_call("good", f"so it is {i} and well", ended=False)
        bad = make_call("bad", f"who knows {i}", ended=False)
        pair = Target(
            "step",
            (prompt_of("root"), reply_of("root"), reply_of("good")),
            (prompt_of("root"), reply_of("root"), reply_of("bad")),
            scores={"margin": 1.0},
        )
        rows += rows_of(make_trace(str(i), [parent, good, bad], [pair]), RowTokenizer(TOKENIZER))
    return rows
