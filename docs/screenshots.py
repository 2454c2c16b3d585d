"""The pictures of docs/view.md, from runs that are made here with scripted models, or from runs of your own.

    python -m docs.screenshots                       # writes docs/images
    python -m docs.screenshots --drt runs/drt --out pictures

Chinese text needs a font of the system, such as Debian's fonts-wqy-microhei.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentsys.display import say
from agentsys.view.command import Sources, write_view
from agentsys.view.vocabulary import find_vocabulary
from tests.support.pages import open_browser, refined_run, searched_run, serve_in_thread

HEIGHT = 1000


def show_record(page: Any) -> None:
    """A kept record's result and path."""
    page.locator(".rows .row.kept").first.click()
    page.locator(".record .path-steps").wait_for()


def filter_records(page: Any) -> None:
    """The list, filtered by a word and an outcome."""
    page.get_by_label("outcome").select_option("kept")


def show_tree(page: Any) -> None:
    """A search tree with its pairs."""
    page.locator(".rows .row").first.click()
    page.locator(".tree").wait_for()
    page.get_by_role("button", name="expand all").click()
    page.locator("section", has_text="Search tree").first.evaluate("element => element.scrollIntoView()")


def show_call(page: Any) -> None:
    """A call with its tokens."""
    page.locator(".rows .row.kept").first.click()
    page.locator(".calls details").first.wait_for()
    page.locator(".segment .link").last.click()
    page.wait_for_timeout(300)


PICTURES: dict[str, tuple[str, str, Callable[[Any], None]]] = {
    "run": ("drt", "/r0", lambda page: None),
    "records": ("drt", "/r0/records", filter_records),
    "record": ("drt", "/r0/records", show_record),
    "call": ("drt", "/r0/records", show_call),
    "tree": ("searched", "/r0/records", show_tree),
    "compare": ("two", "/compare/0", lambda page: None),
}
"""Of each picture: the page, the address on it, and what is done before."""


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drt", type=Path, help="a DRT run to be shown in place of a scripted one")
    parser.add_argument("--other", type=Path, help="the run that it is compared with")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = arguments.drt or refined_run(folder / "first", folder / "cache1", 40)
        second = arguments.other or refined_run(folder / "second", folder / "cache2", 40, max_rounds=2)
        searched = searched_run(folder / "searched", folder / "cache3")
        folders = {"drt": [first], "searched": [searched], "two": [first, second]}
        urls = {
            name: write_view(Sources(runs=runs), folder / f"{name}.html")[0].as_uri() for name, runs in folders.items()
        }
        with open_browser() as browser:
            for name, (page_name, address, prepare) in PICTURES.items():
                page = browser.new_page(viewport={"width": 1280, "height": HEIGHT})
                page.goto(f"{urls[page_name]}#{address}")
                page.locator("body[data-ready]").wait_for()
                prepare(page)
                page.screenshot(path=arguments.out / f"{name}.png")
                page.close()
                say(f"{arguments.out / name}.png")
            with serve_in_thread(first, find_vocabulary) as url:
                page = browser.new_page(viewport={"width": 1280, "height": 420})
                page.goto(f"{url}#/r0/records")
                page.locator("#live", has_text="live: ").wait_for()
                page.screenshot(path=arguments.out / "live.png")
                say(f"{arguments.out / 'live.png'}")


if __name__ == "__main__":
    main()
