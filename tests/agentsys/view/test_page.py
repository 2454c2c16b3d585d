"""The page's files: data that cannot leave its element, one file, or the page and its pieces."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agentsys.records import InputError
from agentsys.view import page as page_module
from agentsys.view.page import Pieces, make_page, to_json, write_page

HEAD = {"runs": [], "text": "</script><script>alert(1)</script><!--"}


class Scripts(HTMLParser):
    """The contents of a page's script elements, as a browser separates them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.contents: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "script":
            self.contents.append("")

    def handle_data(self, data: str) -> None:
        if self.contents and self.lasttag == "script":
            self.contents[-1] += data


def test_data_stays_in_its_element() -> None:
    page = make_page("a <b> & c", HEAD, {"r0-0": to_json({"1": "</script>"})})
    contents = Scripts(page).contents
    assert json.loads(contents[0]) == HEAD and json.loads(contents[1]) == {"1": "</script>"}
    assert len(contents) == 3 and b"<title>a &lt;b&gt; &amp; c</title>" in page


def test_the_page_names_nothing_elsewhere() -> None:
    page = make_page("page", {}, {}).decode()
    assert set(re.findall(r"https?://[^\s\"'`)]*", page)) == {"http://www.w3.org/2000/svg"}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and policy[1].startswith("default-src 'none'; ") and "*" not in policy[1]
    assert "script-src 'sha256-" in policy[1] and "script-src 'unsafe-inline'" not in policy[1]


@pytest.mark.parametrize("name", ["DATA", "{{ STYLE }}", "{{"])
def test_names_of_the_template_in_data_are_data(name: str) -> None:
    assert json.loads(Scripts(make_page(name, {"x": name}, {})).contents[0]) == {"x": name}


def pieces_in(folder: Path) -> Pieces:
    folder.mkdir()
    pieces = Pieces(folder)
    pieces.add("r0-0", to_json({"0": "a 'quoted' \"text\" \u2028 \\"}))
    pieces.add("r0-1", to_json({"1": 2}))
    return pieces


def test_small_data_is_inside(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert write_page(out, "page", {"runs": []}, pieces_in(tmp_path / "pieces")) == [out]
    assert len(Scripts(out.read_bytes()).contents) == 4


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "page_data"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match=r"precious\.txt is no part of a page; choose another name"):
        write_page(tmp_path / "page.html", "page", {"runs": []}, pieces_in(tmp_path / "pieces"))
    assert (folder / "precious.txt").read_text() == "mine" and not (tmp_path / "page.html").exists()


def test_small_data_removes_the_pieces_of_an_earlier_page(tmp_path: Path) -> None:
    folder = tmp_path / "page_data"
    folder.mkdir()
    (folder / "r0-7.js").write_text("of an earlier page")
    write_page(tmp_path / "page.html", "page", {"runs": []}, pieces_in(tmp_path / "pieces"))
    assert not folder.exists()


def test_large_data_is_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MAX_BYTES", 10)
    out, folder = tmp_path / "page.html", tmp_path / "page_data"
    folder.mkdir()
    (folder / "r0-7.js").write_text("of an earlier page")
    assert write_page(out, "page", {"runs": []}, pieces_in(tmp_path / "pieces")) == [out, folder]
    assert sorted(file.name for file in folder.iterdir()) == ["r0-0.js", "r0-1.js"]
    call = (folder / "r0-0.js").read_text(encoding="utf-8")
    arguments = re.fullmatch(r"agentsysPiece\((\"r0-0\"),(\".*\")\)\n", call, re.DOTALL)
    assert arguments is not None
    assert json.loads(json.loads(arguments[2])) == {"0": "a 'quoted' \"text\" \u2028 \\"}
    head = json.loads(Scripts(out.read_bytes()).contents[0])
    assert head == {"runs": [], "folder": "page_data"}
