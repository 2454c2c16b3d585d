"""Shards: compressed when they are closed, read in both forms, and what a kill or damage leaves of them."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from agentsys.collect import RunFolderError, RunOptions, Summary, collect
from agentsys.collect.damage import find_damage
from agentsys.collect.repair import repair_run
from agentsys.shards import compress_shard, content_size, find_shards, open_shard, shard_number
from agentsys.traces import VERSION, Trace, dump, load, read_traces, shards
from tests.support.calls import make_call, make_trace
from tests.support.shards import shard_lines, unpack_shards
from tests.support.toys import one_node, outcomes

SHARD = "traces-00000.jsonl"
PACKED = "traces-00000.jsonl.zst"


async def echo(state: Any) -> dict[str, Any]:
    return {"reply": f"echo of {state['text']}"}


def run(folder: Path, *texts: str) -> Summary:
    return collect(one_node(echo), list(texts), folder, options=RunOptions(no_cache=True))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "traces" in path.name)


def texts_of(folder: Path) -> list[str]:
    return sorted(trace.input["text"] for trace in read_traces(folder))


def test_a_run_leaves_compressed_shards_and_goes_on_in_the_next(tmp_path: Path) -> None:
    run(tmp_path, "a", "b")
    assert names(tmp_path) == [PACKED]
    assert run(tmp_path, "a", "b", "c").processed == 1
    assert names(tmp_path) == [PACKED, "traces-00001.jsonl.zst"]
    assert run(tmp_path, "a", "b", "c").processed == 0
    assert names(tmp_path) == [PACKED, "traces-00001.jsonl.zst"]
    assert texts_of(tmp_path) == ["a", "b", "c"]
    assert find_damage(tmp_path) == []


def test_a_run_goes_on_in_the_shard_that_a_kill_left(tmp_path: Path) -> None:
    run(tmp_path, "a", "b")
    shard = unpack_shards(tmp_path) / SHARD
    with shard.open("ab") as file:
        file.write(b'{"version":')
    assert run(tmp_path, "a", "b", "c").processed == 1
    assert names(tmp_path) == [PACKED]
    assert texts_of(tmp_path) == ["a", "b", "c"]


def test_a_full_shard_is_compressed_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.collect.store.SHARD_BYTES", 0)  # one trace per shard
    run(tmp_path, *"abcd")
    assert names(tmp_path) == [f"traces-0000{number}.jsonl.zst" for number in range(4)]
    assert texts_of(tmp_path) == [*"abcd"]


@pytest.mark.parametrize("left", ["both forms", "half of the compressed one"])
def test_a_kill_while_a_shard_is_compressed(tmp_path: Path, left: str) -> None:
    """The shard is removed after its compressed form is complete, which has its name from then on."""
    run(tmp_path, "a", "b")
    packed = (tmp_path / PACKED).read_bytes()
    before = outcomes(unpack_shards(tmp_path))
    if left == "both forms":
        (tmp_path / PACKED).write_bytes(packed)
        assert shards(tmp_path) == [tmp_path / PACKED]
    else:
        (tmp_path / f".{PACKED}.tmp").write_bytes(packed[: len(packed) // 2])
    assert find_damage(tmp_path) == [] and outcomes(tmp_path) == before
    assert run(tmp_path, "a", "b").processed == 0
    assert names(tmp_path) == ([PACKED] if left == "both forms" else [SHARD])
    assert outcomes(tmp_path) == before


def test_a_shard_that_cannot_be_compressed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("agentsys.collect.store.compress_shard", fail)
    with caplog.at_level("INFO", "agentsys.collect.store"):
        run(tmp_path, "a")
    assert names(tmp_path) == [SHARD] and texts_of(tmp_path) == ["a"]
    assert caplog.messages == [f"{tmp_path / SHARD}: not compressed (No space left on device); it is read as it is"]


def test_zstd_and_jq_read_a_compressed_shard(tmp_path: Path) -> None:
    run(tmp_path, "a", "b")
    for program in ("zstd", "jq"):
        if not subprocess.run(["which", program], capture_output=True, check=False).stdout:
            pytest.skip(f"{program} is not installed")
    command = f"zstd -dc {tmp_path}/traces-*.jsonl.zst | jq -r .result.reply"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split("\n")) == ["", "echo of a", "echo of b"]


def many(count: int) -> list[Trace]:
    """Traces that do not repeat one another, so that they fill several blocks of the compressed file."""
    return [make_trace(id=f"r{i}", input={"text": "".join(map(str, range(i, i + 3000)))}) for i in range(count)]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder with one compressed shard of 100 records, and its manifest."""
    run(tmp_path, "a")
    lines = b"".join(map(dump, many(100)))
    (unpack_shards(tmp_path) / SHARD).write_bytes(lines)
    assert content_size(compress_shard(tmp_path / SHARD)) == len(lines)
    return tmp_path


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "without its end": lambda data: data[:-20],
    "half": lambda data: data[: len(data) // 2],
    "a wrong checksum": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "no head": lambda data: bytes(8) + data[8:],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_compressed_shard_is_noticed_and_repaired(packed: Path, kind: str) -> None:
    good, file = [*read_traces(packed)], packed / PACKED
    damaged = DAMAGE[kind](file.read_bytes())
    file.write_bytes(damaged)
    with pytest.raises(RunFolderError, match=r"traces-00000\.jsonl\.zst:\d+: damaged from here on .* --repair`$"):
        [*read_traces(packed)]
    [damage, *_] = find_damage(packed)
    assert damage.fix == "cut" and damage.line is not None
    assert repair_run(packed)[1]
    left = [*read_traces(packed)]
    assert left == good[: len(left)] and len(left) == damage.line - 1
    assert (packed / "damaged" / PACKED).read_bytes() == damaged
    assert names(packed) == [SHARD]


def test_bytes_that_changed_inside_a_compressed_shard(packed: Path) -> None:
    """They may change a text before they are noticed: at a line that is no JSON, or at the checksum."""
    data = (packed / PACKED).read_bytes()
    (packed / PACKED).write_bytes(data[: len(data) // 2] + bytes(50) + data[len(data) // 2 + 50 :])
    with pytest.raises(RunFolderError, match=r"traces-00000\.jsonl\.zst:\d+: .* --repair`$"):
        [*read_traces(packed)]
    assert repair_run(packed)[1] and find_damage(packed) == []


def test_a_damaged_line_of_a_compressed_shard_is_moved(packed: Path) -> None:
    lines = shard_lines(packed)
    (unpack_shards(packed) / SHARD).write_bytes(b"".join([*lines[:3], b"{}\n", *lines[4:]]))
    compress_shard(packed / SHARD)
    assert repair_run(packed)[1]
    assert names(packed) == [SHARD] and shard_lines(packed) == [*lines[:3], *lines[4:]]
    assert (packed / "damaged" / SHARD).read_bytes() == b"{}\n"


def test_a_shard_of_other_programs_is_read(packed: Path) -> None:
    """Without the size of its content, and of several frames, as `zstd` and `cat` write them."""
    lines = shard_lines(packed)
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    frames = [compressor.compress(b"".join(part)) for part in (lines[:10], lines[10:])]
    (packed / PACKED).write_bytes(b"".join(frames))
    assert shard_lines(packed) == lines and content_size(packed / PACKED) == 0


def test_names_of_shards(tmp_path: Path) -> None:
    for name in ("traces-00002.jsonl", "traces-00000.jsonl.zst", "traces-00000.jsonl", "traces-x.jsonl"):
        (tmp_path / name).touch()
    numbers = {path.name: number for path, number in find_shards(tmp_path).items()}
    assert numbers == {"traces-00000.jsonl.zst": 0, "traces-x.jsonl": None, "traces-00002.jsonl": 2}
    for name in ("traces-00000.jsonl.gz", "traces-²000.jsonl", "traces-0123456789.jsonl", "other-00000.jsonl"):
        assert shard_number(Path(name)) is None


def test_a_shard_that_is_compressed_before_it_is_opened(packed: Path) -> None:
    with open_shard(packed / SHARD) as lines:
        assert len(list(lines)) == 100
    with pytest.raises(FileNotFoundError), open_shard(packed / "traces-00001.jsonl"):
        pass


# --- prompts that begin as an earlier call ---

PROMPT = list(range(1000, 1040))


def stored_prompts(trace: Trace) -> list[tuple[list[int] | None, dict[str, Any] | None]]:
    return [(call["prompt_ids"], call.get("continues")) for call in orjson.loads(dump(trace))["calls"]]


def test_a_call_that_continues_another_stores_its_own_ids_only() -> None:
    calls = [
        make_call("draft", prompt_ids=PROMPT, ids=[7, 8, 9]),
        make_call("draft/1", prompt_ids=[*PROMPT, 7, 8, 9, 50, 51], reasoning_ids=[60], ids=[61]),
        make_call("draft/1/0", prompt_ids=[*PROMPT, 7, 8, 9, 50, 51, 60, 61, 70], ids=[71]),
        make_call("draft/1/1", prompt_ids=[*PROMPT, 7, 8, 9, 50, 51, 60, 61, 70], ids=[72]),
        make_call("other", prompt_ids=[1, 2, 3], ids=[4]),
        make_call("words"),
    ]
    trace = make_trace(*calls)
    assert stored_prompts(trace) == [
        (PROMPT, None),
        ([50, 51], {"call": "draft", "tokens": 43}),
        ([70], {"call": "draft/1", "tokens": 47}),
        ([], {"call": "draft/1/0", "tokens": 48}),
        ([1, 2, 3], None),
        (None, None),
    ]
    assert load(dump(trace)) == trace


def test_a_short_common_beginning_is_stored_in_full() -> None:
    calls = [make_call("a", prompt_ids=PROMPT[:15], ids=[1]), make_call("b", prompt_ids=[*PROMPT[:15], 2], ids=[3])]
    assert stored_prompts(make_trace(*calls)) == [(PROMPT[:15], None), ([*PROMPT[:15], 2], None)]


def test_an_earlier_version_is_written_as_it_was() -> None:
    calls = [make_call("a", prompt_ids=PROMPT, ids=[1]), make_call("b", prompt_ids=[*PROMPT, 1], ids=[3])]
    trace = make_trace(*calls, version=3)
    assert VERSION == 4 and stored_prompts(trace) == [(PROMPT, None), ([*PROMPT, 1], None)]
    assert load(dump(trace)) == trace


@pytest.mark.parametrize(
    "continues",
    [
        {"call": "b", "tokens": 3}, {"call": "none", "tokens": 3}, {"call": "a", "tokens": 42},
        {"call": "a", "tokens": -1}, {"call": "a", "tokens": "3"}, {"call": "a"}, {"call": ["a"], "tokens": 3}, "a", 3,
    ],
)  # fmt: skip
def test_a_call_that_continues_none_is_damage(continues: Any) -> None:
    trace = make_trace(make_call("a", prompt_ids=PROMPT, ids=[1]), make_call("b", prompt_ids=[2], ids=[3]))
    raw = orjson.loads(dump(trace))
    raw["calls"][1]["continues"] = continues
    with pytest.raises(ValueError, match=r"^not a trace: in calls\[1\], 'continues' names no ids of an earlier call$"):
        load(orjson.dumps(raw))
