"""The shards of a run: traces-NNNNN.jsonl, to which finished records are appended, and traces-NNNNN.jsonl.zst.

A shard that is full, or that a run leaves, is compressed with zstd: one frame, with the size of its content and a
checksum, so that a file that lost its end is noticed. `zstd -d` reads it. After kill -9 the last shard is not
compressed; the next run goes on in it.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from agentsys.paths import sync_file

NO_SHARD: Final = "not the name of a shard, which is traces-NNNNN.jsonl or traces-NNNNN.jsonl.zst"
LEVEL: Final = 9
"""zstd's level. DRT's traces become 6.2 times smaller, at 28 MB a second (one core of a small x86 VM)."""
WINDOW_LOG: Final = 27
"""Texts and token ids that are repeated within 2^27 bytes are stored once; zstd reads so much without an option."""
_NAME: Final = re.compile(r"traces-([0-9]{1,9})\.jsonl(\.zst)?")


class ShardError(ValueError):
    """A compressed shard is damaged from some line on."""


def find_shards(folder: str | Path) -> dict[Path, int | None]:
    """Every file of a run's folder that is named like a shard, with its number, in order; None if the name is wrong.

    A shard that is there in both forms was compressed to the end, and its other form is left out.
    """
    folder = Path(folder)
    paths = [path for pattern in ("traces-*.jsonl", "traces-*.jsonl.zst") for path in folder.glob(pattern)]
    numbers = {path: shard_number(path) for path in paths if not compressed(path).exists() or is_compressed(path)}
    return dict(sorted(numbers.items(), key=lambda item: (item[1] is None, item[1] or 0, item[0].name)))


def shard_number(path: Path) -> int | None:
    """The number in the name of a shard; None if the name is not that of one."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def shard_path(folder: Path, number: int) -> Path:
    """The shard of a number, as it is written."""
    return folder / f"traces-{number:05d}.jsonl"


def is_compressed(path: Path) -> bool:
    """Whether a shard is compressed, by its name."""
    return path.suffix == ".zst"


def compressed(path: Path) -> Path:
    """The name of a shard once it is compressed."""
    return path if is_compressed(path) else path.with_name(f"{path.name}.zst")


def content_size(path: Path) -> int:
    """Bytes of the lines of a shard, which of a compressed one are in its head; 0 if they are not."""
    if not is_compressed(path):
        return path.stat().st_size
    import zstandard

    with path.open("rb") as file, suppress(zstandard.ZstdError):
        return max(int(zstandard.frame_content_size(file.read(18))), 0)  # a head is 18 bytes at most
    return 0


@contextmanager
def open_shard(path: Path) -> Iterator[IO[bytes]]:
    """The lines of a shard as a binary file. A shard that is compressed meanwhile is opened as such.

    Reading raises ShardError where the compressed data is damaged or ends early; opening raises OSError.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        if is_compressed(path):
            raise
        path = compressed(path)
        file = path.open("rb")
    with file:
        yield io.BufferedReader(_Decompressed(file, content_size(path)), 2**20) if is_compressed(path) else file


def skip(lines: IO[bytes], size: int) -> None:
    """Go on `size` bytes further in a shard, of which nothing was read. A compressed one is decompressed so far."""
    if lines.seekable():
        lines.seek(size)
        return
    while size and (part := lines.read(min(size, 2**20))):
        size -= len(part)


class _Decompressed(io.RawIOBase):
    """The content of a compressed file. zstandard's own reader takes a file without its end for a whole one."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor(max_window_size=2**WINDOW_LOG).stream_reader(
            file, read_across_frames=True
        )
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = int(self._reader.readinto(buffer))
        except self._error as err:
            raise ShardError(f"damaged from here on ({err})") from None
        if not count and self._left > 0:
            raise ShardError("damaged from here on (it ends early)")
        self._left -= count
        return count


def compress_shard(path: Path) -> Path:
    """Compress a shard and remove its other form. Returns the new path. A failure leaves the shard as it is.

    Raises OSError.
    """
    import zstandard

    target = compressed(path)
    temporary = target.with_name(f".{target.name}.tmp")
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, window_log=WINDOW_LOG, enable_ldm=True, write_checksum=True, write_content_size=True
    )
    try:
        with path.open("rb") as content, temporary.open("wb") as file:
            compressor = zstandard.ZstdCompressor(compression_params=parameters)
            compressor.copy_stream(content, file, size=path.stat().st_size)
            sync_file(file)
        os.chmod(temporary, path.stat().st_mode)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    path.unlink()
    return target
