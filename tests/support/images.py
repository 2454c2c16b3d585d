"""Pictures that are drawn for tests, a graph that describes one, and what a server got of them."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agentsys.pictures import PictureInput
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.systems import BaseContext, System, ask, role_options, sequence_graph
from agentsys.targets import Segment, Target

Image: Any = pytest.importorskip("PIL.Image", reason="needs the extra 'pictures' (pillow)")
RED, BLUE = (200, 30, 40), (20, 40, 200)


def draw(width: int = 60, height: int = 40, mode: str = "RGB", number: int = 0) -> Image.Image:
    """The left half red, the right half blue, with one pixel that differs by `number`."""
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width // 2, height))
    image.putpixel((0, 0), (number % 256, number // 256, 7))
    return image if mode == "RGB" else image.convert(mode)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture's file."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png(number: int = 0, width: int = 60, height: int = 40) -> bytes:
    """The bytes of a small PNG; each number has its own."""
    return encode(draw(width, height, number=number))


def noise_jpeg(size: int = 700, quality: int = 60, seed: int = 0) -> bytes:
    """A JPEG that does not compress well: about 300 kB with the default size."""
    import numpy as np

    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), "JPEG", quality=quality)


def data_url(data: bytes, kind: str = "image/png") -> str:
    """A data URL of these bytes."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def open_bytes(data: bytes) -> Image.Image:
    """A picture of a file's bytes, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def received(body: Mapping[str, Any]) -> list[str]:
    """The digests of the pictures in a chat request, after a check that each is a picture."""
    digests = []
    for message in body["messages"]:
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] == "image_url":
                kind, _, content = block["image_url"]["url"].partition(";base64,")
                data = base64.b64decode(content, validate=True)
                assert kind == f"data:{Image.MIME[open_bytes(data).format or '']}"
                digests.append(hashlib.sha256(data).hexdigest())
            else:
                assert block["type"] == "text" and isinstance(block["text"], str)
    return digests


class Input(TypedDict):
    """Graph input."""

    image: PictureInput
    caption: str


class Output(TypedDict, total=False):
    """Graph output."""

    image: Any
    caption: str
    description: str
    targets: list[Any]


@dataclass(frozen=True)
class Describer(System):
    """One role that sees a picture."""

    describer: Role[str] = Role(
        Prompt.parse("# system\nBe brief.\n# user\n# image image\nThe caption: {{ caption }}", "describer")
    )

    async def describe(self, state: Any, runtime: Runtime[Any]) -> dict[str, Any]:
        answer = await ask(
            runtime.context, self.describer, key="describe", image=state["image"], caption=state["caption"]
        )
        request, reply = Segment("user", False, prompt="describe"), Segment("assistant", True, call="describe")
        return {"description": answer.value, "targets": [asdict(Target("role", (request, reply)))]}

    def builder(self) -> Any:
        return sequence_graph(self.describe, state=Output, context=DescriberContext, input=Input, output=Output)


@dataclass(frozen=True)
@role_options(Describer)
class DescriberContext(BaseContext):
    """Options of the describer."""


describer = Describer().builder().compile(name="describer")
