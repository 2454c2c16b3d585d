"""A model folder is read back as it was written; what is not one is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.traffic.config import NETWORKS, ExtralongerConfig, NetworkName, Shape
from agentsys.trainers.traffic.fit import predict
from agentsys.trainers.traffic.folder import ModelInfo, TrafficModel, load_model, make_forecaster, save_model
from agentsys.trainers.traffic.splits import Parts, split_windows
from tests.support.traffic_models import TINY, make_zeros, noisy_week


def make_model(network: NetworkName = "extralonger", config: ExtralongerConfig = TINY) -> tuple[TrafficModel, Parts]:
    series = noisy_week(days=20)
    parts = split_windows(series, 8, 6)
    shape = Shape(3, 8, 6, 24, channels=2, outputs=3)
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    forecaster = make_forecaster(network, shape, mask, config, "ridge", False)
    forecaster.fit_scaling(parts.train, parts.validation, parts.train_steps)
    info = ModelInfo(network, shape, config, "ridge", series.sensors, 3600, "UTC", {}, {}, nonnegative=True)
    return TrafficModel(info, forecaster.eval(), mask, torch.zeros(0)), parts


@pytest.mark.parametrize("network", NETWORKS)
def test_a_model_forecasts_the_same_after_it_was_saved(network: NetworkName, tmp_path: Path) -> None:
    config = replace(TINY, routes=("mixed", "spatial"), attention="local", fusion="learned")
    model, parts = make_model(network, config)
    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.info == model.info and loaded.name == f"{network} (ridge)"
    origins = parts.test.origins[:3]
    torch.testing.assert_close(
        predict(loaded.forecaster, parts.test, origins), predict(model.forecaster, parts.test, origins)
    )
    assert torch.equal(loaded.mask, model.mask)


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TrainerError, match=r"has no model.json: give the output folder of `agentsys train extralonger`"
    ):
        load_model(tmp_path)
    save_model(tmp_path, make_model()[0])
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(TrainerError, match=r"damaged.*train"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    content = json.loads((tmp_path / "model.json").read_text())
    for change in ({"network": "other"}, {"future": 1}, {"shape": {"sensors": 3}}):
        (tmp_path / "model.json").write_text(json.dumps(content | change))
        with pytest.raises(TrainerError, match=r"damaged or of another version .*: train it again"):
            load_model(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(TrainerError, match="damaged or of another version"):
        load_model(tmp_path)


def test_bands_are_widened_by_the_factor_and_counts_are_not_negative() -> None:
    model, _ = make_zeros(noisy_week(), "plain")
    model = replace(model, info=replace(model.info, band_factor=2.0))
    bands = model.with_bands(torch.tensor([[[[4.0, 6.0, 7.0]], [[0.5, 2.0, 9.0]]]]), torch.zeros(1, 2, 2).long())
    assert bands[0, :, 0].tolist() == [[2.0, 6.0, 8.0], [0.0, 2.0, 16.0]]


def test_a_model_without_quantiles_has_the_bands_of_its_time_of_day() -> None:
    model, _ = make_zeros(noisy_week(sensors=1), "plain", outputs=1)
    bands = torch.zeros(24, 1, 2)
    bands[5], bands[6] = torch.tensor([-2.0, 3.0]), torch.tensor([1.0, 2.0])
    time = torch.tensor([[[5, 0], [6, 0]]])
    result = replace(model, bands=bands).with_bands(torch.full((1, 2, 1), 10.0), time)
    assert result[0, :, 0].tolist() == [[8.0, 10.0, 13.0], [10.0, 10.0, 12.0]]  # the forecast is inside its band
