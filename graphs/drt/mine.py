"""DRT stage A (section 2.1): select sentences of books whose figurative language must not be rendered literally."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from agentsys.graphs.drt.system import Context
from agentsys.records import InputError
from agentsys.roles import Role
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options, sequence_graph
from agentsys.traces import read_traces

MIN_WORDS: Final = 10
MAX_WORDS: Final = 100
"""Shorter and longer sentences are dropped (step A2)."""

LANGUAGE_CODES: Final = {
    "english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "russian": "ru",
}  # fmt: skip


class MinerJudgement(BaseModel):
    """The miner's reply: Q1 (any simile or metaphor?), a literal rendering, Q2 (is it suitable?)."""

    figurative: bool
    literal: str
    suitable: bool
    reason: str


class Input(TypedDict):
    """Graph input: one sentence."""

    text: str


class State(Input):
    """The sentence and the miner's judgement."""

    judgement: NotRequired[dict[str, Any]]
    dropped: NotRequired[str | None]


@dataclass(frozen=True)
class Books:
    """Options of stage A: the books to mine before the run, and the miner's model and prompt."""

    panel: ClassVar[str] = "Mining (stage A)"

    book: list[Path] = knob((), "plain-text book to mine sentences from; may be repeated")
    miner_model: str = knob("", "model spec of the miner; empty: `model`")
    miner_prompt: str = knob("", "prompt text in place of prompts/drt/miner.md")


@dataclass(frozen=True)
class Mining(System):
    """The role and the node of stage A."""

    miner: Role[MinerJudgement] = Role("drt/miner", MinerJudgement, sampling={"temperature": 0.0, "max_tokens": 300})

    async def judge(self, state: State, runtime: Runtime[MiningContext]) -> dict[str, Any]:
        """A3, A4: keep a sentence only if it is figurative and its literal rendering is unsuitable."""
        context = runtime.context
        answer = await ask(context, self.miner, key="judge", text=state["text"], **context.languages)
        judgement = answer.value
        dropped = None
        if not judgement.figurative:
            dropped = "no figure of speech"
        elif judgement.suitable:
            dropped = "literal is suitable"
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
        summary, path, rows = mine_books(books.book, mining_run, settings, "mined.jsonl")
    if summary.stopped:
        finish(summary, mining_run, rows)
        raise typer.Exit(130)
    show(f"mined: {summary.kept} sentences kept, {summary.dropped} dropped, {summary.failed} failed")
    for reason, count in summary.reasons.items():
        show(f"  {count}  {reason}")
    show(f"mined sentences with their judgements: {path}")
    return path


def mine_books(
    books: Sequence[str | Path], run: CollectOptions, context: MiningContext, file: str
) -> tuple[Summary, Path, list[tuple[str, str]]]:
    """Mine books into the folder `run.out`, whose file of that name gets the kept sentences.

    Returns the run's summary, the file, and table rows of what was not judged. Raises InputError for a book that cannot
    be read, an unknown language and books without such a sentence, before anything is written.
    """
    language_code(context.source_language)
    for book in books:
        _read_book(Path(book))
    counts: Counter[str] = Counter()
    sentences = drop_repetitions(read_sentences(books, context.source_language, counts), counts)
    first = next(sentences, None)
    if first is None:
        names = ", ".join(str(book) for book in books)
        raise InputError(f"{names}: no sentence of {MIN_WORDS} to {MAX_WORDS} words; give books as plain text")
    summary = run_with_view(graph, chain([first], sentences), run, context)
    labels = {"sentences": "sentences read", "length": "  not of 10 to 100 words", "repeated": "  repeated"}
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
    books: Sequence[str | Path], language: str, counts: Counter[str] | None = None
) -> Iterator[dict[str, str]]:
    """Sentences of 10 to 100 words, in order, with `source`. Raises InputError for a book that is not UTF-8 text.

    `counts` counts the sentences read, and under "length" those that are shorter or longer.
    """
    import sentencex

    counts = Counter() if counts is None else counts
    for book in map(Path, books):
        for number, paragraph in enumerate(re.split(r"\n\s*\n", _read_book(book)), 1):
            for sentence in sentencex.segment(language_code(language), " ".join(paragraph.split())):
                counts["sentences"] += 1
                if MIN_WORDS <= count_words(sentence) <= MAX_WORDS:
                    yield {"text": sentence.strip(), "source": f"{book.name}, paragraph {number}"}
                else:
                    counts["length"] += 1


def _read_book(book: Path) -> str:
    try:
        return book.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"book {book}: {getattr(err, 'strerror', None) or 'not UTF-8 text'}") from None


def language_code(language: str) -> str:
    """The ISO code of a language that is given by its English name or its code. Raises InputError for another name."""
    code = LANGUAGE_CODES.get(language.casefold(), language.casefold())
    if not re.fullmatch(r"[a-z]{2,3}", code):
        raise InputError(
            f"--source-language {language}: the language of the book is unknown; give its code, such as 'pt'"
        )
    return code


def count_words(sentence: str) -> int:
    """Number of words separated by spaces; in a script without spaces two characters count as one word."""
    return len(sentence.split()) if " " in sentence.strip() else (len(sentence) + 1) // 2


def drop_repetitions(sentences: Iterable[dict[str, str]], counts: Counter[str]) -> Iterator[dict[str, str]]:
    """Each sentence once, because books repeat themselves; `counts` counts the others under "repeated"."""
    seen: set[str] = set()
    for sentence in sentences:
        if sentence["text"] in seen:
            counts["repeated"] += 1
            continue
        seen.add(sentence["text"])
        yield sentence
