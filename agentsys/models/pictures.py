"""Pictures on their way to a model: messages hold references, and only what is sent holds bytes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentsys.models.errors import Refused
from agentsys.pictures.picture import find_picture, is_reference

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

NO_PICTURES: Final = re.compile(
    r"(image|vision|multi-?modal)\w*\W.{0,60}\b(not support|n't support|unsupported|only supported)|"
    r"(not support|n't support|unsupported|no support for|not accept)\w*\W.{0,40}(image|vision|multi-?modal)|"
    r"not a multi-?modal model|at most 0 image|unknown variant `?image_url"
)
"""What servers say of a picture that their model cannot see, in lower case."""
_VISION_KEY: Final = re.compile(r"vision|visual|image|img|vit_")
"""Parts of the names of settings in the config.json of a model that takes pictures."""

Messages = Sequence[Mapping[str, Any]]


def has_pictures(messages: Messages) -> bool:
    """Whether a message shows a picture."""
    return any(is_reference(block) for message in messages for block in _blocks(message))


def _blocks(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message["content"]
    return () if isinstance(content, str) else content


async def check_takes_pictures(model: BaseChatModel, name: str) -> None:
    """Raise Refused, before any request, if it is known that a model takes text only."""
    sees_pictures = getattr(model, "sees_pictures", None)
    if sees_pictures is not None:
        known = await sees_pictures()
    else:  # another integration, whose models may have a profile
        known = (getattr(model, "profile", None) or {}).get("image_inputs")
    if known is False:
        raise Refused(text_only(name))


def text_only(name: str) -> str:
    """What is said of a text-only model that a prompt shows a picture to."""
    return f"{name} takes text only, and the prompt shows a picture: name a vision model (docs/pictures.md)"


async def fill_body(body: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat request with the bytes of its pictures, as OpenAI's API has them. Raises PictureError."""
    messages = body.get("messages") or ()
    if not has_pictures(messages):
        return body
    return {
        **body,
        "messages": await asyncio.to_thread(lambda: [_fill(message, _openai_block) for message in messages]),
    }


async def fill_messages(messages: Messages) -> list[Mapping[str, Any]]:
    """Messages with the bytes of their pictures, in LangChain's standard blocks. Raises PictureError."""
    if not has_pictures(messages):
        return list(messages)
    return await asyncio.to_thread(lambda: [_fill(message, _langchain_block) for message in messages])


def _fill(message: Mapping[str, Any], make_block: Any) -> Mapping[str, Any]:
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [make_block(b["sha256"]) if is_reference(b) else b for b in message["content"]]}


def _openai_block(sha256: str) -> dict[str, Any]:
    picture = find_picture(sha256)
    return {"type": "image_url", "image_url": {"url": f"data:{picture.media_type};base64,{picture.base64()}"}}


def _langchain_block(sha256: str) -> dict[str, Any]:
    picture = find_picture(sha256)
    return {"type": "image", "base64": picture.base64(), "mime_type": picture.media_type}


def folder_takes_pictures(folder: Path) -> bool | None:
    """Whether the model in a folder takes pictures, by its config.json; None if there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return config_takes_pictures(config) if isinstance(config, dict) and config else None


def config_takes_pictures(config: Mapping[str, Any]) -> bool:
    """Whether a model takes pictures, by the names of the settings in its configuration."""
    return any(_VISION_KEY.search(key) for key in config)
