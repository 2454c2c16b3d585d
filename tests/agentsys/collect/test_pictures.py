"""agentsys/collect/pictures.py: the pictures of a run's records, kept once and referenced in its files."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agentsys.collect import RunOptions, collect
from agentsys.collect.pictures import MIN_SIDE, PictureOptions, data_folder
from agentsys.models.errors import Refused
from agentsys.records import InputError
from agentsys.traces import RunFolderError, Trace, read_finished
from tests.support.images import DescriberContext, data_url, describer, draw, encode, png
from tests.support.toys import write_lines

RULES = [{"role": "describer", "replies": ["two colors"]}]


@pytest.fixture
def context(tmp_path: Path) -> DescriberContext:
    return DescriberContext(model=f"scripted:{write_lines(tmp_path / 'rules.jsonl', RULES)}")


def write_data(folder: Path, count: int = 3) -> Path:
    """A file of records beside their pictures."""
    (folder / "images").mkdir(parents=True)
    records = []
    for number in range(count):
        (folder / "images" / f"{number}.png").write_bytes(png(number))
        records.append({"id": str(number), "image": f"images/{number}.png", "caption": f"caption {number}"})
    return write_lines(folder / "pairs.jsonl", records)


def run(records: Any, out: Path, context: DescriberContext, **options: Any) -> dict[str, Trace]:
    pictures = PictureOptions(**{k: options.pop(k) for k in ("images", "image_size", "image_urls") if k in options})
    collect(
        describer, records, out, context=context, pictures=pictures,
        options=RunOptions(cache=out.parent / "cache.sqlite", **{"max_failures": "none", **options}),
    )  # fmt: skip
    return {trace.id: trace for trace in read_finished(out)}


def assert_no_base64(out: Path, *others: Path) -> None:
    for path in [*(file for file in out.rglob("*") if file.is_file() and file.parent.name != "images"), *others]:
        content = re.sub(rb"[0-9a-f]{64}", b"", path.read_bytes())
        for number in range(5):
            assert base64.b64encode(png(number))[:40] not in content, path
        assert not re.search(rb";base64,[A-Za-z0-9+/]{20}", content), path


def test_a_picture_is_kept_once_and_referenced(tmp_path: Path, context: DescriberContext) -> None:
    records = write_data(tmp_path / "data")
    with records.open("a") as file:  # the same picture with another caption
        file.write(json.dumps({"id": "again", "image": "images/0.png", "caption": "another"}) + "\n")
    traces = run(records, tmp_path / "run", context)
    assert {trace.outcome for trace in traces.values()} == {"kept"} and len(traces) == 4
    digests = {number: hashlib.sha256(png(number)).hexdigest() for number in range(3)}
    assert {file.name for file in (tmp_path / "run" / "images").iterdir()} == {f"{d}.png" for d in digests.values()}
    for number, digest in digests.items():
        reference = {"type": "image", "sha256": digest, "width": 60, "height": 40}
        trace = traces[str(number)]
        assert trace.input == {"id": str(number), "image": reference, "caption": f"caption {number}"}
        assert trace.calls[0].messages[1]["content"][0] == reference
        assert (tmp_path / "run" / "images" / f"{digest}.png").read_bytes() == png(number)
    assert_no_base64(tmp_path / "run", tmp_path / "cache.sqlite")


def test_all_forms_of_records(tmp_path: Path, context: DescriberContext) -> None:
    """A data URL in JSON, and the struct that `datasets` writes to Parquet."""
    lines = write_lines(tmp_path / "a.jsonl", [{"id": "url", "image": data_url(png()), "caption": "c"}])
    struct = [{"bytes": png(), "path": "a.png"}, {"bytes": png(1), "path": None}]
    pq.write_table(pa.table({"id": ["s", "t"], "image": struct, "caption": ["c", "d"]}), tmp_path / "b.parquet")
    assert run(lines, tmp_path / "one", context)["url"].outcome == "kept"
    traces = run(tmp_path / "b.parquet", tmp_path / "two", context)
    assert [trace.input["image"]["sha256"] for trace in (traces["s"], traces["t"])] == [
        hashlib.sha256(png(number)).hexdigest() for number in (0, 1)
    ]
    rows = [{"id": "b", "image": png(), "caption": "c"}]
    assert run(rows, tmp_path / "three", context)["b"].outcome == "kept"
    for name in ("one", "two", "three"):
        assert_no_base64(tmp_path / name, tmp_path / "cache.sqlite")


def test_bad_pictures_fail_their_record_with_file_line_and_reason(tmp_path: Path, context: DescriberContext) -> None:
    records = write_data(tmp_path / "data")
    (tmp_path / "data" / "page.jpg").write_bytes(b"<html>")
    (tmp_path / "data" / "empty.png").write_bytes(b"")
    bad = {
        "none": ("images/none.png", "no such file"),
        "page": ("page.jpg", "HTML or XML, not a picture"),
        "empty": ("empty.png", "0 bytes"),
        "outside": ("../cache.sqlite", "outside of the data folder"),
        "url": ("https://example.org/a.png", "addresses are not fetched"),
        "torn": (data_url(png()[:60]), "truncated or damaged"),
        "null": (None, "no picture"),
    }
    with records.open("a") as file:
        for name, (image, _) in bad.items():
            file.write(json.dumps({"id": name, "image": image, "caption": "c"}) + "\n")
    traces = run(records, tmp_path / "run", context)
    assert sum(trace.outcome == "kept" for trace in traces.values()) == 3
    for line, (name, (image, reason)) in enumerate(bad.items(), 4):
        trace = traces[name]
        assert (trace.outcome, trace.source) == ("failed", f"{records}:{line}"), name
        assert trace.reason and trace.reason.startswith("PictureError: field 'image': ") and reason in trace.reason
        assert trace.calls == [] and "traceback" not in trace.measured
        shown = trace.input["image"]
        if name == "torn":
            assert shown == {"type": "image", "unusable": "the data URL data:image/png;base64,..."}
        else:
            assert shown == image
    assert_no_base64(tmp_path / "run", tmp_path / "cache.sqlite")


def test_a_corrected_picture_is_read_by_a_retry(tmp_path: Path, context: DescriberContext) -> None:
    records = write_data(tmp_path / "data")
    (tmp_path / "data" / "images" / "1.png").write_bytes(b"")
    assert run(records, tmp_path / "run", context)["1"].outcome == "failed"
    (tmp_path / "data" / "images" / "1.png").write_bytes(png(1))
    traces = run(records, tmp_path / "run", context, retry_failed=True)
    assert {trace.outcome for trace in traces.values()} == {"kept"}


def test_the_longest_side_belongs_to_the_run(tmp_path: Path, context: DescriberContext) -> None:
    records = [{"id": "a", "image": encode(draw(400, 200)), "caption": "c"}]
    traces = run(records, tmp_path / "run", context, image_size=100)
    assert traces["a"].input["image"]["width"] == 100
    with pytest.raises(RunFolderError, match="image_size: 100 -> 1024"):
        run(records, tmp_path / "run", context)


def test_the_folder_of_the_pictures_may_be_another(tmp_path: Path, context: DescriberContext) -> None:
    write_data(tmp_path / "data")
    records = write_lines(tmp_path / "elsewhere.jsonl", [{"id": "a", "image": "0.png", "caption": "c"}])
    assert run(records, tmp_path / "one", context)["a"].outcome == "failed"
    assert run(records, tmp_path / "two", context, images=tmp_path / "data" / "images")["a"].outcome == "kept"


def test_options() -> None:
    with pytest.raises(InputError, match=f"--image-size 5: at least {MIN_SIDE} pixels are needed"):
        PictureOptions(image_size=5)
    with pytest.raises(InputError, match="--images /no/such: no such folder"):
        PictureOptions(images=Path("/no/such"))


@pytest.mark.parametrize(
    ("records", "folder"),
    [("a/b.jsonl", "a"), ("b.jsonl", "."), ("-", "."), ("hf:x/y", "."), ("s3://b/c.jsonl", "."), ([{}], ".")],
)
def test_data_folder(records: Any, folder: str) -> None:
    assert data_folder(records) == Path(folder)


def test_a_text_only_model_is_refused_before_the_first_call(tmp_path: Path) -> None:
    from agentsys.models.scripted import ScriptedChatModel

    async def sees_nothing(self: Any) -> bool:
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedChatModel, "sees_pictures", sees_nothing)
        rules = write_lines(tmp_path / "rules.jsonl", RULES)
        with pytest.raises(Refused, match="scripted takes text only, and the prompt shows a picture"):
            run(write_data(tmp_path / "data"), tmp_path / "run", DescriberContext(model=f"scripted:{rules}"))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_stops_the_run(tmp_path: Path, context: DescriberContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(RunFolderError, match="No space left on device; finished records are saved: free some space"):
        run([{"id": "a", "image": png(), "caption": "c"}], tmp_path / "run", context)


def _collect_slowly(records: Path, out: Path, rules: Path) -> None:
    import asyncio

    from agentsys.models.scripted import ScriptedChatModel

    complete = ScriptedChatModel.complete

    async def slow(self: Any, messages: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0.05)
        return await complete(self, messages, **kwargs)

    ScriptedChatModel.complete = slow  # type: ignore[method-assign]
    run(records, out, DescriberContext(model=f"scripted:{rules}"), in_flight=2)


def test_resumes_after_kill_9(tmp_path: Path, context: DescriberContext) -> None:
    records, rules = write_data(tmp_path / "data", 40), tmp_path / "rules.jsonl"
    out = tmp_path / "run"
    child = multiprocessing.get_context("spawn").Process(target=_collect_slowly, args=(records, out, rules))
    child.start()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and len(list((out / "images").glob("*.png"))) < 5:
        time.sleep(0.01)
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    (out / "images" / ".x.png.1.1.tmp").write_bytes(b"half")  # as a killed write leaves it
    done = len(list(read_finished(out)))
    assert done < 40
    traces = run(records, out, context)
    assert len(traces) == 40 and {trace.outcome for trace in traces.values()} == {"kept"}
    names = {f"{hashlib.sha256(png(number)).hexdigest()}.png" for number in range(40)}
    assert {file.name for file in (out / "images").iterdir()} == names
    for file in (out / "images").iterdir():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
