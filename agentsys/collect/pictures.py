"""The pictures of a run's records: loaded before the graph runs, and kept once each in the run's folder."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import PydanticUserError

from agentsys.collect.fingerprint import find_roles
from agentsys.inputs.files import find_address
from agentsys.knobs import knob
from agentsys.models.chat import AgentChatModel
from agentsys.models.pictures import check_takes_pictures
from agentsys.paths import make_private_folder
from agentsys.pictures import Picture, PictureError, PictureRules, is_reference, load_picture
from agentsys.pictures.picture import LONGEST_SIDE, check_installed
from agentsys.pictures.sources import FORMAT, describe_source, is_base64
from agentsys.records import InputError
from agentsys.systems import model_of, prompt_of
from agentsys.traces import RunFolderError

FOLDER: Final = "images"
"""The folder in that of a run; its files are <sha256>.png and <sha256>.jpg."""
MIN_SIDE: Final = 28
"""Pixels of the smallest longest side that can be set: one patch of a vision model."""


@dataclass(frozen=True)
class PictureOptions:
    """The pictures that records name. Raises InputError for a size out of range."""

    panel: ClassVar[str] = "Pictures"
    images: Path | None = knob(None, "folder of the pictures that records name by path; default: that of the input")
    image_size: int = knob(LONGEST_SIDE, "longest side in pixels to which pictures are shrunk")
    image_urls: bool = knob(False, "fetch pictures that records name by an address")

    def __post_init__(self) -> None:
        if self.image_size < MIN_SIDE:
            raise InputError(f"--image-size {self.image_size}: at least {MIN_SIDE} pixels are needed")
        if self.images is not None and not Path(self.images).is_dir():
            raise InputError(f"--images {self.images}: no such folder; give the folder that the paths start from")

    def rules(self, records: Any = None) -> PictureRules:
        """The rules for the records of a file or an iterable."""
        folder = Path(self.images) if self.images is not None else data_folder(records)
        return PictureRules(folder, self.image_size, self.image_urls)


def data_folder(records: Any) -> Path:
    """The folder that the paths of a file's records start from; of other records, the working folder."""
    place = str(records) if isinstance(records, str | Path) else "-"
    if place == "-" or place.startswith("hf:") or find_address(place):
        return Path()
    path = Path(place)
    return path if path.is_dir() else path.parent


def picture_fields(graph: Any) -> dict[str, bool]:
    """The fields of a graph's input that are pictures (pictures.PictureInput), and whether each is required."""
    try:
        schema = graph.get_input_jsonschema()
    except PydanticUserError:  # before Python 3.12, pydantic refuses typing.TypedDict
        return {}
    required = schema.get("required", [])
    return {name: name in required for name, f in schema.get("properties", {}).items() if f.get("format") == FORMAT}


async def open_pictures(
    graph: Any, context: Any, rules: PictureRules, folder: Path, settings: dict[str, Any]
) -> RunPictures:
    """The pictures of a run, whose size is added to the settings in its fingerprint if the graph takes pictures.

    Raises PictureError if Pillow is missing, and Refused if every record and every role shows a picture, and a role's
    model is known to see none. Where some calls are of text alone, the first call with a picture says so.
    """
    fields = picture_fields(graph)
    if fields:
        settings["image_size"] = rules.longest_side
        roles = list(find_roles(graph).values()) if is_dataclass(context) and any(fields.values()) else []
        if all(prompt_of(context, role).pictures for role in roles):
            for role in roles:
                model = model_of(context, role)
                name = (await model.identity())["name"] if isinstance(model, AgentChatModel) else type(model).__name__
                await check_takes_pictures(model, name)
    return RunPictures(fields, rules, folder)


class RunPictures:
    """Loads the pictures of records and keeps each once. Raises PictureError if Pillow is needed and missing."""

    def __init__(self, fields: Mapping[str, bool], rules: PictureRules, folder: Path) -> None:
        self._fields, self._rules, self._folder = fields, rules, folder / FOLDER
        if fields:
            check_installed()

    def remove_partial(self) -> None:
        """Remove what a run that was killed has left half written; the run's folder is locked."""
        for path in self._folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    async def load(self, data: Mapping[str, Any]) -> tuple[dict[str, Any], list[Picture]]:
        """The record's fields with references to its pictures, and the pictures.

        Raises PictureError, which names the field, and RunFolderError if a picture cannot be written.
        """
        changed, pictures = dict(data), list[Picture]()
        for name, is_required in self._fields.items():
            value = data.get(name)
            values = value if isinstance(value, list | tuple) else [value]
            if value is None or not values:
                if is_required:
                    raise PictureError(f"field {name!r}: no picture; fill it in or name its column with --field")
                continue
            try:
                loaded = [await self._keep(await load_picture(item, self._rules)) for item in values]
            except PictureError as err:
                raise PictureError(f"field {name!r}: {err}") from None
            references = [picture.reference for picture in loaded]
            changed[name] = references if isinstance(value, list | tuple) else references[0]
            pictures += loaded
        return changed, pictures

    def without_bytes(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The record's fields as a trace has them if a picture cannot be used: its path, or what it was."""
        return {name: _describe(value) if name in self._fields else value for name, value in data.items()}

    async def _keep(self, picture: Picture) -> Picture:
        """The picture without its bytes, which are in the run's folder."""
        path = self._folder / picture.file_name
        await asyncio.to_thread(_write, path, picture.read())
        return replace(picture, data=None, path=path)


def _describe(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    if value is None or is_reference(value):
        return value
    is_path = isinstance(value, str) and value[:5].lower() != "data:" and len(value) <= 1000 and not is_base64(value)
    return value if is_path else {"type": "image", "unusable": describe_source(value)}


def _write(path: Path, data: bytes) -> None:
    """Write a picture unless it is there; a file under its name is whole whenever the process is killed."""
    try:
        if path.exists() and path.stat().st_size == len(data):
            return
        make_private_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as err:
        raise RunFolderError(
            f"{path}: {err.strerror}; finished records are saved: free some space, or make the folder writable, and "
            "rerun the same command to resume"
        ) from None
