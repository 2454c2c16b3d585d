"""agentsys/pictures/sources.py: where pictures come from, and which sources are refused."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agentsys.pictures import Picture, PictureError, PictureRules, held_pictures, load_picture
from agentsys.pictures.picture import MAX_BYTES
from tests.support.images import data_url, draw, encode, png

SHA = hashlib.sha256(png()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with a picture in it, and one beside it."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png(1))
    return tmp_path / "data"


async def digest(value: Any, folder: Path | None = None, **rules: Any) -> str:
    return (await load_picture(value, PictureRules(folder, **rules))).sha256


async def reason(value: Any, folder: Path | None = None, **rules: Any) -> str:
    with pytest.raises(PictureError) as caught:
        await load_picture(value, PictureRules(folder, **rules))
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_every_source_is_the_same_picture(folder: Path) -> None:
    path = folder / "images" / "a.png"
    sources: list[Any] = [
        "images/a.png", "images/../images/a.png", str(path), Path("images/a.png"), png(), bytearray(png()),
        memoryview(png()), data_url(png()), data_url(png(), "image/jpeg"), {"bytes": png(), "path": None},
        {"bytes": base64.b64encode(png()).decode(), "path": "a.png"}, {"bytes": None, "path": "images/a.png"},
        {"path": "images/a.png"}, "data:image/png," + "".join(f"%{byte:02x}" for byte in png()),
    ]  # fmt: skip
    assert {await digest(source, folder) for source in sources} == {SHA}


async def test_a_picture_and_a_reference_at_hand_are_returned() -> None:
    picture = await load_picture(png())
    assert await load_picture(picture) is picture
    with held_pictures(picture):
        assert await load_picture(picture.reference) is picture
    assert await reason(picture.reference) == (
        f"the picture {SHA[:16]} is not at hand; give the picture itself, not its reference"
    )


async def test_the_longest_side_is_a_rule() -> None:
    assert (await load_picture(encode(draw(400, 100)), PictureRules(longest_side=100))).width == 100


async def test_paths_stay_in_the_data_folder(folder: Path) -> None:
    (folder / "inside.png").symlink_to("images/a.png")
    (folder / "outside.png").symlink_to("../secret.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "outer").symlink_to("..")
    assert await digest("inside.png", folder) == SHA
    for path in ("../secret.png", str(folder.parent / "secret.png"), "outside.png", "outer/secret.png"):
        assert await reason(path, folder) == (
            f"the picture {path}: outside of the data folder {folder}; copy it there, or name its folder: --images"
        )
    assert "circle.png: " in await reason("circle.png", folder)


async def test_python_may_read_any_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "images")
    assert await digest("../../secret.png") == await digest(folder.parent / "secret.png")


async def test_bad_paths(folder: Path) -> None:
    fix = "correct the path, or name its folder: --images"
    assert await reason("b.png", folder) == f"the picture b.png: no such file in {folder}; {fix}"
    assert await reason(f"{folder}/b.png", folder) == f"the picture {folder}/b.png: no such file; {fix}"
    assert await reason("images", folder) == "the picture images: not a file; give the path of a picture"
    assert "correct the path" in await reason("a\0b.png", folder)
    assert "correct the path" in await reason("x" * 5000, folder)
    os.mkfifo(folder / "pipe.png")
    assert await reason("pipe.png", folder) == "the picture pipe.png: not a file; give the path of a picture"
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")
    assert await reason("page.jpg", folder) == (
        "the picture page.jpg: HTML or XML, not a picture; get the picture itself"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "the picture is empty; give a path, a data URL, or a struct with bytes"),
        (None, "the picture is empty; give a path, a data URL, or a struct with bytes"),
        (7, "the picture is of type int; give a path, a data URL, or a struct with bytes"),
        ({"url": "x"}, "a picture without a path: it has 'url'; a picture's struct has bytes, or a path"),
        ({"bytes": "***", "path": "a.png"}, "the picture a.png: its bytes are not base64; encode them again"),
        (
            "data:text/html;base64,PGh0bWw+",
            "the data URL data:text/html;base64,...: a data URL of type text/html, not of a picture; "
            "write data:image/png;base64,...",
        ),
        (
            "data:;base64,AAAA",
            "the data URL data:;base64,...: a data URL of type text/plain, not of a picture; "
            "write data:image/png;base64,...",
        ),
        ("data:image/png", "the data URL data:image/png,...: not a data URL; write data:image/png;base64,..."),
        (
            "data:image/png;base64,????",
            "the data URL data:image/png;base64,...: its bytes are not base64; encode them again",
        ),
        (
            data_url(b"<html>"),
            "the data URL data:image/png;base64,...: HTML or XML, not a picture; get the picture itself",
        ),
        ("example:nothing", "example:nothing: no such example; the examples are balloons, fishbowl, rain"),
        (
            "http://127.0.0.1:9/a.png",
            "the picture http://127.0.0.1:9/a.png: addresses are not fetched; download it, or allow it: --image-urls",
        ),
    ],
)
async def test_bad_sources(value: Any, message: str, tmp_path: Path) -> None:
    assert await reason(value, tmp_path) == message


async def test_a_long_data_url_is_not_decoded_and_not_quoted() -> None:
    message = await reason("data:image/png;base64," + "A" * (MAX_BYTES * 2))
    assert message.startswith("the data URL data:image/png;base64,...: ") and len(message) < 200


@pytest.mark.parametrize("name", ["rain", "balloons", "fishbowl"])
async def test_the_examples(name: str) -> None:
    picture = await load_picture(f"example:{name}")
    assert (picture.width, picture.height, picture.media_type) == (480, 360, "image/png")


async def test_a_browser_gives_data_urls_and_names_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langgraph_api", types.ModuleType("langgraph_api"))
    path = str(folder / "images" / "a.png")
    for value in (path, Path(path), {"path": path}, "/dev/zero"):
        assert "in Studio, a path is not read; give a data URL or the name of an example" in await reason(value)
    assert "addresses are not fetched" in await reason("http://127.0.0.1:9/a.png", urls=True)
    assert await digest(data_url(png())) == SHA
    assert isinstance(await load_picture("example:rain"), Picture)


@pytest.fixture
async def site() -> AsyncIterator[str]:
    """A web server with a picture, a page, and a file that never ends."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(MAX_BYTES // 2**20 + 8):
            await response.write(b"\0" * 2**20)
        return response

    app = web.Application()
    app.router.add_get("/a.png", lambda request: web.Response(body=png(), content_type="text/plain"))
    app.router.add_get("/page", lambda request: web.Response(text="<html>", content_type="image/png"))
    app.router.add_get("/endless", endless)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield "http://{}:{}".format(*runner.addresses[0][:2])
    await runner.cleanup()


async def test_an_address_is_fetched_if_that_is_allowed(site: str) -> None:
    assert await digest(f"{site}/a.png", urls=True) == SHA
    assert "HTML or XML" in await reason(f"{site}/page", urls=True)
    assert await reason(f"{site}/none.png", urls=True) == (
        f"the picture {site}/none.png: status 404; correct the address"
    )
    assert f"at most {MAX_BYTES:,} are read" in await reason(f"{site}/endless", urls=True)
    assert "correct the address" in await reason("http://127.0.0.1:1/a.png", urls=True)
