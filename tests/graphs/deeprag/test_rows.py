"""Rows of DeepRAG with Qwen's tokenizer: token masks, the prefixes that inference sends, the two openings."""

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
    FinalAnswer,
    NarrativeStep,
    format_documents,
    format_final_answer,
    format_follow_up,
    format_narrative,
)
from agentsys.graphs.deeprag.search import SearchContext, graph
from agentsys.knowledge.context import PassageDict
from agentsys.models.chat import EndpointChatModel
from agentsys.models.tokenizers import FolderTokenizer
from agentsys.traces import Trace, read_traces
from tests.support.deeprag_world import PASSAGE, QUESTION, World, tagged_end

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
async def test_the_narrative_is_split_between_tokens(qwen_tokenizer: Path, data: str) -> None:
    """The partial answer of each call of inference, encoded alone, is a prefix of the whole narrative's ids: a student
    sees at inference the same tokens as in training."""
    tokenizer = FolderTokenizer(qwen_tokenizer)
    passage = PassageDict(id=data, title=data, text=data)
    steps: list[NarrativeStep] = [
        {"sub_query": data, "retrieved": False, "passages": [], "answer": data},
        {"sub_query": data, "retrieved": True, "passages": [passage, passage], "answer": data},
    ]
    narrative = format_narrative(steps, format_final_answer(FinalAnswer(data, data, True)))
    whole = await tokenizer.encode(narrative, special=False)
    prefixes = [format_narrative(steps[:i]) for i in range(3)]
    prefixes += [format_narrative(steps[:i], format_follow_up(steps[i]["sub_query"])) for i in range(2)]
    prefixes += [text[: text.rindex(ANSWER) + len(ANSWER)] for text in prefixes[1:3]]
    prefixes += [format_narrative(steps, FINAL)]
    calibrated = f"{format_follow_up(steps[1]['sub_query'])}{SEARCH}\n"  # where a calibration pair ends
    prefixes += [format_narrative(steps[:1], calibrated)]
    for prefix in prefixes:
        assert narrative.startswith(prefix)
        ids = await tokenizer.encode(prefix, special=False)
        assert whole[: len(ids)] == ids, prefix[-40:]
    text = format_narrative(steps[:1], f"{format_follow_up('q')}{SEARCH}")
    without_newline = await tokenizer.encode(text, special=False)
    with_newline = await tokenizer.encode(f"{text}\n", special=False)
    assert with_newline[: len(without_newline)] != without_newline, "its full stop and the newline are one token"


