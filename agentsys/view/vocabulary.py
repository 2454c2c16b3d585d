"""Token ids as text: the vocabularies of the models that wrote a run, where this machine has them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from agentsys.models import weights
from agentsys.paths import cache_folder, make_private_folder, replace_file
from agentsys.records import InputError


@dataclass(frozen=True)
class Vocabulary:
    """The text of each token of a model, as it is written in its vocabulary."""

    pieces: Sequence[str] | Mapping[int, str]
    is_byte_level: bool

    def split(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """The text of the tokens, as (text, number of tokens): tokens that share a character are together."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        parts: list[tuple[str, int]] = []
        text, count = "", 0
        for number, token in enumerate(ids, 1):
            text += decoder.decode(self._bytes(token), final=number == len(ids))
            count += 1
            if not decoder.getstate()[0]:  # else a character goes on in the next token
                parts.append((text, count))
                text, count = "", 0
        return parts

    def _bytes(self, token: int) -> bytes:
        try:
            piece = self.pieces[token]
        except (IndexError, KeyError):
            return f"<{token}>".encode()
        if self.is_byte_level:
            table = _byte_of_character()
            return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The byte of each character of a byte-level vocabulary: printable ones are themselves, others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _make(pieces: Sequence[str] | Mapping[int, str]) -> Vocabulary:
    texts = pieces.values() if isinstance(pieces, Mapping) else pieces
    return Vocabulary(pieces, any(text.startswith("\u0120") for text in texts))


@lru_cache(maxsize=16)
def find_vocabulary(model: str, folder: Path | None = None) -> Vocabulary | None:
    """The vocabulary of a model by the name that a trace has, or that of `folder`; None if it is not on this machine.

    A catalog model's is read from its weights, of any other model a folder with a tokenizer.json is needed. Raises
    FileNotFoundError for a folder without one, InputError for a damaged one.
    """
    if folder is not None:
        return _from_folder(folder)
    entry = weights.CATALOG.get(model)
    if entry is not None and weights.find_state(entry) == "verified":
        return _from_gguf(weights.cached_path(entry), entry.sha256)
    return _from_folder(Path(model)) if (Path(model) / "tokenizer.json").is_file() else None


def _from_folder(folder: Path) -> Vocabulary:
    file = folder / "tokenizer.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        pieces = _numbered(vocabulary) | {token["id"]: token["content"] for token in content.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError) as err:
        raise InputError(f"{file}: not a tokenizer ({type(err).__name__}: {err})") from None
    return _make(pieces)


def _numbered(vocabulary: Any) -> dict[int, str]:
    """Pieces by id: of BPE an object, of a unigram model a list of [piece, score]."""
    if isinstance(vocabulary, dict):
        return {number: piece for piece, number in vocabulary.items()}
    return {number: piece for number, (piece, *_) in enumerate(vocabulary)}


def _from_gguf(path: Path, digest: str) -> Vocabulary | None:
    """The vocabulary in a GGUF file, which takes seconds to read and is kept in the cache folder."""
    copy = cache_folder() / "vocabularies" / f"{digest[:16]}.json"
    if copy.is_file():
        return _make(orjson.loads(copy.read_bytes()))
    try:
        from gguf import GGUFReader
    except ImportError:
        return None
    tokens = GGUFReader(path).fields["tokenizer.ggml.tokens"]
    pieces = [bytes(tokens.parts[part]).decode(errors="replace") for part in tokens.data]
    make_private_folder(copy.parent)
    replace_file(copy, orjson.dumps(pieces), durable=False)
    return _make(pieces)
