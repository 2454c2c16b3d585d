"""Finds the files that an input names, and opens them: folders, patterns, compressed files, addresses, a pipe."""

from __future__ import annotations

import glob
import io
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

from agentsys.inputs.csv_text import read_csv, read_tsv
from agentsys.inputs.json_text import read_json_array, read_json_lines
from agentsys.inputs.lines import Fault, InputError, Raw, open_text, read_text
from agentsys.inputs.packing import unpack
from agentsys.inputs.tables import read_parquet
from agentsys.installation import install_command

FORMATS: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
ACCEPTED: Final = (
    f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}, also with .gz, .zst, .bz2 or .xz; a folder or a pattern such as "
    "'data/*.jsonl'; - for a pipe; hf:NAME; an address such as s3://bucket/file.jsonl"
)
"""What `--input` takes, as a message says it."""

_PACKED: Final = (".gz", ".zst", ".bz2", ".xz")
_DAMAGE: Final = (OSError, EOFError, zlib.error, lzma.LZMAError, InputError)
_ADDRESS: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+(.+)", re.DOTALL)
_READERS: Final[dict[str, Callable[[io.BufferedReader], Iterator[Raw]]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_array,
    ".csv": read_csv,
    ".tsv": read_tsv,
}


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of records: its name as it is shown, its format, how it is packed ("" if not), and how it is opened."""

    name: str
    suffix: str
    packing: str
    open: Callable[[], BinaryIO]

    def check(self) -> None:
        """Raises InputError if the file cannot be opened or is not what its suffix says."""
        if self.name == "-":  # checked when it was opened, and read once
            return
        try:
            if self.suffix == ".parquet":
                self.open().close()
            else:
                with self._open_text():
                    pass
        except _DAMAGE as error:
            if isinstance(error, InputError):
                raise
            raise _unreadable(self.name, error) from None

    def read(self, text_field: str) -> Iterator[Raw]:
        """The rows. What damages the rest of the file is the fault of one more row."""
        number = 0
        try:
            if self.suffix == ".parquet":
                with self.open() as file:
                    yield from read_parquet(file)
                return
            with self._open_text() as text:
                for row in _READERS[self.suffix](text) if self.suffix in _READERS else read_text(text, text_field):
                    number = row[0]
                    yield row
        except _DAMAGE as error:
            reason = getattr(error, "strerror", None) or str(error)
            yield number + 1, Fault(f"the file cannot be read from here on: {reason}; the records before were read")

    @contextmanager
    def _open_text(self) -> Iterator[io.BufferedReader]:
        with self.open() as raw:
            yield open_text(unpack(raw, self.packing), self.name)


def find_files(source: str) -> list[InputFile]:
    """The files of a path, pattern, folder, address or "-" (a pipe), sorted by name. Raises InputError."""
    if source == "-":
        return [_pipe()]
    address = find_address(source)
    if address:
        return _remote_files(address)
    path = Path(source)
    try:
        if path.is_dir():
            return _folder_files(source, [str(file) for file in sorted(path.rglob("*")) if file.is_file()], _local_file)
        if not path.exists() and glob.has_magic(source):
            names = sorted(name for name in glob.glob(source, recursive=True) if Path(name).is_file())
            return _matches(source, [_local_file(name) for name in names])
        path.open("rb").close()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{source}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None
    return [_local_file(source)]


def find_address(source: str) -> str:
    """The address that a string or a path made of it is ("s3:/bucket" for "s3://bucket"); "" for a local path."""
    parts = _ADDRESS.fullmatch(source)
    if parts is None or "\0" in source or Path(source).exists():
        return ""
    scheme = parts[1].lower()
    return f"{scheme}://{'/' if scheme == 'file' else ''}{parts[2]}"


def _unreadable(name: str, error: BaseException) -> InputError:
    return InputError(f"{name!r} cannot be read: {getattr(error, 'strerror', None) or error}")


def _matches(source: str, files: list[InputFile]) -> list[InputFile]:
    if not files:
        raise InputError(f"{source}: no file matches this pattern; check the path, and quote the pattern")
    return files


def split_suffix(name: str) -> tuple[str, str]:
    """The format and the packing that a file's name ends in, "" for each that is not one of ours."""
    path = Path(name.lower())
    packing = path.suffix if path.suffix in _PACKED else ""
    suffix = path.with_suffix("").suffix if packing else path.suffix
    return suffix if suffix in FORMATS else "", packing


def name_input(source: str) -> str:
    """A name for files about an input: that of a file without its suffixes, of a folder or pattern what is legible."""
    if source == "-":
        return "pipe"
    for place in (Path(source), *Path(source).parents):
        stem = place.stem if split_suffix(place.name)[1] == "" else Path(place.stem).stem
        if name := re.sub(r"[*?\[\]:@]+", "-", stem).strip("-."):
            return name
    return "input"


def _folder_files(source: str, names: list[str], to_file: Callable[[str], InputFile]) -> list[InputFile]:
    hidden = re.compile(r"(^|/)[._]")
    names = [name for name in names if split_suffix(name)[0] and not hidden.search(name.removeprefix(source))]
    suffixes = sorted({split_suffix(name)[0] for name in names})
    if not names:
        raise InputError(f"{source} is a folder without record files ({', '.join(FORMATS)}); name one that has them")
    if len(suffixes) > 1:
        pattern = f"'{source.rstrip('/')}/**/*{suffixes[0]}'"
        raise InputError(f"{source} is a folder with files of several formats ({', '.join(suffixes)}); say {pattern}")
    return [to_file(name) for name in names]


def _check_suffix(name: str) -> tuple[str, str]:
    suffix, packing = split_suffix(name)
    if not suffix:
        path = Path(name)
        actual = "".join(path.suffixes[-2:]) if packing else path.suffix
        raise InputError(f"{name}: unknown file type {actual!r}; use {ACCEPTED}")
    if packing and suffix == ".parquet":
        raise InputError(f"{name}: a packed Parquet file cannot be read; unpack it (Parquet itself compresses)")
    return suffix, packing


def _local_file(name: str) -> InputFile:
    return InputFile(name, *_check_suffix(name), lambda: Path(name).open("rb"))


def _pipe() -> InputFile:
    """Standard input: JSON lines or a JSON array, whichever its first character says. It can be read once."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed or sys.stdin.isatty():
        raise InputError("-: nothing is piped into the command; write `zcat records.jsonl.gz | agentsys collect ...`")
    file = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    start = file.peek(4)
    packing = ".gz" if start.startswith(b"\x1f\x8b") else ".zst" if start.startswith(b"\x28\xb5\x2f\xfd") else ""
    text = open_text(unpack(file, packing), "-")
    first = text.peek(1)[:4096].lstrip()[:1]
    if first not in (b"", b"{", b"["):
        raise InputError("-: the pipe must have JSON lines or a JSON array; save another format as a file")
    return InputFile("-", ".json" if first == b"[" else ".jsonl", "", lambda: text)


def _remote_files(address: str) -> list[InputFile]:
    """Files behind an address that fsspec reads."""
    try:
        import fsspec.core
    except ImportError:
        command = install_command("inputs")
        raise InputError(f"{mask(address)}: addresses are read by the package fsspec: {command}") from None
    try:
        system, path = fsspec.core.url_to_fs(address)
        if "*" in path:  # "?" and "[" are also in addresses of single files
            names = sorted(name for name in system.glob(path) if not system.isdir(name))
            return _matches(mask(address), [_remote_file(system, name) for name in names])
        if not split_suffix(urlsplit(address).path)[0] and system.isdir(path):
            return _folder_files(path, sorted(system.find(path)), lambda name: _remote_file(system, name))
        if not system.exists(path):
            raise InputError(f"{mask(address)}: no such file; check the address")
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{mask(address)}: {error}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{mask(address)} cannot be read: {' '.join(str(error).split())}") from None
    suffix, packing = _check_suffix(mask(address))
    return [InputFile(mask(address), suffix, packing, lambda: system.open(path, "rb"))]


def _remote_file(system: Any, path: str) -> InputFile:
    name = mask(system.unstrip_protocol(path))
    return InputFile(name, *_check_suffix(name), lambda: system.open(path, "rb"))


def mask(address: str) -> str:
    """An address without password and query, where keys and signatures are."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
