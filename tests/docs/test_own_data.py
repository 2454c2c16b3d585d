"""What docs/own-data.md says about bad records is what reading them gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentsys.records import BadRecord, InputError, read_records
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
REASONS = re.findall(
    r"\| `([^`]+)`(?: \||; each)", PAGE.split("| reason in failed.jsonl |")[1].split("\n\n")[0], re.MULTILINE
)
FILES = {
    "a.jsonl": b'{"id": 1, oops\n{"text": NaN}\n{"sentence": "x", "id": 3}\n{"id": 4, "text": ""}\n',
    "b.csv": b"id,text\n1,a,b\n",
    "c.txt": b"one line of te\xe9xt\nA zero\0 here.\n",
    "d.jsonl": b'{"text": "x", "text": "y"}\n',
    "e.csv": b'id,text\n1,"open\n2,x\n3,y\n',
}


def reasons(folder: Path) -> list[str]:
    """The reasons of all bad records of the files."""
    given: list[str] = []
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
        records = read_records(folder / name, required=("text",))
        given += [record.reason for record in records if isinstance(record, BadRecord)]
    return given


@pytest.mark.parametrize("reason", [reason for reason in REASONS if not reason.startswith("duplicate")])
def test_a_reason_is_what_a_bad_record_gives(reason: str, tmp_path: Path) -> None:
    pattern = ".*".join(map(re.escape, reason.split("...", 1) if reason.startswith("not JSON") else [reason]))
    pattern = re.sub(r"\d+", r"\\d+", pattern)  # positions and bytes differ
    assert any(re.search(pattern, text) for text in reasons(tmp_path)), reasons(tmp_path)


@pytest.mark.parametrize("suffix", re.findall(r"`(\.\w+)`", PAGE.split("| suffix |")[1].split("\n\n")[0]))
def test_a_listed_suffix_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"records{suffix}"
    path.write_bytes(b"")
    assert read_records(path) is not None
    with pytest.raises(InputError, match="unknown file type"):
        read_records(path.rename(f"{path}x"))
