"""Compressed files: what their bytes begin with, and their content as a stream."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import Any, BinaryIO

from agentsys.inputs.lines import CHUNK


def unpack(file: BinaryIO, packing: str) -> io.BufferedReader:
    """The content of a file that is packed as ".gz", ".bz2", ".xz" or ".zst", or not at all ("")."""
    match packing:
        case ".gz":
            return io.BufferedReader(gzip.GzipFile(fileobj=file), CHUNK)
        case ".bz2":
            return io.BufferedReader(bz2.BZ2File(file), CHUNK)
        case ".xz":
            return io.BufferedReader(lzma.LZMAFile(file), CHUNK)
        case ".zst":
            return io.BufferedReader(_ZstdReader(file), CHUNK)
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, CHUNK)  # type: ignore[arg-type]


class _ZstdReader(io.RawIOBase):
    """The content of a zstd file of any number of frames. Raises EOFError where it is truncated.

    zstandard's own reader takes a truncated file for a whole one. It is fed little at a time, as 4 bytes can stand for
    128 KiB.
    """

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file = file
        self._error = zstandard.ZstdError
        self._start: Callable[[], Any] = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._start()
        self._inside = False
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            packed = self._file.read(1024)
            if not packed:
                if self._inside:
                    raise EOFError("the compressed file ends too early")
                return 0
            self._held = memoryview(self._decompress(packed))
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def _decompress(self, packed: bytes) -> bytes:
        parts = []
        try:
            while packed:
                parts.append(self._frame.decompress(packed))
                self._inside = not self._frame.eof
                packed = self._frame.unused_data if self._frame.eof else b""
                if self._frame.eof:
                    self._frame = self._start()
        except self._error as error:
            raise OSError(str(error)) from None
        return b"".join(parts)
