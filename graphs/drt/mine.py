"""DRT stage A (section 2.1): select sentences of books whose figurative language must not be rendered literally."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Final, NotRequired

import orjson
import typer
from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel
from typing_extensions import TypedDict

from agentsys.collect import Summary
from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.config import without_config
from agentsys.display import show
from agentsys.graphs.drt.books import (
    Book,
    Paragraphs,
    count_words,
    find_books,
    has_end,
    language_code,
    split_paragraphs,
    split_sentences,
)
from agentsys.graphs.drt.system import Context
from agentsys.records import InputError
from agentsys.roles import Role
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options, sequence_graph
from agentsys.text.scripts import language_scripts, scripts_of
from agentsys.traces import read_traces

MIN_WORDS: Final = 10
MAX_WORDS: Final = 100
"""Shorter and longer sentences are dropped (step A2)."""


class MinerJudgement(BaseModel):
    """The miner's reply: Q1 (any simile or metaphor?), and for a sentence with one a literal rendering and Q2.

    As in the paper, a sentence without a figure needs only the answer to Q1, and a suitable rendering no reason.
    """

    figurative: bool
    literal: str = ""
    suitable: bool | None = None
    reason: str = ""


def check_judgement(reply: MinerJudgement, inputs: Mapping[str, Any]) -> str | None:
    """Return why a judgement is refused, or None: with a figure it needs Q2 and a rendering in the target's script."""
    if not reply.figurative:
        return None
    if reply.suitable is None or not reply.literal.strip():
        return 'a figurative sentence needs "literal" and "suitable" too'
    expected = language_scripts(inputs["target_language"])
    if expected and not expected & scripts_of(reply.literal):
        return f'write "literal" in {inputs["target_language"]}'
    return None


class Input(TypedDict):
    """Graph input: one sentence, and optionally the sentences around it."""

    text: str
    before: NotRequired[str]
    after: NotRequired[str]


class State(Input):
    """The sentence and the miner's judgement."""

    judgement: NotRequired[dict[str, Any]]
    dropped: NotRequired[str | None]


@dataclass(frozen=True)
class Reading:
    """How books are read."""

    panel: ClassVar[str] = "Mining (stage A)"

    paragraphs: Paragraphs = knob(
        "auto", "what separates paragraphs: blank lines or line ends; auto looks whether lines are wrapped at a width"
    )
    context_sentences: bool = knob(False, "show the miner the sentences before and after, and write them too")


@dataclass(frozen=True)
class Books(Reading):
    """Options of stage A: the books to mine before the run, and the miner's model and prompt."""

    book: list[Path] = knob(
        (), "plain-text book to mine sentences from, a folder of .txt files or a pattern; may be repeated"
    )
    miner_model: str = knob("", "model spec of the miner; empty: `model`")
    miner_prompt: str = knob("", "prompt text in place of prompts/drt/miner.md")


@dataclass(frozen=True)
class Mining(System):
    """The role and the node of stage A."""

    miner: Role[MinerJudgement] = Role(
        "drt/miner", MinerJudgement, check=check_judgement, sampling={"temperature": 0.0, "max_tokens": 300}
    )

    async def judge(self, state: State, runtime: Runtime[MiningContext]) -> dict[str, Any]:
        """A3, A4: keep a sentence only if it is figurative and its literal rendering is unsuitable."""
        context = runtime.context
        around = {name: state.get(name, "") for name in ("before", "after")}
        answer = await ask(context, self.miner, key="judge", text=state["text"], **around, **context.languages)
        judgement = answer.value
        if not judgement.figurative:
            return {"judgement": {"figurative": False}, "dropped": "no figure of speech"}
        dropped = "literal is suitable" if judgement.suitable else None
        return {"judgement": judgement.model_dump(), "dropped": dropped}

    def builder(self) -> StateGraph[State, MiningContext, Input, State]:
        """Return the graph of one node."""
        return sequence_graph(self.judge, state=State, context=MiningContext, input=Input, output=State)


@dataclass(frozen=True)
@role_options(Mining)
class MiningContext(BaseContext, LanguagePair):
    """Options of a mining run."""

    model: str = knob("embedded", "model spec of the miner", required=True)
    source_language: str = knob("English", "language of the book", required=True)
    target_language: str = knob("Chinese", "language of the literal rendering", required=True)


builder = Mining().builder()
graph = builder.compile(name="drt_mine")


def mine(books: Books, run: CollectOptions, context: Context) -> Path:
    """Mine books into <out>/mined and return the file of kept sentences; `limit` counts the sentences judged."""
    miner_options = {"miner_model": books.miner_model, "miner_prompt": books.miner_prompt}
    settings = MiningContext(model=context.model, **miner_options, **context.languages)
    mining_run = replace(run, field=[], id_field="id", out=(run.out or Path("runs") / "drt") / "mined")
    with without_config():
        summary, path, rows = mine_books(books.book, books, mining_run, settings, "mined.jsonl")
    if summary.stopped:
        finish(summary, mining_run, rows)
        raise typer.Exit(130)
    show(f"mined: {summary.kept} sentences kept, {summary.dropped} dropped, {summary.failed} failed")
    for reason, count in summary.reasons.items():
        show(f"  {count}  {reason}")
    show(f"mined sentences with their judgements: {path}")
    return path


