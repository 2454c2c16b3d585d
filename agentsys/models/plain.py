"""Texts that are not ours as token ids: no added token, so that nothing in a record opens or closes a turn.

A tokenizer's own switch covers only those added tokens that are marked as special. The turn tokens of some families
are not (`<｜User｜>` of DeepSeek), so contents are encoded with a tokenizer that has no added tokens at all. Should its
vocabulary still have a token's text as one piece, that text is encoded in two halves.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Final

LOOKS_LIKE_A_TOKEN: Final = re.compile(r"<[^<>\n]{1,60}>|\[[^\[\]\n]{1,40}\]|◁[^◁▷\n]{1,40}▷")
"""Texts that may be added tokens of a tokenizer whose vocabulary is not at hand."""


class NotPlain(ValueError):
    """A text that the tokenizer cannot encode without an added token."""


class PlainEncoder:
    """Encodes texts without the added tokens of a tokenizer."""

    def __init__(self, tokenizer_json: str) -> None:
        """`tokenizer_json`: the content of a tokenizer.json file."""
        from tokenizers import Tokenizer

        content = json.loads(tokenizer_json)
        added = content.get("added_tokens") or []
        self._texts = {int(token["id"]): str(token["content"]) for token in added if str(token["content"]).strip()}
        self._encoder = Tokenizer.from_str(json.dumps({**content, "added_tokens": [], "post_processor": None}))
        self._encoder.no_truncation()
        self._encoder.no_padding()

    @property
    def added_ids(self) -> frozenset[int]:
        """The ids of added tokens other than white space, none of which `encode` returns."""
        return frozenset(self._texts)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text, and the characters [start, end) of each. Raises NotPlain."""
        pieces = [(0, text)]
        while True:
            ids: list[int] = []
            offsets: list[tuple[int, int]] = []
            for start, piece in pieces:
                encoding = self._encoder.encode(piece, add_special_tokens=False)
                ids += encoding.ids
                offsets += [(start + begin, start + end) for begin, end in encoding.offsets]
            added = self._texts.keys() & set(ids)
            if not added:
                return ids, offsets
            smaller = split_inside(text, [self._texts[i] for i in added], pieces)
            if len(smaller) == len(pieces):
                raise NotPlain(f"the tokenizer cannot encode {self._texts[min(added)]!r} as plain text")
            pieces = smaller


def split_inside(text: str, tokens: list[str], pieces: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Pieces of a text (start, text), divided further after the first character of each occurrence of a token."""
    cuts = {start for start, _ in pieces}
    for token in tokens:
        if len(token) > 1:
            cuts |= {match.start() + 1 for match in re.finditer(re.escape(token), text)}
    places = [*sorted(cuts), len(text)]
    return [(start, text[start:end]) for start, end in pairwise(places) if start < end]
