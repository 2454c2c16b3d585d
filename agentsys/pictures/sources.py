"""Where a picture comes from: a path, a data URL, bytes, a struct of Parquet, the name of an example, an address."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import WithJsonSchema

from agentsys.models.spec import served_to_browsers
from agentsys.pictures.picture import (
    LONGEST_SIDE,
    MAX_BYTES,
    Picture,
    PictureError,
    decode_picture,
    find_picture,
    is_reference,
)

T = TypeVar("T")

FORMAT: Final = "picture"
"""The `format` of a picture in the JSON schema of a graph's input."""
URL_SECONDS: Final = 60.0
"""Seconds in which an address must have sent a picture."""

PictureInput = Annotated[
    Any,
    WithJsonSchema(
        {"type": "string", "format": FORMAT, "description": "a picture: a data URL, or the name of an example"}
    ),
]
"""Type of a picture, or of a list of pictures, in the input of a graph.

A collect run replaces its value by references before the graph starts.
"""

_DATA_URL: Final = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)
_URL: Final = re.compile(r"https?://", re.IGNORECASE)
_EXAMPLE: Final = "example:"
_BASE64_STARTS: Final = ("iVBORw0KGgo", "/9j/4", "/9j/2", "UklGR", "R0lGOD")
"""The first characters of PNG, JPEG, WebP and GIF files in base64."""


@dataclass(frozen=True, slots=True)
class PictureRules:
    """Which pictures may be read, and how large they are sent.

    With a `folder`, paths are relative to it and must stay inside, links followed; without one, which is for Python
    code, any path may be read. Addresses are fetched only with `urls`.
    """

    folder: Path | None = None
    longest_side: int = LONGEST_SIDE
    urls: bool = False


async def load_picture(value: Any, rules: PictureRules = PictureRules()) -> Picture:
    """Read, decode and check a picture, in a thread. A Picture or the reference of one at hand is returned.

    `value` is a path, a data URL, bytes, {"bytes": ..., "path": ...} as `datasets` writes it to Parquet, "example:NAME"
    for a picture that this package ships, or an address. Raises PictureError, in Studio also for a path or an address.
    """
    if isinstance(value, Picture):
        return value
    if is_reference(value):
        return find_picture(value["sha256"])
    name = describe_source(value)
    if isinstance(value, str) and _URL.match(value):
        data = await _fetch(value, rules)
        return await _in_thread(lambda: decode_picture(data, name, rules.longest_side))
    return await _in_thread(lambda: decode_picture(_read(value, name, rules), name, rules.longest_side))


def describe_source(value: Any) -> str:
    """A picture's source in a few words, for messages and for traces: never its bytes."""
    if isinstance(value, Mapping):
        path = value.get("path")
        return f"the picture {path}" if isinstance(path, str) and path else "a picture without a path"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"a picture of {len(value):,} bytes"
    text = str(value)
    if is_base64(text):
        return "a picture in base64"
    if text[:5].lower() == "data:":
        return f"the data URL {text[:30].partition(',')[0]},..."
    return f"the picture {text[:200]}"


def is_base64(value: str) -> bool:
    """Whether a text is a picture's file in base64, as bytes become in a record: by how such files begin."""
    return len(value) > 60 and value.startswith(_BASE64_STARTS)


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 2)), thread_name_prefix="pictures")


async def _in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, of which few run at a time: a decoded picture can take 200 MB."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), copy_context().run, work)


