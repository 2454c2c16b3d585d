"""Embedding models in packages: found by name or folder, and checked before they load."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agentsys.installation import install_command
from agentsys.knowledge import KnowledgeError
from agentsys.knowledge.embedders import absolute_spec, make_embedder
from agentsys.models import embeddings
from agentsys.models.embeddings import EMBEDDINGS, find_embedding
from agentsys.models.weights import WeightsError

FILES = {"model.safetensors": b"weights", "config.json": b"{}", "1_Pooling/config.json": b'{"mean": true}'}
TINY = replace(
    EMBEDDINGS["all-MiniLM-L6-v2"],
    name="tiny",
    hub="someone/tiny",
    package="tiny-embedding",
    folder="tiny_embedding/model",
    digests={name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with the catalog's only model, whose module must never be imported; its model folder."""
    site = tmp_path / "site"
    folder = site / TINY.folder
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (site / "tiny_embedding" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = site / "tiny_embedding-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {TINY.package}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(embeddings, "EMBEDDINGS", {TINY.name: TINY})
    return folder


def test_a_model_is_found_by_name_hub_name_and_folder(package: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(package)
    for spec in ("tiny", "someone/tiny", str(package), str(tmp_path / "link")):
        assert find_embedding(spec) == package
    assert "tiny_embedding" not in sys.modules


def test_other_specs_are_no_business_of_the_catalog(package: Path, tmp_path: Path) -> None:
    for spec in ("other", "else/tiny", str(tmp_path), "", "tiny-embedding"):
        assert find_embedding(spec) is None


@pytest.mark.usefixtures("package")
def test_the_home_folder_of_an_unknown_user_is_one_line() -> None:
    for search in (find_embedding, make_embedder, absolute_spec):
        with pytest.raises(ValueError, match=r"^~no-such-user/x: ~no-such-user is no user's home folder"):
            search("~no-such-user/x")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "EMBEDDINGS", {"absent": replace(TINY, name="absent", package="absent-package")})
    assert find_embedding("absent") is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"altered", None], ids=["altered", "missing"])
def test_a_file_that_is_not_the_publishers_is_refused(package: Path, name: str, content: bytes | None) -> None:
    (package / name).unlink()
    if content is not None:
        (package / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        find_embedding("tiny")
    message = str(caught.value)
    assert str(package / name) in message and TINY.digests[name] in message and "\n" not in message
    assert install_command("weights-embedding", "--force-reinstall") in message


@pytest.mark.needs("dense")
def test_an_embedder_refuses_an_altered_model_before_it_loads(package: Path) -> None:
    (package / "config.json").write_bytes(b'{"auto_map": "evil"}')
    for spec in ("tiny", str(package)):
        with pytest.raises(KnowledgeError, match="wrong checksum of tiny"):
            asyncio.run(make_embedder(spec).embed(["a"]))


REAL = EMBEDDINGS["all-MiniLM-L6-v2"]


@pytest.mark.needs("weights-embedding")
def test_the_real_package_holds_the_publishers_files() -> None:
    folder = find_embedding(REAL.name)
    assert folder is not None
    assert (folder / "model.safetensors").stat().st_size == REAL.size
    unchecked = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert unchecked - set(REAL.digests) == {".gitattributes", "README.md", "data_config.json"}


@pytest.mark.needs("dense", "weights-embedding")
def test_the_real_model_by_its_name() -> None:
    embedder = make_embedder(REAL.name)
    assert embedder.name == "all-MiniLM-L6-v2"
    assert asyncio.run(embedder.embed(["a", "b"])).shape == (2, 384)
