"""The pictures among a role's inputs: loaded, and replaced by their references before anything else sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentsys.pictures.picture import Picture
from agentsys.pictures.sources import load_picture


async def load_pictures(
    places: Sequence[tuple[str, str]], inputs: Mapping[str, Any]
) -> tuple[Mapping[str, Any], list[Picture]]:
    """The inputs with references in the places of pictures, and the pictures. `places`: see prompt.Prompt.pictures.

    A value that is missing is left to the prompt, which says so. Raises PictureError.
    """
    if not places:
        return inputs, []
    changed = dict(inputs)
    pictures: list[Picture] = []
    for of, name in places:
        if not of and name in changed:
            changed[name] = await _load_value(changed[name], pictures)
        elif of and isinstance(items := changed.get(of), list | tuple):
            changed[of] = [await _load_field(item, name, pictures) for item in items]
    return changed, pictures


async def _load_field(item: Any, name: str, pictures: list[Picture]) -> Any:
    """An item of a list with its picture's reference."""
    return {**item, name: await _load_value(item.get(name), pictures)} if isinstance(item, Mapping) else item


async def _load_value(value: Any, pictures: list[Picture]) -> Any:
    """The reference of a picture, the references of a list, or None."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [await _load_value(item, pictures) for item in value]
    pictures.append(picture := await load_picture(value))
    return picture.reference
