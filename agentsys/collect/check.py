"""`agentsys check RUN`: lists the damage in a run's files, and repairs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentsys.collect.damage import find_damage, is_locked
from agentsys.collect.repair import repair_run
from agentsys.display import show


def check(
    run: Annotated[Path, typer.Argument(help="output folder of a collect run")],
    repair: Annotated[
        bool, typer.Option("--repair", help="move what is damaged to RUN/damaged; its records are due again")
    ] = False,
) -> None:
    """List every damage in a run's files, one per line. Exit code 1 if there is any, and 0 once it is repaired."""
    if repair:
        lines, is_clean = repair_run(run)
    else:
        damage = find_damage(run, is_running=is_locked(run))
        lines, is_clean = [str(one) for one in damage], not damage
        if any(one.fix != "none" for one in damage):
            lines.append(f"{len(damage)} in all; --repair moves it to {run / 'damaged'}")
    show(*lines or [f"{run}: no damage"])
    if not is_clean:
        raise typer.Exit(1)
