"""Split documents into chunks of limited length that end with a sentence (MiniPLM, data preparation).

Each domain has its own buffer: the ids of its documents one after another, each closed by the end-of-document token.
When the buffer holds a full window, the window is split after its last document end, line break or sentence end, and
the rest begins the next chunk. A window without any of these becomes a chunk as a whole, but is never split within a
character. So the joined texts of a domain's chunks are its documents to the byte, and the joined ids are their ids.

A token ends a sentence if its text, without closing quotation marks and brackets, ends in a full stop, question mark or
exclamation mark. After Latin marks, whitespace or the document's end must follow ("3.14", "e.g."); Chinese and Japanese
marks need none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, Final

import numpy as np

from agentsys.trainers.loading import TrainerError

PRETRAINING_END: Final = "<|endoftext|>"
"""The end-of-document token of models that have it, which may differ from the end of a chat turn."""

BATCH: Final = 256
"""Documents tokenized together, with one thread per core."""

_CLOSERS: Final = "\"'’”»)]}*_`」』）】 \t"
_MARKS: Final = (".", "!", "?")
_WIDE_MARKS: Final = ("。", "！", "？", "…", "।", "؟")


@dataclass(frozen=True, slots=True)
class Document:
    """A text and its domain."""

    text: str
    domain: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one domain, at most `max_length`, and their text."""

    id: str
    """`<domain>/<number>`; a domain's chunks in the order of their numbers are its documents."""
    domain: str
    input_ids: list[int]
    text: str
    """The characters of the documents; end-of-document and beginning-of-sequence tokens have none."""
    document_ends: list[int]
    """Character positions in `text` where a document ends, one per end-of-document token."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A piece of a document as tokens."""

    ids: list[int]
    ends: list[int]
    """For each token, the number of characters up to its end; non-decreasing, up to the length of the text."""
    splittable: list[bool]
    """For each token, whether the next one begins a character (a split after it splits no character)."""


class Encoder:
    """Encodes plain text with character positions, and marks the tokens that end a sentence.

    Special tokens in a document are encoded as plain text. `end_id` closes a document; `bos_id` is the token that the
    tokenizer puts before every text (None for most families).
    Raises TrainerError for a tokenizer without an end-of-sequence token.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        first_id = self._tokenizer.encode("a").ids[0]
        self.bos_id: int | None = tokenizer.bos_token_id if first_id == tokenizer.bos_token_id else None
        self._tokenizer.encode_special_tokens = True
        end = self._tokenizer.token_to_id(PRETRAINING_END)
        end = tokenizer.eos_token_id if end is None else end
        if end is None:
            raise TrainerError("the tokenizer has no end-of-sequence token to close documents with; add one")
        self.end_id: int = end
        self.end_token: str = str(self._tokenizer.id_to_token(end))
        self._find_stops()

    def _find_stops(self) -> None:
        count = max(self._tokenizer.get_vocab().values()) + 1
        texts = self._tokenizer.decode_batch([[i] for i in range(count)], skip_special_tokens=False)
        names = [self._tokenizer.id_to_token(i) or "" for i in range(count)]
        # A SentencePiece decoder drops the leading space of a single token.
        texts = [f" {text}" if name.startswith("▁") else text for name, text in zip(names, texts, strict=True)]
        trimmed = [text.rstrip(_CLOSERS) for text in texts]
        self.always = {i for i in range(count) if "\n" in texts[i] or trimmed[i].endswith(_WIDE_MARKS)} | {self.end_id}
        self.sentence = {i for i in range(count) if trimmed[i].endswith(_MARKS)}
        self.spaced = {i for i in range(count) if texts[i][:1].isspace()} | {self.end_id}
        self._space_after = {i for i in self.sentence if texts[i][-1:].isspace()}

    def is_stop(self, token: int, following: int | None) -> bool:
        """Whether a sentence, line or document ends with `token`, given the next token, if any."""
        if token in self.always:
            return True
        if token not in self.sentence:
            return False
        return following is None or following in self.spaced or token in self._space_after

    def encode(self, texts: Sequence[str], *, close: bool = True) -> list[Encoded]:
        """Encode texts in parallel; `close` appends the end-of-document token."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self._to_encoded(text, one.ids, one.offsets, close) for text, one in zip(texts, encodings, strict=True)]

    def _to_encoded(self, text: str, ids: list[int], offsets: list[tuple[int, int]], close: bool) -> Encoded:
        spans = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        ends = np.maximum.accumulate(spans[:, 1])
        splittable = np.append(spans[1:, 0] >= ends[:-1], True)[: len(ids)].tolist()
        token_ends = ends.tolist()
        if close:
            return Encoded([*ids, self.end_id], [*token_ends, len(text)], [*splittable, True])
        return Encoded(ids, [*token_ends[:-1], len(text)] if ids else [], splittable)


