"""JSON lines and JSON arrays, exact: integers beyond 64 bits stay integers, a key that occurs twice is a fault.

A JSON array is split into its elements here and each is parsed alone, so that a broken one costs one record. ijson is
no substitute: its C back end silently turns half a surrogate pair into "?", its Python one keeps most of the file in
memory (19 MB for a file of 10 MB), and both stop at the first error.

orjson reads an integer beyond 64 bits as a float and keeps the last of two equal keys. A line where either may have
happened is read again by the `json` module.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final

import orjson

from agentsys.inputs import lines
from agentsys.inputs.lines import Fault, Raw, decode, digest, read_lines, too_long

_MARK: Final = re.compile(rb'[\\"\[\]{},]')
_DEPTH: Final = {b"[": 1, b"{": 1, b"]": -1, b"}": -1, b",": 0}
_BIG: Final = float(2**63)
_WRITE_OBJECT: Final = "write an object, {...}"


def read_json_lines(file: io.BufferedReader) -> Iterator[Raw]:
    """One record per line that is not blank."""
    for number, line in read_lines(file):
        if line is None:
            yield number, Fault(too_long())
        elif not line.isspace():
            yield number, parse_object(line)


def parse_object(line: bytes) -> dict[str, Any] | Fault:
    """The fields of a JSON object, or why it cannot be used."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if "infinity" in error.msg and isinstance(value := _parse_exactly(line), dict):  # an integer of 309 digits
            return value
        unknown = error.doc.startswith(("NaN", "Infinity"), error.pos)
        hint = "write null for NaN and Infinity" if unknown else _WRITE_OBJECT
        # orjson does not say where a byte is not UTF-8.
        reason = decode(line)[1] or f"not JSON: {error.msg} at character {error.pos + 1}; {hint}"
        return Fault(reason, digest(line))
    if not isinstance(value, dict):
        return Fault(f"the JSON is of type {type(value).__name__}; {_WRITE_OBJECT}", digest(line))
    return value if _is_exact(line, value) else _parse_exactly(line)


def _is_exact(line: bytes, fields: dict[str, Any]) -> bool:
    """Whether `fields` are certainly all that `line` says: no large float, and the same number of colons."""
    containers = []
    for value in fields.values():
        kind = value.__class__
        if kind is dict or kind is list:
            containers.append(value)
        elif kind is float and not -_BIG < value < _BIG:
            return False
    if containers:
        if _has_big_float(containers):
            return False
    elif line.count(b":") == len(fields):
        return True
    try:
        canonical = orjson.dumps(fields)
    except TypeError:  # nested too deeply to be written
        return False
    # An escaped colon (backslash, u003a) is in a text and not in the line.
    return line.count(b":") == canonical.count(b":") and b"\\u003" not in line


def _has_big_float(containers: list[Any]) -> bool:
    for container in containers:  # grows while it is read
        values = container.values() if container.__class__ is dict else container
        kinds = set(map(type, values))
        if float in kinds and not all(type(value) is not float or -_BIG < value < _BIG for value in values):
            return True
        if dict in kinds or list in kinds:
            containers.extend(value for value in values if type(value) is dict or type(value) is list)
    return False


class _RepeatedKeyError(ValueError):
    pass


def _parse_exactly(line: bytes) -> dict[str, Any] | Fault:
    try:
        value = json.loads(line, object_pairs_hook=_to_object, parse_float=_to_float, parse_constant=_to_float)
    except _RepeatedKeyError as error:
        return Fault(str(error), digest(line))
    except RecursionError:
        return Fault("the JSON is nested too deeply; flatten it", digest(line))
    except ValueError as error:  # Python's limit on the digits of an integer
        return Fault(f"a number cannot be read: {error}; write it as a text", digest(line))
    return value if isinstance(value, dict) else Fault(f"the JSON is of type {type(value).__name__}; {_WRITE_OBJECT}")


def _to_float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no number of 64 bits")
    return number


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"key {name[:60]!r} occurs {names.count(name)} times in one object; keep one of them")
    return fields


def read_json_array(file: io.BufferedReader) -> Iterator[Raw]:
    """One record per element."""
    while (first := file.read(1)).isspace():
        continue
    if first == b"[":
        yield from enumerate(_elements(file), start=1)
    elif first:
        hint = "write [{...}, ...], or name the file .jsonl if it has one object per line"
        yield 1, Fault(f"not a JSON array; {hint}")


def _elements(file: io.BufferedReader) -> Iterator[dict[str, Any] | Fault]:
    """The elements of the array whose opening bracket was just read, and then the fault of its end, if any."""
    held = bytearray()
    depth, quoted, escaped, offset = 1, False, -1, 0
    while chunk := file.read(lines.CHUNK):
        start = 0
        for match in _MARK.finditer(chunk):
            mark, at = match[0], match.start()
            if offset + at == escaped:
                continue
            if mark == b"\\":
                escaped = offset + at + 1
            elif mark == b'"':
                quoted = not quoted
            elif not quoted:
                depth += _DEPTH[mark]
                if depth == 0 or (depth == 1 and mark == b","):
                    yield from _element(held + chunk[start:at])
                    held.clear()
                    start = at + 1
            if depth == 0:
                yield from _after_array(chunk[start:] + file.read(lines.CHUNK))
                return
        held += chunk[start:]
        del held[lines.MAX_LINE + 1 :]
        offset += len(chunk)
    # A complete last element is still a record.
    yield from _element(held if depth == 1 else bytearray())
    yield Fault("the file ends inside the JSON array, here; the records before were read: write the file again")


def _after_array(rest: bytes) -> Iterator[Fault]:
    if rest.strip():
        yield Fault("there is more after the end of the JSON array; put everything into one array")


def _element(held: bytearray) -> Iterator[dict[str, Any] | Fault]:
    if len(held) > lines.MAX_LINE:
        yield Fault(too_long())
    elif element := bytes(held.strip()):
        yield parse_object(element)
