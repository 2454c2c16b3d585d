"""How much a row group of a Parquet file unpacks to, before it is read: a file of 20 KB may ask for gigabytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from agentsys.inputs.lines import MAX_LINE

MAX_RATIO: Final = 1000
"""A column of more than MAX_LINE that is packed more tightly than this is refused; text reaches 3 to 100."""
BATCH_BYTES: Final = 256 * 2**20
"""What a batch of rows may take."""
MAX_ROWS: Final = 256


def find_oversized(group: Any, names: list[str]) -> dict[str, str]:
    """The columns of a row group (its metadata) that cannot be read in a memory of usual size, with the reason."""
    faults: dict[str, str] = {}
    for column in _columns(group, MAX_LINE):
        size, packed = column.total_uncompressed_size, max(1, column.total_compressed_size)
        is_cell = size > MAX_LINE * max(1, column.num_values)
        if is_cell or (size > MAX_LINE and size > MAX_RATIO * packed):
            long_cell = f"a cell of the column is longer than {MAX_LINE // 2**20} MiB"
            fault = long_cell if is_cell else f"the column's {packed:,} bytes unpack to {size:,}"
            faults |= {name: fault for name in names if _is_part(column.path_in_schema, name)}
    return faults


def _columns(group: Any, size: int) -> Iterator[Any]:
    """The columns' metadata of a row group that unpacks to more than `size` bytes.

    That of a smaller one is not asked for: where it is damaged, pyarrow aborts the process (the reader of rows raises).
    """
    return (group.column(place) for place in range(group.num_columns if group.total_byte_size > size else 0))


def _is_part(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def rows_per_batch(file: Any, group: Any) -> int:
    """Rows that fit into BATCH_BYTES, as far as it can be seen: by the mean cell, and by the dictionary of a column.

    With a dictionary, a few bytes of a row can stand for any of its entries.
    """
    largest = 1
    for column in _columns(group, BATCH_BYTES // MAX_ROWS):
        largest = max(largest, column.total_uncompressed_size // max(1, column.num_values))
        if column.has_dictionary_page:
            largest = max(largest, _dictionary_size(file, column.dictionary_page_offset))
    return max(1, min(MAX_ROWS, BATCH_BYTES // largest))


def _dictionary_size(file: Any, offset: int) -> int:
    """The unpacked size of the page at an offset: the second field of its header (Thrift's compact protocol)."""
    if hasattr(file, "seek"):
        before = file.tell()
        file.seek(offset)
        header = file.read(32)
        file.seek(before)
    else:
        with open(file, "rb") as opened:
            opened.seek(offset)
            header = opened.read(32)
    place, value = 0, 0
    for _ in range(2):  # the page's type, its size; a field is a byte (0x15: the next field, an int32) and a varint
        if place >= len(header) or header[place] != 0x15:
            return 0
        place, value = _read_varint(header, place + 1)
    return value >> 1 if value % 2 == 0 else 0  # zigzag: odd numbers are negative ones


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return place, value
