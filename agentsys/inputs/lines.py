"""Numbered lines of a text file in UTF-8, UTF-16 or UTF-32, and the fault of a line that cannot be read."""

from __future__ import annotations

import codecs
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

MAX_LINE = 64 * 2**20
"""The longest line or JSON element read, in bytes, and the longest CSV field, in characters."""
CHUNK = 2**18
"""Bytes read at a time."""

_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BINARY: Final = (
    (re.compile(rb"\x1f\x8b"), "compressed with gzip; let its name end in .gz"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "compressed with zstd; let its name end in .zst"),
    (re.compile(rb"BZh\d1AY&SY"), "compressed with bzip2; let its name end in .bz2"),
    (re.compile(rb"\xfd7zXZ\0"), "compressed with xz; let its name end in .xz"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive or a spreadsheet; unpack it, or save it as CSV"),
    (re.compile(rb"PAR1\x15"), "a Parquet file; let its name end in .parquet"),
)
_ISO_2022: Final = re.compile(rb"\x1b[$(]|\x0e")

_SPACES: Final = str.maketrans("\r\n\t\ufffd", "   \0")


class InputError(ValueError):
    """An unusable input or option. The message is one line that names the fix."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a line or row cannot be used, and the digest of its content ("" if it has none)."""

    reason: str
    content: str = ""


Raw = tuple[int, "dict[str, Any] | Fault"]
"""The 1-based number of a line or row, and its fields or its fault."""


def digest(content: bytes) -> str:
    """The first 16 hex digits of the SHA-256 of a line without its line end."""
    return hashlib.sha256(content.rstrip(b"\r\n")).hexdigest()[:16]


def too_long() -> str:
    """The reason for refusing a line of more than MAX_LINE bytes."""
    return f"the record is longer than {MAX_LINE // 2**20} MiB; split it or leave it out"


def open_text(file: io.BufferedReader, name: str) -> io.BufferedReader:
    """Skip a byte order mark; UTF-16 and UTF-32 with one are converted to UTF-8.

    Raises InputError for a file that is not text: compressed, a spreadsheet, UTF-16 without a byte order mark.
    """
    head = file.peek(4)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            file.read(len(mark))
            return io.BufferedReader(_Converter(file, encoding), CHUNK)
    if head.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
        return file
    for pattern, kind in _BINARY:
        if pattern.match(head):
            raise InputError(f"{name}: the file is {kind}")
    head = head[:4096]
    if head.count(0) * 8 > len(head) or (0 in head and _looks_like_utf16(head)):
        raise InputError(f"{name}: the file has zero bytes, like UTF-16 without a byte order mark; convert it to UTF-8")
    return file


def _looks_like_utf16(head: bytes) -> bool:
    """Whether bytes that are not UTF-8 make text with spaces or line ends as UTF-16, in a script without zero bytes."""
    try:
        head[: head.rfind(b"\n") + 1 or None].decode()
    except UnicodeDecodeError:
        texts = [head[: len(head) // 2 * 2].decode(encoding, "replace") for encoding in ("utf-16-le", "utf-16-be")]
        return any(re.search(r"[ \n]", text) and text.translate(_SPACES).isprintable() for text in texts)
    return False


class _Converter(io.RawIOBase):
    """The UTF-8 bytes of a file in another encoding. What is no text becomes a byte that is not UTF-8."""

    def __init__(self, file: io.BufferedReader, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="agentsys-mark")
        self._held = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held and not self._ended:
            raw = self._file.read(CHUNK)
            self._ended = not raw
            self._held = memoryview(self._decoder.decode(raw, final=not raw).encode(errors="surrogatepass"))
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


codecs.register_error("agentsys-mark", lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


def read_lines(file: io.BufferedReader) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines with their line ends; None for a line longer than MAX_LINE."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) <= MAX_LINE:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(CHUNK)
        yield number, None


def decode(line: bytes | None) -> tuple[str, str]:
    """The line's text and its fault ("" if none)."""
    if line is None:
        return "\n", too_long()
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        fault = f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8; convert the file to UTF-8"
        return line.decode(errors="replace"), fault
    if "\0" in text:
        return text, f"byte {line.index(0) + 1} is zero, like in UTF-16 and binary files; convert the file to UTF-8"
    if ("\x1b" in text or "\x0e" in text) and (mark := _ISO_2022.search(line)):
        return text, f"byte {mark.start() + 1} is an escape, like in ISO-2022 text; convert the file to UTF-8"
    return text, ""


def read_text(file: io.BufferedReader, text_field: str) -> Iterator[Raw]:
    """One record per line that is not blank, as `{text_field: line}`."""
    for number, line in read_lines(file):
        text, fault = decode(line)
        if fault:
            yield number, Fault(fault, digest(line) if line else "")
        elif text.strip():
            yield number, {text_field: text.rstrip("\r\n")}
