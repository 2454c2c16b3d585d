"""Vision models of the embedded engine: a language model and its projector, two GGUF files of one hub repository.

No package holds them, and nobody here has seen their digests: a download is checked against the digest that the hub
states. The stamp beside a file then holds that digest, as for the catalog of weights.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock

from agentsys.installation import install_command
from agentsys.models import weights
from agentsys.models.weights import Weights, WeightsError
from agentsys.paths import cache_folder, make_private_folder


@dataclass(frozen=True, slots=True)
class VisionPair:
    """A vision model of the catalog: the hub repository and the names of its two files there."""

    name: str
    hub: str
    file: str
    projector: str
    license: str
    parameters: str


VISION: Final[dict[str, VisionPair]] = {
    pair.name: pair
    for pair in (
        VisionPair(
            name="smolvlm-256m",
            hub="ggml-org/SmolVLM-256M-Instruct-GGUF",
            file="SmolVLM-256M-Instruct-Q8_0.gguf",
            projector="mmproj-SmolVLM-256M-Instruct-Q8_0.gguf",
            license="Apache-2.0",
            parameters="256M",
        ),
        VisionPair(
            name="smolvlm-500m",
            hub="ggml-org/SmolVLM-500M-Instruct-GGUF",
            file="SmolVLM-500M-Instruct-Q8_0.gguf",
            projector="mmproj-SmolVLM-500M-Instruct-Q8_0.gguf",
            license="Apache-2.0",
            parameters="500M",
        ),
        VisionPair(
            name="qwen2.5-vl-3b",
            hub="ggml-org/Qwen2.5-VL-3B-Instruct-GGUF",
            file="Qwen2.5-VL-3B-Instruct-Q4_K_M.gguf",
            projector="mmproj-Qwen2.5-VL-3B-Instruct-Q8_0.gguf",
            license="Qwen Research License",
            parameters="3B",
        ),
        VisionPair(
            name="qwen3-vl-2b",
            hub="Qwen/Qwen3-VL-2B-Instruct-GGUF",
            file="Qwen3VL-2B-Instruct-Q4_K_M.gguf",
            projector="mmproj-Qwen3VL-2B-Instruct-Q8_0.gguf",
            license="Apache-2.0",
            parameters="2B",
        ),
    )
}


def find_pair(name: str) -> tuple[Path, Path]:
    """The files of a vision model and its projector in the cache folder, downloaded from the hub at the first call.

    Blocks for minutes then: keep it off the event loop. Raises WeightsError without a source, for a wrong digest and
    for a full or read-only disk.
    """
    pair = VISION[name]
    return _find(pair, pair.file), _find(pair, pair.projector)


def cached_file(file: str) -> Path:
    """The path of a file in the cache folder, whether it exists or not."""
    return cache_folder() / "weights" / file


def is_downloaded(pair: VisionPair) -> bool:
    """Whether both files are in the cache folder, checked."""
    return all(weights.has_stamp(cached_file(file)) for file in (pair.file, pair.projector))


def _find(pair: VisionPair, file: str) -> Path:
    target = cached_file(file)
    if weights.has_stamp(target):
        return target
    try:
        make_private_folder(target.parent)
        with FileLock(f"{target}.lock"):
            if not weights.has_stamp(target):  # another process may have written it
                _download(pair, file, target)
    except OSError as err:
        raise WeightsError(f"cannot write {file} to {target.parent}: {err}; set AGENTSYS_CACHE") from None
    return target


def _download(pair: VisionPair, file: str, target: Path) -> None:
    """Download a file and keep it under its name only if it has the size and the digest that the hub states."""
    try:
        size, sha256 = stated_digest(pair.hub, file)
        entry = Weights(file, file, size, sha256, pair.hub, (), pair.license, pair.parameters)
        source = weights.download(entry)
    except ImportError:
        raise WeightsError(f"{pair.name}: huggingface-hub is not installed: {install_command('hub')}") from None
    except WeightsError:
        raise
    except Exception as err:  # the hub client, its HTTP library and its download engine share no base class
        reason = " ".join(str(err.__cause__ or err).split())
        raise WeightsError(
            f"no source for {pair.name}: the model hub ({pair.hub}) failed: {reason}; give the two files: "
            "embedded:MODEL.gguf?mmproj=PROJECTOR.gguf"
        ) from None
    weights.join([source], target, entry)


def stated_digest(repository: str, file: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file as the hub states them. Raises WeightsError for a file that it does not have.

    Raises errors of the hub client.
    """
    from huggingface_hub import HfApi

    weights.check_hub(repository)
    for info in HfApi().get_paths_info(repository, [file]):
        lfs = getattr(info, "lfs", None)
        if lfs is not None:
            return int(lfs.size), str(lfs.sha256)
    raise WeightsError(f"the model hub states no digest of {file} in {repository}; download it and give its path")