def mine_books(
    places: Sequence[str | Path], reading: Reading, run: CollectOptions, context: MiningContext, file: str
) -> tuple[Summary, Path, list[tuple[str, str]]]:
    """Mine books into the folder `run.out`, whose file of that name gets the kept sentences.

    Returns the run's summary, the file, and table rows of what was not judged. Raises InputError for a book that cannot
    be read, an unknown language and books without such a sentence, before anything is written.
    """
    counts: Counter[str] = Counter()
    sentences = drop_repetitions(read_sentences(places, context.source_language, counts, reading), counts)
    first = next(sentences, None)
    if first is None:
        names = ", ".join(str(place) for place in places)
        raise InputError(f"{names}: no sentence of {MIN_WORDS} to {MAX_WORDS} words; give books as plain text")
    check_script(first, context.source_language)
    summary = run_with_view(graph, chain([first], sentences), run, context)
    labels = {
        "books": "books read",
        "sentences": "sentences read",
        "length": f"  not of {MIN_WORDS} to {MAX_WORDS} words",
        "headings": "  no end mark (headings, contents)",
        "repeated": "  repeated",
    }
    rows = [(label, f"{counts[name]:,}") for name, label in labels.items()]
    return summary, _write_sentences(summary.out, file), rows


def _write_sentences(folder: Path, name: str) -> Path:
    """Write the kept sentences of a run with the miner's judgements, as records of DRT."""
    path, temporary = folder / name, folder / f".{name}.tmp"
    with temporary.open("wb") as file:
        for trace in read_traces(folder):
            if trace.outcome == "kept" and trace.result:
                file.write(orjson.dumps({"id": trace.id, **trace.input, **trace.result["judgement"]}) + b"\n")
    os.replace(temporary, path)
    return path


def read_sentences(
    places: Sequence[str | Path],
    language: str,
    counts: Counter[str] | None = None,
    reading: Reading | None = None,
) -> Iterator[dict[str, str]]:
    """Sentences of 10 to 100 words of files, folders and patterns, one book at a time, with `source`.

    With `reading.context_sentences` also `before` and `after`: the sentences around it in the book, "" at its ends.
    `counts` counts books and sentences read, and under "length" and "headings" those left out. Raises InputError for an
    unknown language, and for a book that cannot be read, before the first sentence.
    """
    reading = reading or Reading()
    counts = Counter() if counts is None else counts
    code, books = language_code(language), find_books(places)
    return chain.from_iterable(_read_book(book, code, counts, reading) for book in books)


def _read_book(book: Book, code: str, counts: Counter[str], reading: Reading) -> Iterator[dict[str, str]]:
    counts["books"] += 1
    sentences: list[tuple[str, int]] = []
    for number, paragraph in enumerate(split_paragraphs(book.read(), reading.paragraphs), 1):
        units = split_sentences(paragraph, code)
        counts["sentences"] += len(units)
        sentences += [(unit, number) for unit in units if has_end(unit, code)]
        counts["headings"] += sum(not has_end(unit, code) for unit in units)
    for i, (sentence, number) in enumerate(sentences):
        if not MIN_WORDS <= count_words(sentence) <= MAX_WORDS:
            counts["length"] += 1
            continue
        record = {"text": sentence, "source": f"{book.name}, paragraph {number}"}
        if reading.context_sentences:
            record["before"] = sentences[i - 1][0] if i else ""
            record["after"] = sentences[i + 1][0] if i + 1 < len(sentences) else ""
        yield record


def check_script(sentence: Mapping[str, str], language: str) -> None:
    """Raises InputError for a sentence in a script in which its language is not written: the option is another's."""
    expected, actual = language_scripts(language), scripts_of(sentence["text"])
    if expected and actual and not expected & actual:
        raise InputError(
            f"--source-language {language}: {sentence['source']} is written in {' and '.join(sorted(actual))} letters; "
            "give the language of the books"
        )


def drop_repetitions(sentences: Iterable[dict[str, str]], counts: Counter[str]) -> Iterator[dict[str, str]]:
    """Each sentence once, because books repeat themselves; `counts` counts the others under "repeated".

    Only digests are kept in memory: about 100 bytes per sentence.
    """
    seen: set[bytes] = set()
    for sentence in sentences:
        digest = hashlib.blake2b(sentence["text"].encode(), digest_size=12).digest()
        if digest in seen:
            counts["repeated"] += 1
            continue
        seen.add(digest)
        yield sentence
