"""Opening term files that may be compressed, with a limit for files that expand to many times their size."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from agentsys.inputs.packing import unpack
from agentsys.knowledge.passages import KnowledgeError

PACKED_SUFFIXES: Final = (".gz", ".bz2", ".xz")
_PACKINGS: Final = ((b"\x1f\x8b", ".gz"), (b"BZh", ".bz2"), (b"\xfd7zXZ\x00", ".xz"))
_UNREADABLE: Final = ((b"\x28\xb5\x2f\xfd", "Zstandard"), (b"PK\x03\x04", "ZIP"), (b"7z\xbc\xaf", "7z"))
FREE_SIZE: Final = 64 * 2**20
"""A file may expand to this many bytes whatever its size."""
MAX_RATIO: Final = 200
"""Beyond `FREE_SIZE`, a file may expand to this many times its size. Text expands to 3 to 30 times."""


class _Limited(io.RawIOBase):
    """A stream that raises KnowledgeError after a number of bytes."""

    def __init__(self, path: Path, stream: BinaryIO, limit: int) -> None:
        self._path, self._stream, self._left, self._limit = path, stream, limit, limit

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at most as many bytes as the buffer holds."""
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            size = f"{self._limit:,} bytes, {MAX_RATIO} times its size"
            raise KnowledgeError(f"{self._path}: expands to over {size}; not read")
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed if it begins as gzip, bzip2 or xz whatever its name.

    Raises KnowledgeError, also while it is read, if it cannot be read, is damaged, or expands beyond all measure.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(0)
            for magic, name in _UNREADABLE:
                if head.startswith(magic):
                    raise KnowledgeError(f"{path}: is compressed ({name}); decompress it")
            packing = next((suffix for magic, suffix in _PACKINGS if head.startswith(magic)), "")
            if not packing:
                yield file
                return
            limit = max(FREE_SIZE, MAX_RATIO * path.stat().st_size)
            yield cast(BinaryIO, io.BufferedReader(_Limited(path, unpack(file, packing), limit)))
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as err:
        raise KnowledgeError(f"{path}: its compressed data are damaged ({err}); compress it again") from None
    except OSError as err:
        raise KnowledgeError(f"{path}: cannot be read ({err.strerror or err}); check the path") from None


def bare_suffix(path: Path) -> str:
    """Return the suffix of a file in lower case, without that of its compression: ".tmx" of "a.tmx.gz"."""
    name = path.name.lower()
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return Path(name).suffix
