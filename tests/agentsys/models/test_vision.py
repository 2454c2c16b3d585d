"""agentsys/models/vision.py and ?mmproj=: pairs of files, checked against what the hub states; what is refused."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentsys.models import SpecError, load_model
from agentsys.models.embedded import EmbeddedEngine
from agentsys.models.vision import VISION, find_pair
from agentsys.models.weights import WeightsError

FILES = {
    pair.file: b"GGUF model of " + pair.name.encode() for pair in VISION.values()
} | {pair.projector: b"GGUF projector of " + pair.name.encode() for pair in VISION.values()}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model hub with the files; its answers can be changed, and its downloads are counted."""
    state: dict[str, Any] = {"downloads": [], "stated": {}, "reachable": True}

    def download(repository: str, file: str) -> str:
        state["downloads"].append((repository, file))
        path = tmp_path / file
        path.write_bytes(FILES[file])
        return str(path)

    def infos(self: Any, repository: str, files: list[str]) -> list[Any]:
        content = FILES[files[0]]
        sha256 = state["stated"].get(files[0], hashlib.sha256(content).hexdigest())
        return [SimpleNamespace(lfs=SimpleNamespace(size=len(content), sha256=sha256) if sha256 else None)]

    def model_info(repository: str, timeout: float) -> None:
        if not state["reachable"]:
            raise ConnectionError("no route to the hub")

    api = type("HfApi", (), {"get_paths_info": infos})
    module: Any = types.ModuleType("huggingface_hub")
    module.HfApi, module.hf_hub_download, module.model_info = api, download, model_info
    module.try_to_load_from_cache = lambda repository, file: None
    errors: Any = types.ModuleType("huggingface_hub.errors")
    errors.HfHubHTTPError = type("HfHubHTTPError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return state


def test_a_pair_is_downloaded_once_and_checked(hub: dict[str, Any], isolated_cache: Path) -> None:
    pair = VISION["qwen3-vl-2b"]
    for _ in range(2):
        model, projector = find_pair(pair.name)
        assert (model, projector) == (
            isolated_cache / "weights" / pair.file, isolated_cache / "weights" / pair.projector,
        )  # fmt: skip
        assert (model.read_bytes(), projector.read_bytes()) == (FILES[pair.file], FILES[pair.projector])
    assert hub["downloads"] == [(pair.hub, pair.file), (pair.hub, pair.projector)]
    model.write_bytes(b"GGUF changed")
    find_pair(pair.name)
    assert len(hub["downloads"]) == 3 and model.read_bytes() == FILES[pair.file]


def test_a_wrong_digest_leaves_no_file(hub: dict[str, Any], isolated_cache: Path) -> None:
    pair = VISION["smolvlm-256m"]
    hub["stated"][pair.projector] = "0" * 64
    with pytest.raises(WeightsError, match=f"wrong checksum of {pair.projector}: expected"):
        find_pair(pair.name)
    assert not (isolated_cache / "weights" / pair.projector).exists()


def test_a_hub_that_states_no_digest_or_is_not_there(hub: dict[str, Any]) -> None:
    pair = VISION["smolvlm-500m"]
    hub["stated"][pair.file] = ""
    with pytest.raises(WeightsError, match="the model hub states no digest of"):
        find_pair(pair.name)
    hub["reachable"] = False
    with pytest.raises(WeightsError, match=r"no source for smolvlm-500m: the model hub .* no route .*mmproj=PROJECTOR"):
        find_pair(pair.name)


def test_specs(tmp_path: Path) -> None:
    model, projector = tmp_path / "model.gguf", tmp_path / "proj.gguf"
    for path in (model, projector):
        path.write_bytes(b"GGUF")
    spec: Any = load_model(f"embedded:{model}?mmproj={projector}&slots=2")
    assert isinstance(spec.engine, EmbeddedEngine)
    assert (spec.engine.weights, spec.engine.projector, spec.engine.slots) == (str(model), str(projector), 2)
    assert load_model("embedded:smolvlm-256m").engine.weights == "smolvlm-256m"  # type: ignore[attr-defined]
    for bad, message in (
        (f"embedded:{model}?mmproj={tmp_path}/none.gguf", "no such weights file"),
        (f"embedded:{model}?mmproj={__file__}", "is no GGUF file"),
        (f"http://127.0.0.1:1/v1?mmproj={projector}", "http has no option 'mmproj'"),
        ("smolvlm-256m", "did you mean embedded:smolvlm-256m?"),
    ):
        with pytest.raises(SpecError, match=message):
            load_model(bad)


def test_a_browser_names_a_pair_and_no_projector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.models.spec.served_to_browsers", lambda: True)
    assert load_model("embedded:qwen3-vl-2b") is not None
    with pytest.raises(SpecError, match="in Studio, slots, context and mmproj cannot be set"):
        load_model("embedded:qwen3-vl-2b?mmproj=/tmp/x.gguf")
