"""IDfree-PL: personal models from texts without user identifiers (arXiv 2501.06062).

    python trainers/idfree_pl.py --data ratings.csv --text joke --label class --user user --task classify --out run

trains the central model, the distributions of all devices and the personalized model of the cloud, evaluates them
beside baselines, and attacks the uploads. Run the same command again to continue after a kill; --stage runs one stage
alone.
"""

from __future__ import annotations

import sys

from agentsys.commands import command, run_app
from agentsys.trainers.idfree.attack_run import AttackOptions
from agentsys.trainers.idfree.options import DataOptions, FitOptions, ModelOptions, TableOptions


def main(
    data: DataOptions, model: ModelOptions, training: FitOptions, table: TableOptions, attacks: AttackOptions
) -> None:
    """Personalize a model on users' texts with embeddings that devices draw, and attack what they upload."""
    from agentsys.trainers.idfree.stages import run

    run(data, model, training, table, attacks)


app = command(main, name="train idfree-pl")

if __name__ == "__main__":
    sys.exit(run_app(app))
