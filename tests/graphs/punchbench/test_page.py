"""graphs/punchbench/page.py: the page for people in a real browser, and the agreement of what it saves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from agentsys.commands import run_app
from agentsys.graphs.punchbench.page import measure_agreement, read_annotations, sample_items, write_page
from agentsys.graphs.punchbench.tasks import Item, file_name
from agentsys.graphs.punchbench_annotate import app
from agentsys.records import InputError
from tests.support.images import png
from tests.support.pages import HOSTILE, open_browser
from tests.support.punchbench import item


def benchmark(folder: Path) -> list[Item]:
    """Task files with three pairs and one picture."""
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(png())
    items = []
    for n in range(3):
        items.append(item(n, answer="Yes" if n else "No"))
        items.append(item(n, "perception", "multi_option", options=[f"{letter}{n}" for letter in "wxyz"], answer="B"))
        items.append(item(n, "reasoning", "generation", answer="because"))
    for one in items:
        with (folder / file_name(one.task, one.format)).open("a") as file:
            file.write(json.dumps(asdict(one)) + "\n")
    return items


def test_the_sample_is_seeded_and_has_options(tmp_path: Path) -> None:
    items = benchmark(tmp_path)
    drawn = sample_items(items, 2, 0)
    assert len(drawn) == 4 and {one.format for one in drawn} == {"yes_no", "multi_option"}
    assert drawn == sample_items(items, 2, 0)
    assert len(sample_items(items, 100, 1)) == 6


def test_a_page_holds_its_pictures_and_no_text_leaves_the_script(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    items = [item(n, caption=text[:2000]) for n, text in enumerate(HOSTILE.values())]
    write_page(items, tmp_path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("</script>") == 2 and "data:image/png;base64," in page and "<img src=x" not in page


def test_pages_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no questions with options"):
        write_page([], tmp_path, tmp_path / "page.html")
    with pytest.raises(InputError, match="the task files need their folder of pictures"):
        write_page([item(0)], tmp_path, tmp_path / "page.html")


def saved(path: Path, answers: dict[str, str], page: str = "p") -> Path:
    lines = [{"page": page, "annotator": path.stem, "id": name, "answer": answer} for name, answer in answers.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_agreement(tmp_path: Path) -> None:
    items = {one.id: one for one in (item(0, answer="No"), item(1), item(2))}
    names = sorted(items)
    first = saved(tmp_path / "a.jsonl", dict(zip(names, ("No", "Yes", "Yes"), strict=True)))
    second = saved(tmp_path / "b.jsonl", dict(zip(names, ("No", "Yes", "CBA"), strict=True)))
    [row] = measure_agreement(read_annotations([first, second]), items)
    assert (row["items"], row["cannot_be_answered"], row["complete"]) == (3, 1, 3)
    assert row["accuracy"] == 100, "of a tie, the first annotator's answer"
    assert row["fleiss_kappa"] == pytest.approx(5 / 11)
    assert row["gwet_ac1"] == pytest.approx(0.52)
    [alone] = measure_agreement(read_annotations([first]), items)
    assert alone["fleiss_kappa"] is None and alone["gwet_ac1"] is None


@pytest.mark.parametrize(("content", "reason"), [("", "no answers"), ("{}\n", "not a file that the page saved")])
def test_files_that_are_none(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=reason):
        read_annotations([tmp_path / "a.jsonl"])


def test_files_of_two_pages(tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{name}.jsonl", {"x": "Yes"}, name) for name in "ab"]
    with pytest.raises(InputError, match="is of another page than"):
        read_annotations(files)
    with pytest.raises(InputError, match="none of the annotated questions"):
        measure_agreement(read_annotations(files[:1]), {})


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = benchmark(tmp_path / "benchmark")
    folder = ["--benchmark", str(tmp_path / "benchmark")]
    assert run_app(app, ["page", *folder, "--out", str(tmp_path / "page.html"), "--items", "2"]) == 0
    assert (tmp_path / "page.html").stat().st_size > 3000
    answers = {one.id: one.answer for one in items if one.format != "generation"}
    files = [str(saved(tmp_path / f"{name}.jsonl", answers)) for name in "ab"]
    assert run_app(app, ["agreement", *files, *folder]) == 0
    assert "multi_option" in capsys.readouterr().out
    assert run_app(app, ["agreement", files[0], files[0], *folder]) == 2
    assert run_app(app, ["page"]) == 2
    assert "--benchmark: name a folder of task files" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser() -> Any:
    with open_browser() as browser:
        yield browser


def test_the_page_is_answered_with_keys_and_saved(browser: Any, tmp_path: Path) -> None:
    items = benchmark(tmp_path / "benchmark")
    drawn = sample_items(items, 2, 0)
    write_page(drawn, tmp_path / "benchmark", tmp_path / "page.html")
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("img").evaluate("image => image.naturalWidth") == 60
    page.fill("#name", "Ann")
    page.locator("img").click()  # leave the field: keys are answers now
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("9")  # no choice
    expected = {}
    for number, one in enumerate(drawn):
        key = "5" if number == 0 else "1"
        page.keyboard.press(key)
        expected[one.id] = "CBA" if number == 0 else "Yes" if one.format == "yes_no" else "A"
    page.get_by_text("All questions are answered").wait_for()
    page.keyboard.press("Backspace")
    page.keyboard.press("2")
    expected[drawn[-1].id] = "No" if drawn[-1].format == "yes_no" else "B"
    page.reload()
    assert page.locator("#progress").inner_text() == "4 of 4", "answers survive a reload"
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "ann.jsonl")
    assert download.value.suggested_filename == "annotations-Ann.jsonl"
    assert read_annotations([tmp_path / "ann.jsonl"]) == {str(tmp_path / "ann.jsonl"): expected}
    assert errors == []
    context.close()
