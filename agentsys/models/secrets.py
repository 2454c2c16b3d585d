"""Finds secrets in text of others, in whatever form it repeats them, and puts *** in their place.

A form is read back before it is compared: JSON escapes, URL encoding, HTML entities, case, line breaks and spaces
within. Base64 and hexadecimal digits of a secret are found at any offset. A part counts from `PART` characters on.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final

MASK: Final = "***"
SHORTEST: Final = 4
"""Shorter values are not masked: they would blacken every message."""
PART: Final = 8
"""Characters in a row that give a secret away."""
MANY: Final = 16
"""Characters in a row that are looked for in replies, where text that is no secret must stay."""

_OURS: Final = ("AGENTSYS_API_KEY", "AGENTSYS_HEADER_")
_KEYS_OF_OTHERS: Final = re.compile(r"[A-Z0-9_]*(API_?KEY|ACCESS_KEY|SECRET|AUTH_TOKEN|HF_TOKEN)[A-Z0-9_]*")
_UNIT: Final = re.compile(
    r"\\+u[0-9a-fA-F]{4}|\\+x[0-9a-fA-F]{2}|\\+.|%(?:25)*[0-9a-fA-F]{2}|"
    r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,8});|.",
    re.DOTALL,
)
_TAIL: Final = re.compile(r"[A-Za-z0-9+/_-]{0,2}={0,2}")


def read_secrets() -> tuple[str, ...]:
    """The values of the environment's keys: ours, and those of model providers if they are long."""
    secrets = set()
    for variable, setting in os.environ.items():
        value = setting.strip()
        is_ours = variable.startswith(_OURS)
        if (is_ours and len(value) >= SHORTEST) or (len(value) >= MANY and _KEYS_OF_OTHERS.fullmatch(variable)):
            secrets.add(value)
    return tuple(sorted(secrets))


def mask_key(text: str) -> str:
    """Replace every key of the environment in a server's text, and every part of one."""
    return mask_secrets(text, read_secrets(), PART)


def holds_key(text: str) -> bool:
    """Whether a text of the user's holds a key of the environment, or MANY characters of one."""
    return mask_secrets(text, [secret for secret in read_secrets() if len(secret) >= MANY], MANY) != text


def mask_secrets(text: str, secrets: Iterable[str], part: int) -> str:
    """Replace the secrets, and `part` or more characters in a row of one."""
    secrets = tuple(secrets)
    if len(text) < SHORTEST or not secrets:
        return text
    chars, starts, ends = _read_back(text)
    folded = chars.casefold()
    spans: list[tuple[int, int]] = []
    for secret in secrets:
        plain, encoded, digits = _forms(secret, part)
        spans += [*_find(folded, plain), *_find(folded, digits), *_widen(chars, _find(chars, encoded))]
    if not spans:
        return text
    pieces: list[str] = []
    position = 0
    for first, last in _merge(spans):
        start, end = starts[first], ends[last - 1]
        if start > position or not pieces:
            pieces += [text[position:start], MASK]
        position = max(position, end)
    return "".join([*pieces, text[position:]])


def _read_back(text: str) -> tuple[str, list[int], list[int]]:
    """The characters that the text stands for, without those that do not print, and where each begins and ends."""
    chars: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for match in _UNIT.finditer(text):
        char = _decode(match[0])
        if char:
            chars.append(char)
            starts.append(match.start())
            ends.append(match.end())
    return "".join(chars), starts, ends


def _decode(unit: str) -> str:
    """One character of the same length after casefold; "" for one that does not print and for a line break."""
    if len(unit) > 1:
        unit = _decode_escape(unit)
    if len(unit) != 1 or len(unit.casefold()) != 1:
        return "\0"
    return "" if unit.isspace() or unicodedata.category(unit) in ("Cc", "Cf") else unit


