"""`agentsys models`: the catalog with licenses, sources and digests, and which models are installed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agentsys.models.embeddings import EMBEDDINGS, EmbeddingWeights, installed_folder
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
    """A catalog entry and its state on this machine. `size` is in bytes."""

    name: str
    kind: Literal["chat", "embedding"]
    default: bool
    parameters: str
    size: int
    license: str
    packages: tuple[str, ...]
    hub: str
    file: str
    sha256: str
    digest_source: DigestSource
    state: State
    path: str | None
    """Where the file is; None if it is only in packages, or nowhere."""
    install: str | None
    """The command that installs it; None where it is there."""


def list_models() -> list[CatalogModel]:
    """Return the catalog. It reads no weights and touches no network."""
    return [*(_chat_model(weights) for weights in CATALOG.values()), *map(_embedding_model, EMBEDDINGS.values())]


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
        table.add_row(name, entry.parameters, decimal(entry.size), entry.license, STATES[entry.state])
    console.print(table)
    for entry in entries:
        owner = "of the publisher's file" if entry.digest_source == "publisher" else "of the file in the package"
        lines = {
            "use": f"--embedding {entry.name}" if entry.kind == "embedding" else f"--model embedded:{entry.name}",
            "file": entry.path or entry.file,
            "packages": _name_packages(entry.packages),
            "hub": entry.hub,
            "sha256": f"{entry.sha256} ({owner})",
            "install": entry.install or "",
        }
        console.print(f"\n{entry.name}", markup=False, highlight=False, style="bold")
        for label, text in lines.items():
            if text:  # soft wrapping keeps a digest or a command in one piece
                console.print(f"  {label:<9}{text}", markup=False, highlight=False, soft_wrap=True)


def _name_packages(packages: tuple[str, ...]) -> str:
    return packages[0] if len(packages) == 1 else f"{packages[0]} ... {packages[-1]} ({len(packages)} packages)"
