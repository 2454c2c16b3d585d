"""The weights catalog: files joined from small real distributions, cached, and never incomplete."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentsys.installation import install_command
from agentsys.models import weights
from agentsys.models.weights import CATALOG, DEFAULT, Weights, WeightsError, find
from agentsys.paths import cache_folder
from tests.support.paths import ROOT

NAME = "tiny"
FILE = "tiny-q4.gguf"
PARTS = [bytes([65 + i]) * (100 + i) for i in range(22)]
WHOLE = b"".join(PARTS)


def distribution(site: Path, name: str, content: bytes, inner: str = "data/part.bin") -> Path:
    """Write an installed distribution whose module must never be imported; returns the file that holds `content`."""
    module = name.replace("-", "_")
    file = site / module / inner
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    (site / module / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{module}/{inner},,{len(content)}\n{info.name}/RECORD,,\n")
    return file


def entry(whole: bytes, packages: int) -> Weights:
    return Weights(
        name=NAME,
        file=FILE,
        size=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
        hub="someone/tiny-GGUF",
        packages=tuple(f"tiny-part{i}" for i in range(1, packages + 1)),
        license="Apache-2.0",
        parameters="2K",
        extra="tiny",
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and no hub; the value is the folder of the weights."""
    monkeypatch.setenv("AGENTSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return tmp_path / "cache" / "weights"


@pytest.fixture
def site(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with the 22 packages of the catalog's only entry."""
    folder = tmp_path / "site"
    for i, content in enumerate(PARTS, start=1):
        distribution(folder, f"tiny-part{i}", content)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(weights, "CATALOG", {NAME: entry(WHOLE, 22)})
    return folder


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every new SHA-256 object."""
    hashes: list[int] = []
    real = hashlib.sha256

    def counting() -> object:
        hashes.append(1)
        return real()

    monkeypatch.setattr(weights, "hashlib", SimpleNamespace(sha256=counting))
    return hashes


def files_in(folder: Path) -> set[str]:
    """Return the names in the folder except the lock, which filelock may or may not remove."""
    return {path.name for path in folder.iterdir()} - {f"{FILE}.lock"}


def test_parts_are_joined_in_numeric_order(site: Path, cache: Path) -> None:
    path = find(NAME)
    assert path == cache / FILE
    assert path.read_bytes() == WHOLE
    assert files_in(cache) == {FILE, f"{FILE}.sha256"}
    assert not [module for module in sys.modules if module.startswith("tiny_part")]


def test_a_package_may_hold_the_whole_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path / "site", "tiny-part1", WHOLE, FILE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(weights, "CATALOG", {NAME: entry(WHOLE, 1)})
    assert find(NAME).read_bytes() == WHOLE


@pytest.mark.parametrize("content", [b"x" * len(PARTS[6]), PARTS[6][:-1]], ids=["changed", "short"])
def test_a_wrong_checksum_leaves_nothing_and_names_both_digests(site: Path, cache: Path, content: bytes) -> None:
    (site / "tiny_part7" / "data" / "part.bin").write_bytes(content)
    actual_digest = hashlib.sha256(b"".join([*PARTS[:6], content, *PARTS[7:]])).hexdigest()
    with pytest.raises(WeightsError) as caught:
        find(NAME)
    message = str(caught.value)
    assert entry(WHOLE, 22).sha256 in message and actual_digest in message
    assert install_command("tiny", "--force-reinstall") in message and "\n" not in message
    assert files_in(cache) == set()


@pytest.mark.parametrize("missing", ["the package", "its data file"])
def test_a_missing_part_is_named_with_the_fix(site: Path, cache: Path, missing: str) -> None:
    (site / "tiny_part7" / "data" / "part.bin").unlink()
    if missing == "the package":
        for file in (site / "tiny_part7-1.0.dist-info").iterdir():
            file.unlink()
        (site / "tiny_part7-1.0.dist-info").rmdir()
    with pytest.raises(WeightsError) as caught:
        find(NAME)
    message = str(caught.value)
    assert "package tiny-part7 is missing (1 of 22 are)" in message
    assert install_command("tiny") in message and install_command("hub") in message and "\n" not in message
    assert files_in(cache) == set()


def test_a_cached_file_is_reused_without_hashing(site: Path, hashes: list[int]) -> None:
    first = find(NAME)
    assert len(hashes) == 1
    (site / "tiny_part7" / "data" / "part.bin").unlink()  # the sources are not read either
    assert find(NAME) == first
    assert len(hashes) == 1


def test_a_touched_file_is_hashed_once_more_and_kept(site: Path, hashes: list[int]) -> None:
    path = find(NAME)
    inode = path.stat().st_ino
    os.utime(path, ns=(1, 1))
    assert find(NAME).stat().st_ino == inode
    assert len(hashes) == 2
    find(NAME)
    assert len(hashes) == 2


@pytest.mark.parametrize("damaged", [WHOLE[:-1], b"x" + WHOLE[1:]], ids=["size", "mtime"])
def test_a_damaged_cached_file_is_replaced(site: Path, damaged: bytes) -> None:
    path = find(NAME)
    before = path.stat()
    path.write_bytes(damaged)
    if len(damaged) != len(WHOLE):  # the size alone must show it
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert find(NAME).read_bytes() == WHOLE


def test_a_torn_stamp_means_hashing_again(site: Path, cache: Path, hashes: list[int]) -> None:
    find(NAME)
    (cache / f"{FILE}.sha256").write_bytes(b"\xff")
    assert find(NAME).read_bytes() == WHOLE
    assert len(hashes) == 2


def test_a_file_put_into_the_cache_by_hand_is_checked_and_used(
    cache: Path, hashes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "CATALOG", {NAME: entry(WHOLE, 22)})
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(WHOLE)
    assert find(NAME) == cache / FILE
    assert len(hashes) == 1


def fake_hub(monkeypatch: pytest.MonkeyPatch, file: Path) -> list[tuple[str, str]]:
    downloads: list[tuple[str, str]] = []

    def hf_hub_download(repo_id: str, filename: str) -> str:
        downloads.append((repo_id, filename))
        if not file.exists():
            raise ConnectionError("no route\nto the hub")
        return str(file)

    hub = SimpleNamespace(hf_hub_download=hf_hub_download, try_to_load_from_cache=lambda repository, name: None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr(weights, "check_hub", lambda repository: None)
    return downloads


def test_the_hub_comes_last_and_is_verified_too(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CATALOG", {NAME: entry(WHOLE, 22)})
    file = tmp_path / "downloaded"
    downloads = fake_hub(monkeypatch, file)
    with pytest.raises(WeightsError, match=r"someone/tiny-GGUF.*no route to the hub.*\[tiny\]"):
        find(NAME)
    file.write_bytes(WHOLE[::-1])
    with pytest.raises(WeightsError, match="wrong checksum"):
        find(NAME)
    file.write_bytes(WHOLE)
    assert find(NAME).read_bytes() == WHOLE
    assert downloads == [("someone/tiny-GGUF", FILE)] * 3
    find(NAME)
    assert len(downloads) == 3


def test_packages_come_before_the_hub(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = fake_hub(monkeypatch, tmp_path / "none")
    find(NAME)
    assert downloads == []


@pytest.mark.needs("hub")
def test_the_real_hub_client_offline_gives_one_line(tmp_path: Path) -> None:
    code = (
        "from dataclasses import replace\n"
        "from agentsys.models import weights\n"
        "weights.CATALOG['x'] = replace(weights.CATALOG[weights.DEFAULT], name='x', packages=('tiny-part1',))\n"
        "try:\n    weights.find('x')\nexcept weights.WeightsError as error:\n    print(error)\n"
    )
    env = os.environ | {"AGENTSYS_CACHE": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.count("\n") == 1
    assert "HF_HUB_OFFLINE" in ran.stdout and install_command("weights") in ran.stdout


@pytest.mark.needs("hub")
def test_an_unreachable_hub_is_not_tried_again(tmp_path: Path) -> None:
    """The hub is a closed local port; the client's download alone would try six times, with a line for each."""
    code = (
        "from agentsys.models import weights\n"
        "weights._files_of_package = lambda package, entry: []\n"
        "try:\n    weights.find('smollm2-135m')\nexcept ValueError as error:\n    print(error)\n"
    )
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
    env = os.environ | hub | {"AGENTSYS_CACHE": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("no source for smollm2-135m") and "Retrying" not in ran.stdout + ran.stderr


def test_progress_is_one_line_if_stderr_is_not_a_terminal(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = find(NAME)
    assert capfd.readouterr() == ("", "joining tiny: 2.4 kB\n")
    path.unlink()
    find(NAME, progress=False)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_name_lists_the_catalog() -> None:
    with pytest.raises(WeightsError) as caught:
        find("qwen3")
    assert "'qwen3'" in str(caught.value)
    assert all(name in str(caught.value) for name in CATALOG)


def test_a_gguf_path_is_used_as_it_is_or_reported_missing(tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    with pytest.raises(WeightsError, match=r"no such weights file: .*own\.gguf"):
        find(str(file))
    file.write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"own\.gguf is no GGUF file"):
        find(str(file))
    file.write_bytes(b"GGUF")
    assert find(str(file)) == file


def test_the_home_folder_of_an_unknown_user_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"^~no-such-user/x\.gguf: ~no-such-user is no user's home folder; write"):
        find("~no-such-user/x.gguf")
    monkeypatch.setenv("AGENTSYS_CACHE", "~no-such-user/cache")
    with pytest.raises(ValueError, match=r"^AGENTSYS_CACHE=~no-such-user/cache: ~no-such-user is no"):
        cache_folder()


def test_a_folder_that_cannot_be_written_names_the_variable(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("AGENTSYS_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="set AGENTSYS_CACHE"):
        find(NAME)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_folder_names_the_variable(site: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    with pytest.raises(WeightsError, match="set AGENTSYS_CACHE"):
        find(NAME)
    cache.chmod(0o700)


def test_too_little_space_is_reported_before_writing(site: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(WeightsError, match=f"{len(WHOLE)} bytes needed, 1000 bytes free.*AGENTSYS_CACHE"):
        find(NAME)
    assert files_in(cache) == set()


def test_a_disk_that_fills_up_during_writing_leaves_no_temporary_file(
    site: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        assert files_in(cache) == {f"{FILE}.part"}
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match=f"No space left on device.*{len(WHOLE)} bytes needed, .* bytes free"):
        find(NAME)
    assert files_in(cache) == set()


BIG = [b"a" * 100_000, b"b" * 1000]
CHILD = f"""
import sys
from agentsys.models import weights
sys.path.insert(0, sys.argv[1])
weights.CATALOG = {{"tiny": weights.{entry(b"".join(BIG), 2)!r}}}
print("started", flush=True)
print(weights.find("tiny"))
"""


@pytest.fixture
def start(tmp_path: Path, cache: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that joins the two packages of BIG; none outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(tmp_path / "site")]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout and process.stdout.readline() == "started\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def pipe(tmp_path: Path, cache: Path) -> Path:
    """Two packages, the second of which is a named pipe: a process that joins them blocks until data is written."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    distribution(tmp_path / "site", "tiny-part1", BIG[0])
    file = distribution(tmp_path / "site", "tiny-part2", BIG[1])
    file.unlink()
    os.mkfifo(file)
    return file


def wait_for_first_part(cache: Path) -> Path:
    part = cache / f"{FILE}.part"
    while not (part.exists() and part.stat().st_size == len(BIG[0])):
        time.sleep(0.01)
    return part


def test_kill_in_the_middle_then_a_clean_run(
    pipe: Path, cache: Path, start: Callable[[], subprocess.Popen[str]]
) -> None:
    killed = start()
    part = wait_for_first_part(cache)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert part.exists() and not (cache / FILE).exists()
    pipe.unlink()
    pipe.write_bytes(BIG[1])
    out, err = start().communicate()
    assert out == f"{cache / FILE}\n", err
    assert (cache / FILE).read_bytes() == b"".join(BIG)
    assert files_in(cache) == {FILE, f"{FILE}.sha256"}


def test_two_processes_at_once_join_once(pipe: Path, cache: Path, start: Callable[[], subprocess.Popen[str]]) -> None:
    both = [start(), start()]
    wait_for_first_part(cache)
    time.sleep(0.3)  # time for the second process to reach the lock
    pipe.write_bytes(BIG[1])  # feeds one reader: a second join would wait forever or read a part
    done = [process.communicate() for process in both]
    assert [out for out, _ in done] == [f"{cache / FILE}\n"] * 2, done
    assert "".join(err for _, err in done).count("joining") == 1
    assert (cache / FILE).read_bytes() == b"".join(BIG)


def test_the_catalog_agrees_with_the_extras() -> None:
    assert DEFAULT in CATALOG
    assert [len(CATALOG[f"qwen2.5-coder-{size}"].packages) for size in ("1.5b", "0.5b")] == [22, 6]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, name in (("weights", "qwen2.5-coder-1.5b"), ("weights-small", "qwen2.5-coder-0.5b")):
        assert tuple(pin.split("==")[0] for pin in extras[extra]) == CATALOG[name].packages
        assert CATALOG[name].extra == extra
    for name, listed in CATALOG.items():
        assert name == listed.name
        assert len(listed.sha256) == 64 and set(listed.sha256) <= set("0123456789abcdef")
        assert listed.file.endswith(".gguf") and listed.size > 0 and listed.hub.count("/") == 1


def test_the_cache_folder_is_the_users_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENTSYS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("AGENTSYS_CACHE")
    assert "agentsys" in cache_folder().parts


def test_the_real_half_billion_weights() -> None:
    """Uses the user's cache on purpose: half a gigabyte is joined once, not at every run of the tests."""
    listed = CATALOG["qwen2.5-coder-0.5b"]
    try:
        metadata.distribution(listed.packages[0])
    except metadata.PackageNotFoundError:
        pytest.skip(listed.install_command())
    with find(listed.name).open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == listed.sha256