@dataclass
class _Buffer:
    """The tokens of one domain that are not in a chunk yet."""

    domain: str
    encoder: Encoder
    max_length: int
    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    splittable: list[bool] = field(default_factory=list)
    text: str = ""
    number: int = 0
    start: int = 0
    """The first token that is not in a chunk yet."""
    text_start: int = 0
    """Its position in `text`, in characters."""

    def add(self, text: str, encoded: Encoded) -> None:
        """Append a document, after dropping what is in chunks."""
        del self.ids[: self.start], self.splittable[: self.start]
        self.ends = [end - self.text_start for end in self.ends[self.start :]]
        self.text = self.text[self.text_start :]
        self.start = self.text_start = 0
        offset = len(self.text)
        self.text += text
        self.ids += encoded.ids
        self.ends += [offset + end for end in encoded.ends]
        self.splittable += encoded.splittable

    def take_full(self) -> Iterator[Chunk]:
        """Chunks, while the buffer holds a full window."""
        while len(self.ids) - self.start >= self.max_length:
            yield self._take(self._find_split(self.start + self.max_length))

    def take_rest(self) -> Iterator[Chunk]:
        """The rest, as the domain's last chunk."""
        if self.start < len(self.ids):
            yield self._take(len(self.ids))

    def _find_split(self, end: int) -> int:
        """Where to split a window that ends at `end`, with at least two tokens, as one token predicts nothing."""
        ids, splittable = self.ids, self.splittable
        for i in range(end - 1, self.start, -1):
            following = ids[i + 1] if i + 1 < len(ids) else None
            if splittable[i] and self.encoder.is_stop(ids[i], following):
                return i + 1
        return next((i + 1 for i in range(end - 1, self.start, -1) if splittable[i]), end)

    def _take(self, end: int) -> Chunk:
        ids, text_start, text_end = self.ids[self.start : end], self.text_start, self.ends[end - 1]
        document_ends = [
            self.ends[i] - text_start for i in range(self.start, end) if self.ids[i] == self.encoder.end_id
        ]
        bos = [] if self.encoder.bos_id is None else [self.encoder.bos_id]
        chunk_id, text = f"{self.domain}/{self.number:08d}", self.text[text_start:text_end]
        self.start, self.text_start, self.number = end, text_end, self.number + 1
        return Chunk(chunk_id, self.domain, bos + ids, text, document_ends)


def chunk_documents(documents: Iterable[Document], encoder: Encoder, max_length: int) -> Iterator[Chunk]:
    """The chunks of a corpus, in the order in which their windows fill, and at the end the rest of each domain.

    `max_length` includes the beginning-of-sequence token, if the tokenizer has one. Memory: one batch of documents, and
    one window per domain.
    """
    window = max_length - (encoder.bos_id is not None)
    buffers: dict[str, _Buffer] = {}
    source = iter(documents)
    while batch := list(islice(source, BATCH)):
        for document, encoded in zip(batch, encoder.encode([one.text for one in batch]), strict=True):
            buffer = buffers.setdefault(document.domain, _Buffer(document.domain, encoder, window))
            buffer.add(document.text, encoded)
            yield from buffer.take_full()
    for buffer in buffers.values():
        yield from buffer.take_rest()


def rechunk(chunk: Chunk, encoder: Encoder, max_length: int) -> Iterator[Chunk]:
    """A chunk in the tokens of another tokenizer: one chunk, or several where it is too long. No text is lost.

    The text is split at document ends, encoded, and joined with the other tokenizer's end-of-document token. The new
    chunk ids are `<chunk id>/<number>`.
    """
    buffer = _Buffer(chunk.id, encoder, max_length - (encoder.bos_id is not None))
    ends = [0, *chunk.document_ends]
    for begin, end in pairwise(ends):
        text = chunk.text[begin:end]
        buffer.add(text, encoder.encode([text])[0])
    if tail := chunk.text[ends[-1] :]:
        buffer.add(tail, encoder.encode([tail], close=False)[0])
    for new in (*buffer.take_full(), *buffer.take_rest()):
        yield Chunk(new.id, chunk.domain, new.input_ids, new.text, new.document_ends)
