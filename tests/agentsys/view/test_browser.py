"""The page in a real browser: opened as a file, filtered, followed from a row to its call, compared, updated live."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentsys.view import page as page_module
from agentsys.view.command import Sources, write_view
from agentsys.view.vocabulary import find_vocabulary
from tests.support.pages import HOSTILE, serve_in_thread
from tests.support.shards import unpack_shards

Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Write the page of some folders and open it at an address; the test fails for a script error or a request that is
    not for a file."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    faults: list[str] = []

    def open_page(*folders: Path, address: str = "", url: str = "") -> Any:
        if not url:
            sources = Sources()
            for folder in folders:
                sources.add(folder)
            url = write_view(sources, tmp_path / "page.html")[0].as_uri()
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        origin = url.partition("://")[0] if url.startswith("file") else url
        page.on("request", lambda request: None if request.url.startswith(origin) else faults.append(request.url))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        page.goto(f"{url}#{address}")
        page.wait_for_selector("#main > *")
        return page

    yield open_page
    context.close()
    assert not faults


def wait_for_text(page: Any, selector: str, text: str) -> None:
    page.locator(selector, has_text=text).wait_for()


def listed(page: Any) -> list[str]:
    """The ids in the list, from the top."""
    return list(page.locator(".rows .row .col-id").all_inner_texts())


def count(page: Any) -> str:
    return str(page.locator(".count").inner_text())


def test_texts_are_shown_and_never_run(open_page: Open, runs: dict[str, Path]) -> None:
    page = open_page(runs["hostile"], address="/r0/records")
    assert page.title() == "hostile"
    assert count(page) == "10 of 10 records"
    texts = {
        "script": HOSTILE["script"],
        "end of script": HOSTILE["end of script"],
        "emoji": HOSTILE["emoji"],
        "right to left": HOSTILE["right to left"].replace("\u202e", "\\u202e").replace("\u202c", "\\u202c"),
        "control": "bell\\u0007 escape\\u001b[31m null\\u0000 line\\u2028separator",
    }
    for number, text in enumerate(texts.values()):
        page.goto(re.sub("#.*", f"#/r0/record/{number}", page.url))
        wait_for_text(page, "h1", list(texts)[number])
        fields = page.locator(".field .text").all_text_contents()
        assert fields == [text, text]
    assert page.title() == "hostile"
    assert page.evaluate("({}).polluted") is None


def test_a_large_text_is_opened_on_request(open_page: Open, runs: dict[str, Path]) -> None:
    page = open_page(runs["hostile"], address="/r0/records")
    page.locator("input[type=search]").fill("large")
    page.locator(".rows .row").first.click()
    page.wait_for_selector(".record")
    assert page.locator(".reason").inner_text().startswith("failed because: PromptError: prompt parrot")
    block = page.locator("section", has_text="Input").locator(".text")
    assert len(block.text_content()) < 21_000
    block.locator("button").click()
    assert len(block.text_content()) > 1_000_000


def test_the_filter_covers_id_source_result_and_reason(open_page: Open, runs: dict[str, Path]) -> None:
    page = open_page(runs["hostile"], address="/r0/records")
    search = page.locator("input[type=search]")
    for text, ids in {
        "EMOJI": ["emoji"],
        "family flag": ["emoji"],
        "\u05e9\u05dc\u05d5\u05dd": ["right to left"],
        "too <i>plain": ["plain"],
        "on purpose": ["broken"],
        "nowhere": [],
    }.items():
        search.fill(text)
        assert (listed(page), count(page)) == (ids, f"{len(ids)} of 10 records")
    search.fill("")
    page.get_by_label("outcome").select_option("failed")
    assert set(listed(page)) == {"large", "broken", ""}
    page.get_by_label("reason").select_option(index=2)
    assert len(listed(page)) == 1
    page.get_by_role("button", name="clear").click()
    wait_for_text(page, ".count", "10 ")


def test_records_are_sorted_and_filtered_by_score(open_page: Open, runs: dict[str, Path]) -> None:
    page = open_page(runs["first"], address="/r0/records")

    def scores() -> list[str]:
        return list(page.locator(".rows .row .col-score").all_inner_texts())

    page.get_by_role("columnheader", name="score").click()
    descending = [float(text) for text in scores() if text]
    assert descending == sorted(descending, reverse=True) and scores()[-1] == "", "records without a score come last"
    page.get_by_role("columnheader", name="score").click()
    assert [float(text) for text in scores() if text] == descending[::-1]
    page.get_by_label("lowest score").fill("90")
    assert scores() and all(float(text) >= 90 for text in scores())
    page.get_by_label("highest score").fill("10")
    assert count(page) == "0 of 6 records"


def test_keys_move_through_the_records(open_page: Open, runs: dict[str, Path]) -> None:
    page = open_page(runs["first"], address="/r0/records")
    ids = listed(page)
    for key in ("j", "j", "k", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector(".record")
    assert ids[1] in page.locator("h1").inner_text()
    page.keyboard.press("j")
    wait_for_text(page, "h1", ids[2])
    page.keyboard.press("Escape")
    page.wait_for_selector(".rows .row")
    page.keyboard.press("/")
    page.keyboard.type("r4")
    assert listed(page) == ["r4"]


def test_a_record_shows_its_path_and_why_it_was_dropped(open_page: Open, runs: dict[str, Path]) -> None:
    page = open_page(runs["first"], address="/r0/records")
    page.get_by_label("outcome").select_option("dropped")
    page.locator(".rows .row").first.click()
    page.wait_for_selector(".record")
    assert page.locator(".reason").inner_text() == "dropped because: 1 of 3 steps left"
    steps = [re.sub(r"^\d+\. ", "", text) for text in page.locator(".path-steps summary b").all_inner_texts()]
    assert steps == ["pick_keywords", "translate", "advise", "evaluate", "select"]
    visited = page.locator(".node.visited text").all_text_contents()
    assert set(visited) == set(steps)
    assert page.locator(".edge.taken").count() == 6
    page.locator(".path-steps summary", has_text="advise").click()
    page.locator(".path-steps .link", has_text="advise/0").click()
    assert page.locator("details[data-call='advise/0']").get_attribute("class") == "found"
    assert "Nobody says" in page.locator("details[data-call='advise/0'] .reply .text").inner_text()


def test_the_path_of_a_failed_record_ends_where_it_failed(open_page: Open, runs: dict[str, Path]) -> None:
    page = open_page(runs["hostile"], address="/r0/records")
    page.locator("input[type=search]").fill("on purpose")
    page.locator(".rows .row").first.click()
    page.wait_for_selector(".record")
    assert page.locator(".node.visited text").all_text_contents() == ["node"]
    assert page.locator(".edge").count() == 2 and page.locator(".edge.taken").count() == 1


def test_a_reason_of_two_lines_lists_its_records(open_page: Open, runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "lines"
    shutil.copytree(runs["hostile"], folder)
    [shard] = unpack_shards(folder).glob("traces-*.jsonl")
    shard.write_bytes(shard.read_bytes().replace(b"too <i>plain</i>", b"too\\nplain"))
    page = open_page(folder)
    page.locator(".overview .link", has_text="plain").click()
    wait_for_text(page, ".count", "1 of 10 records")
    assert listed(page) == ["plain"]


def test_a_pair_leads_to_the_calls_that_wrote_it(open_page: Open, runs: dict[str, Path]) -> None:
    page = open_page(runs["searched"], address="/r0/record/0")
    page.wait_for_selector(".tree")
    nodes = page.locator(".tree-line")
    page.get_by_role("button", name="collapse all").click()
    assert [nodes.nth(i).is_visible() for i in range(nodes.count())] == [True] + [False] * (nodes.count() - 1)
    page.get_by_role("button", name="expand all").click()
    assert all(nodes.nth(i).is_visible() for i in range(nodes.count()))
    assert page.locator(".tree .badge.chosen").count() and page.locator(".tree .badge.rejected").count()
    assert page.locator(".tree-picture circle").count() == nodes.count()
    assert page.locator(".tree-picture .tree-pair").count() == page.locator(".sides").count()
    pair = page.locator("section", has_text="What is learned").locator(".sides").first
    key = pair.locator(".segment .link").nth(1).inner_text()
    chosen = pair.locator(".learned").first.inner_text()
    pair.locator(".segment .link").nth(1).click()
    call = page.locator(f"details[data-call='{key}']")
    assert call.locator(".reply .text").first.inner_text() == chosen


def test_a_record_has_its_scores_of_an_evaluation(open_page: Open, runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["first"], tmp_path / "out" / "first")
    score = {"value": 31.5, "low": 30.0, "high": 33.0}
    report = {"version": 2, "settings": {}, "systems": {"first": {"metrics": {"BLEU": score}}}}
    (tmp_path / "out" / "evaluation.json").write_text(json.dumps(report), encoding="utf-8")
    line = {"id": "r1", "systems": {"first": {"em": True, "f1": 0.5, "answer": "no number"}}}
    (tmp_path / "out" / "predictions.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    page = open_page(tmp_path / "out", address="/evaluation/0")
    assert page.locator("main tbody td").all_inner_texts() == ["first", "31.5 30 to 33"]
    page.goto(re.sub("#.*", "#/r0/records", page.url))
    page.locator("input[type=search]").fill("r1")
    page.locator(".rows .row").first.click()
    section = page.locator("section", has_text="Evaluation").first
    section.wait_for()
    assert section.locator("th").all_inner_texts() == ["system", "em", "f1"]
    assert section.locator("tbody td").all_inner_texts() == ["first", "true", "0.5"]


def test_two_runs_are_compared(open_page: Open, runs: dict[str, Path]) -> None:
    page = open_page(runs["first"], runs["second"], address="/compare/0")
    page.wait_for_selector(".compare")
    rows = {
        row.locator("td").first.inner_text(): row.locator("td").all_inner_texts()[1:]
        for row in page.locator("section").first.locator("tbody tr").all()
    }
    assert rows["kept, of records"][:4] == ["6", "0.5", "0.167", "-0.333"]
    assert "6 records in both" in page.locator(".compare > p").inner_text()
    page.locator(".compare .badge.kept").first.click()
    page.wait_for_selector(".record")
    assert page.url.split("#")[1].startswith("/r0/record/")


def test_large_pages_have_their_data_beside_them(
    open_page: Open, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MAX_BYTES", 1_000)
    page = open_page(runs["first"], address="/r0/record/0")
    page.wait_for_selector(".record")
    assert {file.suffix for file in (tmp_path / "page_data").iterdir()} == {".js"}
    assert (tmp_path / "page.html").stat().st_size < 200_000
    page.goto(re.sub("#.*", "#/r0/records", page.url))
    wait_for_text(page, ".count", "6 of 6 records")


def test_a_missing_folder_of_data_is_said(
    browser: Any, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MAX_BYTES", 1_000)
    file, folder = write_view(Sources(runs=[runs["first"]]), tmp_path / "page.html")
    shutil.rmtree(folder)
    page = browser.new_page()
    page.goto(file.as_uri())
    fault = page.get_by_text("keep the folder page_data beside the page")
    fault.wait_for()
    assert fault.inner_text().startswith("page_data/r0-index-0.js is missing")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_follow_the_reader(browser: Any, runs: dict[str, Path], tmp_path: Path, scheme: str) -> None:
    file = write_view(Sources(runs=[runs["first"]]), tmp_path / "page.html")[0]
    page = browser.new_page(color_scheme=scheme)
    page.goto(file.as_uri())
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", color)[0])
    assert red > 200 if scheme == "light" else red < 60
    page.close()


def test_a_state_from_a_thread_is_a_page(open_page: Open, tmp_path: Path) -> None:
    tree = [
        {"id": "root", "parent": None, "visits": 2, "value": 0.0, "q": 0.5},
        {"id": "root:0", "parent": "root", "visits": 2, "value": 1.0, "q": 1.0, "answer": "42", "right": True,
         "rollouts": [{"right": False}, {"right": True}]},
    ]  # fmt: skip
    graph = {
        "nodes": [{"id": "a", "label": "鲁迅", "kind": "term"}, {"id": "b", "label": "Lu Xun"}],
        "edges": [{"src": "a", "dst": "b", "relation": "translates", "target": "not an end"}],
    }
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"values": {"question": "6 by 7?", "tree": tree, "graph": graph}}), encoding="utf-8")
    page = open_page(state)
    assert page.locator(".tree-line b").all_inner_texts() == ["root", "root:0"]
    assert page.locator(".tree-line .badge").all_inner_texts() == ["right", "1 of 2 rollouts right"]
    assert page.locator(".tree-label").all_text_contents() == ["N 2 2/3", "N 2 ✓"]
    assert page.locator(".network .entity text").all_text_contents() == ["鲁迅", "Lu Xun"]
    assert page.locator(".network .link-line text").all_text_contents() == ["translates"]


def test_a_live_page_follows_the_run(open_page: Open, runs: dict[str, Path], tmp_path: Path) -> None:
    """Records that are appended appear without a reload, and a torn line only when it is whole."""
    folder = tmp_path / "growing"
    shutil.copytree(runs["first"], folder)
    [shard] = unpack_shards(folder).glob("traces-*.jsonl")
    (folder / "failed.jsonl").unlink()
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(lines[0] + lines[1][:50])
    with serve_in_thread(folder, partial(find_vocabulary, folder=None)) as url:
        page = open_page(url=url, address="/r0/records")
        wait_for_text(page, ".count", "1 of 1 ")
        with shard.open("ab") as file:
            file.write(lines[1][50:] + lines[2])
        wait_for_text(page, ".count", "3 of 3 ")
        page.locator(".rows .row").nth(2).click()
        page.wait_for_selector(".record .calls details")
        assert threading.active_count() < 50
