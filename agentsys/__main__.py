"""`python -m agentsys`: export runs and manage the request cache."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from agentsys.collect.export import to_parquet
from agentsys.collect.store import RunFolderError
from agentsys.models.cache import CacheError, RequestCache, default_path

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="output folder of a collect run")],
    parquet: Annotated[
        Path | None, typer.Argument(help="file to write; by default traces.parquet in the folder")
    ] = None,
) -> None:
    """Write a run's traces to one Parquet file."""
    try:
        path = parquet or run / "traces.parquet"
        print(f"{to_parquet(run, path):,} traces in {path}")
    except (RunFolderError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        raise typer.Exit(2) from None


@app.command()
def cache(
    path: Annotated[Path | None, typer.Option(help="cache file; by default the one in the user's cache folder")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="remove all calls")] = False,
    limit: Annotated[
        float | None, typer.Option(min=0, help="shrink the file to this many GB; the oldest calls are removed")
    ] = None,
) -> None:
    """Show the size of the request cache, or shrink it."""
    try:
        if path is not None and not path.exists():
            raise CacheError(f"--path {path}: no such file")
        if limit is not None and not math.isfinite(limit):
            raise CacheError(f"--limit {limit}: give a size in GB")
        requests = RequestCache(path or default_path(), **({} if limit is None else {"limit": int(limit * 1e9)}))
    except CacheError as err:
        print(f"error: {err}", file=sys.stderr)
        raise typer.Exit(2) from None
    if clear:
        requests.clear()
    stats = requests.stats()
    print(f"{stats['path']}: {stats['entries']:,} calls, {stats['bytes'] / 1e6:.1f} MB")
    requests.close()


if __name__ == "__main__":
    app()
