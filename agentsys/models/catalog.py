"""`agentsys models`: the catalog with licenses, sources and digests, and which models are installed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agentsys.models.embeddings import EMBEDDINGS, EmbeddingWeights, installed_folder
from agentsys.models.vision import VISION, VisionPair, cached_file, is_downloaded
from agentsys.models.weights import CATALOG, DEFAULT, DigestSource, State, Weights, cached_path, find_state

if TYPE_CHECKING:
    from agentsys.console import Console

STATES: dict[State, str] = {
    "verified": "in cache, verified",
    "unchecked": "in cache, unchecked",
    "packages": "packages installed",
    "missing": "not installed",
}


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A catalog entry and its state on this machine. `size` is in bytes.

    Size and digest of a vision model are None: they are those that the hub states when it is downloaded.
    """

    name: str
    kind: Literal["chat", "embedding", "vision"]
    default: bool
    parameters: str
    size: int | None
    license: str
    packages: tuple[str, ...]
    hub: str
    file: str
    sha256: str | None
    digest_source: DigestSource
    state: State
    path: str | None
    """Where the file is; None if it is only in packages, or nowhere."""
    install: str | None
    """The command that installs it; None where it is there, and for what only the hub has."""
    projector: str | None = None
    """The file of a vision model's projector in the hub repository."""


def list_models() -> list[CatalogModel]:
    """Return the catalog. It reads no weights and touches no network."""
    chat = map(_chat_model, CATALOG.values())
    return [*chat, *map(_vision_model, VISION.values()), *map(_embedding_model, EMBEDDINGS.values())]


def _chat_model(weights: Weights) -> CatalogModel:
    state = find_state(weights)
    return CatalogModel(
        name=weights.name,
        kind="chat",
        default=weights.name == DEFAULT,
        parameters=weights.parameters,
        size=weights.size,
        license=weights.license,
        packages=weights.packages,
        hub=weights.hub,
        file=weights.file,
        sha256=weights.sha256,
        digest_source=weights.digest_source,
        state=state,
        path=str(cached_path(weights)) if state in ("verified", "unchecked") else None,
        install=weights.install_command() if state == "missing" else None,
    )


def _vision_model(pair: VisionPair) -> CatalogModel:
    is_there = is_downloaded(pair)
    return CatalogModel(
        name=pair.name,
        kind="vision",
        default=False,
        parameters=pair.parameters,
        size=None,
        license=pair.license,
        packages=(),
        hub=pair.hub,
        file=pair.file,
        sha256=None,
        digest_source="publisher",
        state="verified" if is_there else "missing",
        path=str(cached_file(pair.file)) if is_there else None,
        install=None,
        projector=pair.projector,
    )


def _embedding_model(weights: EmbeddingWeights) -> CatalogModel:
    folder = installed_folder(weights)
    return CatalogModel(
        name=weights.name,
        kind="embedding",
        default=False,
        parameters=weights.parameters,
        size=weights.size,
        license=weights.license,
        packages=(weights.package,),
        hub=weights.hub,
        file="model.safetensors",
        sha256=weights.sha256,
        digest_source="publisher",
        state="packages" if folder else "missing",
        path=str(folder) if folder else None,
        install=None if folder else weights.install_command(),
    )


def models(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """List the catalog's models: size, license, packages, hub repository, SHA-256, and whether they are installed."""
    entries = list_models()
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    from agentsys.console import Console

    print_models(entries, Console())


def print_models(entries: list[CatalogModel], console: Console) -> None:
    """Print a table, and below it each model's sources, in lines that can be copied."""
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("model", "parameters", "size", "license", "installed")
    for entry in entries:
        name = f"{entry.name} (default)" if entry.default else entry.name
        size = "-" if entry.size is None else decimal(entry.size)
        table.add_row(name, entry.parameters, size, entry.license, STATES[entry.state])
    console.print(table)
    for entry in entries:
        owner = "of the publisher's file" if entry.digest_source == "publisher" else "of the file in the package"
        lines = {
            "use": f"--embedding {entry.name}" if entry.kind == "embedding" else f"--model embedded:{entry.name}",
            "file": entry.path or entry.file,
            "projector": entry.projector or "",
            "packages": _name_packages(entry.packages),
            "hub": entry.hub,
            "sha256": f"{entry.sha256} ({owner})" if entry.sha256 else "the one that the hub states, at the download",
            "install": entry.install or "",
        }
        console.print(f"\n{entry.name}", markup=False, highlight=False, style="bold")
        for label, text in lines.items():
            if text:  # soft wrapping keeps a digest or a command in one piece
                console.print(f"  {label:<8} {text}", markup=False, highlight=False, soft_wrap=True)


def _name_packages(packages: tuple[str, ...]) -> str:
    if len(packages) < 2:
        return "".join(packages)
    return f"{packages[0]} ... {packages[-1]} ({len(packages)} packages)"
