"""The page's files: one HTML file, or above MAX_BYTES of data the page and a folder of pieces."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import orjson

from agentsys.paths import replace_file
from agentsys.records import InputError

MAX_BYTES: Final = 20_000_000
"""Bytes of data up to which the page is one file."""
PIECE_BYTES: Final = 1_000_000
"""Bytes of records from which on a piece is full."""
SCRIPTS: Final = ("dom", "data", "charts", "tokens", "tree", "network", "record", "table", "run", "compare", "main")
"""The page's own scripts, in the order in which they are loaded."""
_PIECE_FILE: Final = re.compile(r"[re]\d+-[\w-]+\.js")
POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}' 'self' file:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
"""The page's content security policy: it runs its own script, loads its own pieces, and nothing else."""


@dataclass
class Pieces:
    """The page's data by name, in files of a temporary folder until it is known whether they fit into the page."""

    folder: Path
    size: int = 0
    """Bytes of all pieces."""
    names: list[str] = field(default_factory=list)

    def add(self, name: str, content: bytes) -> None:
        """Write a piece, which is JSON. `name` has letters, digits and hyphens."""
        self.size += len(content)
        self.names.append(name)
        (self.folder / f"{name}.json").write_bytes(content)

    def read(self, name: str) -> bytes:
        """A piece as JSON."""
        return (self.folder / f"{name}.json").read_bytes()


def to_json(value: Any) -> bytes:
    """A value as JSON. Raises TypeError for what JSON cannot hold."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def write_page(out: Path, title: str, head: Mapping[str, Any], pieces: Pieces) -> list[Path]:
    """Write the page and return its files: `out`, and the folder of pieces if there is one.

    The pieces of an earlier page of that name are replaced. Raises OSError, and InputError if the folder has other
    files.
    """
    folder = out.with_name(f"{out.stem}_data")
    old = sorted(folder.iterdir()) if folder.is_dir() else []
    if others := [file for file in old if not _PIECE_FILE.fullmatch(file.name)]:
        raise InputError(f"--out {out}: {others[0]} is no part of a page; choose another name for the page")
    for file in old:
        file.unlink()
    if pieces.size <= MAX_BYTES:
        if old:
            folder.rmdir()
        replace_file(out, make_page(title, head, {name: pieces.read(name) for name in pieces.names}), durable=False)
        return [out]
    folder.mkdir(parents=True, exist_ok=True)
    for name in pieces.names:
        text = orjson.dumps(pieces.read(name).decode())  # a string literal: JSON.parse is faster than the parser of JS
        (folder / f"{name}.js").write_bytes(b"agentsysPiece(" + orjson.dumps(name) + b"," + text + b")\n")
    replace_file(out, make_page(title, {**head, "folder": folder.name}, {}), durable=False)
    return [out, folder]


def make_page(title: str, head: Mapping[str, Any], data: Mapping[str, bytes]) -> bytes:
    """The HTML file, with the pieces in `data` inside it."""
    static = files("agentsys.view") / "static"
    script = '"use strict";\n' + "\n".join((static / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    content = {"head": to_json(head), **data}
    blocks = [
        f'<script type="application/json" id="data-{name}">{_inside_script(value)}</script>'
        for name, value in content.items()
    ]
    template = (static / "page.html").read_text(encoding="utf-8")
    values = {
        "POLICY": POLICY.format(digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        "TITLE": escape(title),
        "STYLE": (static / "style.css").read_text(encoding="utf-8"),
        "DATA": "\n".join(blocks),
        "SCRIPT": script,
    }
    before, *parts = template.split("{{")
    page = [before]
    for part in parts:
        name, _, after = part.partition("}}")
        page += [values[name.strip()], after]
    return "".join(page).encode()


def _inside_script(content: bytes) -> str:
    """JSON that neither ends the script element around it nor opens a comment in it."""
    return content.decode().replace("<", "\\u003c")
