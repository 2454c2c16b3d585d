"""The training loop: losses, early stopping, learning rate, time limit, resume after kill -9, bands."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.output import last_checkpoint
from agentsys.trainers.traffic import fit as fitting
from agentsys.trainers.traffic.config import ExtralongerConfig, InputKind, Shape
from agentsys.trainers.traffic.fit import (
    coverage_factor,
    evaluate,
    fit,
    masked_loss,
    memory_errors,
    predict,
    residual_bands,
)
from agentsys.trainers.traffic.folder import make_forecaster
from agentsys.trainers.traffic.options import FitOptions
from agentsys.trainers.traffic.scaling import Forecaster
from agentsys.trainers.traffic.splits import Parts, split_windows
from tests.support.traffic_models import noisy_week

DROPPING = ExtralongerConfig(8, 4, 4, 6, 16, 2, dropout=0.2)


def prepare(options: FitOptions, kind: InputKind = "plain") -> tuple[Forecaster, Parts]:
    """A network with dropout, so that the random state matters."""
    parts = split_windows(noisy_week(days=20), 12, 6)
    torch.manual_seed(options.seed)
    shape = Shape(3, 12, 6, 24, channels=2, outputs=options.outputs)
    model = make_forecaster("extralonger", shape, torch.eye(3, dtype=torch.bool), DROPPING, kind, False)
    model.fit_scaling(parts.train, parts.validation, parts.train_steps)
    return model, parts


def train(out: Path, options: FitOptions, **more: Any) -> tuple[Forecaster, fitting.State]:
    model, parts = prepare(options)
    return model, fit(model, parts.train, parts.validation, options, out, **more)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_losses_by_hand() -> None:
    y, mask = torch.tensor([[[10.0, 4.0, 99.0]]]), torch.tensor([[[True, True, False]]])
    forecast = torch.tensor([[[13.0, 3.5, 0.0]]])
    assert masked_loss(forecast, y, mask, "mae") == pytest.approx((3 + 0.5) / 2)
    assert masked_loss(forecast, y, mask, "huber") == pytest.approx((3 - 0.5 + 0.5 * 0.25) / 2)
    quantiles = torch.tensor([[[[8.0, 9.0, 12.0], [4.0, 4.0, 4.0], [0.0, 0.0, 0.0]]]])
    assert masked_loss(quantiles, y, mask, "quantile") == pytest.approx((0.1 * 2 + 0.5 * 1 + 0.1 * 2) / 3 / 2)
    assert masked_loss(forecast, y, mask & False, "mae") == 0


def test_training_lowers_the_validation_loss_and_keeps_the_best_weights(tmp_path: Path) -> None:
    options = FitOptions(epochs=6, windows=128, learning_rate=1e-2)
    model, state = train(tmp_path, options)
    losses = [line["eval_loss"] for line in lines(tmp_path)]
    assert losses[0] > 2 * min(losses) and state.best_loss == min(losses[1:])
    _, parts = prepare(options)
    assert evaluate(model, parts.validation, options) == pytest.approx(state.best_loss, rel=1e-5)
    quantiles = predict(model, parts.validation, parts.validation.origins[:4])
    assert (quantiles.diff(dim=-1) >= 0).all()


def test_the_training_stops_where_the_validation_loss_does_not_fall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([9.0, 5.0, 4.0, 4.5, 4.2, 4.1, 3.0])
    monkeypatch.setattr(fitting, "evaluate", lambda *rest: next(values))
    _, state = train(tmp_path, FitOptions(epochs=20, patience=3, windows=16))
    assert (state.epoch, state.best_epoch, state.best_loss) == (5, 2, 4.0)


def test_the_learning_rate_is_stepped_at_milestones(tmp_path: Path) -> None:
    train(tmp_path, FitOptions(epochs=4, windows=16, learning_rate=1e-3, milestones=[1, 3]))
    rates = [line["learning_rate"] for line in lines(tmp_path)[1:]]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5])


def test_an_epoch_draws_other_windows_of_all_starting_times() -> None:
    seen: list[set[int]] = []
    options = FitOptions(windows=100, seed=1)
    _, parts = prepare(options)
    for epoch in range(2):
        order = torch.Generator().manual_seed(options.seed * 100_003 + epoch)
        picked = torch.randperm(len(parts.train), generator=order)[: options.windows]
        seen.append(set(picked.tolist()))
        assert set((parts.train.origins[picked] % 24).tolist()) == set(range(24))
    assert len(seen[0]) == 100 and seen[0] != seen[1]


def test_a_time_limit_ends_the_training(tmp_path: Path) -> None:
    _, state = train(tmp_path, FitOptions(epochs=1000, patience=1000, seconds=0.05))
    assert state.epoch == 1 and state.seconds >= 0.05 and state.step < 20


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"the loss is (nan|inf) at step \d+: lower --learning-rate"):
        train(tmp_path, FitOptions(epochs=3, learning_rate=1e30))


def test_bfloat16_gives_nearly_the_same_loss(tmp_path: Path) -> None:
    options = FitOptions(seed=3)
    model, parts = prepare(options)
    exact = evaluate(model, parts.validation, options)
    assert evaluate(model, parts.validation, FitOptions(bf16=True)) == pytest.approx(exact, rel=0.02)
    _, state = train(tmp_path, FitOptions(epochs=1, windows=64, bf16=True))
    assert state.best_loss < 1.5 * exact


def _train_and_die(out: Path, options: FitOptions) -> None:
    """Train, and be killed in the third epoch, after its line of metrics and before its checkpoint."""
    torch.set_num_threads(1)
    save = fitting._save_checkpoint

    def save_or_die(folder: Path, model: Any, optimizer: Any, state: fitting.State) -> None:
        if state.epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder, model, optimizer, state)

    fitting._save_checkpoint = save_or_die
    train(out, options)


def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    options = FitOptions(epochs=5, windows=64, learning_rate=3e-3, milestones=[4])
    calm, calm_state = train(tmp_path / "calm", options)
    process = multiprocessing.get_context("spawn").Process(target=_train_and_die, args=(tmp_path / "killed", options))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    checkpoint = last_checkpoint(tmp_path / "killed")
    assert checkpoint and checkpoint.name == "checkpoint-8" and len(lines(tmp_path / "killed")) == 4
    torch.rand(5)  # the random state is that of the checkpoint
    resumed, state = train(tmp_path / "killed", options, checkpoint=checkpoint)
    assert lines(tmp_path / "killed") == lines(tmp_path / "calm")
    assert (state.best_epoch, state.step) == (calm_state.best_epoch, calm_state.step)
    for name, value in calm.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=0, rtol=0)
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-20"]


def test_the_papers_setting() -> None:
    options, ours = FitOptions(paper=True), FitOptions()
    assert (options.learning_rate, options.loss, options.windows, options.outputs) == (1e-4, "huber", 0, 1)
    assert (ours.loss, ours.outputs) == ("quantile", 3)
    assert FitOptions(paper=True, loss="mae").loss == "mae"


@pytest.mark.parametrize(
    ("option", "message"),
    [({"epochs": 0}, "--epochs 0"), ({"batch": 0}, "--batch 0"), ({"learning_rate": 0.0}, "--learning-rate 0.0"),
     ({"windows": -1}, "give 0 or more")],
)  # fmt: skip
def test_numbers_that_cannot_train_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        FitOptions(**option)


def test_memory_errors_name_the_options() -> None:
    with pytest.raises(TrainerError, match=r"out of memory: lower --batch \(now 16\)"), memory_errors(16):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(16):
        raise RuntimeError("shapes do not fit")


def test_bands_are_widened_to_cover_80_percent() -> None:
    torch.manual_seed(0)
    y = torch.randn(20_000)
    narrow = torch.tensor([-0.5, 0.0, 0.7]).expand(20_000, 3)
    observed = torch.ones(20_000, dtype=torch.bool)
    for independent, share in ((20_000, 0.8), (24, 0.8 * 25 / 24), (8, 0.9), (1, 0.9)):
        factor = coverage_factor(narrow, y, observed, independent)
        inside = (y >= -0.5 * factor) & (y <= 0.7 * factor)
        assert float(inside.float().mean()) == pytest.approx(share, abs=1e-3) and factor > 1.5
    assert coverage_factor(narrow, y, ~observed, 24) == 1.0


def test_bands_without_quantiles_are_those_of_the_residuals_by_time_of_day() -> None:
    generator = np.random.default_rng(0)
    times = torch.arange(4).repeat(500, 3)  # (500, 12): four times of the day
    scale = torch.tensor([0.0, 1.0, 2.0, 3.0])[times][..., None]
    y = scale * torch.from_numpy(generator.uniform(-1, 1, (500, 12, 1))).float()
    mask = torch.ones_like(y, dtype=torch.bool)
    mask[:, ::4] = False
    bands = residual_bands(torch.zeros_like(y), y, mask, times, 5)
    assert bands.shape == (5, 1, 2)
    torch.testing.assert_close(bands[1:4, 0, 1], 0.8 * torch.tensor([1.0, 2.0, 3.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(bands[1:4, 0, 0], -0.8 * torch.tensor([1.0, 2.0, 3.0]), atol=0.1, rtol=0)
    assert (bands[[0, 4]] == 0).all()  # nothing observed, no such time