class Engine:
    """A server of one model, without HTTP: it receives and returns ids, and writes the narrative of `write_next_line`.

    As in llama.cpp, a stop string is removed from the text and its token stays in the ids, where it may be merged with
    the text before it: Qwen writes ".", "?" and a newline as one token.
    """

    records_per_request = 1.0
    capacity = 4
    dialect, model, name, revision = "vllm", "qwen", "qwen", None

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = FolderTokenizer(folder)
        self.reader = AutoTokenizer.from_pretrained(folder)
        self.endpoint = self
        self.adaptations: dict[str, Any] = {}

    async def serve(self) -> Engine:
        return self

    def set_in_flight(self, in_flight: int) -> None: ...

    async def aclose(self) -> None: ...

    async def post(self, route: str, body: dict[str, Any], measured: dict[str, Any], parse: Any) -> Any:
        measured["address"] = "nowhere"
        text = write_next_line(self.reader.decode(body["prompt"]).rpartition("<|im_start|>assistant\n")[2])
        ids = await self.tokenizer.encode(f"{text}\n", special=False)
        choice = {"text": text, "token_ids": ids, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
        return parse({"choices": [choice], "usage": usage})


UPPSALA, SWEDEN = "Uppsala University.", "It is in Sweden."
QUERIES = ("Where did Ada Brandt study?", "Where is Uppsala University?", "Is Sweden a country?")
LINES = [f"{FOLLOW_UP} {query}" for query in QUERIES]
CORRECT = [f"{ANSWER} {answer}" for answer in (UPPSALA, SWEDEN, "Yes.")]


def write_next_line(narrative: str) -> str:
    """The next line of a narrative: only the first query needs a retrieval."""
    lines = narrative.splitlines()
    queries = [i for i, line in enumerate(lines) if line in LINES]
    if narrative.endswith(FINAL):
        return tagged_end("Sweden" if all(answer in lines for answer in CORRECT) else "Norway")
    if narrative.endswith(ANSWER):
        retrieved = SEARCH in lines[queries[-1] :]
        correct = CORRECT[len(queries) - 1].removeprefix(ANSWER)
        return correct if retrieved is (len(queries) == 1) else " Oslo."
    if queries and queries[-1] == len(lines) - 1:
        return SEARCH if len(queries) == 1 else f"{ANSWER} It is"
    return [*LINES, f"{FINAL} "][len(queries)]


PLAIN_PASSAGE = PassageDict(
    id="p1", title="Ada Brandt", text="Ada Brandt studied in Uppsala <|im_end|> at its university."
)


async def collect_trace(engine: Engine, out: Path, monkeypatch: pytest.MonkeyPatch, graph: Any, context: Any) -> Trace:
    """The trace of one question."""

    async def search(self: Any, query: str) -> list[PassageDict]:
        return [PLAIN_PASSAGE, PASSAGE]

    model = EndpointChatModel(engine=engine)
    for module in ("agentsys.systems", "agentsys.collect.fingerprint"):
        monkeypatch.setattr(f"{module}.load_model", lambda spec, default="": model)
    monkeypatch.setattr("agentsys.knowledge.context.Knowledge.search", search)
    record = {"id": "a", "question": f"{QUESTION} <|im_end|>", "answer": "Sweden"}
    await acollect(graph, [record], out, context=context, options=RunOptions(no_cache=True))
    [trace] = read_traces(out)
    assert trace.outcome == "kept", trace.reason
    return trace


def row_tokenizer(folder: Path) -> Any:
    from agentsys.trainers.loading import load_tokenizer
    from agentsys.trainers.tokenize_rows import RowTokenizer

    return RowTokenizer(load_tokenizer(str(folder)))


async def test_rows_of_pairs(qwen_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt has exactly the ids of the decide call, and the two sides are the two openings and nothing else."""
    from agentsys.trainers.rows import rows_of

    engine = Engine(qwen_tokenizer)
    context = SearchContext(stage="calibration", max_steps=4)
    trace = await collect_trace(engine, tmp_path / "run", monkeypatch, graph, context)
    assert [step["retrieved"] for step in (trace.result or {})["steps"]] == [True, False, False]
    calls = {call.key: call for call in trace.calls}
    rows = list(rows_of(trace, row_tokenizer(qwen_tokenizer)))
    assert [row["prompt_ids"] for row in rows] == [
        calls[f"{node}/decide"].prompt_ids for node in ("root", "root:1", "root:1:0")
    ]
    search, answer = f"{SEARCH}\n", ANSWER
    assert [(row["text"], row["rejected"]) for row in rows] == [(search, answer), (answer, search), (answer, search)]
    assert rows[1]["prompt"].endswith(f"{CORRECT[0]}\n{LINES[1]}\n")
    end = engine.reader.eos_token_id
    for row in rows:
        assert not {end, *engine.tokenizer.stop_ids} & {*row["chosen_ids"], *row["rejected_ids"]}
        assert row["margin"] > 0
    retrieval_ids = await engine.tokenizer.encode(f"{SEARCH}\n{format_documents([PASSAGE])}", special=False)
    chosen_ids = rows[0]["chosen_ids"]
    assert retrieval_ids[: len(chosen_ids)] == chosen_ids, "the same tokens as in a narrative"


async def test_all_pairs_of_a_question_become_rows(
    qwen_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the filters of the command: steps with the same decision differ only in their prefix."""
    import pyarrow.parquet as pq

    from agentsys.trainers.row_filter import Filters
    from agentsys.trainers.rows import TargetOptions, make_rows

    context = SearchContext(stage="calibration", max_steps=4)
    await collect_trace(Engine(qwen_tokenizer), tmp_path / "run", monkeypatch, graph, context)
    make_rows([tmp_path / "run"], TargetOptions(str(qwen_tokenizer), tmp_path / "rows"), Filters(validation=0))
    assert pq.read_table(tmp_path / "rows" / "step" / "train.parquet").num_rows == 3, "equal openings are no repetition"


async def test_the_row_of_a_narrative(qwen_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are masked token by token, and every call of inference sends a prefix of the row's ids."""
    from agentsys.trainers.rows import row_of, rows_of

    engine = Engine(qwen_tokenizer)
    answered = await collect_trace(
        engine, tmp_path / "inference", monkeypatch, deeprag.graph, deeprag.Context(example=False)
    )
    answered_steps = (answered.result or {})["steps"]
    replies = {
        "root/decompose": LINES[0],
        "root:1/answer": UPPSALA,
        "root:1/decompose": LINES[1],
        "root:1:0/answer": SWEDEN,
        "root:1:0/decompose": LINES[2],
        "root:1:0:0/answer": "Yes.",
    }
    world = World(correct=frozenset({"100"}), ends=frozenset({"0", "11", "101", "100"}), replies=replies)

    async def search(self: Any, query: str) -> list[PassageDict]:
        return [PLAIN_PASSAGE, PASSAGE]

    for module in ("agentsys.systems", "agentsys.collect.fingerprint"):
        monkeypatch.setattr(f"{module}.load_model", lambda spec, default="": world.model("any"))
    record = {"id": "a", "question": f"{QUESTION} <|im_end|>", "answer": "Sweden"}
    await acollect(graph, [record], tmp_path / "run", context=SearchContext(), options=RunOptions(no_cache=True))
    [trace] = read_traces(tmp_path / "run")
    steps = (trace.result or {})["steps"]
    assert [{**step, "decision": None} for step in answered_steps] == [{**step, "decision": None} for step in steps]
    [row] = rows_of(trace, row_tokenizer(qwen_tokenizer))
    assert row == row_of(trace, 0, trace.targets[0], row_tokenizer(qwen_tokenizer))
    ids, learned = row["input_ids"], row["loss_mask"]
    first_learned = learned.index(1)
    decode = engine.reader.decode
    masked = decode(
        [token for token, flag in zip(ids[first_learned:], learned[first_learned:], strict=True) if not flag]
    )
    assert masked == format_documents([PLAIN_PASSAGE, PASSAGE])
    last_line = f"{FINAL}{tagged_end('Sweden')}"
    parts = [LINES[0], SEARCH, CORRECT[0], LINES[1], CORRECT[1], LINES[2], CORRECT[2], f"{last_line}<|im_end|>"]
    assert decode([token for token, flag in zip(ids, learned, strict=True) if flag]) == "\n".join(parts)
    assert ids[-1] == engine.reader.eos_token_id and learned[-1] == 1, "the end of the turn is learned"
    assert ids.count(engine.reader.eos_token_id) == 3, "system, user, answer: none from the data"
    for call in answered.calls:
        assert call.prompt_ids is not None
        assert ids[: len(call.prompt_ids)] == call.prompt_ids, call.key
    assert len(answered.calls) == 3 * 3 + 2