def _read(value: Any, name: str, rules: PictureRules) -> bytes:
    """The bytes of a source that is no address."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        return _read_struct(value, name, rules)
    if isinstance(value, os.PathLike):
        return _read_file(Path(value), name, rules)
    if not isinstance(value, str) or not value.strip():
        kind = "empty" if isinstance(value, str) or value is None else f"of type {type(value).__name__}"
        raise PictureError(f"the picture is {kind}; give a path, a data URL, or a struct with bytes")
    if value[:5].lower() == "data:":
        return _read_data_url(value, name)
    if is_base64(value):
        return _decode_base64(value, name)
    if value.startswith(_EXAMPLE):
        return _read_example(value.removeprefix(_EXAMPLE))
    return _read_file(Path(value), name, rules)


def _read_struct(value: Mapping[str, Any], name: str, rules: PictureRules) -> bytes:
    """{"bytes", "path"} of Parquet, whose bytes are base64 in a record."""
    data = value.get("bytes")
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        return _decode_base64(data, name)
    if isinstance(value.get("path"), str):
        return _read_file(Path(value["path"]), name, rules)
    fields = ", ".join(map(repr, list(value)[:5])) or "no fields"
    raise PictureError(f"{name}: it has {fields}; a picture's struct has bytes, or a path")


def _read_data_url(url: str, name: str) -> bytes:
    parts = _DATA_URL.match(url)
    if parts is None:
        raise PictureError(f"{name}: not a data URL; write data:image/png;base64,...")
    if not parts[1].lower().startswith("image/"):
        kind = parts[1][:40] or "text/plain"
        raise PictureError(f"{name}: a data URL of type {kind}, not of a picture; write data:image/png;base64,...")
    content = url[parts.end() :]
    is_base64 = "base64" in parts[2].lower().split(";")
    return _decode_base64(content, name) if is_base64 else unquote_to_bytes(content)


def _decode_base64(text: str, name: str) -> bytes:
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise PictureError(f"{name}: {len(text):,} characters; at most {MAX_BYTES:,} bytes are read: shrink it")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise PictureError(f"{name}: its bytes are not base64; encode them again") from None


def _read_example(name: str) -> bytes:
    """A picture that this package ships."""
    folder = resources.files("agentsys.pictures") / "examples"
    names = sorted(file.name.removesuffix(".png") for file in folder.iterdir() if file.name.endswith(".png"))
    if name not in names:
        raise PictureError(f"example:{name[:40]}: no such example; the examples are {', '.join(names)}")
    return (folder / f"{name}.png").read_bytes()


def _read_file(path: Path, name: str, rules: PictureRules) -> bytes:
    if served_to_browsers():
        raise PictureError(f"{name}: in Studio, a path is not read; give a data URL or the name of an example")
    try:
        place = Path(rules.folder or ".").resolve()
        file = (place / path).resolve(strict=True)
        if rules.folder is not None and not file.is_relative_to(place):
            raise PictureError(
                f"{name}: outside of the data folder {place}; copy it there, or name its folder: --images"
            )
        if not file.is_file():
            raise PictureError(f"{name}: not a file; give the path of a picture")
        with file.open("rb") as content:
            return content.read(MAX_BYTES + 1)
    except FileNotFoundError:
        base = f" in {rules.folder}" if rules.folder is not None and not path.is_absolute() else ""
        raise PictureError(f"{name}: no such file{base}; correct the path, or name its folder: --images") from None
    except (OSError, ValueError, RuntimeError) as err:  # no permission, a zero byte in the path, a circle of links
        if isinstance(err, PictureError):
            raise
        reason = getattr(err, "strerror", None) or str(err)
        raise PictureError(f"{name}: {reason}; correct the path") from None


async def _fetch(url: str, rules: PictureRules) -> bytes:
    if not rules.urls or served_to_browsers():
        raise PictureError(
            f"the picture {url[:200]}: addresses are not fetched; download it, or allow it: --image-urls"
        )
    import aiohttp

    try:
        timeout = aiohttp.ClientTimeout(total=URL_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session, session.get(url) as response:
            if response.status != 200:
                raise PictureError(f"the picture {url[:200]}: status {response.status}; correct the address")
            pieces: list[bytes] = []
            size = 0
            async for piece in response.content.iter_chunked(2**16):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_BYTES:
                    break
            return b"".join(pieces)
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as err:
        if isinstance(err, PictureError):
            raise
        raise PictureError(f"the picture {url[:200]}: {err or type(err).__name__}; correct the address") from None
