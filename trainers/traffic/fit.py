"""The training loop: masked loss, early stopping on the validation part, resume, bf16, and bands from validation.

The released code of Extralonger (papers file, section 3.5) uses Adam at a constant rate of 1e-4, the Huber loss with
delta 1 in the unit of the data, and early stopping; it makes a MultiStepLR that it never steps. `--paper` is that.
Missing values are masked here.

An epoch is a pass over the training windows, or over `windows` of them that are drawn anew each time: all starting
times of a day are seen. After every epoch there is a checkpoint, from which a killed training continues to the same
weights.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agentsys.progress import Progress
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.output import last_checkpoint
from agentsys.trainers.traffic.config import QUANTILES, Loss
from agentsys.trainers.traffic.options import FitOptions
from agentsys.trainers.traffic.scaling import Forecaster, spread_origins
from agentsys.trainers.traffic.splits import Windows
from agentsys.trainers.training import allocation_errors


@dataclass
class State:
    """Where a training is: what a checkpoint holds beside weights and optimizer."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def masked_loss(forecast: Tensor, y: Tensor, mask: Tensor, loss: Loss | None) -> Tensor:
    """Mean loss of the observed targets (B, O, N); the forecast has one more axis with the quantile loss."""
    if loss == "quantile":
        error = y[..., None] - forecast
        levels = torch.tensor(QUANTILES, device=y.device)
        values = torch.maximum(levels * error, (levels - 1) * error).mean(-1)
    elif loss == "huber":
        values = functional.huber_loss(forecast, y, reduction="none", delta=1.0)
    else:
        values = (forecast - y).abs()
    return (values * mask).sum() / mask.sum().clamp(min=1)


def fit(
    model: Forecaster,
    train: Windows,
    validation: Windows,
    options: FitOptions,
    out: Path,
    *,
    checkpoint: Path | None = None,
    label: str = "training",
) -> State:
    """Train until early stopping and leave the best weights in the model. Returns the state at the end.

    Writes metrics.jsonl and a checkpoint after each epoch to `out`; continues from `checkpoint`. Raises TrainerError
    for a loss that is not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    train, validation = train.to(device), validation.to(device)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=options.rate)
    torch.manual_seed(options.seed)
    state = _load_checkpoint(checkpoint, model, optimizer) if checkpoint else State()
    metrics = _Metrics(out / "metrics.jsonl", state.step)
    if not checkpoint:
        metrics.add(0, 0, eval_loss=evaluate(model, validation, options))
    unit, total = ("seconds", options.seconds) if options.seconds else ("epochs", float(options.epochs))
    with Progress(unit, total, done=_done(state, options), step=label) as progress:
        while state.epoch < options.epochs and not _is_over(state, options):
            _set_rate(optimizer, options, state.epoch)
            loss = _train_epoch(model, optimizer, train, options, state)
            eval_loss = evaluate(model, validation, options)
            state.epoch += 1
            rate = optimizer.param_groups[0]["lr"]
            metrics.add(state.step, state.epoch, loss=loss, eval_loss=eval_loss, learning_rate=rate)
            if eval_loss < state.best_loss:
                state.best_loss, state.best_epoch = eval_loss, state.epoch
                state.best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            _save_checkpoint(out, model, optimizer, state)
            progress.update(_done(state, options))
    if state.best_weights:
        model.load_state_dict(state.best_weights)
    model.eval()
    return state


def _done(state: State, options: FitOptions) -> float:
    """Epochs, or with a time limit seconds, that are over."""
    return min(round(state.seconds), options.seconds) if options.seconds else state.epoch


def _is_over(state: State, options: FitOptions) -> bool:
    waited = state.epoch - state.best_epoch >= options.patience
    return waited or bool(options.seconds and state.seconds >= options.seconds)


def _set_rate(optimizer: torch.optim.Optimizer, options: FitOptions, epoch: int) -> None:
    """The learning rate of an epoch, divided by 10 at each milestone that has passed."""
    for group in optimizer.param_groups:
        group["lr"] = options.rate * 0.1 ** sum(epoch >= milestone for milestone in options.milestones)


def _train_epoch(
    model: Forecaster, optimizer: torch.optim.Optimizer, train: Windows, options: FitOptions, state: State
) -> float:
    """One pass over the windows of an epoch. Returns the mean loss; adds to the state's steps and seconds."""
    model.train()
    order = torch.Generator().manual_seed(options.seed * 100_003 + state.epoch)
    picked = torch.randperm(len(train), generator=order)[: options.windows or None]
    losses: list[float] = []
    started, before = time.perf_counter(), state.seconds
    for origins in train.origins[picked].split(options.batch):
        optimizer.zero_grad(set_to_none=True)
        with _autocast(train, options):
            forecast, y, mask = forward(model, train, origins)
        loss = masked_loss(forecast.float(), y, mask, options.loss)
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainerError(f"the loss is {value} at step {state.step + 1}: lower --learning-rate")
        optimizer.step()
        losses.append(value)
        state.step += 1
        state.seconds = before + time.perf_counter() - started
        if options.seconds and state.seconds >= options.seconds:
            break
    return sum(losses) / len(losses)


