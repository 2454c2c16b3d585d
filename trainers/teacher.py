"""Score rows once with a teacher: its top-k log-probabilities at every learned position, for distillation.

    python trainers/teacher.py --rows rows/sft/train.parquet --teacher qwen2.5-coder-1.5b --out scored

writes `scored-00000.parquet` and so on, with all columns of the rows and the four of trainers/topk.py, in the order of
the rows (`datasets.load_dataset("parquet", data_files="scored/scored-*.parquet")`), and `manifest.json`. Scoring costs
one forward pass of the teacher; training then runs without the teacher, for any number of epochs and settings.

Rerun the same command to resume, also after kill -9: rows of finished shards are not scored again, and at most the rows
since the last shard are lost.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from agentsys.commands import command, knob, run_app
from agentsys.config import save_config
from agentsys.display import show
from agentsys.trainers.loading import DType, TrainerError
from agentsys.trainers.output import check_folder
from agentsys.trainers.score_rows import check_fit, scan_row_file, score_rows

if TYPE_CHECKING:
    from agentsys.trainers.topk import ScoredFolder


@dataclass(frozen=True)
class TeacherOptions:
    """The rows, the teacher, and how many log-probabilities are stored."""

    panel: ClassVar[str] = "Teacher"
    rows: Path | None = knob(None, "row file (.parquet) of kind sft or role, from rows.py")
    out: Path | None = knob(None, "output folder; unfinished scoring in it is resumed")
    teacher: str = knob(
        "qwen2.5-coder-1.5b",
        "folder, catalog or hub name (run here in transformers), vllm:FOLDER (starts a server), http://host:port/v1",
    )
    teacher_tokenizer: str | None = knob(None, "folder of the teacher's tokenizer, needed for an http teacher")
    top_k: int = knob(32, "tokens stored per position, 6 bytes each")


@dataclass(frozen=True)
class SpeedOptions:
    """Options of speed and memory; they change the result by rounding only."""

    panel: ClassVar[str] = "Speed"
    dtype: DType = knob("float32", "type of the teacher's weights in transformers: float32 or bfloat16")
    batch_tokens: int = knob(8192, "tokens per forward pass in transformers, padding included")
    in_flight: int = knob(64, "requests in flight to a server")
    shard_tokens: int = knob(200_000, "tokens per output shard")

    def __post_init__(self) -> None:
        """Raises TrainerError for a number below 1."""
        for name in ("batch_tokens", "in_flight", "shard_tokens"):
            if getattr(self, name) < 1:
                raise TrainerError(f"--{name.replace('_', '-')} {getattr(self, name)}: give at least 1")


def main(options: TeacherOptions, speed: SpeedOptions) -> None:
    """Store a teacher's top-k log-probabilities, and the mass outside them, for every learned token of rows."""
    from agentsys.trainers.scorers import ScorerSettings, make_scorer
    from agentsys.trainers.topk import ScoredFolder, check_scored_folder

    if options.rows is None or options.out is None:
        raise TrainerError(f"--{'rows' if options.rows is None else 'out'} is required")
    check_folder(options.out)
    rows = scan_row_file(options.rows)
    check_scored_folder(options.out, {"top_k": options.top_k, "rows_sha256": rows.sha256})
    settings = ScorerSettings(options.top_k, speed.dtype, speed.batch_tokens, speed.in_flight)
    longest = max(rows.lengths.values())
    scorer = make_scorer(options.teacher, settings, tokenizer=options.teacher_tokenizer, longest=longest)
    try:
        check_fit(rows, scorer, options.top_k)
        inputs = {"tokenizer": scorer.digest, "top_k": options.top_k, "rows_sha256": rows.sha256}
        folder = ScoredFolder(options.out, scorer.identity() | inputs)
        save_config(options.out)
        try:
            scored_tokens = score_rows(rows, scorer, folder, speed.shard_tokens)
        finally:
            folder.close()
    finally:
        scorer.close()
    show(_summary(folder, scored_tokens))


def _summary(folder: ScoredFolder, scored_tokens: int) -> str:
    manifest = folder.manifest
    speed = f"{manifest['tokens_per_second']:,.0f} tokens/s in this run" if scored_tokens else "nothing left to score"
    return (
        f"{manifest['rows_scored']} rows with {manifest['learned_tokens_total']:,} learned tokens of "
        f"{manifest['tokens_total']:,} scored by {manifest['teacher']}; {speed}: {folder.folder}/scored-*.parquet"
    )


app = command(main, name="train teacher")

if __name__ == "__main__":
    sys.exit(run_app(app))
