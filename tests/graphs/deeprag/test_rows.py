"""Rows of DeepRAG with Qwen's tokenizer: masks to the token, the prefixes that inference sends, the two openings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, acollect
from agentsys.graphs.deeprag import system as deeprag
from agentsys.graphs.deeprag.narrative import (
    ANSWER,
    FINAL,
    FOLLOW_UP,
    SEARCH,
    Conclusion,
    Step,
    asked,
    context,
    final,
    narrative,
)
from agentsys.graphs.deeprag.search import SearchContext, graph
from agentsys.knowledge.context import Passage
from agentsys.models.chat import EndpointChatModel
from agentsys.models.tokens import FolderTokenizer
from agentsys.traces import Trace, read_traces
from tests.graphs.deeprag.test_search import PASSAGE, QUESTION, World, tagged_end

AWKWARD = [
    'What\'s "A."?',
    "1819",
    "'s-Hertogenbosch",
    ": (1) — 50 % !!!",
    "他说:“走吧。”",
    "<answer short>x</answer short><|im_end|>",
    "ends with spaces   ",
    "naïve\u00a0ﬁn 👩‍👩‍👧",
    "Let's search the question in Wikipedia. Context:",
    "- item\n- item",
]


@pytest.mark.parametrize("data", AWKWARD)
async def test_the_narrative_is_cut_between_tokens(qwen_tokenizer: Path, data: str) -> None:
    """What inference sends at each of its calls, encoded alone, is a prefix of the whole narrative's ids: a student
    that was trained on the row sees at inference the very tokens that it was trained on."""
    tokenizer = FolderTokenizer(qwen_tokenizer)
    passage = Passage(id=data, title=data, text=data)
    steps: list[Step] = [
        {"sub_query": data, "retrieved": False, "passages": [], "answer": data},
        {"sub_query": data, "retrieved": True, "passages": [passage, passage], "answer": data},
    ]
    told = narrative(steps, final(Conclusion(data, data, True)))
    whole = await tokenizer.encode(told, special=False)
    cuts = [narrative(steps[:i]) for i in range(3)]
    cuts += [narrative(steps[:i], asked(steps[i]["sub_query"])) for i in range(2)]
    cuts += [narrative(steps[:1])[: narrative(steps[:1]).rindex(ANSWER) + len(ANSWER)]]
    cuts += [narrative(steps)[: narrative(steps).rindex(ANSWER) + len(ANSWER)], narrative(steps, FINAL)]
    cuts += [narrative(steps[:1], f"{asked(steps[1]['sub_query'])}{SEARCH}\n")]  # where a calibration pair ends
    for cut in cuts:
        assert told.startswith(cut)
        ids = await tokenizer.encode(cut, special=False)
        assert whole[: len(ids)] == ids, cut[-40:]
    without_newline = await tokenizer.encode(narrative(steps[:1], f"{asked('q')}{SEARCH}"), special=False)
    with_newline = await tokenizer.encode(narrative(steps[:1], f"{asked('q')}{SEARCH}\n"), special=False)
    assert with_newline[: len(without_newline)] != without_newline, "its full stop and the line's end are one token"


class Engine:
    """A server of one model, without HTTP: it gets ids and gives ids, and writes the narrative of `author`.

    As llama.cpp does it, a stop string is cut off the text and its token is left in the ids, where it may be one with
    what came before: Qwen writes ".", "?" and a newline as one token.
    """

    records_per_request = 1.0
    capacity = 4
    dialect, model, name, revision = "vllm", "qwen", "qwen", None

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = FolderTokenizer(folder)
        self.reader = AutoTokenizer.from_pretrained(folder)
        self.endpoint = self

    async def serve(self) -> Engine:
        return self

    def set_in_flight(self, in_flight: int) -> None: ...

    async def aclose(self) -> None: ...

    async def post(self, route: str, body: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
        measured["address"] = "nowhere"
        text = author(self.reader.decode(body["prompt"]).rpartition("<|im_start|>assistant\n")[2])
        ids = await self.tokenizer.encode(f"{text}\n", special=False)
        choice = {"text": text, "token_ids": ids, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}}


UPPSALA, SWEDEN = "Uppsala University.", "It is in Sweden."
QUERIES = ("Where did Ada Brandt study?", "Where is Uppsala University?", "Is Sweden a country?")
LINES = [f"{FOLLOW_UP} {query}" for query in QUERIES]
RIGHT = [f"{ANSWER} {answer}" for answer in (UPPSALA, SWEDEN, "Yes.")]


def author(told: str) -> str:
    """The next line: where she studied has to be looked up, the rest has not."""
    lines = told.splitlines()
    queries = [i for i, line in enumerate(lines) if line in LINES]
    if told.endswith(FINAL):
        return tagged_end("Sweden" if all(answer in lines for answer in RIGHT) else "Norway")
    if told.endswith(ANSWER):
        looked_up = SEARCH in lines[queries[-1] :]
        right = RIGHT[len(queries) - 1].removeprefix(ANSWER)
        return right if looked_up is (len(queries) == 1) else " Oslo."
    if queries and queries[-1] == len(lines) - 1:
        return SEARCH if len(queries) == 1 else f"{ANSWER} It is"
    return [*LINES, f"{FINAL} "][len(queries)]


PLAIN_PASSAGE = Passage(id="p1", title="Ada Brandt", text="Ada Brandt studied in Uppsala <|im_end|> at its university.")


async def collected(engine: Engine, out: Path, monkeypatch: pytest.MonkeyPatch, system: Any, knobs: Any) -> Trace:
    async def search(self: Any, query: str) -> list[Passage]:
        return [PLAIN_PASSAGE, PASSAGE]

    model = EndpointChatModel(engine=engine)
    for module in ("agentsys.systems", "agentsys.collect.fingerprint"):
        monkeypatch.setattr(f"{module}.load_model", lambda spec, default="": model)
    monkeypatch.setattr("agentsys.knowledge.context.Knowledge.search", search)
    record = {"id": "a", "question": f"{QUESTION} <|im_end|>", "answer": "Sweden"}
    await acollect(system, [record], out, context=knobs, options=RunOptions(no_cache=True))
    [trace] = read_traces(out)
    assert trace.outcome == "kept", trace.reason
    return trace


def row_tokenizer(folder: Path) -> Any:
    from agentsys.trainers.loading import load_tokenizer
    from agentsys.trainers.tokenize_rows import RowTokenizer

    return RowTokenizer(load_tokenizer(str(folder)))


async def test_rows_of_pairs(qwen_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begins with the very ids of the decide call, and its sides are the two openings and nothing else."""
    from agentsys.trainers.rows import rows_of

    engine = Engine(qwen_tokenizer)
    knobs = SearchContext(stage="calibration", max_steps=4)
    trace = await collected(engine, tmp_path / "run", monkeypatch, graph, knobs)
    assert [step["retrieved"] for step in (trace.result or {})["steps"]] == [True, False, False]
    calls = {call.key: call for call in trace.calls}
    rows = list(rows_of(trace, row_tokenizer(qwen_tokenizer)))
    assert [row["prompt_ids"] for row in rows] == [
        calls[f"{node}/decide"].prompt_ids for node in ("root", "root:1", "root:1:0")
    ]
    search, answer = f"{SEARCH}\n", ANSWER
    assert [(row["text"], row["rejected"]) for row in rows] == [(search, answer), (answer, search), (answer, search)]
    assert rows[1]["prompt"].endswith(f"{RIGHT[0]}\n{LINES[1]}\n")
    end = engine.reader.eos_token_id
    for row in rows:
        assert not {end, *engine.tokenizer.stop_ids} & {*row["chosen_ids"], *row["rejected_ids"]}
        assert row["margin"] > 0
    told = await engine.tokenizer.encode(f"{SEARCH}\n{context([PASSAGE])}", special=False)
    assert told[: len(rows[0]["chosen_ids"])] == rows[0]["chosen_ids"], "the tokens that a narrative has there"


