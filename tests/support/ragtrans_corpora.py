"""Small corpora for RAGtrans's benchmark: page records, translation memories, and the files built from them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from agentsys.graphs.ragtrans.benchmark import open_corpus, write_benchmark
from agentsys.graphs.ragtrans.samples import BenchmarkOptions, CLICOptions, Sampler
from tests.support.toys import write_lines

Row = dict[str, Any]
SIZES = {"a": 40, "b": 6, "c": 5, "d": 4, "e": 30}


def read_lines(path: Path) -> list[Row]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_page(name: str, lang: str, **more: Any) -> Row:
    body = [f"{name} {lang} lead", *(f"{name} {lang} says a thing that is number {i} of several" for i in range(3))]
    return {"id": f"{lang}/{name}", "lang": lang, "title": f"T {name}", "paragraphs": body, **more}


def write_pages(tmp_path: Path, count: int = 4) -> Path:
    rows = []
    for i in range(count):
        rows.append(make_page(f"p{i}", "en", links={"zh": f"zh/p{i}"}, references={"zh": f"译文{i}"}))
        rows.append(make_page(f"p{i}", "zh"))
        rows.append(make_page(f"p{i}", "de", links={"en": f"en/p{i}"}))
    return write_lines(tmp_path / "pages.jsonl", rows)


def make_sampler(file: Path, **options: Any) -> Sampler:
    benchmark = BenchmarkOptions(**options)
    corpus = open_corpus([file], [], benchmark)
    return Sampler(corpus, benchmark, benchmark.language or corpus.languages())


def write_tmx(path: Path, units: Mapping[str, Mapping[str, str]] | Sequence[Mapping[str, str]]) -> Path:
    units_by_id = units.items() if isinstance(units, Mapping) else [("", texts) for texts in units]
    body = "".join(
        f"<tu{f' tuid={chr(34)}{name}{chr(34)}' if name else ''}>"
        + "".join(f'<tuv xml:lang="{lang}"><seg>{escape(text)}</seg></tuv>' for lang, text in texts.items())
        + "</tu>"
        for name, texts in units_by_id
    )
    path.write_text(f'<?xml version="1.0"?><tmx version="1.4"><header/><body>{body}</body></tmx>', encoding="utf-8")
    return path


def english(document: str, i: int) -> str:
    """Fourteen words, different in each sentence."""
    rng = random.Random(f"{document}{i}")
    return f"In {document} {' '.join(''.join(rng.choices('bdfgklmnprst', k=5)) for _ in range(12))}."


def chinese(document: str, i: int) -> str:
    """A text about as long as a Chinese translation."""
    rng = random.Random(f"{document}{i}")
    return f"在{document}中{''.join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(26))}。"


def write_memories(tmp_path: Path, sizes: Mapping[str, int], **changes: str) -> list[Path]:
    """en-zh and en-fr with the same ids; `changes` replace Chinese texts by id."""
    names = [(document, i) for document, size in sizes.items() for i in range(1, size + 1)]
    zh = {f"{d}:{i}": {"en": english(d, i), "zh": changes.get(f"{d}:{i}", chinese(d, i))} for d, i in names}
    fr = {f"{d}:{i}": {"en": english(d, i), "fr": f"fr {english(d, i)}"} for d, i in names}
    return [write_tmx(tmp_path / "en-zh.tmx", zh), write_tmx(tmp_path / "en-fr.tmx", fr)]


def build_files(tmp_path: Path, name: str = "out", **options: Any) -> Path:
    benchmark = BenchmarkOptions(test=0.1, validation=0.1, **options)
    corpus = open_corpus([], write_memories(tmp_path, SIZES), benchmark)
    asyncio.run(write_benchmark(corpus, benchmark, CLICOptions(), tmp_path / name))
    return tmp_path / name
