"""DRT stage A (section 2.1): sentences of a book whose figurative language must not be rendered literally."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, NotRequired

import orjson
import typer
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel
from typing_extensions import TypedDict

from agentsys.collect.command import CollectOptions, finish, run_with_view
from agentsys.graphs.drt.system import Context
from agentsys.records import InputError
from agentsys.roles import Role
from agentsys.systems import BaseContext, LanguagePair, System, ask, knob, role_options
from agentsys.traces import read_traces

LEAST_WORDS: Final = 10
MOST_WORDS: Final = 100
"""Sentences outside are dropped (step A2)."""


class Judgement(BaseModel):
    """The miner's reply: Q1 (any simile or metaphor?), a literal rendering, Q2 (is it suitable?)."""

    figurative: bool
    literal: str
    suitable: bool
    reason: str


class Input(TypedDict):
    """A sentence."""

    text: str


class State(Input):
    """The sentence and what the miner says of it."""

    judgement: NotRequired[dict[str, Any]]
    dropped: NotRequired[str | None]


@dataclass(frozen=True)
class Books:
    """The books that the command mines first, and who looks at their sentences."""

    panel: ClassVar[str] = "Mining (stage A)"

    book: list[Path] = knob((), "plain-text book to mine sentences from; may be repeated")
    miner_model: str = knob("", "model spec of the miner; empty: `model`")
    miner_prompt: str = knob("", "prompt text in place of prompts/drt/miner.md")


@dataclass(frozen=True)
class Mining(System):
    """The one role of stage A."""

    miner: Role[Judgement] = Role("drt/miner", Judgement, sampling={"temperature": 0.0, "max_tokens": 300})

    async def judge(self, state: State, runtime: Runtime[MiningContext]) -> dict[str, Any]:
        """A3, A4: keep a sentence only if it is figurative and its literal rendering is unsuitable."""
        context = runtime.context
        answer = await ask(context, self.miner, key="judge", text=state["text"], **context.languages)
        verdict = answer.value
        dropped = (
            "no figure of speech" if not verdict.figurative else "literal is suitable" if verdict.suitable else None
        )
        return {"judgement": verdict.model_dump(), "dropped": dropped}

    def builder(self) -> StateGraph[State, MiningContext, Input, State]:
        """One node."""
        builder = StateGraph(State, context_schema=MiningContext, input_schema=Input, output_schema=State)
        builder.add_node("judge", self.judge)
        builder.add_edge(START, "judge")
        builder.add_edge("judge", END)
        return builder


@dataclass(frozen=True)
@role_options(Mining)
class MiningContext(BaseContext, LanguagePair):
    """Model, prompt and languages of the miner."""

    model: str = knob("embedded", "model spec of the miner")
    miner_model: str = knob("", "model spec in place of `model`, or options for it such as ?temperature=0.3")
    source_language: str = knob("English", "language of the book")
    target_language: str = knob("Chinese", "language of the literal rendering")


builder = Mining().builder()
graph = builder.compile(name="drt_mine")


def sentences(books: Sequence[Path], language: str) -> Iterator[dict[str, str]]:
    """Sentences of 10 to 100 words, in order, with `source`. Raises InputError for a book that is not UTF-8 text."""
    import sentencex

    for book in books:
        for number, paragraph in enumerate(re.split(r"\n\s*\n", _text(book)), 1):
            for sentence in sentencex.segment(language_code(language), " ".join(paragraph.split())):
                if LEAST_WORDS <= words(sentence) <= MOST_WORDS:
                    yield {"text": sentence.strip(), "source": f"{book.name}, paragraph {number}"}


def _text(book: Path) -> str:
    try:
        return book.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"--book {book}: {getattr(err, 'strerror', None) or 'not UTF-8 text'}") from None


def language_code(language: str) -> str:
    """The ISO code of a language that is given by its English name or its code. Raises InputError."""
    known = {"english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "russian": "ru"}
    code = known.get(language.casefold(), language.casefold())
    if not re.fullmatch(r"[a-z]{2,3}", code):
        raise InputError(f"--book: give the language of the book as a code such as 'pt', not '{language}'")
    return code


def mine(books: Books, run: CollectOptions, context: Context) -> Path:
    """Mine books into <out>/mined and return the file of kept sentences; `limit` counts the sentences looked at."""
    language_code(context.source_language)
    for book in books.book:  # before anything is written
        _text(book)
    folder = (run.out or Path("runs") / "drt") / "mined"
    found: Iterable[dict[str, str]] = unique(sentences(books.book, context.source_language))
    settings = MiningContext(context.model, books.miner_model, books.miner_prompt, **context.languages)
    plain = replace(run, field=[], id_field="id")
    summary = run_with_view(graph, found, plain, settings, out=folder)
    if summary.stopped:
        finish(summary, plain)
        raise typer.Exit(130)
    print(f"mined: {summary.kept} sentences kept, {summary.dropped} dropped, {summary.failed} rejected")
    for reason, count in summary.reasons.items():
        print(f"  {count}  {reason}")
    path = folder / "mined.jsonl"
    temporary = folder / ".mined.jsonl.tmp"
    with temporary.open("wb") as file:
        for trace in read_traces(folder):
            if trace.outcome == "kept" and trace.result:
                file.write(orjson.dumps({"id": trace.id, **trace.input, **trace.result["judgement"]}) + b"\n")
    os.replace(temporary, path)
    print(f"mined sentences, with the reasons: {path}")
    return path


def words(sentence: str) -> int:
    """Words between spaces; in a script without spaces two characters count as one."""
    return len(sentence.split()) if " " in sentence.strip() else (len(sentence) + 1) // 2


def unique(found: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Each sentence once: books repeat themselves."""
    seen: set[str] = set()
    for sentence in found:
        if sentence["text"] not in seen:
            seen.add(sentence["text"])
            yield sentence