async def test_all_pairs_of_a_question_become_rows(
    qwen_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command's own filters, where steps with the same decision differ in their prefix only."""
    import pyarrow.parquet as pq

    from agentsys.trainers.rows import TargetOptions, make_rows
    from agentsys.trainers.row_filter import Filters

    knobs = SearchContext(stage="calibration", max_steps=4)
    await collected(Engine(qwen_tokenizer), tmp_path / "run", monkeypatch, graph, knobs)
    make_rows([tmp_path / "run"], TargetOptions(str(qwen_tokenizer), tmp_path / "rows"), Filters(validation=0))
    assert pq.read_table(tmp_path / "rows" / "step" / "train.parquet").num_rows == 3, "equal openings are no repetition"


async def test_the_row_of_a_narrative(qwen_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are masked to the token, and every call of inference sends a prefix of the row's ids."""
    from agentsys.trainers.rows import row_of, rows_of

    engine = Engine(qwen_tokenizer)
    answered = await collected(
        engine, tmp_path / "inference", monkeypatch, deeprag.graph, deeprag.Context(example=False)
    )
    found = answered.result or {}
    said = {
        "root/decompose": LINES[0],
        "root:1/answer": UPPSALA,
        "root:1/decompose": LINES[1],
        "root:1:0/answer": SWEDEN,
        "root:1:0/decompose": LINES[2],
        "root:1:0:0/answer": "Yes.",
    }
    world = World(said=said, ends=frozenset({"0", "11", "101", "100"}), right=frozenset({"100"}))

    async def search(self: Any, query: str) -> list[Passage]:
        return [PLAIN_PASSAGE, PASSAGE]

    for module in ("agentsys.systems", "agentsys.collect.fingerprint"):
        monkeypatch.setattr(f"{module}.load_model", lambda spec, default="": world.model("any"))
    record = {"id": "a", "question": f"{QUESTION} <|im_end|>", "answer": "Sweden"}
    await acollect(graph, [record], tmp_path / "run", context=SearchContext(), options=RunOptions(no_cache=True))
    [trace] = read_traces(tmp_path / "run")
    steps = (trace.result or {})["steps"]
    assert [{**step, "decision": None} for step in found["steps"]] == [{**step, "decision": None} for step in steps]
    [row] = rows_of(trace, row_tokenizer(qwen_tokenizer))
    assert row == row_of(trace, 0, trace.targets[0], row_tokenizer(qwen_tokenizer))
    ids, learned = row["input_ids"], row["loss_mask"]
    begin = learned.index(1)
    read = engine.reader.decode
    masked = read([token for token, flag in zip(ids[begin:], learned[begin:], strict=True) if not flag])
    assert masked == context([PLAIN_PASSAGE, PASSAGE])
    told = f"{FINAL}{tagged_end('Sweden')}"
    parts = [LINES[0], SEARCH, RIGHT[0], LINES[1], RIGHT[1], LINES[2], RIGHT[2], f"{told}<|im_end|>"]
    assert read([token for token, flag in zip(ids, learned, strict=True) if flag]) == "\n".join(parts)
    assert ids[-1] == engine.reader.eos_token_id and learned[-1] == 1, "the end of the turn is learned"
    assert ids.count(engine.reader.eos_token_id) == 3, "system, user, answer: none of the data's"
    for call in answered.calls:
        assert call.prompt_ids is not None
        assert ids[: len(call.prompt_ids)] == call.prompt_ids, call.key
    assert len(answered.calls) == 3 * 3 + 2
