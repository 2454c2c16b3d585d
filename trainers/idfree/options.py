"""The options of `agentsys train idfree-pl`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Final, Literal, get_args

from agentsys.commands import knob
from agentsys.knobs import split_names
from agentsys.trainers.loading import TrainerError

Task = Literal["classify", "generate"]
Design = Literal["beta", "gauss"]
Format = Literal["table", "sentiment140", "amazon", "reddit"]
Stage = Literal["split", "central", "devices", "cloud", "baselines", "evaluate", "attacks"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
"""In the order in which they run; the output of each is a folder of its name."""

BASELINES: Final = ("lora", "static", "id-text")
TOKENS: Final[dict[Task, int]] = {"classify": 1, "generate": 5}
"""Embedding tokens of each task in the released code."""


def _check_share(option: str, value: float) -> None:
    if not 0 <= value < 1:
        raise TrainerError(f"--{option} {value}: give a share from 0 to below 1")


def _check_positive(options: object, *names: str) -> None:
    for name in names:
        if not getattr(options, name) > 0:
            raise TrainerError(f"--{name.replace('_', '-')} {getattr(options, name)}: give a number above 0")


@dataclass(frozen=True)
class DataOptions:
    """The texts of users, and how they are split."""

    panel: ClassVar[str] = "Data"
    data: str = knob("", "CSV, Parquet or JSONL file of texts, also compressed")
    rows: Path | None = knob(None, "instead of --data: rows of traces with a user (agentsys rows), for --task generate")
    format: Format = knob("table", "table: columns by the names below; the others: files as they are published")
    text: str = knob("text", "column of the texts")
    label: str = knob("label", "column of the classes")
    user: str = knob("user", "column of the users; names stay in users.json, all else has numbers")
    time: str = knob("", "column of times (numbers or ISO 8601): each user's last texts are the test; default: random")
    bins: str = knob("", "bounds that make classes of a number, such as 3,4: up to 3, above 3 up to 4, above 4")
    min_texts: int = knob(1, "leave out users with fewer texts")
    max_users: int = knob(0, "keep the users with the most texts; 0: all")
    test: float = knob(0.2, "share of each user's texts for the test")
    validation: float = knob(0.1, "share of each user's texts for model selection")
    cold: float = knob(0.0, "share of users who are new at the test: no device, the prior's embedding")

    def __post_init__(self) -> None:
        """Raises TrainerError for no data or two, and for shares or bounds that cannot be."""
        if bool(self.data) == bool(self.rows):
            raise TrainerError("--data and --rows: give one of them")
        for name in ("test", "validation", "cold"):
            _check_share(name, getattr(self, name))
        if self.test + self.validation >= 1:
            raise TrainerError("--test and --validation leave nothing to train on: lower them")
        if self.bounds != sorted(set(self.bounds)):
            raise TrainerError(f"--bins {self.bins}: give ascending numbers")

    @property
    def bounds(self) -> list[float]:
        """The upper bounds of all classes but the last."""
        try:
            return [float(part) for part in split_names(self.bins)]
        except ValueError:
            raise TrainerError(f"--bins {self.bins}: give numbers such as 3,4") from None


@dataclass(frozen=True)
class ModelOptions:
    """The model and where the embedding goes."""

    panel: ClassVar[str] = "Model"
    model: str = knob(
        "all-MiniLM-L6-v2", "encoder or decoder: folder, catalog or hub name; the default comes with weights-embedding"
    )
    task: Task = knob("classify", "classify: the embedding follows the text; generate: it precedes it")
    design: Design = knob("beta", "family of the users' distributions: beta, or normal (gauss)")
    spread: float = knob(1.0, "largest distance of a parameter from the shared prior: more personal, less private")
    embedding_tokens: int | None = knob(None, "tokens of an embedding; default 1 for classify, 5 for generate")
    unmasked: bool = knob(
        False, "the text of an encoder attends to the embedding, as published; slower: no keys and values are reused"
    )
    max_length: int = knob(128, "tokens of a text at most; longer ones are truncated")
    lora: int = knob(0, "rank of LoRA adapters for central and cloud training; 0 trains all weights")
    out: Path = knob(Path("idfree"), "output folder")

    def __post_init__(self) -> None:
        """Raises TrainerError for sizes that cannot be."""
        _check_positive(self, "spread", "max_length")
        if self.embedding_tokens is not None and self.embedding_tokens < 1:
            raise TrainerError(f"--embedding-tokens {self.embedding_tokens}: give at least 1")
        if self.lora < 0:
            raise TrainerError(f"--lora {self.lora}: give a rank, such as 16, or 0 to train all weights")

    @property
    def n_tokens(self) -> int:
        """Embedding tokens per text."""
        return self.embedding_tokens or TOKENS[self.task]


@dataclass(frozen=True)
class FitOptions:
    """Central training, the devices, and the personalized training on the cloud."""

    panel: ClassVar[str] = "Training"
    central_epochs: float = knob(3.0, "passes over the distinct texts, at least --central-steps steps")
    central_steps: int = knob(200, "optimizer steps of the central training at least")
    central_rate: float = knob(5e-5, "learning rate of the central training")
    batch: int = knob(32, "texts per step of the central training")
    device_steps: int = knob(200, "optimizer steps of each device")
    device_rate: float = knob(0.1, "learning rate of the devices; published: 5e-5")
    device_batch: int = knob(8, "texts per step of each device")
    device_texts: int = knob(1_000, "texts of a user at most that its device learns from")
    cloud_epochs: float = knob(3.0, "passes over all texts in the personalized training")
    cloud_rate: float = knob(5e-5, "learning rate of the personalized training")
    cloud_batch: int = knob(128, "texts per step of the personalized training")
    micro_batch: int = knob(256, "rows per forward pass at most, with 16 tokens each; fewer need less memory")
    cache_gb: float = knob(2.0, "memory for reused keys and values of texts; devices are grouped to fit")
    seed: int = knob(0, "seed of splits, orders and draws")

    def __post_init__(self) -> None:
        """Raises TrainerError for numbers that cannot train."""
        _check_positive(self, *(name for name in (item.name for item in fields(self)) if name != "seed"))


@dataclass(frozen=True)
class TableOptions:
    """What is compared."""

    panel: ClassVar[str] = "Table"
    baselines: str = knob("lora,static,id-text", "baselines to train beside majorities and the central model")
    lora_rank: int = knob(4, "rank of the adapter on each device (baseline lora)")
    other_draws: int = knob(10, "random other users per test text, for the entropy")
    bootstrap: int = knob(1_000, "bootstrap samples of users")
    stage: str = knob("", f"run this stage alone: {', '.join(STAGES)}; default: all that are not done", once=True)

    def __post_init__(self) -> None:
        """Raises TrainerError for unknown names."""
        if unknown := [name for name in self.baseline_names if name not in BASELINES]:
            raise TrainerError(f"--baselines {unknown[0]}: the baselines are {', '.join(BASELINES)}")
        if self.stage and self.stage not in STAGES:
            raise TrainerError(f"--stage {self.stage}: the stages are {', '.join(STAGES)}")
        _check_positive(self, "lora_rank", "other_draws", "bootstrap")

    @property
    def baseline_names(self) -> list[str]:
        """The baselines to train."""
        return split_names(self.baselines)
