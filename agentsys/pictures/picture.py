"""A picture in the form in which it is sent: an upright PNG or JPEG in gray or RGB of bounded size."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from agentsys.inputs.lines import InputError
from agentsys.installation import install_command

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_SIDE: Final = 1024
"""Pixels of the longest side to which a picture is shrunk by default."""
MAX_BYTES: Final = 32 * 2**20
"""Bytes of a picture's file that are read."""
MAX_PIXELS: Final = 40_000_000
"""Pixels of a picture that is decoded; a small file can claim any number of them."""
JPEG_QUALITY: Final = 95

MediaType = Literal["image/png", "image/jpeg"]
SUFFIXES: Final[Mapping[MediaType, str]] = {"image/png": ".png", "image/jpeg": ".jpg"}

_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
_ORIENTATION: Final = 0x0112
_KEYS: Final = frozenset({"type", "sha256", "width", "height"})


class PictureError(InputError):
    """A picture that cannot be used. The message is one line that names the picture, the fault and the fix."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded and checked picture: the SHA-256 of its bytes in hexadecimal, its size in pixels, its bytes or file."""

    sha256: str
    width: int
    height: int
    media_type: MediaType
    data: bytes | None = field(default=None, repr=False)
    path: Path | None = None

    @property
    def reference(self) -> dict[str, Any]:
        """What messages and traces have of the picture."""
        return {"type": "image", "sha256": self.sha256, "width": self.width, "height": self.height}

    @property
    def file_name(self) -> str:
        """Its name in the folder `images` of a run."""
        return self.sha256 + SUFFIXES[self.media_type]

    def read(self) -> bytes:
        """The bytes, which a file may hold. Raises PictureError if that is gone."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            return self.path.read_bytes()
        except OSError as err:
            raise PictureError(f"{self.path}: {err.strerror}; it was removed from the run's folder") from None

    def base64(self) -> str:
        """The bytes as requests carry them."""
        return base64.b64encode(self.read()).decode("ascii")


_held: ContextVar[Mapping[str, Picture]] = ContextVar("agentsys_pictures", default={})  # noqa: B039 (never changed)


@contextmanager
def held_pictures(*pictures: Picture) -> Iterator[None]:
    """Inside, `find_picture` finds these pictures by their digests, as well as those of an outer `held_pictures`."""
    token = _held.set({**_held.get(), **{picture.sha256: picture for picture in pictures}})
    try:
        yield
    finally:
        _held.reset(token)


def find_picture(sha256: str) -> Picture:
    """The picture with a digest. Raises PictureError if it is not one of the record's."""
    picture = _held.get().get(sha256)
    if picture is None:
        raise PictureError(f"the picture {sha256[:16]} is not at hand; give the picture itself, not its reference")
    return picture


def is_reference(value: Any) -> bool:
    """Whether a value is the reference of a picture in a message, a state or a trace."""
    return isinstance(value, Mapping) and value.get("type") == "image" and value.keys() == _KEYS


def check_installed() -> None:
    """Raise PictureError if Pillow, which decodes pictures, is not installed."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise PictureError(f"pictures need Pillow, which is not installed: {install_command('pictures')}") from None


def decode_picture(data: bytes, name: str, longest_side: int = LONGEST_SIDE) -> Picture:
    """Decode the bytes of a PNG, JPEG, WebP or GIF file (its first frame), whatever its name says.

    The picture is turned upright, converted to 8 bits of gray or RGB (transparency on white), and shrunk to
    `longest_side` pixels. Bytes that need none of this are kept as they are. Blocks for milliseconds: keep it off the
    event loop. Raises PictureError, which calls the picture `name`.
    """
    check_installed()
    from PIL import Image, UnidentifiedImageError

    if fault := _refuse_bytes(data):
        raise PictureError(f"{name}: {fault}")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PictureError(_too_large(name, f"{width} x {height}"))
            if _is_final(image, longest_side):
                image.draft(image.mode, (max(width // 8, 1), max(height // 8, 1)))  # JPEG: reads all, computes less
                image.load()
                return _make(data, width, height, "image/png" if image.format == "PNG" else "image/jpeg")
            return _encode(_convert(image, longest_side), image.format)
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(_too_large(name, "far more")) from None
    except UnidentifiedImageError:
        raise PictureError(f"{name}: not a PNG, JPEG, WebP or GIF picture; convert it") from None
    except Exception as err:  # Pillow's parsers raise many kinds of errors for damaged files
        reason = " ".join(str(err).split())[:100] or type(err).__name__
        raise PictureError(f"{name}: the picture is truncated or damaged ({reason}); get it again") from None


def _refuse_bytes(data: bytes) -> str:
    """Why bytes are no picture, as far as their beginning and number tell; "" if they may be one."""
    if not data:
        return "0 bytes; get the picture again"
    if len(data) > MAX_BYTES:
        return f"{len(data):,} bytes; at most {MAX_BYTES:,} are read: shrink it"
    if data[:256].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "HTML or XML, not a picture; get the picture itself"
    return ""


def _too_large(name: str, size: str) -> str:
    return f"{name}: {size} pixels; at most {MAX_PIXELS:,} are decoded: shrink it"


def _is_final(image: Image, longest_side: int) -> bool:
    """Whether a file can be sent as it is."""
    is_plain = image.format in ("PNG", "JPEG") and image.mode in ("L", "RGB") and not image.has_transparency_data
    is_single = getattr(image, "n_frames", 1) == 1
    return is_plain and is_single and max(image.size) <= longest_side and image.getexif().get(_ORIENTATION, 1) == 1


def _convert(image: Image, longest_side: int) -> Image:
    """The first frame, upright, in gray or RGB, and not larger than `longest_side`."""
    from PIL import Image, ImageOps

    if image.format in ("JPEG", "MPO") and max(image.size) > longest_side:
        image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)  # decodes no more than it needs
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: Pillow's conversion would clip and not scale
        import numpy as np

        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas.convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return image


def _encode(image: Image, source_format: str | None) -> Picture:
    """PNG of what was PNG or GIF (drawings, screenshots), JPEG of what was JPEG or WebP (photographs)."""
    media_type: MediaType = "image/png" if source_format in ("PNG", "GIF") else "image/jpeg"
    out = io.BytesIO()
    if media_type == "image/png":
        image.save(out, "PNG")
    else:
        image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return _make(out.getvalue(), *image.size, media_type)


def _make(data: bytes, width: int, height: int, media_type: MediaType) -> Picture:
    return Picture(hashlib.sha256(data).hexdigest(), width, height, media_type, data)