def _decode_escape(unit: str) -> str:
    if unit.startswith("\\"):
        body = unit.lstrip("\\")
        if not body:
            return "\\"
        if body[0] in "ux" and len(body) > 1:
            return chr(int(body[1:], 16))
        return " " if body[0] in "nrtbf" else body
    if unit.startswith("%"):
        return chr(int(unit[-2:], 16))
    return html.unescape(unit)


@lru_cache(maxsize=64)
def _forms(secret: str, part: int) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The pieces of a secret whose presence gives it away: its characters in lower case, Base64, hexadecimal digits."""
    words = {"".join(secret.split()), "+".join(secret.split())}
    plain = frozenset(gram for word in words for gram in _grams(word.casefold(), min(part, len(word))))
    if len(secret) < PART:
        return plain, frozenset(), frozenset()
    data = secret.encode()
    encoded = {gram for core in _base64_cores(data) for gram in _grams(core, min(len(core), part * 4 // 3))}
    urlsafe = {gram.translate(_URLSAFE) for gram in encoded}
    return plain, frozenset(encoded | urlsafe), frozenset(_grams(data.hex(), min(2 * part, 2 * len(data))))


_URLSAFE: Final = str.maketrans("+/", "-_")


def _grams(word: str, size: int) -> Iterator[str]:
    for start in range(max(1, len(word) - size + 1)):
        yield word[start : start + size]


def _base64_cores(data: bytes) -> Iterator[str]:
    """Base64 of the secret at each of the three offsets, without the characters that depend on its neighbors."""
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + data).decode().rstrip("=")
        yield text[(0, 2, 3)[offset] : len(text) - bool((offset + len(data)) % 3)]


def _find(chars: str, grams: frozenset[str]) -> list[tuple[int, int]]:
    """Where one of the pieces begins and ends."""
    spans = []
    for size in {len(gram) for gram in grams}:
        spans += [(i, i + size) for i in range(len(chars) - size + 1) if chars[i : i + size] in grams]
    return spans


def _widen(chars: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans with the last digits of Base64, which depend on what follows the secret."""
    return [(first, last + len(_TAIL.match(chars, last)[0])) for first, last in spans]  # type: ignore[index]


def _merge(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


# Replies: most hold no secret, which a few searches tell


_ESCAPED_ASCII: Final = re.compile(rb"(?:\\+u00[2-7][0-9a-fA-F]){6}")
"""Characters that nobody has to escape."""


class SecretFilter:
    """Finds secrets in the bodies of a server's replies and masks them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = tuple(secret for secret in secrets if _is_random(secret))
        self._anchors = tuple({anchor.encode() for secret in self._secrets for anchor in _anchors(secret)})

    def __bool__(self) -> bool:
        """Whether there are secrets to look for."""
        return bool(self._anchors)

    def may_be_in(self, raw: bytes) -> bool:
        """Whether a body may hold a secret."""
        if any(anchor in raw for anchor in self._anchors):
            return True
        return bool(self) and b"\\u00" in raw and _ESCAPED_ASCII.search(raw) is not None

    def mask(self, value: Any) -> Any:
        """The JSON value with *** in place of the secrets in its texts and keys."""
        if isinstance(value, str):
            return mask_secrets(value, self._secrets, MANY)
        if isinstance(value, list):
            return [self.mask(item) for item in value]
        if isinstance(value, dict):
            return {self.mask(key): self.mask(item) for key, item in value.items()}
        return value


def _is_random(secret: str) -> bool:
    """Whether a key is no word that a reply may well hold, such as EMPTY or not-needed."""
    return len(secret) >= MANY or (len(secret) >= PART and any(map(str.isdigit, secret)) and not secret.isdigit())


def _anchors(secret: str) -> Iterator[str]:
    """Pieces of which every part of MANY characters holds one, and the beginning and the middle of its Base64."""
    step = MANY // 2
    for start in range(0, len(secret) - step + 1, step):
        yield json.dumps(secret[start : start + step])[1:-1]
    for core in _base64_cores(secret.encode()):
        yield core[:step]
        yield core[len(core) // 2 :][:step]
