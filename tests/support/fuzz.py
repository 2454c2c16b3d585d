"""Seeded damage to small files, and what a reader may do with a damaged file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

Damage = Callable[[random.Random, bytes], bytes]

_SCALAR: Final = re.compile(rb'"[^"\n]*"|-?\b\d[\d.]*\b|\btrue\b|\bfalse\b|\bnull\b')
_VALUES: Final = (
    b"3", b'"x"', b'""', b"null", b"true", b"[1]", b"[]", b"{}", b'{"a": 1}', b"-1", b"0.5", b"1e999", b"NaN",
    b"99999999999999999999", b'"\\ud800"', b"[[[[[[[[",
)  # fmt: skip
_LINES: Final = (
    b"", b"\0\0\0\0", b"\xff\xfe\x00", b"{", b"}", b'"', b"null", b"[]", b"a,b,c,d,e,f", b"\t\t\t", b": - x", b"%0A",
    b"\xef\xbb\xbf", b"# each x in y", b"{% for", b"{{ a.__class__ }}", b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"<a",
    b"]]>",
)  # fmt: skip


def _flip_bits(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _write_zeros(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    size = min(rng.choice((1, 4, 64, 4096)), len(data) - start)
    return data[:start] + bytes(size) + data[start + size :]


def _insert_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(_LINES))
    return b"\n".join(lines)


def _insert_bytes(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.choice((*_LINES, rng.randbytes(4))) + data[start:]


def _remove(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 2, 8, 100)) :]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.choice((1, 20, 200))] * 2 + data[start:]


def _swap_value(rng: random.Random, data: bytes) -> bytes:
    values = list(_SCALAR.finditer(data))
    if not values:
        return _flip_bits(rng, data)
    value = rng.choice(values)
    return data[: value.start()] + rng.choice(_VALUES) + data[value.end() :]


_DAMAGES: Final[tuple[Damage, ...]] = (
    _flip_bits, _truncate, _write_zeros, _insert_line, _insert_bytes, _remove, _repeat, _swap_value, _swap_value,
)  # fmt: skip


def damaged(data: bytes, seed: str, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` damaged forms of a file's bytes, each with a name to repeat it by."""
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        damage = rng.choice(_DAMAGES)
        yield f"{seed}-{number}: {damage.__name__}", damage(rng, data)


def fault_of(read: Callable[[], object], *names: str) -> str:
    """What is wrong with how a reader takes a damaged file; "" if it reads it, or refuses it in one line.

    The refusal is an error of agentsys, a ValueError, whose message has one of the names.
    """
    try:
        read()
    except ValueError as err:
        message = str(err)
        if not type(err).__module__.startswith("agentsys"):
            return f"{type(err).__name__} is not an error of agentsys: {message[:200]}"
        if "\n" in message or not message:
            return f"not one line: {message[:200]!r}"
        if names and not any(name in message for name in names):
            return f"names none of {', '.join(names)}: {message[:200]}"
    except Exception as err:
        return f"{type(err).__name__}: {str(err)[:200]}"
    return ""


def first_faults(path: Path, read: Callable[[Path], object], seed: str, count: int, *names: str) -> list[str]:
    """The faults of a reader over damaged forms of a file, which has its first content again afterwards."""
    data = path.read_bytes()
    faults = []
    for name, content in damaged(data, seed, count):
        path.write_bytes(content)
        if fault := fault_of(lambda: read(path), *(names or (path.name,))):
            faults.append(f"{name}: {fault}")
    path.write_bytes(data)
    return faults


def check(faults: list[str]) -> None:
    """Assert that there are none."""
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:8])
