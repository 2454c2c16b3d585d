"""agentsys/pictures/picture.py: every format as an upright PNG or JPEG of bounded size, and what is refused."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from agentsys.pictures import Picture, PictureError
from agentsys.pictures.picture import MAX_BYTES, MAX_PIXELS, decode_picture
from tests.support.images import BLUE, RED, Image, draw, encode, noise_jpeg, open_bytes, png

ORIENTATION = 0x0112


def is_near(color: Any, expected: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= 26 for a, b in zip(color, expected, strict=True))


def decoded(data: bytes, **options: Any) -> tuple[Picture, Image.Image]:
    picture = decode_picture(data, "the picture a", **options)
    image = open_bytes(picture.read())
    assert image.size == (picture.width, picture.height)
    assert Image.MIME[image.format or ""] == picture.media_type
    assert picture.sha256 == hashlib.sha256(picture.read()).hexdigest()
    return picture, image


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_that_needs_no_change_is_sent_as_it_is(format: str, mode: str) -> None:
    data = encode(draw(mode=mode), format)
    picture, _ = decoded(data)
    assert picture.read() == data
    assert picture.reference == {"type": "image", "sha256": picture.sha256, "width": 60, "height": 40}


@pytest.mark.parametrize(
    ("format", "options", "media_type"),
    [
        ("WEBP", {"lossless": True}, "image/jpeg"),
        ("GIF", {}, "image/png"),
        ("GIF", {"save_all": True, "append_images": [draw(mode="L")], "duration": 100}, "image/png"),
        ("PNG", {"save_all": True, "append_images": [draw(mode="L").convert("RGB")]}, "image/png"),
    ],
    ids=["webp", "gif", "animated gif", "animated png"],
)
def test_other_formats_are_converted(format: str, options: dict[str, Any], media_type: str) -> None:
    """Of an animation, the first frame."""
    picture, image = decoded(encode(draw(), format, **options))
    assert picture.media_type == media_type
    assert getattr(image, "n_frames", 1) == 1
    colors = image.convert("RGB")
    assert is_near(colors.getpixel((10, 20)), RED) and is_near(colors.getpixel((50, 20)), BLUE)


@pytest.mark.parametrize(("format", "mode"), [("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "CMYK"), ("GIF", "P")])
def test_modes_become_rgb(format: str, mode: str) -> None:
    _, image = decoded(encode(draw(mode=mode), format))
    assert image.mode == "RGB"
    assert is_near(image.getpixel((10, 20)), RED) and is_near(image.getpixel((50, 20)), BLUE)


def test_a_bitmap_becomes_gray() -> None:
    _, image = decoded(encode(draw(mode="1")))
    assert image.mode == "L" and set(np.unique(np.asarray(image))) <= {0, 255}


def test_transparency_is_white() -> None:
    clear = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 15, 30))
    _, image = decoded(encode(clear))
    assert (image.getpixel((5, 5)), image.getpixel((25, 5))) == ((0, 0, 255), (255, 255, 255))
    gray = Image.new("LA", (30, 30), (0, 0))
    assert decoded(encode(gray))[1].getpixel((5, 5)) == (255, 255, 255)


def test_16_bits_are_scaled() -> None:
    """Pillow alone would clip all values above 255."""
    values = np.array([[0, 255, 0x8000, 0xFFFF]], dtype=np.uint16).repeat(4, axis=0)
    _, image = decoded(encode(Image.fromarray(values)))
    assert [image.getpixel((x, 0)) for x in range(4)] == [0, 0, 128, 255]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_rotated_picture_is_turned_upright(format: str) -> None:
    """Orientation 6: the camera was held upright, the file lies on its side."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    picture, image = decoded(encode(draw(), format, exif=exif, **options))
    assert (picture.width, picture.height) == (40, 60)
    assert is_near(image.getpixel((20, 10)), RED) and is_near(image.getpixel((20, 50)), BLUE)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_large_picture_is_shrunk_to_the_longest_side(format: str) -> None:
    picture, image = decoded(encode(draw(1200, 800), format), longest_side=300)
    assert (picture.width, picture.height) == (300, 200)
    assert is_near(image.getpixel((50, 100)), RED) and is_near(image.getpixel((250, 100)), BLUE)
    assert decoded(encode(draw(1200, 800), format), longest_side=1200)[0].width == 1200


def test_a_line_keeps_a_pixel() -> None:
    assert (lambda p: (p.width, p.height))(decoded(encode(draw(3000, 1)), longest_side=100)[0]) == (100, 1)


def header_png(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the picture a: 0 bytes; get the picture again"),
        (b"<!DOCTYPE html><html>404</html>", "the picture a: HTML or XML, not a picture; get the picture itself"),
        (b"  <html>", "the picture a: HTML or XML, not a picture; get the picture itself"),
        (b"<svg xmlns='x'/>", "the picture a: HTML or XML, not a picture; get the picture itself"),
        (b"%PDF-1.7 ...", "the picture a: not a PNG, JPEG, WebP or GIF picture; convert it"),
        (encode(draw(), "BMP"), "the picture a: not a PNG, JPEG, WebP or GIF picture; convert it"),
        (encode(draw(), "TIFF"), "the picture a: not a PNG, JPEG, WebP or GIF picture; convert it"),
        (
            header_png(20_000, 20_000),
            f"the picture a: far more pixels; at most {MAX_PIXELS:,} are decoded: shrink it",
        ),
        (
            header_png(10_000, 5_000),
            f"the picture a: 10000 x 5000 pixels; at most {MAX_PIXELS:,} are decoded: shrink it",
        ),
        (b"x" * (MAX_BYTES + 1), f"the picture a: {MAX_BYTES + 1:,} bytes; at most {MAX_BYTES:,} are read: shrink it"),
    ],
    ids=["empty", "html", "spaces before html", "svg", "pdf", "bmp", "tiff", "bomb", "too many pixels", "too long"],
)
def test_what_is_no_picture_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError) as caught:
        decode_picture(data, "the picture a")
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    "data",
    [
        noise_jpeg(200),
        encode(draw(400, 300), "JPEG", progressive=True),
        encode(Image.effect_noise((200, 200), 80)),
        encode(Image.effect_noise((200, 200), 80).convert("RGB"), "WEBP", lossless=True),
        encode(Image.effect_noise((200, 200), 80).convert("P"), "GIF"),
    ],
    ids=["jpeg", "progressive", "png", "webp", "gif"],
)
@pytest.mark.parametrize("side", [1024, 100])
def test_a_truncated_file_is_refused_at_any_size(data: bytes, side: int) -> None:
    decode_picture(data, "whole", side)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(PictureError, match="the picture a: "):
            decode_picture(data[: int(len(data) * share)], "the picture a", side)


def test_a_damaged_file_is_one_error_or_a_picture() -> None:
    """Whatever Pillow's parsers raise."""
    random = np.random.default_rng(0)
    for data in (png(), noise_jpeg(50), encode(draw(), "WEBP"), encode(draw(), "GIF")):
        for _ in range(60):
            damaged = bytearray(data)
            for place in random.integers(0, len(data), 8):
                damaged[place] = random.integers(0, 256)
            try:
                decode_picture(bytes(damaged), "a")
            except PictureError as err:
                assert "\n" not in str(err)


def test_pillow_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(PictureError, match="pictures need Pillow, which is not installed: pip install"):
        decode_picture(b"x", "a")