def forward(model: Forecaster, windows: Windows, origins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Forecast, target and mask of some windows."""
    x, y, mask, time_in, time_out = windows.batch(origins)
    return model(x, time_in, time_out, *known_of(windows, origins)), y, mask


def known_of(windows: Windows, origins: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Covariates (B, T, K) of the input and (B, O, K) of the forecast; None without any."""
    return (None, None) if windows.covariates is None else windows.batch_covariates(origins)


def evaluate(model: Forecaster, windows: Windows, options: FitOptions) -> float:
    """The mean loss over the windows of a part, or over `validation_windows` of them."""
    model.eval()
    total, count = 0.0, 0
    origins = spread_origins(windows, options.validation_windows or len(windows))
    for some in origins.split(max(options.batch, 32)):
        with torch.no_grad(), _autocast(windows, options):
            forecast, y, mask = forward(model, windows, some)
        observed = int(mask.sum())
        total += float(masked_loss(forecast.float(), y, mask, options.loss)) * observed
        count += observed
    return total / max(count, 1)


def predict(model: Forecaster, windows: Windows, origins: Tensor, batch: int = 32) -> Tensor:
    """Forecasts (W, O, N), or (W, O, N, Q) with ascending quantiles, on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    windows = windows.to(device)
    outputs = []
    for some in origins.split(batch):
        with torch.no_grad():
            forecast = forward(model, windows, some)[0].float()
        outputs.append((forecast.sort(-1).values if forecast.ndim == 4 else forecast).cpu())
    return torch.cat(outputs)


def _autocast(windows: Windows, options: FitOptions) -> Any:
    if not options.bf16:
        return nullcontext()
    return torch.autocast(windows.filled.device.type, torch.bfloat16)


class _Metrics:
    """metrics.jsonl: one line per epoch. A resumed training drops the lines after its checkpoint."""

    def __init__(self, file: Path, step: int) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if step:
            from agentsys.trainers.reporting import read_metrics  # it imports transformers

            kept = [line for line in read_metrics(file) if line["step"] <= step]
        file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def add(self, step: int, epoch: int, **values: float) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "epoch": epoch, **values}) + "\n")


def _save_checkpoint(out: Path, model: Forecaster, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write checkpoint-<step>, then remove the one before. trainer_state.json is written last: it makes it complete."""
    before = last_checkpoint(out)
    folder = out / f"checkpoint-{state.step}"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best_weights": state.best_weights,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(content, folder / "state.pt")
    numbers = {name: getattr(state, name) for name in _NUMBERS}
    (folder / "trainer_state.json").write_text(json.dumps(numbers), encoding="utf-8")
    if before and before != folder:
        shutil.rmtree(before)


_NUMBERS: Final = ("epoch", "step", "seconds", "best_loss", "best_epoch")


def _load_checkpoint(folder: Path, model: Forecaster, optimizer: torch.optim.Optimizer) -> State:
    """Put the weights of a checkpoint in place. Returns where the training was."""
    numbers: Mapping[str, Any] = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    content = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random"])
    if torch.cuda.is_available() and content["random_cuda"]:
        torch.cuda.set_rng_state_all(content["random_cuda"])
    return State(**numbers, best_weights=content["best_weights"])


def memory_errors(batch: int) -> AbstractContextManager[None]:
    """Turn a failed allocation into a TrainerError that names the options to change."""
    return allocation_errors(f"out of memory: lower --batch (now {batch}), --in-horizon or --size, or turn on --bf16")


def coverage_factor(forecast: Tensor, y: Tensor, mask: Tensor, independent: float, share: float = 0.8) -> float:
    """By which the distances of low and high from the median must be multiplied to cover `share` of new targets.

    `forecast` is (..., 3) with ascending quantiles. This is split conformal prediction with one factor: quantile loss
    alone gives bands that are too narrow on later data. For new targets the factor is the quantile at
    share (1 + 1 / n) of n independent calibration samples (Vovk et al., 2005; Lei et al., 2018). Neighboring windows
    share nearly all steps: n is `independent`, the number of windows that would fit side by side. With few of them the
    quantile is at most at (1 + share) / 2: the largest errors are often outages of a sensor.
    """
    low, median, high = forecast.unbind(-1)
    width = torch.where(y < median, median - low, high - median).clamp(min=1e-6)
    ratios = ((y - median).abs() / width)[mask].numpy()
    level = min(share * (1 + 1 / independent), (1 + share) / 2)
    return float(np.quantile(ratios, level)) if len(ratios) else 1.0


def residual_bands(forecast: Tensor, y: Tensor, mask: Tensor, time_of_day: Tensor, steps_per_day: int) -> Tensor:
    """(steps_per_day, N, 2) the 10 and 90 % quantiles of y - forecast by time of day and sensor.

    They are the bands of a model without quantiles. `forecast`, `y` and `mask` are (W, O, N), `time_of_day` is (W, O).
    A time of day without a target gets 0.
    """
    residual = torch.where(mask, y - forecast, torch.nan)
    bands = torch.zeros(steps_per_day, y.shape[-1], 2)
    for slot in range(steps_per_day):
        chosen = residual[time_of_day == slot]
        if len(chosen):
            quantiles = torch.tensor((QUANTILES[0], QUANTILES[-1]))
            bands[slot] = torch.nan_to_num(torch.nanquantile(chosen, quantiles, dim=0)).T
    return bands
