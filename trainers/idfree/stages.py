"""The stages of a run. Each writes a folder of its name, which appears when it is complete: a rerun continues there.

split       the texts of the three parts, by numbers of users         users.json   names, for the simulation alone
central     the central model                                          devices     parameters of each user
cloud       the personalized model                                     baselines   predictions of each baseline
evaluate    predictions for the test                                   attacks     what the uploads give away
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from agentsys.config import save_config
from agentsys.display import show
from agentsys.trainers.idfree.attack_run import AttackOptions
from agentsys.trainers.idfree.backbone import ModelInfo, load_backbone, load_saved, new_info, read_info, save_model
from agentsys.trainers.idfree.baselines import majorities, train_id_text, train_lora, train_static
from agentsys.trainers.idfree.central import train_central
from agentsys.trainers.idfree.cloud import draw_embeddings, train_cloud
from agentsys.trainers.idfree.data import Data, read_split, write_split
from agentsys.trainers.idfree.designs import Design
from agentsys.trainers.idfree.device import Parameters, save_parameters
from agentsys.trainers.idfree.devices import Devices, train_devices
from agentsys.trainers.idfree.evaluate import predict_central, predict_cloud, save_predictions
from agentsys.trainers.idfree.network import Backbone, Tokens, tokenize_data
from agentsys.trainers.idfree.options import STAGES, DataOptions, FitOptions, ModelOptions, Stage, TableOptions
from agentsys.trainers.idfree.predict import Predictions
from agentsys.trainers.idfree.report import write_report
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.output import check_folder, refuse_changes, write_settings
from agentsys.trainers.training import allocation_errors

NEEDS: Final[dict[Stage, Stage]] = {
    "central": "split",
    "devices": "central",
    "cloud": "devices",
    "baselines": "devices",
    "evaluate": "cloud",
    "attacks": "cloud",
}
"""The latest stage that each stage reads."""
_FREE: Final = {"out", "stage", "baselines", "bootstrap", "micro_batch", "cache_gb"} | {
    item.name for item in fields(AttackOptions)
}
"""Options that a resumed run may change."""


def run(data: DataOptions, model: ModelOptions, fit: FitOptions, table: TableOptions, attack: AttackOptions) -> None:
    """Run all stages that are not done, or one, and write the report. Raises TrainerError."""
    out = model.out
    check_folder(out)
    settings: dict[str, Any] = {}
    for group in (data, model, fit, table, attack):
        settings |= {name: str(v) if isinstance(v, Path) else v for name, v in asdict(group).items()}
    kept = {name: value for name, value in settings.items() if name not in _FREE}
    if (out / "settings.json").exists():
        refuse_changes(out / "settings.json", kept, f"{out} was begun so: give the same options, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_settings(out / "settings.json", kept)
    save_config(out)
    pipeline = Pipeline(data, model, fit, table, attack)
    message = f"out of memory: lower --micro-batch (now {fit.micro_batch}), --cache-gb, --cloud-batch or --max-length"
    with allocation_errors(message):
        for stage in STAGES:
            if not table.stage or table.stage == stage:
                pipeline.run_stage(stage)
    if (out / "evaluate").is_dir():
        write_report(out, settings)


class Pipeline:
    """The stages, with what they share."""

    def __init__(
        self, data: DataOptions, model: ModelOptions, fit: FitOptions, table: TableOptions, attack: AttackOptions
    ) -> None:
        self.options, self.model, self.fit, self.table, self.attack = data, model, fit, table, attack
        self.out = model.out

    def run_stage(self, stage: Stage) -> None:
        """Run a stage that is not done. Raises TrainerError if what it reads is not there."""
        target = self.out / stage
        if target.is_dir() and (stage != "baselines" or not self._baselines_to_do()):
            if self.table.stage:
                show(f"{stage} is done: remove {target}, and the stages after it, to run it again")
            return
        needed = NEEDS.get(stage)
        if needed and not (self.out / needed).is_dir():
            raise TrainerError(f"--stage {stage}: {self.out} has no {needed}: run --stage {needed} first")
        work: Callable[[Path], dict[str, Any]] = getattr(self, f"run_{stage}")
        started = time.perf_counter()
        part = target if stage == "baselines" else self.out / f".{stage}.part"
        if stage != "baselines":
            shutil.rmtree(part, ignore_errors=True)
        part.mkdir(exist_ok=True)
        info = work(part)
        info["seconds"] = round(time.perf_counter() - started, 1)
        (part / "stage.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
        if part != target:
            os.replace(part, target)
        show(f"{stage}: {info['seconds']:,.1f} s")

    @cached_property
    def data(self) -> Data:
        """The split."""
        return read_split(self.out / "split")

    @cached_property
    def design(self) -> Design:
        """The family of the users' distributions, for the width of the central model."""
        info = read_info(self.out / "central")
        return Design(self.model.design, info.task, info.n_tokens, info.width, info.spread)

    @property
    def known_users(self) -> list[int]:
        """Users with a device."""
        return [int(user) for user in np.setdiff1d(np.arange(self.data.users), self.data.new_users)]

    def _load(self, stage: Stage) -> tuple[Backbone, Tokens, ModelInfo]:
        backbone, info = load_saved(self.out / stage)
        return backbone, tokenize_data(backbone, self.data, self.model.max_length), info

    def _load_devices(self) -> Devices:
        with np.load(self.out / "devices" / "parameters.npz") as arrays:
            first, second = torch.as_tensor(arrays["first"]), torch.as_tensor(arrays["second"])
        return Devices(self.model.design, first, second, [])

    def run_split(self, folder: Path) -> dict[str, Any]:
        """Read and split the data."""
        write_split(
            self.options, self.model.task, self.model.max_length, self.fit.seed, folder, self.out / "users.json"
        )
        return {}

    def run_central(self, folder: Path) -> dict[str, Any]:
        """Train the central model."""
        options, data = self.model, self.data
        backbone = load_backbone(
            options.model,
            options.task,
            options.n_tokens,
            len(data.labels),
            unmasked=options.unmasked,
            max_length=options.max_length,
            seed=self.fit.seed,
        )
        tokens = tokenize_data(backbone, data, options.max_length)
        design = Design(options.design, options.task, options.n_tokens, backbone.width, options.spread)
        losses = train_central(backbone, tokens, data, design, self.fit, options.lora)
        save_model(folder, backbone, new_info(backbone, design, data.labels, options.max_length))
        return {"losses": losses, "reuses": backbone.reuses}

    def run_devices(self, folder: Path) -> dict[str, Any]:
        """Fit the parameters of all users with a device; new users have the prior."""
        backbone, tokens, info = self._load("central")
        data = self.data
        users = self.known_users
        devices = train_devices(backbone, tokens, data.train, data.validation, users, self.design, self.fit)
        first, second = self.design.prior_parameters(data.users)
        first[users], second[users] = devices.first, devices.second
        arrays = {"first": first.numpy(), "second": second.numpy()}
        with (folder / "parameters.npz").open("wb") as file:
            np.savez(file, **arrays)
        for user in users:
            parameters = Parameters(self.model.design, arrays["first"][user], arrays["second"][user], info.model)
            save_parameters(folder / f"user-{user:06d}.npz", parameters)
        return {"losses": devices.losses, "users": len(users)}

    def run_cloud(self, folder: Path) -> dict[str, Any]:
        """Train the personalized model."""
        backbone, tokens, info = self._load("central")
        embed = draw_embeddings(self._load_devices())
        losses = train_cloud(backbone, tokens, self.data, embed, self.fit, self.model.lora)
        save_model(folder, backbone, info)
        return {"losses": losses}

    def _baselines_to_do(self) -> list[str]:
        names = self.table.baseline_names
        return [name for name in names if not (self.out / "baselines" / f"{name}.npz").is_file()]

    def run_baselines(self, folder: Path) -> dict[str, Any]:
        """Train the baselines, each with a file of its own."""
        data, fit, users, lora = self.data, self.fit, self.known_users, self.model.lora
        for name in self._baselines_to_do():
            backbone, tokens, _ = self._load("central")
            if name == "static":
                title, made = "static embedding", train_static(backbone, tokens, data, self.design, users, fit, lora)
            elif name == "lora":
                rank = self.table.lora_rank
                title, made = "LoRA on the device", train_lora(backbone, tokens, data, self.design, users, fit, rank)
            else:
                title, made = "user id as text", train_id_text(backbone, tokens, data, fit, lora)
            part = folder / f".{name}.part"
            save_predictions(part, {title: made})
            os.replace(part, folder / f"{name}.npz")
        return {}

    def run_evaluate(self, folder: Path) -> dict[str, Any]:
        """Predict the test with central and personalized model."""
        data, devices = self.data, self._load_devices()
        systems: dict[str, Predictions] = {}
        if self.model.task == "classify":
            ones = np.ones(len(data.test), np.int64)
            for name, label in majorities(data).items():
                systems[name] = Predictions((label == data.test.label).astype(np.int64), ones, label)
        backbone, tokens, _ = self._load("central")
        systems |= predict_central(backbone, tokens, data, self.design, devices, self.fit)
        backbone, tokens, _ = self._load("cloud")
        draws = self.table.other_draws
        personal, others = predict_cloud(backbone, tokens, data, self.design, devices, self.fit, draws)
        rows = {"user": data.test.user, "label": data.test.label, "known": data.known_test, "other_labels": others}
        save_predictions(folder / "predictions.npz", systems | personal, **rows)
        return {}

    def run_attacks(self, folder: Path) -> dict[str, Any]:
        """Attack the uploads."""
        from agentsys.trainers.idfree import attack_run

        if len(self.known_users) < 2:
            show("attacks: left out, they need at least two users with a device")
            return {}
        report = attack_run.attack_run(self.out, self.attack)
        attack_run.write_report(report, folder)
        attack_run.print_report(report)
        return {}
