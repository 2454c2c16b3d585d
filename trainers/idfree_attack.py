"""Attack the embeddings of IDfree-PL: how well can users be told apart by what they upload?

    python trainers/idfree_attack.py run
    python trainers/idfree_attack.py --design gauss --width 768 --attacked 100 --spreads 0.001,0.005,0.01

The first attacks a run of `agentsys train idfree-pl` with all five attacks, the second simulated users (attacks 1 to
3). Writes attacks.json and attacks.png.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer

from agentsys.commands import command, knob, run_app
from agentsys.display import show
from agentsys.trainers.idfree.attack_run import AttackOptions
from agentsys.trainers.loading import TrainerError


@dataclass(frozen=True)
class SimulationOptions:
    """Users without a run, and the output."""

    panel: ClassVar[str] = "Simulation"
    design: Literal["beta", "gauss"] = knob("beta", "family of simulated users: around Beta(2, 5) or N(0, 0.2)")
    width: int = knob(768, "values per embedding of simulated users")
    out: Path | None = knob(None, "output folder; default: the run's, or `attacks`")

    def __post_init__(self) -> None:
        """Raises TrainerError for no width."""
        if self.width < 1:
            raise TrainerError(f"--width {self.width}: give at least 1")


def main(
    attacks: AttackOptions,
    simulation: SimulationOptions,
    run: Annotated[Path | None, typer.Argument(help="output folder of `agentsys train idfree-pl`")] = None,
) -> None:
    """Attack a run's embeddings and texts, or simulated embeddings."""
    from agentsys.trainers.idfree import attack_run as attacking
    from agentsys.trainers.output import check_folder

    out = simulation.out or run or Path("attacks")
    check_folder(out)
    if run:
        report = attacking.attack_run(run, attacks)
    else:
        report = attacking.attack_simulated(simulation.design, simulation.width, attacks)
    out.mkdir(parents=True, exist_ok=True)
    attacking.write_report(report, out)
    attacking.print_report(report)
    for line in attacking.accuracy_gained(run) if run else ():
        show(line)
    show(f"{out}: attacks.json, attacks.png")


app = command(main, name="train idfree-attack")

if __name__ == "__main__":
    sys.exit(run_app(app))
