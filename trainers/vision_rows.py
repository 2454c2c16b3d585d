"""Rows for vision students: a request that shows pictures and its reply, as messages and files of pictures.

The trainer's processor turns them into tokens: how many tokens a picture has depends on the student. TRL's SFTTrainer
takes what `read_vision_rows` returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentsys.models.pictures import config_takes_pictures, has_pictures
from agentsys.paths import link_file
from agentsys.pictures import is_reference
from agentsys.traces import Call, Target, Trace
from agentsys.trainers.loading import TrainerError, load_config
from agentsys.trainers.row_files import Row, read_row_file

if TYPE_CHECKING:
    from datasets import Dataset

VISION: Final = "vision"
"""The kind of these rows, and the name of their folder."""
IMAGES: Final = "images"


def shown_call(target: Target, trace: Trace) -> Call | None:
    """The call whose request a target has, if that shows pictures."""
    keys = {segment.prompt for segment in target.segments if segment.prompt is not None}
    return next((call for call in trace.calls if call.key in keys and has_pictures(call.messages)), None)


def vision_columns(target: Target, trace: Trace, call: Call) -> Row:
    """The columns of a row of a role target whose request shows pictures. Raises TrainerError for another kind."""
    if target.kind != "role":
        raise TrainerError(f"record {trace.id}: the request shows a picture; only role targets make rows of it")
    reply = next((c for c in trace.calls if c.key == target.segments[1].call), None)
    if reply is None or not reply.text:
        raise TrainerError(f"record {trace.id}: the reply is empty")
    messages = [*call.messages, {"role": "assistant", "content": reply.text}]
    blocks = [(message["role"], _blocks(message["content"])) for message in messages]
    return {
        "messages": [
            {"role": role, "content": [{"type": b["type"], "text": b.get("text")} for b in content]}
            for role, content in blocks
        ],
        "images": [block["sha256"] for _, content in blocks for block in content if is_reference(block)],
        "prompt": "\n\n".join(b.get("text", "") for _, content in blocks[:-1] for b in content if b["type"] == "text"),
        "text": reply.text,
        "ids_source": "processor",
    }


def _blocks(content: Any) -> Sequence[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@lru_cache(maxsize=8)
def _takes_pictures(name: str) -> bool:
    return config_takes_pictures(load_config(name).to_dict())


def check_student(name: str) -> None:
    """Raise TrainerError for a student that takes text only."""
    if not _takes_pictures(name):
        raise TrainerError(f"the request shows a picture, and the student {name} takes text only; name a vision model")


def keep_pictures(row: Row, runs: Iterable[Path], out: Path) -> Row:
    """The row with the names of its pictures' files, which are linked or copied to `out`/vision/images.

    Raises TrainerError for a picture that no run has.
    """
    names = []
    for sha256 in row["images"]:
        source = next((file for run in runs for file in (run / IMAGES).glob(f"{sha256}.*")), None)
        if source is None:
            raise TrainerError(f"{row['id']}: the picture {sha256[:16]} is not in the run's folder {IMAGES}")
        link_file(source, out / VISION / IMAGES / source.name)
        names.append(f"{IMAGES}/{source.name}")
    return {**row, "images": names}


def read_vision_rows(folder: str | Path) -> dict[str, Dataset]:
    """Rows by split, as TRL's SFTTrainer takes them: `messages`, and `images` that are decoded when they are read.

    Raises TrainerError for a folder without rows, and for damaged ones.
    """
    from datasets import Image, Sequence

    folder = Path(folder)
    files = {split: folder / f"{split}.parquet" for split in ("train", "validation")}
    if not files["train"].is_file():
        raise TrainerError(f"{folder}: no train.parquet; `agentsys rows` writes it into rows/{VISION}")
    rows = {}
    for split, file in files.items():
        if file.is_file():
            data = read_row_file(file).select_columns(["messages", IMAGES])
            located = data.map(lambda row: {IMAGES: [str(folder / name) for name in row[IMAGES]]})
            rows[split] = located.cast_column(IMAGES, Sequence(Image()))
    return rows
