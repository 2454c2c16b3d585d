"""Documents become chunks of at most so many tokens that end where a sentence does (MiniPLM, data preparation).

Each domain has a buffer of its own: ids of documents one after another, each closed by the end-of-document token. Once
the buffer holds a full window, the window is cut behind its last document end, line break or sentence end, and what
follows it opens the next chunk. A window without any of these is cut whole, but never within a character: so the texts
of a domain's chunks, joined, are its documents to the byte, and the ids of its chunks, joined, are its documents' ids.

Which tokens end a sentence is derived from the tokenizer: the token's text, without closing quotation marks and
brackets, ends in a full stop, question mark or exclamation mark. Between Latin letters and digits that is not enough
("3.14", "e.g."): white space or the document's end must follow. Chinese and Japanese marks need none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from agentsys.trainers.loading import TrainerError

if TYPE_CHECKING:
    pass

PRETRAINING_END: Final = "<|endoftext|>"
"""Ends a document in the pre-training of the models that have it, whatever their chat format ends a turn with."""

BATCH: Final = 256
"""Documents tokenized at once, in as many threads as there are cores."""

_CLOSERS: Final = "\"'’”»)]}*_`」』）】 \t"
_MARKS: Final = (".", "!", "?")
_WIDE_MARKS: Final = ("。", "！", "？", "…", "।", "؟")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one domain: at most `max_length`, with the text that they stand for."""

    id: str
    """`<domain>/<running number>`: a domain's chunks in order of their numbers are its documents."""
    domain: str
    input_ids: list[int]
    text: str
    """The documents' own characters; end-of-document and beginning-of-sequence tokens have none."""
    document_ends: list[int]
    """Where in `text`, in characters, a document ends: one place for each end-of-document token."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A piece of a document as tokens."""

    ids: list[int]
    ends: list[int]
    """For each token, how many characters of the text are behind it; never falls, and ends with all of them."""
    whole: list[bool]
    """For each token, whether the next one begins a character (else a cut behind it would split one)."""


class Encoder:
    """A tokenizer as chunks need it: plain text to ids with places, and which ids end a sentence.

    Special tokens that are written in a document stay the text that they are. `end_id` closes a document; `bos_id` is
    what the tokenizer puts before every text (None for most families).
    Raises TrainerError for a tokenizer without an end-of-sequence token.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        opened = self._tokenizer.encode("a").ids
        self.bos_id: int | None = tokenizer.bos_token_id if opened[0] == tokenizer.bos_token_id else None
        self._tokenizer.encode_special_tokens = True
        pretraining = self._tokenizer.token_to_id(PRETRAINING_END)
        end = tokenizer.eos_token_id if pretraining is None else pretraining
        if end is None:
            raise TrainerError("the tokenizer has no end-of-sequence token to close documents with; give it one")
        self.end_id: int = end
        self.end_token: str = str(self._tokenizer.id_to_token(end))
        self._stops()

    def _stops(self) -> None:
        count = max(self._tokenizer.get_vocab().values()) + 1
        texts = self._tokenizer.decode_batch([[i] for i in range(count)], skip_special_tokens=False)
        names = [self._tokenizer.id_to_token(i) or "" for i in range(count)]
        # A decoder of the SentencePiece kind drops the space that a lone token begins with.
        texts = [f" {text}" if name.startswith("▁") else text for name, text in zip(names, texts, strict=True)]
        trimmed = [text.rstrip(_CLOSERS) for text in texts]
        self.always = {i for i in range(count) if "\n" in texts[i] or trimmed[i].endswith(_WIDE_MARKS)} | {self.end_id}
        self.sentence = {i for i in range(count) if trimmed[i].endswith(_MARKS)}
        self.spaced = {i for i in range(count) if texts[i][:1].isspace()} | {self.end_id}
        self._space_after = {i for i in self.sentence if texts[i][-1:].isspace()}

    def is_stop(self, token: int, following: int | None) -> bool:
        """Whether a sentence, line or document ends with `token`, given the token behind it (None: nothing is)."""
        if token in self.always:
            return True
        if token not in self.sentence:
            return False
        return following is None or following in self.spaced or token in self._space_after

    def encode(self, texts: Sequence[str], *, close: bool = True) -> list[Encoded]:
        """Each text as tokens, in parallel; `close` appends the end-of-document token."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self._encoded(text, one.ids, one.offsets, close) for text, one in zip(texts, found, strict=True)]

    def _encoded(self, text: str, ids: list[int], offsets: list[tuple[int, int]], close: bool) -> Encoded:
        places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        ends = np.maximum.accumulate(places[:, 1])
        whole = np.append(places[1:, 0] >= ends[:-1], True)[: len(ids)].tolist()
        behind = ends.tolist()
        if close:
            return Encoded([*ids, self.end_id], [*behind, len(text)], [*whole, True])
        return Encoded(ids, [*behind[:-1], len(text)] if ids else [], whole)


@dataclass
class _Buffer:
    """The tokens of one domain that are in no chunk yet."""

    domain: str
    encoder: Encoder
    max_length: int
    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    text: str = ""
    number: int = 0
    start: int = 0
    """The first token that is in no chunk yet."""
    at: int = 0
    """Where in `text` it begins."""

    def add(self, text: str, encoded: Encoded) -> None:
        """Append a document, after dropping what the chunks before have taken."""
        del self.ids[: self.start], self.whole[: self.start]
        self.ends = [end - self.at for end in self.ends[self.start :]]
        self.text = self.text[self.at :]
        self.start = self.at = 0
        behind = len(self.text)
        self.text += text
        self.ids += encoded.ids
        self.ends += [behind + end for end in encoded.ends]
        self.whole += encoded.whole

    def full(self) -> Iterator[Chunk]:
        """Chunks as long as the buffer holds a whole window."""
        while len(self.ids) - self.start >= self.max_length:
            yield self._take(self._cut(self.start + self.max_length))

    def rest(self) -> Iterator[Chunk]:
        """What is left, as the domain's last chunk."""
        if self.start < len(self.ids):
            yield self._take(len(self.ids))

    def _cut(self, end: int) -> int:
        """Behind which token to cut a window that ends at `end`; a chunk of one token has nothing to predict."""
        ids, whole = self.ids, self.whole
        for i in range(end - 1, self.start, -1):
            following = ids[i + 1] if i + 1 < len(ids) else None
            if whole[i] and self.encoder.is_stop(ids[i], following):
                return i + 1
        return next((i + 1 for i in range(end - 1, self.start, -1) if whole[i]), end)

    def _take(self, end: int) -> Chunk:
        ids, at, stop = self.ids[self.start : end], self.at, self.ends[end - 1]
        places = [self.ends[i] - at for i in range(self.start, end) if self.ids[i] == self.encoder.end_id]
        opened = [] if self.encoder.bos_id is None else [self.encoder.bos_id]
        chunk = Chunk(f"{self.domain}/{self.number:08d}", self.domain, opened + ids, self.text[at:stop], places)
        self.start, self.at, self.number = end, stop, self.number + 1
        return chunk


def chunked(documents: Iterable[Document], encoder: Encoder, max_length: int) -> Iterator[Chunk]:
    """The chunks of a corpus, in the order in which they fill; at the end the rest of each domain.

    `max_length` counts tokens with the beginning-of-sequence token, if the tokenizer has one. Memory: one batch of
    documents and one window for each domain.
    """
    window = max_length - (encoder.bos_id is not None)
    buffers: dict[str, _Buffer] = {}
    source = iter(documents)
    while batch := list(islice(source, BATCH)):
        for document, encoded in zip(batch, encoder.encode([one.text for one in batch]), strict=True):
            buffer = buffers.setdefault(document.domain, _Buffer(document.domain, encoder, window))
            buffer.add(document.text, encoded)
            yield from buffer.full()
    for buffer in buffers.values():
        yield from buffer.rest()


def rechunked(chunk: Chunk, encoder: Encoder, max_length: int) -> Iterator[Chunk]:
    """A chunk in the tokens of another tokenizer: one chunk or, where those are more, several. No text is lost.

    Split at the document ends, encoded, and joined with the other tokenizer's end-of-document token. The new ids are
    `<the chunk's id>/<running number>`.
    """
    buffer = _Buffer(chunk.id, encoder, max_length - (encoder.bos_id is not None))
    places = [0, *chunk.document_ends]
    for begin, end in pairwise(places):
        text = chunk.text[begin:end]
        buffer.add(text, encoder.encode([text])[0])
    if tail := chunk.text[places[-1] :]:
        buffer.add(tail, encoder.encode([tail], close=False)[0])
    for new in (*buffer.full(), *buffer.rest()):
        yield Chunk(new.id, chunk.domain, new.input_ids, new.text, new.document_ends)


@dataclass(frozen=True, slots=True)
class Document:
    """One text, and the domain in whose buffer its tokens go."""

    text: str
    domain: str
